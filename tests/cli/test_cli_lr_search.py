"""`longcat train --search-lr` from outside: the table, the last line, going on, bad input."""

import json
from pathlib import Path

import pytest

import longcat.train
from longcat.cli.main import main

SMALL = ["--batch-size", "2", "--seq-len", "16", "--vocab-size", "300", "--precision", "float32"]
SEARCH = ["--search-lr", "3", "--steps", "2", "--out", "lr", "--processes", "1", *SMALL]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("def alpha(count):\n    return count + 12\n\n" * 40)
    return tmp_path


def train(*arguments: str) -> int:
    return main(["train", *arguments])


def test_an_interrupted_search_goes_on_and_ends_with_a_table(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = longcat.train.train_run, []

    def once(session, observer):
        calls.append(session.directory.path.name)
        trainer, _ = honest(session, observer)
        return trainer, len(calls) == 2

    monkeypatch.setattr(longcat.train, "train_run", once)
    assert train("text.txt", *SEARCH) == 130
    output = capsys.readouterr().out
    assert "2.0e-03, 4.0e-03, 8.0e-03" in output
    last = json.loads(output.strip().splitlines()[-1])
    assert last == {
        "directory": "lr",
        "finished": False,
        "resume": "longcat train --resume --out lr",
    }
    assert train("--resume", "--out", "lr", "--steps", "9") == 2
    assert "leave out --steps" in " ".join(capsys.readouterr().err.split())
    assert train("--resume", "--out", "lr", "--from-step", "1") == 2
    assert "leave out --from-step" in " ".join(capsys.readouterr().err.split())
    assert train("--resume", "--out", "lr", "--processes", "1") == 0
    output = capsys.readouterr().out
    assert calls == ["lr-2.00e-03", "lr-4.00e-03", "lr-4.00e-03", "lr-8.00e-03"]
    last = json.loads(output.strip().splitlines()[-1])
    assert last["finished"] is True
    assert [trial["state"] for trial in last["trials"]] == ["finished"] * 3
    assert last["best"]["loss"] == min(trial["loss"] for trial in last["trials"])
    # Two steps teach nothing, so the highest rate wins, and the reader is told what that means.
    assert last["at_edge"] is True
    assert "the highest rate did best" in output
    assert "longcat train --transfer-from lr --width" in output
    assert (place / "lr" / "lr_search.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search-lr", "2"], "at least 3 learning rates"),
        (["--search-lr", "3", "--time-budget", "9"], "give --steps N"),
        (["--search-lr", "3", "--quickstart"], "leave out --resume and --quickstart"),
        (["--search-lr", "3", "--resume"], "leave out --resume and --quickstart"),
        (["--search-lr", "3", "--data", "nowhere.txt"], "found nothing"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    place: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert train("--out", "lr", *arguments) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert sorted(p.name for p in place.rglob("*")) == ["text.txt"]
