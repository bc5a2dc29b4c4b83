"""Two processes of a run are one run: the same mathematics, the same biases, one end."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange, available_cores
from longcat.train.loop import Silent, begin, run
from longcat.train.memory import check_memory
from longcat.train.metrics import read_metrics
from longcat.train.preflight import choose_processes
from longcat.train.prepare import prepare, reopen
from longcat.train.workers import Workers


def start(kit, path, **changes):
    directory = RunDirectory(path)
    prepared = prepare(directory, kit.corpus(), kit.settings(**changes), kit.config())
    begin(directory, prepared)
    return directory, prepared


def test_two_processes_give_what_one_gives(kit, tmp_path):
    """In float64: in float32 a rounding can flip a router's near-tie and the runs part."""
    changes = {"steps": 10, "precision": "float64"}
    one_dir, prepared = start(kit, tmp_path / "one", **changes)
    one = run(one_dir, prepared, Exchange(), Silent())
    two_dir, prepared = start(kit, tmp_path / "two", **changes)
    with Workers(two_dir.path, 2) as workers:
        assert workers.exchange.world == 2
        two = run(two_dir, prepared, workers.exchange, Silent())
    for name, tensor in one.model.state_dict().items():
        assert torch.allclose(tensor, two.model.state_dict()[name], rtol=1e-9, atol=1e-12), name
    for a, b in zip(read_metrics(one_dir.path), read_metrics(two_dir.path), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-5)
        assert a["ffn_experts_mean"] == b["ffn_experts_mean"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], abs=1e-5)
        if a["r_g"]:
            assert a["r_g"] == pytest.approx(b["r_g"], abs=1e-5)
        assert a["tokens"] == b["tokens"]


@pytest.mark.parametrize("mutant", ["means added up", "own counts only"])
def test_control_a_wrong_way_to_share_the_work_would_be_noticed(kit, mutant, monkeypatch):
    """Two shares computed by hand with the mistake; the sums then differ from one process's."""
    settings = kit.settings(precision="float64")
    whole = kit.trainer(settings)
    whole.train_step()

    class Two(Exchange):
        """Rank 0 of 2, with the other's row put in by hand."""

        def __init__(self):
            super().__init__(0, 2)

        def sum_(self, tensor):
            is_row = tensor.numel() == rank0.tally.row.numel()
            other = other_row if is_row else other_gradient
            if mutant == "own counts only" and is_row:
                return
            tensor += other
            if mutant == "means added up" and not is_row:
                tensor *= 2

    class Recording(Exchange):
        def __init__(self):
            super().__init__(1, 2)
            self.seen = []

        def sum_(self, tensor):
            self.seen.append(tensor.clone())

    recording = Recording()
    rank1 = kit.trainer(settings, exchange=recording)
    rank1.train_step()
    other_gradient, other_row = recording.seen
    rank0 = kit.trainer(settings, exchange=Two())
    rank0.train_step()
    same = [
        torch.allclose(a, b, rtol=1e-9, atol=1e-12)
        for a, b in zip(
            whole.model.state_dict().values(), rank0.model.state_dict().values(), strict=True
        )
    ]
    if mutant == "means added up":  # Adam's first step hides a factor; the norm does not
        assert not torch.allclose(whole.pieces.gradients, rank0.pieces.gradients)
    else:
        assert not all(same)


def test_processes_must_share_the_micro_batches_evenly(kit):
    with pytest.raises(RunError, match="choose one of"):
        choose_processes(3, 2)
    with pytest.raises(RunError, match="cannot share 2 micro-batches"):
        kit.trainer(exchange=Exchange(0, 3))


def test_the_number_of_processes_follows_the_cores(monkeypatch):
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    for cores, expected in ((1, 1), (2, 2), (64, 2)):
        monkeypatch.setattr("longcat.train.preflight.available_cores", lambda c=cores: c)
        count, why = choose_processes(None, 2)
        assert count == expected
        assert f"{cores} core" in why
    assert choose_processes(None, 1)[0] == 1
    assert choose_processes(2, 4) == (2, "as asked")


def test_a_model_too_large_for_the_machine_is_refused_before_anything_is_built(kit):
    from longcat.flash import FlashConfig

    released = FlashConfig.preset("longcat-flash")
    with pytest.raises(RunError, match=r"needs about [\d,.]+ GB to train .* this machine has"):
        check_memory(released, replace(kit.settings(), preset="longcat-flash"), 2)


def test_a_worker_that_dies_stops_the_run_with_a_sentence(kit, tmp_path):
    directory, prepared = start(kit, tmp_path / "run", steps=400, save_every=1000)

    class Murderer(Silent):
        def step(self, record, progress, seconds_left):
            if record["step"] == 3:
                workers._processes[0].send_signal(signal.SIGKILL)

    with (
        pytest.raises(RunError, match=r"a process of this run ended .* step 0 stands .*--resume"),
        Workers(directory.path, 2) as workers,
    ):
        run(directory, prepared, workers.exchange, Murderer())
    assert directory.latest().name == "step-00000000"
    assert len(read_metrics(directory.path)) < 400


def test_a_worker_that_cannot_start_is_an_error_at_once(kit, tmp_path, monkeypatch):
    directory, _ = start(kit, tmp_path / "run", steps=4)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys, "executable", sys.executable)
    monkeypatch.setattr("longcat.train.workers._MODULE", "longcat.train.no_such_worker")
    with pytest.raises(RunError, match=r"a worker could not start: .*no_such_worker"):
        Workers(directory.path, 2).__enter__()


ORPHAN = """
import os, sys, torch
from pathlib import Path
from longcat.train.directory import RunDirectory
from longcat.train.loop import Silent, run
from longcat.train.prepare import reopen
from longcat.train.workers import Workers

class Die(Silent):
    def step(self, record, progress, seconds_left):
        if record["step"] == 2:
            print(workers._processes[0].pid, flush=True)
            os.kill(os.getpid(), 9)

directory = RunDirectory(Path(sys.argv[1]))
with Workers(directory.path, 2) as workers:
    run(directory, reopen(directory), workers.exchange, Die())
"""


def test_workers_end_when_rank_0_is_killed_and_one_says_so(kit, tmp_path):
    directory, _ = start(kit, tmp_path / "run", steps=400)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(ORPHAN), str(directory.path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "error: train: a process of this run ended before the others" in done.stderr
    assert f"go on from it by `longcat train --resume --out {directory.path}`" in done.stderr
    pid = int(done.stdout)
    for _ in range(200):
        if not _alive(pid):
            break
        signal.sigtimedwait([], 0.05)
    assert not _alive(pid)
    assert reopen(directory).settings.steps == 400


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
