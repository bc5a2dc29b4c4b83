"""Claims about `longcat demo kernels` and `longcat bench kernels --decoding` and `--training`."""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from typer.testing import CliRunner

from longcat.cli import demo, main
from longcat.cli.benchmarks import decoding, graphs, training
from longcat.cli.demos import kernels
from longcat.cli.demos.kernels import KernelsDemo, interpreter_runs

with_triton = pytest.mark.skipif(
    not interpreter_runs(), reason="Triton is not installed, or a GPU is present"
)


def test_the_demo_draws_the_waste_and_its_claim_holds() -> None:
    result = CliRunner().invoke(demo.app, ["kernels", "--no-pause"], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.stdout
    assert "✓ the claim holds" in result.stdout
    assert "1......." in result.stdout
    assert "#" not in result.stdout
    assert "longcat tutorial 08" in result.stdout


def test_twelve_tokens_are_sixteen_columns_or_sixty_four_rows() -> None:
    walk = KernelsDemo(seed=0, tokens=64)
    walk.counts = [12, 0, 0]
    for _ in walk.frames():
        pass
    assert walk.drawn == {
        "tokens as rows, 64": [64], "as columns, 16": [16], "as columns, 8": [16],
    }  # fmt: skip
    assert walk.useful("tokens as rows, 64") == 12 / 64
    drawing = kernels._tiles([12, 3], walk.drawn["tokens as rows, 64"] + [8])
    assert drawing.plain == "84...... 3 "
    multiplying, reading = walk.floors("as columns, 16")
    assert multiplying == pytest.approx(6 * 16 * 6144 * 2048 / 788e12)
    assert reading == pytest.approx(6 * 6144 * 2048 / 4.3e12)  # one expert, read once


def test_useful_rows_are_counted_over_all_experts_that_were_chosen() -> None:
    walk = KernelsDemo(seed=3)
    list(walk.frames())
    slots, busy = sum(walk.counts), sum(count > 0 for count in walk.counts)
    assert abs(busy - 325) < 20  # of 512, as the page says
    assert walk.useful("tokens as rows, 64") == slots / (64 * busy)
    assert walk.summary()["experts_chosen"] == busy


TABLES = {
    "decoding": {
        "linear", "experts", "paged_mla", "add_rmsnorm", "fused_route", "permute", "latent_write",
        "keep_top", "verify", "fp8_linear", "quantise_rows",
    },
    "training": {
        "mla_prefill", "cross_entropy", "experts", "combine", "permute", "fused_route",
        "scatter_add", "rope", "rmsnorm", "add_rmsnorm", "swiglu", "hidden_z_loss", "adamw_step",
    },
}  # fmt: skip


@with_triton
@pytest.mark.parametrize("table", TABLES)
def test_the_table_runs_end_to_end_at_toy_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str
) -> None:
    assert os.environ.get("TRITON_INTERPRET") == "1"
    assert importlib.util.find_spec("triton")
    out = ["--out", str(tmp_path), "--json"]
    assert main.main(["bench", "kernels", f"--{table}", *out]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / f"{table}-cpu.json").read_text())
    ops = {row["op"].split()[0] for row in document["rows"]}
    assert ops == TABLES[table]
    # No time was measured, so none is stated.
    assert all(set(row) == {"form", "op", "shape", "difference"} for row in document["rows"])
    assert document["times"].startswith("none:")


def test_one_table_at_a_time_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "kernels", "--decoding", "--training"]) == 2
    assert "two tables" in capsys.readouterr().err


@with_triton
def test_a_kernel_that_differs_from_torch_ends_the_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(iter(decoding.cases("cpu", toy=True)))
    graphs.compared(case)
    wrong = graphs.Case(**{**vars(case), "ours": lambda i: 2 * case.theirs(i)})
    with pytest.raises(ValueError, match=r"bench: linear q_a at .* differs from torch by"):
        graphs.compared(wrong)


@with_triton
@pytest.mark.parametrize("table", [decoding, training], ids=["decoding", "training"])
def test_a_row_compares_a_kernel_with_torch_and_not_torch_with_itself(
    monkeypatch: pytest.MonkeyPatch, table: ModuleType
) -> None:
    from triton.runtime.interpreter import GridExecutor

    launched: list[str] = []
    launch = GridExecutor.__call__

    def told(grid: GridExecutor, *arguments: object, **named: object) -> object:
        launched.append(grid.fn.__name__)
        return launch(grid, *arguments, **named)

    monkeypatch.setattr(GridExecutor, "__call__", told)
    for case in table.cases("cpu", toy=True):
        launched.clear()
        graphs.in_torch(case.theirs)(0)
        assert not launched, case.op
        case.ours(0)
        assert launched, case.op


class _Event:
    """A CUDA event on a clock that the test sets."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = _Event.now

    def elapsed_time(self, end: "_Event") -> float:
        return end.at - self.at


def test_graphs_are_replayed_in_turns_and_the_first_turn_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    order: list[str] = []

    def walk(name: str, milliseconds: float) -> Callable[[], None]:
        def run() -> None:
            _Event.now += milliseconds + (1000 if len(order) < 2 else 0)
            order.append(name)

        return run

    found = graphs._in_turns([walk("a", 4.0), walk("b", 2.0)], copies=2, rounds=3)
    assert "".join(order) == "ab" * 4
    assert found == [(pytest.approx(2e-3), 0.0), (pytest.approx(1e-3), 0.0)]


@pytest.mark.parametrize("captured", [True, False])
def test_a_row_holds_the_share_of_the_limit_and_torchs_time_over_ours(
    monkeypatch: pytest.MonkeyPatch, captured: bool
) -> None:
    ways: list[str] = []
    for way in ("_captured", "_launched"):
        monkeypatch.setattr(graphs, way, lambda form, copies, way=way: ways.append(way))
    monkeypatch.setattr(graphs, "_in_turns", lambda *_: [(2e-6, 0.1), (5e-6, 0.2)])
    case = graphs.Case(
        op="op", shape="1", ours=lambda i: i, theirs=lambda i: i, copies=1, bytes=3e6, flops=1e6,
        captured=captured,
    )  # fmt: skip
    row = graphs.timed(case, {"bytes/s": 4e12, "flop/s": 1e15}, rounds=3)
    assert ways == (["_captured"] if captured else ["_launched"]) * 2
    assert row == {
        "op": "op", "shape": "1", "us": 2.0, "spread_%": 10.0, "TFLOP/s": 0.5, "GB/s": 1500.0,
        "%_of_limit": 37.5, "x_torch": 2.5,
    }  # fmt: skip


def test_weights_are_copied_until_no_cache_holds_them() -> None:
    make = graphs.Maker("cpu", toy=False)
    small = make.copies(2 * 576 * 6144)
    assert small * 2 * 576 * 6144 >= 3 * graphs.CACHE_BYTES
    assert make.copies(2 * 131072 * 6144) == 1
