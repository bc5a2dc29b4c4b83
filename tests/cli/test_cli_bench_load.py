"""Claims about `longcat bench serve --url`: what is sent and timed, and what counts as lost."""

import itertools
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from longcat.cli import main
from longcat.cli.benchmarks.load.call import Target, call
from longcat.cli.benchmarks.load.report import MEASURES, percentiles, show
from longcat.cli.benchmarks.load.traffic import Traffic

DELAY, GAP, TOKENS = 0.03, 0.01, 4


class Stub(BaseHTTPRequestHandler):
    """Streams TOKENS pieces: DELAY before the first, GAP between them; `fault` spoils it."""

    protocol_version = "HTTP/1.1"
    fault = ""
    key = ""
    seen: list[dict[str, Any]]
    open_now = 0
    most_open = 0

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self._answer(401, b"{}")
        else:
            self._answer(200, b'{"data": [{"id": "stub"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        cls = type(self)
        cls.seen.append(body)
        if self.fault == "busy":
            self._answer(429, b"{}")
            return
        cls.open_now += 1
        cls.most_open = max(cls.most_open, cls.open_now)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self._event({"choices": [{"text": "", "finish_reason": None}]})
        time.sleep(DELAY)
        for _ in range(TOKENS):
            self._event({"choices": [{"text": "a", "finish_reason": None}]})
            time.sleep(GAP)
        cls.open_now -= 1
        self.close_connection = True
        if self.fault == "breaks off":
            return
        if self.fault == "fails":
            self._event({"error": {"message": "no"}})
            return
        if self.fault != "no reason":
            self._event({"choices": [{"text": "", "finish_reason": "length"}]})
        usage = {"prompt_tokens": 9, "completion_tokens": TOKENS, "total_tokens": 9 + TOKENS}
        self._event({"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, document: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(document).encode() + b"\n\n")
        self.wfile.flush()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def stub() -> Iterator[tuple[str, type[Stub]]]:
    handler = type("OneStub", (Stub,), {"seen": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def load(url: str, *more: str) -> list[str]:
    return ["bench", "serve", "--url", url, "--prompt-words", "3", "--json", *more]


def test_waits_and_throughput_are_those_of_the_server(
    stub: tuple[str, type[Stub]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, handler = stub
    more = ("--requests", "6", "--concurrency", "2", "--max-tokens", "7", "--out", str(tmp_path))
    assert main.main(load(url, *more)) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "serve-load.json").read_text(encoding="utf-8")) == printed
    assert (printed["requests"], printed["ended_well"], printed["errors"]) == (6, 6, {})
    assert (printed["prompt_tokens"], printed["tokens"]) == (54, 6 * TOKENS)
    # The empty first event is no token, and the wait for the first one is no part of the others'.
    assert printed["ttft_ms"]["p50"] >= 1e3 * DELAY
    assert printed["gap_ms"]["p50"] >= 1e3 * GAP
    assert printed["latency_ms"]["p50"] >= printed["ttft_ms"]["p50"]
    assert printed["tokens_per_s"] == pytest.approx(6 * TOKENS / printed["seconds"], rel=0.01)
    assert handler.most_open <= 2
    assert len({body["prompt"] for body in handler.seen}) == 6, "no prompt is asked twice"
    assert all(body["max_tokens"] == 7 and body["stream"] for body in handler.seen)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("busy", "status 429"),
        ("breaks off", "stream broke off"),
        ("fails", "error in the stream"),
        ("no reason", "ended without a reason"),
    ],
)
def test_what_does_not_end_well_is_counted_by_kind_and_not_timed(
    stub: tuple[str, type[Stub]], fault: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url, handler = stub
    handler.fault = fault
    assert main.main(load(url, "--requests", "2")) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["ended_well"], printed["errors"]) == (0, {error: 2})
    assert printed["ttft_ms"] is None


def test_arrivals_at_a_rate_do_not_wait_for_answers() -> None:
    traffic = Traffic(requests=2000, rate=50.0, seed=3)
    times = traffic.arrivals()
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert times[0] == 0.0
    assert min(gaps) >= 0
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 50, rel=0.1)
    assert times == traffic.arrivals(), "the same seed gives the same moments"
    assert Traffic(requests=3).arrivals() == [0.0] * 3


def test_a_late_sender_does_not_hide_the_wait(stub: tuple[str, type[Stub]]) -> None:
    url, _ = stub
    target = Target(url=url, model="stub")
    late = call(target, Traffic(words=1).body(0, "stub"), time.perf_counter() - 1.0)
    assert late.error is None
    assert late.first is not None
    assert late.first > 1.0


def test_the_table_shows_what_was_measured(
    stub: tuple[str, type[Stub]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = stub
    arguments = ["bench", "serve", "--url", url, "--requests", "2", "--rate", "100"]
    assert main.main(arguments) == 0
    shown = capsys.readouterr().out
    for word in ("time to first token", "per token after it", "p99", "2 of 2", "tokens/s"):
        assert word in shown
    assert "…" not in shown


def test_a_narrow_terminal_cuts_no_number(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    waits = percentiles([12.345] * 3)
    rates = {"model": "m", "requests": 3, "seconds": 1.0, "requests_per_s": 3.0, "tokens_per_s": 9}
    show({**rates, "ended_well": 3, "errors": {}} | dict.fromkeys(MEASURES, waits))
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert shown.count("12,345") == len(MEASURES) * 6


def test_a_key_is_sent_and_its_lack_is_one_sentence(
    stub: tuple[str, type[Stub]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, handler = stub
    handler.key = "sesame"
    assert main.main(load(url)) == 2
    assert "wants another key" in capsys.readouterr().err
    assert main.main(load(url, "--api-key", "sesame", "--requests", "1")) == 0


@pytest.mark.parametrize(
    ("url", "sentence"),
    [("127.0.0.1:1", "must begin with http"), ("http://127.0.0.1:1", "no server answers")],
)
def test_no_server_is_one_sentence(
    url: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(load(url)) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize("choice", [["--only", "decode"], ["--rows", "bench"]])
def test_what_chooses_among_our_own_rows_is_refused_with_a_server(
    choice: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["bench", "serve", "--url", "http://127.0.0.1:9", *choice]) == 2
    assert "without --url" in capsys.readouterr().err


def test_percentiles_are_in_milliseconds() -> None:
    assert percentiles([]) is None
    found = percentiles([0.001 * n for n in range(1, 101)])
    assert found is not None
    assert (found["p50"], found["max"], found["mean"]) == (50.5, 100.0, 50.5)
