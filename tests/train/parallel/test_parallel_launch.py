"""Runs started by torchrun, and runs of which a process is killed or frozen."""

import os
import signal
import sys

import pytest

from longcat.cli.benchmarks import drill
from longcat.train.errors import RunError
from longcat.train.parallel.launch import Launch, launched

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}


def test_a_launch_is_known_by_its_environment():
    assert launched({}) is None
    assert launched({"RANK": "1"}) is None
    assert launched(TORCHRUN) == Launch(rank=3, world=8, local=8, local_rank=3)
    assert launched({**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}) == Launch(
        rank=3, world=8, local=4, local_rank=3
    )
    second_machine = {**TORCHRUN, "RANK": "5", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "1"}
    assert launched(second_machine) == Launch(rank=5, world=8, local=4, local_rank=1)
    with pytest.raises(RunError, match="not MASTER_ADDR, MASTER_PORT; start it by torchrun"):
        launched({"RANK": "0", "WORLD_SIZE": "2"})


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """An uninterrupted run of each launcher, with all its snapshots."""
    return drill.references(tmp_path_factory.mktemp("references"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("launcher", drill.LAUNCHERS)
@pytest.mark.parametrize("number", range(10))
def test_a_killed_process_stops_the_run_and_resuming_gives_the_same_bits(
    references, tmp_path, launcher, number
):
    """Twenty times: either rank, at any step, and the one that is left says what happened."""
    row = drill.trial(number, launcher, references[launcher], tmp_path / "trial")
    assert row["outcome"] == "whole", row


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("launcher", drill.LAUNCHERS)
def test_a_frozen_process_stops_the_run(references, tmp_path, launcher):
    """It closes no connection: only its missing sign of life gives it away."""
    frozen = []

    def freeze(ranks):
        frozen.append(ranks[1])
        os.kill(ranks[1], signal.SIGSTOP)

    try:
        found = drill.struck(launcher, references[launcher], tmp_path, freeze, after=4)
    finally:
        for pid in frozen:
            if drill.alive(pid):
                os.kill(pid, signal.SIGKILL)
    assert found.code != 0
    assert "no sign of life from process 1" in found.said
    print(f"{launcher}: rank 1 frozen, all ended in {found.seconds:.1f} s")
    assert drill.differences(launcher, references[launcher], found.out) == []
