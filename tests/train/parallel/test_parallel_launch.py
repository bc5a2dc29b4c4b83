"""Runs started by torchrun, and runs of which a process is killed or frozen."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longcat.train.errors import RunError
from longcat.train.metrics import read_metrics
from longcat.train.parallel.launch import Launch, launched

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
LAUNCHERS = ("local workers", "torchrun")
STEPS = "24"


def test_a_launch_is_known_by_its_environment():
    assert launched({}) is None
    assert launched({"RANK": "1"}) is None
    assert launched(TORCHRUN) == Launch(rank=3, world=8, local=8)
    assert launched({**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}) == Launch(rank=3, world=8, local=4)
    with pytest.raises(RunError, match="not MASTER_ADDR, MASTER_PORT; start it by torchrun"):
        launched({"RANK": "0", "WORLD_SIZE": "2"})


def command(launcher, out, *more):
    train = ["-m", "longcat.cli.main", "train", "--out", str(out), "--json", *more]
    if launcher == "torchrun":
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        return [sys.executable, *torchrun, *train, "--fsdp", "--expert-parallel", "2"]
    return [sys.executable, *train, "--processes", "2"]


def finish(launcher, out, *more):
    done = subprocess.run(
        command(launcher, out, *more), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def ranks_of(process):
    """Process ids of the run's ranks below (and for local workers including) `process`."""
    children = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == process.pid and fields[0] != "Z":
                children.append(int(entry.name))
        except (OSError, ValueError, IndexError):
            continue
    return sorted(children)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """An uninterrupted run of each launcher, with all its snapshots."""
    folder = tmp_path_factory.mktemp("references")
    text = folder / "text.jsonl"
    rows = random.Random(0)
    words = ["alpha", "beta", "gamma", "delta", "(", ")", "return", "+", "\n"]
    with text.open("w") as file:
        for _ in range(40):
            document = " ".join(rows.choice(words) for _ in range(400))
            file.write(json.dumps({"text": document}) + "\n")
    made = {}
    for launcher in LAUNCHERS:
        out = folder / launcher.replace(" ", "-")
        settings = ["--data", str(text), "--vocab-size", "300", "--seq-len", "32"]
        settings += ["--precision", "float32", "--batch-size", "4", "--steps", STEPS]
        assert finish(launcher, out, *settings, "--save-every", "3", "--keep", "99")["finished"]
        made[launcher] = out
    return made


def interrupted(launcher, reference, folder, strike, at):
    """A copy of the reference, begun anew and struck after step `at`; seconds until all ended."""
    out = folder / "run"
    shutil.copytree(reference, out)
    (out / "metrics.jsonl").unlink()
    process = subprocess.Popen(
        command(launcher, out, "--resume", "--from-step", "0"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None:
        metrics = out / "metrics.jsonl"
        if metrics.exists() and len(metrics.read_text().splitlines()) >= at:
            break
        time.sleep(0.02)
    ranks = ranks_of(process) if launcher == "torchrun" else [process.pid, *ranks_of(process)]
    assert len(ranks) == 2, "the run was over before it was struck"
    struck = time.monotonic()
    strike(ranks)
    _, said = process.communicate(timeout=120)
    while any(alive(pid) for pid in ranks) and time.monotonic() < struck + 120:
        time.sleep(0.05)
    return out, process.returncode, said, time.monotonic() - struck


def check_resumed(launcher, reference, out):
    assert finish(launcher, out, "--resume")["finished"]
    got, want = read_metrics(out), read_metrics(reference)
    assert [r["loss"] for r in got] == [r["loss"] for r in want]
    for file in ("model.safetensors", f"state/step-{int(STEPS):08d}/optimizer.safetensors"):
        assert (out / file).read_bytes() == (reference / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("trial", range(10))
def test_a_killed_process_stops_the_run_and_resuming_gives_the_same_bits(
    references, tmp_path, launcher, trial
):
    """Twenty times: either rank, at any step."""
    choice = random.Random(trial)
    victim, at = choice.randrange(2), choice.randrange(1, 18)
    out, code, said, seconds = interrupted(
        launcher,
        references[launcher],
        tmp_path,
        lambda ranks: os.kill(ranks[victim], signal.SIGKILL),
        at,
    )
    assert code != 0
    assert seconds < 60
    if not (launcher == "local workers" and victim == 0):  # who is killed says nothing
        assert "ended before the others" in said or "no sign of life" in said or victim == 0
    print(f"{launcher}: rank {victim} killed after step {at}, all ended in {seconds:.1f} s")
    check_resumed(launcher, references[launcher], out)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_frozen_process_stops_the_run(references, tmp_path, launcher):
    """It closes no connection: only its missing sign of life gives it away."""
    frozen = []

    def freeze(ranks):
        frozen.append(ranks[1])
        os.kill(ranks[1], signal.SIGSTOP)

    try:
        out, code, said, seconds = interrupted(
            launcher, references[launcher], tmp_path, freeze, at=4
        )
    finally:
        for pid in frozen:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
    assert code != 0
    assert "no sign of life from process 1" in said
    print(f"{launcher}: rank 1 frozen, all ended in {seconds:.1f} s")
    check_resumed(launcher, references[launcher], out)
