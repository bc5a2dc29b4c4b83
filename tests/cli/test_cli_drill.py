"""`longcat bench drill`: what it writes, and that a trial which is not whole is a failure."""

import json
import os
import shutil
from pathlib import Path

import pytest

from longcat.cli import main
from longcat.cli.benchmarks import drill
from longcat.cli.benchmarks.drill import LAUNCHERS, Struck

LOST = "error: train: a process of this run ended before the others: gloo says so"


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """No process is started; what a struck run did, and what differs after it, is put in here."""
    told: dict[str, object] = {"code": 2, "said": LOST, "seconds": 3.0, "differences": []}

    def references(folder: Path) -> dict[str, Path]:
        return dict.fromkeys(LAUNCHERS, folder)

    def struck(launcher, reference, folder, strike, after) -> Struck:
        assert 1 <= after < drill.STEPS
        (folder / "run").mkdir(parents=True)
        return Struck(
            out=folder / "run", code=told["code"], said=told["said"], seconds=told["seconds"]
        )

    monkeypatch.setattr(drill, "references", references)
    monkeypatch.setattr(drill, "struck", struck)
    monkeypatch.setattr(drill, "differences", lambda *arguments: list(told["differences"]))
    return told


def bench(out: Path) -> tuple[int, dict]:
    code = main.main(["bench", "drill", "--trials", "4", "--out", str(out), "--json"])
    return code, json.loads((out / "drill-cpu.json").read_text(encoding="utf-8"))


def test_the_launchers_take_turns_and_every_trial_is_a_row(played, tmp_path) -> None:
    code, document = bench(tmp_path)
    assert code == 0
    assert document["whole"] == "4 of 4 trials"
    assert [row["launcher"] for row in document["rows"]] == [*LAUNCHERS, *LAUNCHERS]
    assert {row["killed"].partition(" after ")[0] for row in document["rows"]} == {
        "process 0",
        "process 1",
    }
    assert document["command"] == "longcat bench drill --trials 4"


def test_a_drill_that_is_interrupted_leaves_the_trials_it_made(
    played, tmp_path, monkeypatch
) -> None:
    honest = drill.trial

    def trial(number, *arguments):
        if number == 3:
            raise KeyboardInterrupt
        return honest(number, *arguments)

    monkeypatch.setattr(drill, "trial", trial)
    code, document = bench(tmp_path)
    assert code == 130
    assert document["whole"] == "3 of 3 trials"
    assert document["command"] == "longcat bench drill --trials 4"


@pytest.mark.parametrize(
    ("what", "value", "outcome"),
    [
        ("code", 0, "did not stop in time"),
        ("seconds", 60.5, "did not stop in time"),
        ("said", "", "no sentence"),
        ("differences", ["other losses"], "other losses"),
    ],
)
def test_a_trial_that_is_not_whole_is_named_and_the_exit_code_is_1(
    played, tmp_path, what, value, outcome
) -> None:
    played[what] = value
    code, document = bench(tmp_path)
    assert code == 1
    assert document["whole"] == "0 of 4 trials"
    assert {row["outcome"] for row in document["rows"]} == {outcome}


def test_a_bit_that_differs_is_a_difference(tmp_path, monkeypatch) -> None:
    state = tmp_path / "a" / "state" / f"step-{drill.STEPS:08d}"
    state.mkdir(parents=True)
    for file in (tmp_path / "a" / "model.safetensors", state / "optimizer.safetensors"):
        file.write_bytes(b"01")
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(drill, "finish", lambda *arguments: None)
    launcher = LAUNCHERS[0]
    assert drill.differences(launcher, tmp_path / "a", tmp_path / "b") == []
    (tmp_path / "b" / "model.safetensors").write_bytes(b"00")
    (tmp_path / "b" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.25}\n')
    assert drill.differences(launcher, tmp_path / "a", tmp_path / "b") == [
        "other losses",
        "other bits in model.safetensors",
    ]


def test_this_process_is_alive_and_has_a_parent() -> None:
    assert drill.alive(os.getpid())
    assert os.getpid() in drill.children(os.getppid())
    assert not drill.alive(1 << 30)
