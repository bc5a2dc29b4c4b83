"""The figures in the READMEs of the operations are those of the tables, or computed here."""

import re
from pathlib import Path

import pytest

from longcat import kernels
from longcat.kernels.proof import roofline

FOLDER = Path(kernels.__path__[0])
OPS = sorted(path.parent.name for path in FOLDER.glob("*/reference.py"))


def _readme(op):
    return " ".join((FOLDER / op / "README.md").read_text(encoding="utf-8").split())


def _registers(name):
    """Of a row of the committed table of generated code."""
    table = (FOLDER / "proof" / "generated_code.md").read_text(encoding="utf-8")
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return int(line.split("|")[2])


def test_every_op_has_a_readme_with_its_traffic_that_leads_to_its_roofline():
    told = {row.op for row in roofline.rows()}
    assert told == set(OPS) - {"int8_linear", "multimem"}
    for op in OPS:
        assert (op in told) == ("../proof/roofline.md" in _readme(op)), op
        assert "**Traffic**" in _readme(op), op


def test_the_committed_roofline_is_what_its_file_computes():
    committed = (FOLDER / "proof" / "roofline.md").read_text(encoding="utf-8")
    assert committed == roofline.table(), "run `make codegen`"


def test_a_limit_is_the_slower_of_memory_and_arithmetic():
    ridge = roofline.PRODUCT / roofline.COPY
    below, above = (
        roofline.Row(op="x", shape="", moved=1e9, flops=share * ridge * 1e9) for share in (0.9, 1.1)
    )
    assert (below.limit, above.limit) == ("memory", "arithmetic")
    assert below.seconds == pytest.approx(1e9 / roofline.COPY)
    assert above.seconds == pytest.approx(1.1e9 / roofline.COPY)


REGISTERS = {
    "experts": (
        r"(\d+) registers where pointers take (\d+) in the first product and (\d+) for (\d+)",
        ["experts gate_up swap 64x16x128, gathered, TMA",
         "experts gate_up swap 64x16x128, gathered",
         "experts down swap 64x16x128, TMA", "experts down swap 64x16x128"],
    ),
    "fp8": (
        r"(\d+), (\d+) and (\d+) registers .* where pointers take (\d+), (\d+) and (\d+)",
        [f"fp8 swap 64x{tokens}x128{way}" for way in (", TMA", "") for tokens in (16, 32, 64)],
    ),
    "paged_mla": (
        r"takes 16 queries from (\d+) registers to (\d+)",
        ["paged_mla heads n16 16 queries x 64 keys",
         "paged_mla heads n16 16 queries x 64 keys, pages of 16"],
    ),
    "linear": (
        r"fewer registers \((\d+) against (\d+) .* (\d+) registers for 16 tokens and (\d+) for the "
        r"plain form.* in (\d+) registers\. Gluon",
        ["linear swap 64x16x128 to bf16", "linear plain 64x128x64 to bf16",
         "linear swap 64x16x128 to bf16, TMA", "linear plain 64x128x64 to bf16, TMA",
         "linear gluon 64x8x64"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("op", REGISTERS)
def test_registers_are_those_of_the_generated_code(op):
    pattern, rows = REGISTERS[op]
    (told,) = re.findall(pattern, _readme(op))
    told = [told] if isinstance(told, str) else list(told)
    assert [int(number) for number in told] == [_registers(row) for row in rows]


def test_multimem_takes_at_most_the_registers_that_it_says():
    table = (FOLDER / "proof" / "generated_code.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| multimem ")]
    (told,) = re.findall(r"at most (\d+) registers", _readme("multimem"))
    assert int(told) == max(int(line.split("|")[2]) for line in rows)


def _chosen(tokens=64):
    """Experts that some of the tokens choose, evenly."""
    return 512 * (1 - (1 - 12 / 768) ** tokens)


# What a README says -> what its formula gives, compared to the digits that the README has.
COMPUTED = {
    ("adamw", r"= (\d+) bytes"): 3 * 4 + 2 + 3 * 4 + 2,
    ("experts", r"(\d+) of 512 experts have"): _chosen(),
    ("experts", r"experts have ([\d.]+) rows each"): 64 * 8 / _chosen(),
    ("experts", r"\(([\d.]+) GB in bfloat16"): 2 * 3 * 6144 * 2048 * _chosen() / 1e9,
    ("mla_decode", r"bfloat16 about (\d+) operations"): 64 * (2 * 512 + 64) / (512 + 64),
    ("mla_decode", r"ridge near (\d+)"): 788e12 / 4.3e12,
    ("mla_prefill", r"\(Q \+ V\) = ([\d.]+) times"): (4 * 192 + 3 * 128) / (192 + 128),
    ("mla_prefill", r"with atomics needs ([\d.]*\d)"): (3 * 192 + 2 * 128) / (192 + 128),
    ("multimem", r": ([\d.]+) times less at N = 8"): (2 * 7 / 8) / (1 + 1 / 8),
    ("paged_mla", r"a token, (\d+) per byte"): 64 * (2 * 512 + 64) / (512 + 64),
    ("paged_mla", r"verified together do (\d+)"): 2 * 64 * (2 * 512 + 64) / (512 + 64),
    ("route", r"it reads (\d+) KiB"): 768 * 4 / 1024,
    ("route", r"and writes ([\d.]+) KiB"): (768 * 4 + 12 * 12) / 1024,
    ("sampling", r"the row of (\d+) KiB"): 131072 * 4 / 1024,
}


@pytest.mark.parametrize(("op", "pattern"), COMPUTED)
def test_a_figure_is_what_its_formula_gives(op, pattern):
    (told,) = re.findall(pattern, _readme(op))
    digits = len(told.partition(".")[2])
    assert float(told) == round(COMPUTED[op, pattern], digits)


def test_control_a_stale_figure_is_noticed():
    pattern = r"= (\d+) bytes"
    (told,) = re.findall(pattern, _readme("adamw").replace("= 28 bytes", "= 32 bytes"))
    assert float(told) != COMPUTED["adamw", pattern]
