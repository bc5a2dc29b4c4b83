"""Runs of two processes, one of which is killed: do the others stop, and does the run go on?

For each launcher an uninterrupted run is the reference. A trial begins the same run anew, kills
one of its processes after some step, waits until the other has ended, and launches anew with
`--resume`. A trial is whole when

    stopped    the other process ended within LIMIT seconds, and the command with a failure
    told       it said that a process was lost
    same bits  the resumed run's losses, weights and optimizer state are the reference's, byte for
               byte

Which process, after which step and how long after it follow from the trial's number.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import Clock, Row
from longcat.train import RunError
from longcat.train.metrics import read_metrics

LAUNCHERS = ("local workers", "torchrun")
STEPS = 24
LIMIT = 60.0  # seconds
LOST = ("ended before the others", "no sign of life")  # one of these is said
_WAIT = 1200.0  # seconds, for what a trial only waits for
_TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
_WORDS = ("alpha", "beta", "gamma", "delta", "(", ")", "return", "+", "\n")


@dataclass(frozen=True, kw_only=True)
class Struck:
    """A run after one of its processes was struck.

    Attributes:
        out: its directory. code: of the command. said: its standard error.
        seconds: from the strike until all its processes had ended.
    """

    out: Path
    code: int
    said: str
    seconds: float


def document(
    trials: int, say: Callable[[str], None], keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """What is written to drill-cpu.json.

    Args:
        trials: how many, the launchers taking turns. say: told of each trial. keep: told of the
            document after each, so that an interrupted drill leaves the trials it made.
    """
    clock = Clock()
    rows: list[Row] = []
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="longcat-drill-") as folder:
        made = references(Path(folder))
        for number in range(trials):
            launcher = LAUNCHERS[number % len(LAUNCHERS)]
            rows.append(trial(number, launcher, made[launcher], Path(folder) / str(number)))
            say(f"trial {number + 1} of {trials}, {launcher}: {rows[-1]['outcome']}")
            result = _of(rows, trials, clock)
            keep(result)
    return result


def _of(rows: list[Row], trials: int, clock: Clock) -> dict[str, Any]:
    """The document of the trials so far."""
    return clock.document(
        f"longcat bench drill --trials {trials}",
        f"wall seconds from the kill until every process had ended; at most {LIMIT:.0f} allowed",
        **timing.machine("cpu"),
        run=f"nano of two processes over {STEPS} steps, saved every 3; torchrun's with --fsdp "
        "--expert-parallel 2",
        whole=f"{sum(row['outcome'] == 'whole' for row in rows)} of {len(rows)} trials",
        rows=rows,
    )


def trial(number: int, launcher: str, reference: Path, folder: Path) -> Row:
    """Kill, wait, resume, compare."""
    choice = random.Random(number)
    victim, after, late = choice.randrange(2), choice.randrange(1, 18), choice.uniform(0, 0.3)

    def kill(ranks: Sequence[int]) -> None:
        time.sleep(late)  # anywhere in a step, and in what is saved after it
        os.kill(ranks[victim], signal.SIGKILL)

    found = struck(launcher, reference, folder, kill, after)
    failed = []
    if found.code == 0 or found.seconds > LIMIT:
        failed.append("did not stop in time")
    if not any(words in found.said for words in LOST):
        failed.append("no sentence")
    failed += differences(launcher, reference, found.out)
    shutil.rmtree(folder)
    return {
        "launcher": launcher,
        "form": f"trial {number + 1}",
        "killed": f"process {victim} after step {after}",
        "seconds": round(found.seconds, 1),
        "outcome": ", ".join(failed) or "whole",
    }


def references(folder: Path) -> dict[str, Path]:
    """An uninterrupted run of each launcher, with all its snapshots.

    The text is short, so that little is held out: scoring that would take most of the time.
    """
    text, rows = folder / "text.jsonl", random.Random(0)
    with text.open("w", encoding="utf-8") as file:
        for _ in range(30):
            words = " ".join(rows.choice(_WORDS) for _ in range(40))
            file.write(json.dumps({"text": words}) + "\n")
    settings = ["--data", str(text), "--vocab-size", "300", "--seq-len", "32", "--batch-size", "4"]
    settings += ["--precision", "float32", "--steps", str(STEPS), "--save-every", "3"]
    made = {launcher: folder / launcher.replace(" ", "-") for launcher in LAUNCHERS}
    for launcher, out in made.items():
        finish(launcher, out, *settings, "--keep", "99")
    return made


def command(launcher: str, out: Path, *more: str) -> list[str]:
    """`longcat train` over two processes."""
    train = ["-m", "longcat.cli.main", "train", "--out", str(out), "--json", *more]
    if launcher == "torchrun":
        return [sys.executable, *_TORCHRUN, *train, "--fsdp", "--expert-parallel", "2"]
    return [sys.executable, *train, "--processes", "2"]


def finish(launcher: str, out: Path, *more: str) -> None:
    """Run the command to its end.

    Raises:
        RunError: when it fails, with its last words.
    """
    done = subprocess.run(
        command(launcher, out, *more), capture_output=True, text=True, check=False, timeout=_WAIT
    )
    if done.returncode:
        raise RunError(f"bench drill: a run under {launcher} failed: {done.stderr[-2000:]}")


def struck(
    launcher: str,
    reference: Path,
    folder: Path,
    strike: Callable[[Sequence[int]], None],
    after: int,
) -> Struck:
    """A copy of the reference, begun anew and struck after step `after`.

    Args:
        strike: told the process ids of the ranks, rank 0 first.

    Raises:
        RunError: when the run was over before it could be struck.
    """
    out = folder / "run"
    shutil.copytree(reference, out)
    metrics = out / "metrics.jsonl"
    metrics.unlink()
    process = subprocess.Popen(
        command(launcher, out, "--resume", "--from-step", "0"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and len(read_metrics(out)) < after:
        time.sleep(0.02)
    ranks = children(process.pid)
    if launcher != "torchrun":
        ranks = [process.pid, *ranks]
    if len(ranks) != 2:
        _, said = process.communicate(timeout=_WAIT)
        raise RunError(f"bench drill: the run was over before it was struck: {said[-2000:]}")
    begun = time.monotonic()
    strike(ranks)
    _, said = process.communicate(timeout=_WAIT)
    while any(map(alive, ranks)) and time.monotonic() < begun + _WAIT:
        time.sleep(0.05)
    return Struck(out=out, code=process.returncode, said=said, seconds=time.monotonic() - begun)


def differences(launcher: str, reference: Path, out: Path) -> list[str]:
    """Go on with a struck run; what then differs from the reference."""
    try:
        finish(launcher, out, "--resume")
    except RunError as error:
        return [f"resuming failed ({str(error).splitlines()[-1]})"]
    losses = [[record["loss"] for record in read_metrics(place)] for place in (out, reference)]
    found = [] if losses[0] == losses[1] else ["other losses"]
    for file in ("model.safetensors", f"state/step-{STEPS:08d}/optimizer.safetensors"):
        if (out / file).read_bytes() != (reference / file).read_bytes():
            found.append(f"other bits in {file}")
    return found


def children(parent: int) -> list[int]:
    """Process ids of the living children of a process, in ascending order."""
    found = []
    for entry in Path("/proc").iterdir():
        fields = _status(entry.name) if entry.name.isdigit() else []
        if fields and int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(entry.name))
    return sorted(found)


def alive(process: int) -> bool:
    """Whether a process is there and no zombie."""
    fields = _status(str(process))
    return bool(fields) and fields[0] != "Z"


def _status(process: str) -> list[str]:
    """State, parent and more of a process; [] when it is gone."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
