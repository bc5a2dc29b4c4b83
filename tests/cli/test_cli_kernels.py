"""Claims about `longcat demo kernels` and `longcat bench kernels --decoding` and `--training`."""

import importlib.util
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from longcat.cli import demo, main
from longcat.cli.benchmarks import decoding, graphs
from longcat.cli.demos.kernels import KernelsDemo, interpreter_runs

with_triton = pytest.mark.skipif(
    not interpreter_runs(), reason="Triton is not installed, or a GPU is present"
)


def test_the_demo_draws_the_waste_and_its_claim_holds() -> None:
    result = CliRunner().invoke(demo.app, ["kernels", "--no-pause"], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.stdout
    assert "✓ the claim holds" in result.stdout
    assert "#......." in result.stdout
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


def test_useful_rows_are_counted_over_all_experts_that_were_chosen() -> None:
    walk = KernelsDemo(seed=3)
    list(walk.frames())
    slots, busy = sum(walk.counts), sum(count > 0 for count in walk.counts)
    assert abs(busy - 325) < 20  # of 512, as the page says
    assert walk.useful("tokens as rows, 64") == slots / (64 * busy)
    assert walk.summary()["experts_chosen"] == busy


TABLES = {
    "decoding": {"linear", "experts", "paged_mla", "add_rmsnorm", "fused_route"},
    "training": {
        "mla_prefill", "cross_entropy", "experts", "combine", "fused_route", "rope", "add_rmsnorm",
        "hidden_z_loss", "adamw_step",
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


def test_weights_are_copied_until_no_cache_holds_them() -> None:
    make = graphs.Maker("cpu", toy=False)
    small = make.copies(2 * 576 * 6144)
    assert small * 2 * 576 * 6144 >= 3 * graphs.CACHE_BYTES
    assert make.copies(2 * 131072 * 6144) == 1
