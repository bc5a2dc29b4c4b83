"""The flags of a step reach the run and stay with it; contradictions are refused."""

import json

import pytest

from longcat.cli.main import main

SMALL = ["--batch-size", "4", "--seq-len", "16", "--vocab-size", "300", "--precision", "float32"]
FLAGS: dict[str, tuple[str, object]] = {
    "--schedule cosine": ("schedule", "cosine"),
    "--warmup-steps 1": ("warmup_steps", 1),
    "--grad-clip 0.5": ("grad_clip", 0.5),
    "--micro-batches 1": ("micro_batches", 1),
    "--freeze-bias-at 1": ("freeze_bias_at", 1),
    "--document-mask": ("document_mask", True),
    "--recompute layer": ("recompute", "layer"),
    "--context-stage 1:32:5e4": ("context_stages", [[1, 32, 5e4]]),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("def alpha(count):\n    return count + 12\n\n" * 60)
    return tmp_path


def train(*arguments):
    return main(["train", "--out", "run", "--processes", "1", *arguments])


def test_every_flag_reaches_the_run_and_a_resume_keeps_it(place, capsys):
    words = " ".join(FLAGS).split()
    assert train("--data", "text.txt", "--steps", "2", *words, *SMALL) == 0, capsys.readouterr().err
    assert train("--resume", "--steps", "3") == 0, capsys.readouterr().err
    (newest,) = (place / "run" / "state").glob("step-*3")
    saved = json.loads((newest / "settings.json").read_text())
    assert {name: saved[name] for name, _ in FLAGS.values()} == dict(FLAGS.values())
    assert json.loads((newest / "trainer.json").read_text())["controller"]["frozen"] is True
    capsys.readouterr()
    assert train("--resume", "--steps", "4", "--schedule", "wsd") == 2
    assert "schedule is 'cosine', not 'wsd'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--schedule", "cosine", "--decay", "0.2"], "--decay belongs to --schedule wsd"),
        (["--schedule", "linear"], "--schedule must be wsd or cosine; got linear"),
        (["--micro-batches", "3"], "cannot be cut into 3 equal micro-batches"),
        (["--context-stage", "1:32"], "--context-stage expects STEP:SEQ_LEN:THETA"),
        (
            ["--context-stage", "1:32:2e4", "--context-stage", "1:64:5e4"],
            "1:64:50000 begins no later than step 1; give stages in their order",
        ),
        (["--recompute", "all"], "--recompute must be one of none, layer, layer-reentrant"),
        (["--grad-clip", "0"], "--grad-clip must be positive"),
    ],
)
def test_contradictions_are_refused_before_anything_is_written(place, capsys, flags, words):
    assert train("--data", "text.txt", "--steps", "2", *SMALL, *flags) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (place / "run").exists()
