"""A resume with other processes or threads says that it gives other bits; memory is told."""

import json

import pytest
import torch

from longcat.train import resume_run
from longcat.train.directory import RunDirectory
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.metrics import read_metrics
from longcat.train.prepare import prepare
from longcat.train.watch.exactness import computed_with, other_bits
from longcat.train.watch.memory import peak_bytes


@pytest.fixture
def directory(kit, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    prepared = prepare(directory, kit.corpus(), kit.settings(steps=2), kit.config())
    begin(directory, prepared)
    run(directory, prepared, Exchange(), Silent())
    return directory


def labels(session):
    return {row.label: row.value for row in session.card}


def test_going_on_with_other_processes_says_so_and_with_the_same_does_not(directory):
    same = resume_run(directory.path, {"steps": 4}, processes=1, say=lambda _: None)
    assert "exactness" not in labels(same)
    other = resume_run(directory.path, {"steps": 4}, processes=2, say=lambda _: None)
    said = labels(other)["exactness"]
    assert "saved by 1 x 1 thread, goes on with 2 x 1 thread: the same mathematics" in said


def test_threads_count_too_and_old_or_fresh_snapshots_say_nothing(directory):
    path = directory.latest() / "trainer.json"
    state = json.loads(path.read_text())
    now = {"processes": 1, "threads": 1, "device": "cpu"}
    assert state["computed_with"] == computed_with(1) == now
    path.write_text(json.dumps(state | {"computed_with": {"processes": 1, "threads": 4}}))
    assert "saved by 1 x 4 threads" in other_bits(directory.latest(), 1)
    for silent in ({**state, "computed_with": None}, {**state, "step": 0}):
        path.write_text(json.dumps(silent))
        assert other_bits(directory.latest(), 7) is None
    path.write_text("{")
    assert other_bits(directory.latest(), 7) is None


def test_another_device_goes_on_with_other_bits_and_says_so(directory, monkeypatch):
    path = directory.latest() / "trainer.json"
    state = json.loads(path.read_text())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    gpu = torch.device("cuda", 0)
    said = other_bits(directory.latest(), 1, gpu)
    assert said.startswith("saved by 1 x 1 thread, goes on with 1 x H100: the same mathematics")
    on_gpu = computed_with(1, gpu)
    assert on_gpu == {"processes": 1, "device": "H100"}  # the host's threads change no bit there
    path.write_text(json.dumps(state | {"computed_with": on_gpu}))
    assert other_bits(directory.latest(), 1, gpu) is None
    said = other_bits(directory.latest(), 1)
    assert said.startswith("saved by 1 x H100, goes on with 1 x 1 thread")
    # A snapshot from before there was a choice was computed on a CPU.
    path.write_text(json.dumps(state | {"computed_with": {"processes": 1, "threads": 1}}))
    assert other_bits(directory.latest(), 1) is None
    assert "goes on with 1 x H100" in other_bits(directory.latest(), 1, gpu)


def test_the_peak_of_memory_is_on_every_line_and_never_falls(directory):
    peaks = [record["memory_peak"] for record in read_metrics(directory.path)]
    assert peaks == sorted(peaks)
    assert 5e7 < peaks[0] <= peak_bytes()
