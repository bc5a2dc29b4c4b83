"""Claims about `longcat chat`: what is said and kept, commands, stops, pipes, refusals."""

import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from longcat.chat import CallDelta, TextDelta
from longcat.cli.main import main
from longcat.cli.talk.commands import COMMANDS, Talk, run
from longcat.cli.talk.lines import read_message
from longcat.cli.talk.loop import Loop
from longcat.cli.talk.partner import Piece, Turn
from longcat.cli.talk.session import Session, Settings
from longcat.cli.ui.theme import make_console

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
INTERRUPT = object()


class Scripted:
    """Answers with what the script says: texts, pieces, an interrupt, an error."""

    name, chats, drafts = "scripted", True, True

    def __init__(self, *replies: Sequence[Any]) -> None:
        self.replies = list(replies)
        self.asked: list[Any] = []
        self.turn, self.finished = Turn(), True

    def reply(self, session: Session) -> Iterator[Piece]:
        self.asked.append([dict(m) for m in session.messages])
        for said in self.replies.pop(0):
            if said is INTERRUPT:
                raise KeyboardInterrupt
            if isinstance(said, Exception):
                raise said
            self.turn = Turn(tokens=1, seconds=1.0, drafted=2, accepted=1)
            yield said if isinstance(said, Piece) else Piece(delta=TextDelta(text=said))


def feed(*lines: str) -> Callable[[str], str]:
    waiting = list(lines)

    def read(prompt: str) -> str:
        if not waiting:
            raise EOFError
        return waiting.pop(0)

    return read


def converse(
    partner: Scripted, *lines: str, interactive: bool = False, file: Path | None = None
) -> tuple[Talk, str, str]:
    """A whole run: the talk it leaves, what went to standard output, and the notes."""
    out, notes = io.StringIO(), io.StringIO()
    talk = Talk(partner=partner, session=Session(), file=file)
    consoles = [make_console(file=place, width=80) for place in (out, notes)]
    Loop(talk, *consoles, feed(*lines), interactive).run()
    return talk, out.getvalue(), notes.getvalue()


def test_every_message_is_asked_with_all_that_was_said_before() -> None:
    partner = Scripted(["Hi", "!"], ["Fine."])
    talk, out, _ = converse(partner, "Hello", "How are you?")
    assert out == "Hi!\nFine.\n"
    assert [m["content"] for m in talk.session.messages] == [
        "Hello",
        "Hi!",
        "How are you?",
        "Fine.",
    ]
    assert [m["role"] for m in partner.asked[1]] == ["user", "assistant", "user"]


def test_a_stopped_reply_is_kept_as_far_as_it_came_and_the_session_goes_on() -> None:
    partner = Scripted(["Once", INTERRUPT], [INTERRUPT], ["Yes."])
    talk, _, notes = converse(partner, "Tell", "Silent?", "Still there?", interactive=True)
    assert [m["content"] for m in talk.session.messages] == ["Tell", "Once", "Still there?", "Yes."]
    assert "stopped; what was said stays" in notes


@pytest.mark.parametrize("finished", [False, True])
def test_a_reply_that_met_its_limit_is_told_to_be_cut_off(finished: bool) -> None:
    partner = Scripted(["Once upon a"])
    partner.finished = finished
    _, _, notes = converse(partner, "Tell", interactive=True)
    assert ("cut off; /max_tokens allows more" in notes) != finished
    assert "stopped" not in notes


def test_a_mistake_is_told_on_a_terminal_and_ends_a_pipe() -> None:
    said = [ValueError("chat: it is too long")]
    talk, _, notes = converse(Scripted(said, ["Ok."]), "a", "/nonsense", "b", interactive=True)
    assert "chat: it is too long" in notes
    assert "there is no command /nonsense; /help lists them" in notes
    assert [m["content"] for m in talk.session.messages] == ["b", "Ok."]
    with pytest.raises(ValueError, match="it is too long"):
        converse(Scripted(said), "a")


def test_retry_asks_the_question_that_failed_and_takes_no_reply_back() -> None:
    partner = Scripted(["One."], [ValueError("chat: no server answers")], ["Two."], ["Three."])
    talk, _, _ = converse(partner, "a", "b", "/retry", "/retry", interactive=True)
    assert [m["content"] for m in talk.session.messages] == ["a", "One.", "b", "Three."]


def test_what_a_server_says_of_a_mistake_moves_no_cursor() -> None:
    said = [ValueError("chat: the server refuses (400): \x1b[2Jgone")]
    _, _, notes = converse(Scripted(said), "a", interactive=True)
    assert "refuses (400): \N{REPLACEMENT CHARACTER}[2Jgone" in notes
    assert "\x1b" not in notes


def test_a_session_is_saved_after_every_reply_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    partner = Scripted(["One."], ["Two."])
    talk, _, _ = converse(partner, "/system Be brief.", "/seed 7", "a", "b", file=file)
    again = Session.load(file)
    assert again == talk.session
    assert again.settings == Settings(seed=7)
    assert [m["content"] for m in again.messages] == ["Be brief.", "a", "One.", "b", "Two."]
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"], "no temporary file is left"


