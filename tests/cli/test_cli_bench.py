"""Claims about `longcat bench`: turns, the same work, what is written beside a number, refusals."""

import json
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from longcat import kernels
from longcat.cli import main
from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import publish
from longcat.cli.benchmarks.kernels import collectives, table
from longcat.cli.benchmarks.kernels.case import Case, Sizes


def spin(seconds: float) -> Callable[[], object]:
    def run() -> object:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return None

    return run


@pytest.fixture
def one_small_case(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(
        op="spin",
        shape="4 float32",
        forms={"plain": spin(0.004), "ours": spin(0.001)},
        bytes=4e6,
        flops=8e6,
    )
    monkeypatch.setattr(table, "cases", lambda device: iter([case]))
    limits = {"bytes/s": 1e9, "float32 flop/s": 1e12}
    monkeypatch.setattr(table, "limits", lambda device: limits)
    monkeypatch.setattr(collectives, "rows", lambda rounds, limit: [])


@pytest.mark.usefixtures("one_small_case")
def test_the_file_holds_the_figures_and_the_machine_but_not_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "results"
    assert main.main(["bench", "kernels", "--rounds", "3", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    text = (out / "kernels-cpu.json").read_text(encoding="utf-8")
    assert json.loads(text) == printed
    assert [row["form"] for row in printed["rows"]] == ["plain", "ours"]
    plain, ours = printed["rows"]
    assert plain["x_torch"] == 1.0
    assert ours["x_torch"] > 1.5
    assert ours["GB/s"] == pytest.approx(4e6 / ours["us"] / 1e3, rel=1e-2)
    assert ours["TFLOP/s"] == pytest.approx(8 / ours["us"], rel=1e-2)
    assert ours["%_of_limit"] == pytest.approx(100 * 4000 / ours["us"], rel=1e-2)
    told = {"date", "command", "hardware", "versions", "clocks", "limits", "load", "seconds"}
    assert told <= set(printed)
    assert printed["hardware"]["threads"] == 1
    assert str(tmp_path) not in text
    assert platform.node() not in text
    assert [path.name for path in out.iterdir()] == ["kernels-cpu.json"]


@pytest.mark.usefixtures("one_small_case")
def test_without_json_a_table_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main.main(["bench", "kernels", "--rounds", "3", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for word in ("shape", "us", "TFLOP/s", "GB/s", "spin, 4 float32", "load"):
        assert word in shown
    assert re.search(r"spread +% of +x *\n", shown)
    assert re.search(r"% +TFLOP/s +GB/s +limit +torch *\n", shown)


def test_a_narrow_terminal_wraps_the_table_and_loses_no_column(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    row = dict.fromkeys(table.COLUMNS, 1234.0) | {"form": "a form's name of twenty"}
    document = {"hardware": {}, "load": {"before": 1, "after": 1}, "times": "", "rows": [row]}
    publish(tmp_path / "kernels.json", document, "one case", table.COLUMNS)
    line = next(line for line in capsys.readouterr().out.split("\n") if "twenty" in line)
    assert len(re.findall(r"1,?234", line)) == len(table.COLUMNS)


def test_the_table_fits_eighty_columns() -> None:
    forms = {form for case in table.cases("cpu", Sizes(batch=2, tokens=4, context=8), ["nano"])
             for form in case.forms}  # fmt: skip
    assert max(map(len, forms)) <= 20, "the last columns would leave a narrow terminal"


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


def test_every_case_computes_the_same_in_each_of_its_forms() -> None:
    seen = set()
    for case in table.cases("cpu", Sizes(batch=3, tokens=8, context=12), ["nano"]):
        if case.dtype == torch.bfloat16:
            continue
        with case.entered():
            plain, *others = (_flat(form()) for form in case.forms.values())
        # A weight rounded to 8 bits is another weight; the two products differ by it.
        rounding = 0.02 if case.op == "int8_linear" else 1e-5
        for other in others:
            for want, got in zip(plain, other, strict=True):
                assert (got - want).norm() <= rounding * want.norm(), case.op
        seen.add(case.op.split()[0])
    assert seen == OPS_ON_A_CPU


def _flat(made: object) -> list[torch.Tensor]:
    tensors = [made] if isinstance(made, torch.Tensor) else list(made)  # type: ignore[call-overload]
    return [tensor.detach().double() for tensor in tensors]


def forms_on_a_rank() -> dict[str, list[torch.Tensor]]:
    cases = collectives._cases(dist.get_rank())
    return {op: [form().clone() for form in forms.values()] for op, forms in cases.items()}


def test_every_form_of_a_collective_computes_the_same_up_to_roundings(ranks) -> None:
    for made in ranks(2, __file__, "forms_on_a_rank"):
        for op, (plain, *others) in made.items():
            for other in others:
                assert torch.allclose(plain.float(), other.float(), atol=0.04, rtol=2**-7), op
        assert set(made) == {"all_reduce", "all_gather", "reduce_scatter"}


@pytest.mark.slow
def test_the_collectives_are_timed_between_processes() -> None:
    rows = collectives.rows(3, {"bytes/s": 1e10})
    assert {row["op"] for row in rows} == {
        "multimem.all_reduce", "multimem.all_gather", "multimem.reduce_scatter",
    }  # fmt: skip
    assert all(row["us"] > 0 for row in rows)


# Every operation of the package; the collectives need several processes, and are timed apart.
OPS_ON_A_CPU = {
    "adamw_step", "add_rmsnorm", "combine", "cross_entropy", "experts", "fp8_linear", "fused_route",
    "hidden_z_loss", "int8_linear", "keep_top", "latent_write", "linear", "mla_decode",
    "mla_prefill", "paged_mla", "permute", "quantise_blocks", "quantise_rows", "rmsnorm", "rope",
    "scatter_add", "swiglu", "verify",
}  # fmt: skip


def test_every_op_of_the_package_has_a_row() -> None:
    sizes = Sizes(batch=2, tokens=4, context=8)
    assert {case.op.split()[0] for case in table.cases("cpu", sizes, ["bench"])} == OPS_ON_A_CPU
    parts = {path.parent.name for path in Path(kernels.__path__[0]).glob("*/reference.py")}
    told = {"route": "fused_route", "sampling": "verify", "fp8": "fp8_linear",
            "adamw": "adamw_step"}  # fmt: skip
    assert {told.get(part, part) for part in parts} - {"multimem"} <= OPS_ON_A_CPU


def test_serving_rows_run_without_gradients_and_checks() -> None:
    sizes = Sizes(batch=2, tokens=4, context=8)
    make = {case.op: case for case in table.cases("cpu", sizes, ["nano"])}
    with make["mla_decode"].entered():
        assert torch.is_inference_mode_enabled()
    with make["swiglu both ways"].entered():
        assert torch.is_grad_enabled()


def test_the_limits_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "COPIED", 2**20)
    monkeypatch.setattr(table, "SQUARE", 64)
    found = table.limits("cpu")
    assert set(found) == {"bytes/s", "float32 flop/s", "bfloat16 flop/s"}
    assert all(value > 1e6 for value in found.values())


def test_clocks_are_what_the_driver_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 1755, 3201, 1980\necho 345, 3201, 1980\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert "gpu MHz" not in timing.clocks()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = timing.clocks()
    assert (found["gpu MHz"], found["gpu memory MHz"], found["of at most"]) == (1755, 3201, 1980)
    driver.write_text("#!/bin/sh\necho '[N/A], [N/A], [N/A]'\n")
    assert "gpu MHz" not in timing.clocks()
