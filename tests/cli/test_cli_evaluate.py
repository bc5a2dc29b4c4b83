"""Claims about `longcat evaluate`: every figure beside its yardstick, and clear refusals."""

import json
import shutil

import pytest

from longcat.cli.main import main

TEXT = "hello world, def main(): return 1\n" * 30


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return str(path)


def test_the_document_holds_every_figure(tiny_checkpoint, text, tmp_path, capsys):
    questions = tmp_path / "q.jsonl"
    line = {"question": "hello", "choices": [" world", " moon"], "answer": 0}
    questions.write_text(json.dumps(line) + "\n")
    argv = ["--model", str(tiny_checkpoint), "--data", text, "--choices", str(questions)]
    assert main(["evaluate", *argv, "--mtp", "--prompts", "2", "--window", "32", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["bytes"] == len(TEXT)
    assert document["documents"] == 1
    assert document["bits_per_byte"] > 0
    assert document["compressors"]["zlib"] > 0
    assert len(document["ffn_experts_mean"]) == 1
    assert document["mtp"]["prompts"] == 2
    assert 0 <= document["mtp"]["acceptance"] <= 1
    assert document["choices"]["questions"] == 1


def test_the_same_figures_are_shown_to_people(tiny_checkpoint, text, capsys):
    assert main(["evaluate", "--model", str(tiny_checkpoint), "--data", text]) == 0
    shown = capsys.readouterr().out
    for word in ("bits per byte", "FFN experts", "target", "zlib"):
        assert word in shown
    assert "drafts" not in shown


def test_a_run_is_scored_on_its_own_held_out_text(tiny_checkpoint, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(tiny_checkpoint, run)
    (run / "data").mkdir()
    line = json.dumps({"name": "a", "text": "hello world\n" * 9}) + "\n"
    (run / "data" / "held_out.jsonl").write_text(line)
    assert main(["evaluate", "--model", str(run), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["text"] == "the run's held-out text"
    assert document["bytes"] == 108


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--data", "none.txt"], "found nothing"),
        (["--choices", "none.jsonl"], "cannot be read"),
        (["--model", "gone"], "no model 'gone'"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
    ],
)
def test_what_is_missing_is_named(tiny_checkpoint, text, argv, words, capsys):
    defaults = ["--model", str(tiny_checkpoint), "--data", text]
    given = [part for part in defaults if argv[0] not in (part, defaults[defaults.index(part) - 1])]
    assert main(["evaluate", *given, *argv]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "Traceback" not in told
