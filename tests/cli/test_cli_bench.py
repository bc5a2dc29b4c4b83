"""Claims about `longcat bench`: turns, the same work, what is written beside a number, refusals."""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from longcat.cli import main
from longcat.cli.benchmarks import kernels, timing


def spin(seconds: float) -> Callable[[], object]:
    def run() -> object:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return None

    return run


@pytest.fixture
def one_small_case(monkeypatch: pytest.MonkeyPatch) -> None:
    case = kernels.Case(
        op="spin",
        shape="4 float32",
        forms={"naive": spin(0.004), "ours": spin(0.001)},
        bytes=4e6,
        flops=8e6,
    )
    monkeypatch.setattr(kernels, "cases", lambda device: iter([case]))


@pytest.mark.usefixtures("one_small_case")
def test_the_file_holds_the_figures_and_the_machine_but_not_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "results"
    assert main.main(["bench", "kernels", "--rounds", "3", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    text = (out / "kernels-cpu.json").read_text(encoding="utf-8")
    assert json.loads(text) == printed
    assert [row["form"] for row in printed["rows"]] == ["naive", "ours"]
    naive, ours = printed["rows"]
    assert naive["x_naive"] == 1.0
    assert ours["x_naive"] > 1.5
    assert ours["GB/s"] == pytest.approx(4e6 / ours["us"] / 1e3, rel=1e-2)
    assert {"date", "command", "hardware", "versions", "load", "seconds"} <= set(printed)
    assert printed["hardware"]["threads"] == 1
    assert str(tmp_path) not in text
    assert platform.node() not in text
    assert [path.name for path in out.iterdir()] == ["kernels-cpu.json"]


@pytest.mark.usefixtures("one_small_case")
def test_without_json_a_table_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "kernels", "--rounds", "3", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for word in ("shape", "us", "GB/s", "GFLOP/s", "x naive", "spin, 4 float32", "load"):
        assert word in shown


def test_forms_take_turns() -> None:
    calls: list[str] = []
    forms = {name: (lambda name=name: (calls.append(name), time.sleep(0.01))) for name in "ab"}
    timing.interleaved(forms, rounds=4, device="cpu")
    assert "".join(calls[-8:]) == "abababab"


def test_without_a_cuda_device_the_answer_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "results"
    assert main.main(["bench", "kernels", "--device", "cuda", "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "needs a CUDA device" in shown.err
    assert shown.err.count("\n") == 1
    assert not out.exists()


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 rounds, got 2"):
        timing.interleaved({"a": lambda: None}, rounds=2, device="cpu")


def test_threads_are_restored_after_a_failure() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with timing.pinned_threads(before + 1):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.get_num_threads() == before


def test_every_case_computes_the_same_in_each_of_its_forms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "TOKENS", 8)
    monkeypatch.setattr(kernels, "CONTEXT", 12)
    seen = 0
    for case in kernels.cases("cpu"):
        if "bfloat16" in case.shape or "D=512" in case.shape:
            continue
        naive, *others = (form() for form in case.forms.values())
        for other in others:
            pairs = zip(naive, other, strict=True) if isinstance(naive, tuple) else [(naive, other)]
            for want, got in pairs:
                assert torch.allclose(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))
        seen += 1
    assert seen >= 6
