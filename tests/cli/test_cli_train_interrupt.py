"""`longcat train` interrupted from outside, at its work and while it starts its workers."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

SMALL = ["--batch-size", "2", "--seq-len", "32", "--vocab-size", "300", "--precision", "float32"]


@pytest.fixture
def place(tmp_path):
    (tmp_path / "text.txt").write_text("def alpha(count):\n    return count + 12\n\n" * 60)
    return tmp_path


def started(place):
    """A training run of two processes, long enough to be interrupted, in a session of its own."""
    arguments = ["--data", "text.txt", "--out", "run", "--steps", "100000", *SMALL]
    return subprocess.Popen(
        [sys.executable, "-m", "longcat.cli.main", "train", "--processes", "2", *arguments],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_and_says_how_to_go_on(place, number):
    process = started(place)
    metrics = place / "run" / "metrics.jsonl"
    for _ in range(600):
        if metrics.is_file() and metrics.read_text().count("\n") >= 3:
            break
        time.sleep(0.1)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    output, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert "longcat train --resume --out run" in output
    last = json.loads(output.strip().splitlines()[-1])
    assert last["finished"] is False
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, last["steps"] + 1))
    assert (place / "run" / "state" / f"step-{last['steps']:08d}").is_dir()
    assert complaint == ""


def test_an_interrupt_while_workers_start_is_an_interrupt_too(place):
    process = started(place)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("╰"):  # the card is complete; what follows is starting the workers
            break
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert "could not start" not in complaint
