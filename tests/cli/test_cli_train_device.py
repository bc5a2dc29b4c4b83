"""`longcat train --device`: refused before anything is written, and told in run.json."""

import json

import pytest
import torch

from longcat.cli.main import main

SMALL = ["--batch-size", "2", "--seq-len", "32", "--vocab-size", "300", "--precision", "float32"]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("def alpha(count):\n    return count + 12\n\n" * 60)
    return str(path)


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        ("cuda", "train: --device cuda needs a CUDA device, and torch sees none; use --device cpu"),
        ("gpu", "train: --device must be auto, cpu or cuda; got gpu"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--search-lr", "3"), ("--resume",)])
def test_a_device_that_is_not_there_ends_before_anything_is_written(
    text, tmp_path, capsys, monkeypatch, device, sentence, more
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "run"
    assert main(["train", text, "--out", str(out), "--device", device, *more]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert not out.exists()


def test_more_processes_than_gpus_are_refused(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    out = tmp_path / "run"
    assert main(["train", text, "--out", str(out), "--processes", "4", "--batch-size", "4"]) == 2
    said = capsys.readouterr().err
    assert "--processes 4 needs 4 GPUs, one for each, and torch sees 2; ask for fewer" in said
    assert not out.exists()


def test_a_run_on_the_cpu_says_so(text, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["train", text, "--out", str(out), "--steps", "2", "--processes", "1", *SMALL]
    assert main([*arguments, "--device", "cpu"]) == 0
    assert json.loads((out / "run.json").read_text())["device"] == "cpu"
    capsys.readouterr()
