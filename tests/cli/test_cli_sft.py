"""Fine-tuning from outside: conversations in, a run that answers, one sentence for bad input."""

import json
from pathlib import Path
from typing import Any

import pytest

from longcat.cli.main import main

ASKED, ANSWERED = "hello?", "world"
LEAN = ["--seq-len", "48", "--batch-size", "2", "--precision", "float32", "--processes", "1"]


def conversation(asked: str = ASKED, answered: str = ANSWERED) -> str:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return json.dumps({"messages": messages}) + "\n"


def train(*arguments: str) -> int:
    return main(["train", *arguments, *LEAN])


@pytest.fixture(scope="module")
def chat_run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned one answer by heart."""
    folder = tmp_path_factory.mktemp("sft")
    (folder / "chats.jsonl").write_text(conversation() * 8)
    arguments = ["--sft", str(folder / "chats.jsonl"), "--init", str(tiny_checkpoint)]
    assert train(*arguments, "--out", str(folder / "run"), "--steps", "50", "--lr", "1e-2") == 0
    return folder / "run"


def generate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    capsys.readouterr()
    code = main(["generate", *arguments])
    return code, capsys.readouterr()


def test_the_model_answers_what_it_learned_and_stops(
    chat_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--model", str(chat_run), "--chat", "--prompt", ASKED]
    code, shown = generate(capsys, *asked)
    assert (code, shown.out) == (0, f"{ANSWERED}\n")
    _, shown = generate(capsys, *asked, "--json")
    document = json.loads(shown.out)
    assert document["reply"] == {"text": ANSWERED, "finished": True, "calls": []}
    assert (document["finish_reason"], document["text"]) == ("stop", ANSWERED)
    plain = generate(capsys, *asked, "--json", "--no-speculative")[1]
    assert json.loads(plain.out)["token_ids"] == document["token_ids"]


def test_replies_of_other_conversations_are_scored(
    chat_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("hello world\n" * 9)
    known, foreign = tmp_path / "known.jsonl", tmp_path / "foreign.jsonl"
    known.write_text(conversation())
    foreign.write_text(conversation(answered="main()"))
    bits = []
    for path in (known, foreign):
        capsys.readouterr()
        argv = ["--model", str(chat_run), "--data", str(tmp_path / "a.txt"), "--chats", str(path)]
        assert main(["evaluate", *argv, "--json"]) == 0
        replies = json.loads(capsys.readouterr().out)["replies"]
        assert replies["conversations"] == 1
        bits.append(replies["bits_per_byte"])
    assert bits[0] < 0.1 < 3 < bits[1]
    assert main(["evaluate", *argv]) == 0
    assert "replies" in capsys.readouterr().out
    path.write_text("{}\n")
    assert main(["evaluate", *argv]) == 2
    assert "foreign.jsonl, line 1: expected an object" in capsys.readouterr().err


def test_the_run_says_what_its_figures_are_of(
    chat_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((chat_run / "run.json").read_text())
    assert summary["held_out"] is None  # every conversation is the same: none can be held out
    assert summary["settings"]["sft"][0].endswith("chats.jsonl")
    assert summary["corpus"]["chats"]["template"] == "longcat"
    page = (chat_run / "report.html").read_text()
    assert "Cross entropy of the next token on what the assistant says." in page
    assert "longcat generate --model" in page
    assert "--chat" in page


def test_a_report_shows_held_out_replies(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(conversation(f"say {i}", f"it is <b>{i}</b>") for i in range(4))
    (tmp_path / "chats.jsonl").write_text(lines)
    arguments = ["--sft", str(tmp_path), "--init", str(tiny_checkpoint), "--template", "chatml"]
    assert train(*arguments, "--out", str(tmp_path / "run"), "--steps", "2") == 0
    shown = capsys.readouterr()
    last = json.loads(shown.out.strip().splitlines()[-1])
    assert last["bits_per_byte_of"] == "replies"
    assert last["bits_per_byte_before"] > 0
    assert "│ learned" in shown.out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Bits per byte of held-out replies" in page
    assert "prompts are read, not scored" in page
    assert "it is &lt;b&gt;" in page


def test_text_goes_on_from_a_checkpoint(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("hello world, def main(): return 1\n" * 40)
    arguments = ["--data", str(tmp_path / "a.txt"), "--init", str(tiny_checkpoint)]
    assert train(*arguments, "--out", str(tmp_path / "run"), "--steps", "2") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["vocab_size"] == 300
    assert "encoding the text" in capsys.readouterr().out
    written = (tmp_path / "run" / "tokenizer.json").read_text()
    assert json.loads(written) == json.loads((tiny_checkpoint / "tokenizer.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--sft", "chats.jsonl"], "--sft goes with --init MODEL"),
        (["--init", "MODEL", "--preset", "nano"], "leave out --preset"),
        (["--init", "MODEL", "--vocab-size", "300"], "leave out --vocab-size"),
        (["--init", "MODEL", "--quickstart"], "leave out --quickstart"),
        (["--init", "nowhere"], "no model 'nowhere'"),
        (["--sft", "bad.jsonl", "--init", "MODEL"], "bad.jsonl, line 2: message 1 has role 'bot'"),
        (["--sft", "none.jsonl", "--init", "MODEL"], "found none; check the path"),
        (["--sft", "chats.jsonl", "--init", "MODEL", "--template", "x"], "unknown template 'x'"),
        (["--sft", "chats.jsonl", "--init", "MODEL", "--data", "a.txt"], "without --data"),
    ],
)
def test_bad_usage_gets_one_sentence_and_leaves_nothing_behind(
    arguments: list[str], sentence: str, tiny_checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.jsonl").write_text(conversation())
    bad = conversation().replace('"assistant"', '"bot"')
    (tmp_path / "bad.jsonl").write_text(conversation() + bad)
    named = [str(tiny_checkpoint) if a == "MODEL" else a for a in arguments]
    assert train(*named, "--out", "run") == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert len([line for line in error.splitlines() if line.startswith("error: ")]) == 1
    assert not (tmp_path / "run").exists()


def test_chat_wants_a_chat_model(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = generate(capsys, "--model", str(tiny_checkpoint), "--chat", "--prompt", "hello?")
    assert code == 2
    assert "has no chat template of ours" in shown.err
    code, shown = generate(capsys, "--model", str(tiny_checkpoint), "--system", "a")
    assert code == 2
    assert "--system goes with --chat" in shown.err
