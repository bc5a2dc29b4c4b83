"""Claims about `longcat chat --url`: what goes over the wire, and what a server may do wrong."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from longcat.chat import CallDelta, TextDelta
from longcat.cli.main import main
from longcat.cli.talk.partner import Turn
from longcat.cli.talk.remote import RemotePartner
from longcat.cli.talk.session import Session


class Stub(ThreadingHTTPServer):
    """A server that says what it is told to."""

    daemon_threads = True
    key = "secret"
    events: list[Any]
    status = 200
    asked: list[tuple[str, Any]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.headers["Authorization"] != f"Bearer {self.server.key}":
            self._json(401, {"error": {"message": "a key is needed", "code": "invalid_api_key"}})
            return
        self._json(200, {"object": "list", "data": [{"id": "nano"}, {"id": "other"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        events = self.server.events.pop(0)
        if isinstance(events, dict):
            self._json(400, events)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for event in events:
            if event is None:  # it dies
                return
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        if events and "error" not in events[-1]:
            self.wfile.write(b"data: [DONE]\n\n")

    def _json(self, status: int, document: Any) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())


@pytest.fixture
def server() -> Iterator[Stub]:
    stub = Stub(("127.0.0.1", 0), Handler)
    stub.events, stub.asked = [], []
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield stub
    stub.shutdown()
    thread.join()
    stub.server_close()


USAGE = {
    "completion_tokens": 7,
    "completion_tokens_details": {
        "accepted_prediction_tokens": 3,
        "rejected_prediction_tokens": 1,
    },
}


def chunk(finish: str | None = None, **delta: Any) -> Any:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def session_of(text: str, **settings: Any) -> Session:
    session = Session()
    session.ask(text)
    session.change(**settings)
    return session


def test_a_reply_streams_and_its_usage_is_told(server: Stub) -> None:
    server.events = [[chunk(role="assistant", content=""), chunk(content="Hi"),
                      chunk(content="!"), chunk("stop"),
                      {"choices": [], "usage": USAGE}]]  # fmt: skip
    partner = RemotePartner(server.url + "/v1/", "secret", "other")
    pieces = list(partner.reply(session_of("Hello", seed=3, temperature=0.5)))
    assert [piece.delta for piece in pieces] == [TextDelta(text="Hi"), TextDelta(text="!")]
    assert (partner.turn.tokens, partner.finished) == (7, True)
    assert (partner.turn.drafted, partner.turn.accepted) == (4, 3)
    path, body = server.asked[0]
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert (body["model"], body["seed"], body["temperature"]) == ("other", 3, 0.5)
    assert "max_tokens" not in body


def test_a_reply_without_usage_or_stopped_half_way_tells_its_time_alone(server: Stub) -> None:
    server.events = [[chunk(content="Hi"), chunk("stop")], [chunk(content="a"), chunk(content="b")]]
    partner = RemotePartner(server.url, "secret")
    list(partner.reply(session_of("Hello")))
    assert "tokens" not in partner.turn.words()
    pieces = partner.reply(session_of("Hello"))
    partner.turn = Turn(tokens=7)
    next(pieces)
    pieces.close()
    assert partner.turn.tokens is None
    assert partner.turn.seconds > 0
    assert "tokens" not in (Turn() + partner.turn).words()


def test_calls_stream_too(server: Stub) -> None:
    first = {"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}
    more = {"index": 0, "function": {"arguments": "{}"}}
    server.events = [[chunk(tool_calls=[first]), chunk(tool_calls=[more]), chunk("tool_calls")]]
    partner = RemotePartner(server.url, "secret")
    deltas = [piece.delta for piece in partner.reply(session_of("x"))]
    assert deltas == [CallDelta(index=0, name="f"), CallDelta(index=0, arguments="{}")]


def test_a_model_without_a_chat_format_continues_the_text(server: Stub) -> None:
    refusal = {"error": {"message": "no chat template", "code": "no_chat_template"}}
    server.events = [refusal, [{"choices": [{"text": "a, b"}]}], [{"choices": [{"text": ")"}]}]]
    partner = RemotePartner(server.url, "secret")
    session = session_of("def f(")
    assert [piece.delta for piece in partner.reply(session)] == [TextDelta(text="a, b")]
    assert not partner.chats
    assert list(partner.reply(session))
    assert [path for path, _ in server.asked] == ["/v1/chat/completions", *["/v1/completions"] * 2]
    assert server.asked[1][1]["prompt"] == "def f("


def test_a_whole_talk_with_a_server(
    server: Stub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.events = [[chunk(content="One.")], [chunk(content="Two.")]]
    monkeypatch.setenv("LONGCAT_API_KEY", "secret")
    monkeypatch.setattr("sys.stdin", io.StringIO("a\nb\n"))
    assert main(["chat", "--url", server.url, "--system", "S"]) == 0
    assert capsys.readouterr().out == "One.\nTwo.\n"
    roles = [message["role"] for message in server.asked[1][1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        ({"error": {"message": "too long", "param": "messages"}}, r"refuses \(400\): too long"),
        ({"nonsense": 1}, r"refuses \(400\)"),
        ([chunk(content="a"), {"error": {"message": "it died"}}], "broke off: it died"),
        ([chunk(content="a"), None], "broke off: the server closed it before its end"),
    ],
)
def test_what_goes_wrong_is_one_sentence(server: Stub, events: Any, sentence: str) -> None:
    server.events = [events]
    partner = RemotePartner(server.url, "secret")
    with pytest.raises(ValueError, match=sentence):
        list(partner.reply(session_of("x")))


def test_a_wrong_key_and_an_unknown_model_are_refused_at_once(server: Stub) -> None:
    with pytest.raises(ValueError, match=r"refuses \(401\): a key is needed"):
        RemotePartner(server.url, "wrong")
    with pytest.raises(ValueError, match="has no model 'llama'; it has nano, other"):
        RemotePartner(server.url, "secret", "llama")


@pytest.mark.slow
def test_a_served_model_says_what_it_says_here(
    serve: Any,
    chat_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = ["--model", str(chat_checkpoint)]
    there = ["--url", serve(chat_checkpoint, "--api-key", "secret").url, "--api-key", "secret"]
    replies = []
    for partner in (here, there):
        monkeypatch.setattr("sys.stdin", io.StringIO("hello\nand?\n"))
        assert main(["chat", *partner, "--seed", "3", "--max-tokens", "24"]) == 0
        replies.append(capsys.readouterr().out)
    assert replies[0] == replies[1]
    assert len(replies[0]) > 10