def test_calls_are_shown_and_answered_and_kept_with_their_ids(tmp_path: Path) -> None:
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]))
    calls = [CallDelta(index=0, name="add"), CallDelta(index=0, arguments='{"a": 1'),
             CallDelta(index=0, arguments="}")]  # fmt: skip
    partner = Scripted(["I add."] + [Piece(delta=call) for call in calls], ["It is 2."])
    talk, out, _ = converse(partner, f"/tools {tmp_path}/tools.json", "1+1?", "2")
    assert 'I add.\n\ncall of add: {"a": 1}\n' in out
    call = talk.session.messages[1]["tool_calls"][0]
    assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert talk.session.messages[2] == {"role": "tool", "content": "2", "tool_call_id": call["id"]}
    talk.session.save(tmp_path / "talk.json")
    assert Session.load(tmp_path / "talk.json") == talk.session


def test_calls_that_are_taken_back_are_text() -> None:
    pieces = [CallDelta(index=0, name="f"), TextDelta(text="<call>f", withdraws=True)]
    talk, _, _ = converse(Scripted([Piece(delta=d) for d in pieces]), "x")
    assert talk.session.messages[1] == {"role": "assistant", "content": "<call>f"}


def test_commands_change_what_they_name_and_help_lists_them_all() -> None:
    talk = Talk(partner=Scripted(), session=Session())
    shown = run(talk, "/help")
    assert all(f"/{name}" in shown for name in COMMANDS)
    for line, name, value in [
        ("/temperature 0.5", "temperature", 0.5),
        ("/top_p 0.9", "top_p", 0.9),
        ("/seed 3", "seed", 3),
        ("/max_tokens 5", "max_tokens", 5),
        ("/seed off", "seed", None),
        ("/draft off", "draft", False),
        ("/draft", "draft", True),
    ]:
        run(talk, line)
        assert getattr(talk.session.settings, name) == value, line
    run(talk, "/colour")
    assert talk.colour
    assert "temperature 0.5" in run(talk, "/stats")
    assert "max_tokens 5, draft on" in run(talk, "/stats")


def test_reset_forgets_all_but_the_system_message_and_retry_asks_again() -> None:
    partner = Scripted(["1"], ["2"], ["3"])
    talk, _, _ = converse(partner, "/system S", "a", "/retry", "b")
    assert [m["content"] for m in talk.session.messages] == ["S", "a", "2", "b", "3"]
    run(talk, "/reset")
    assert [m["content"] for m in talk.session.messages] == ["S"]
    with pytest.raises(ValueError, match="nothing has been asked yet"):
        run(talk, "/retry")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/temperature hot", "temperature must be a number, got 'hot'"),
        ("/temperature -1", "temperature must be 0"),
        ("/top_p 2", "top_p must be in"),
        ("/draft maybe", "/draft takes on or off, got 'maybe'"),
        ("/save", "say where"),
        ("/load", "say what"),
    ],
)
def test_commands_refuse_what_they_cannot_take(line: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run(Talk(partner=Scripted(), session=Session()), line)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"version": 2}', '{"version": 1, "messages": [3]}',
     '{"version": 1, "messages": [{"role": "robot", "content": "x"}]}',
     '{"version": 1, "settings": {"temperature": "hot"}}',
     '{"version": 1, "settings": {"mood": 1}}', '{"version": 1, "messages": {}}'],
)  # fmt: skip
def test_a_file_that_is_no_saved_chat_is_refused_with_its_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is no saved chat"):
        Session.load(tmp_path / "x.json")
    assert main(["chat", "--session", str(tmp_path / "x.json")]) == 2


def test_a_message_may_have_several_lines() -> None:
    assert read_message(feed("a\\", "b\\", "c")) == "a\nb\nc"
    assert read_message(feed('"""', "a", "", "b", '"""')) == "a\n\nb"
    assert read_message(feed('"""a', 'b"""')) == "a\nb"
    assert read_message(feed('"""a"""')) == "a"
    assert read_message(feed('"""', "cut off")) == "cut off"


def test_a_pipe_gets_the_replies_and_nothing_else(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/stats\n"))
    argv = ["chat", "--model", str(tiny_checkpoint), "--max-tokens", "5", "--temperature", "0"]
    assert main(argv) == 0
    shown = capsys.readouterr()
    assert "\x1b" not in shown.out
    assert "messages" in shown.err
    assert "messages" not in shown.out
    main(["generate", "--model", str(tiny_checkpoint), "--prompt", "hello", "--max-tokens", "5"])
    assert capsys.readouterr().out == "hello" + shown.out


def test_bytes_that_are_no_text_are_replaced(
    chat_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stray = io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8", errors="surrogateescape")
    monkeypatch.setattr("sys.stdin", stray)
    argv = ["--model", str(chat_checkpoint), "--max-tokens", "3", "--system", os.fsdecode(b"\xfe")]
    assert main(["chat", *argv]) == 0
    assert main(["generate", "--chat", "--prompt", "x", *argv]) == 0
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--model", "nowhere"], "no model 'nowhere'"),
        (["--temperature", "-1"], "temperature must be 0"),
        (["--system", "x", "--model"], "has learned no chats, so --system means nothing"),
        (["--url", "localhost"], "must begin with http://"),
        (["--url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
        (["--session", "nowhere/x.json"], "there is no folder nowhere"),
    ],
)
def test_bad_usage_is_one_sentence_and_exit_code_2(
    argv: list[str],
    sentence: str,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = [*argv, str(tiny_checkpoint)] if argv[-1] == "--model" else argv
    assert main(["chat", *argv]) == 2
    err = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert sentence in err
    assert "Traceback" not in err
