"""Claims about `longcat demo corruption`: what is found, what is missed, verdicts that fail."""

import json
import threading

import pytest
import torch
from rich.cells import cell_len
from typer.testing import CliRunner, Result

import longcat.train.watch.corruption
from longcat.cli import demo
from longcat.cli.demos import corruption
from longcat.cli.demos.corruption import FAULTS, CorruptionDemo
from longcat.cli.demos.faults import Drill, Fault, Pair
from longcat.train.watch.recheck import Recheck
from longcat.train.watch.rollback import Rollback

FEWEST = "26"


def longcat_demo(*arguments: str) -> Result:
    command = ["corruption", "--steps", FEWEST, *arguments]
    return CliRunner().invoke(demo.app, command, env={"COLUMNS": "80"})


def only(monkeypatch: pytest.MonkeyPatch, start: str) -> Fault:
    """Let the demo have a single fault, for tests that need no other."""
    fault = next(fault for fault in FAULTS if fault.name.startswith(start))
    monkeypatch.setattr(corruption, "FAULTS", (fault,))
    return fault


def held(result: Result) -> dict[str, bool]:
    return {v["claim"]: v["holds"] for v in json.loads(result.stdout)["verdicts"]}


def test_the_claims_hold_and_the_page_is_whole() -> None:
    result = longcat_demo("--no-pause")
    assert result.exit_code == 0, result.output
    parts = (
        "LongCat-Flash report, section 5",
        "Predict",
        "undisturbed, 2 processes",
        "back to step 16",
        "down_proj, expert 3; back to step 20",
        "not found, other bits",
        "Answer",
        "longcat/train/watch/rollback.py",
    )
    text = " ".join(result.stdout.split())
    places = [text.find(part) for part in parts]
    assert -1 not in places, places
    assert places == sorted(places)
    assert "✗" not in result.stdout
    assert max(cell_len(line) for line in result.stdout.splitlines()) <= 80


@pytest.mark.parametrize("start", ["an output", "a bit of attention 2"])
def test_control_a_rollback_that_does_not_go_back_is_noticed(
    monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    fault = only(monkeypatch, start)
    monkeypatch.setattr("longcat.train.watch.rollback.read_snapshot", lambda trainer, place: None)
    result = longcat_demo("--json")
    found = fault.found_by is not None
    assert result.exit_code == int(found)
    assert held(result) == {"no false alarm": True, fault.name: not found}


@pytest.mark.parametrize("start", ["a bit of attention 1", "a stale"])
def test_without_its_detector_a_fault_is_missed_and_the_demo_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    fault = only(monkeypatch, start)
    if start == "a stale":
        watch = longcat.train.watch.corruption
        monkeypatch.setattr(watch, "differing", lambda tensors, exchange: [])
    else:
        monkeypatch.setattr(Recheck, "compare", lambda self: None)
    result = longcat_demo("--json")
    assert result.exit_code == 1
    assert held(result) == {"no false alarm": True, fault.name: False}
    assert json.loads(result.stdout)["faults"][fault.name] == {
        "step": fault.step,
        "processes": fault.processes,
        "found": None,
        "ends_as_undisturbed": False,
    }


def test_what_a_run_went_back_for_is_known(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    drill = Drill(FAULTS[1], tmp_path / "run", steps=22, seed=0)
    for _ in drill.steps():
        pass
    assert drill.trace == "·" * 20 + "!<" + "··"
    assert drill.trouble is not None
    assert (drill.trouble.kind, drill.trouble.step, drill.trouble.back_to) == ("spike", 21, 20)
    assert Rollback(drill.trainers[0], drill._directory).trouble is None


def test_two_threads_add_up_to_the_same_bits() -> None:
    pair, tensors = Pair(), [torch.full((3,), 0.1), torch.full((3,), 0.2)]
    threads = [
        threading.Thread(target=pair.sum_, args=(rank, tensor))
        for rank, tensor in enumerate(tensors)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(tensors[0], tensors[1])
    assert tensors[0].tolist() == pytest.approx([0.3] * 3)


def test_too_few_steps_are_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="a run of at least 26 steps; got 25"):
        CorruptionDemo(steps=25)


def test_ascii_output_is_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "a weight")
    result = longcat_demo("--no-pause", "--ascii")
    assert result.exit_code == 0
    assert result.stdout.isascii()
    assert "!<" in result.stdout
