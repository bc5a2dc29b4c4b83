"""Every configuration compiles for sm_90a, has the instructions it needs, and matches the table.

In processes of their own: Triton reads TRITON_INTERPRET when a kernel is defined. No GPU is used.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CODEGEN = "longcat.kernels.proof.codegen"
TABLE = Path(importlib.util.find_spec(CODEGEN).origin).with_name("generated_code.md")
VERSION = importlib.metadata.version("triton")
OF_THIS_TRITON = f"Triton {VERSION} " in TABLE.read_text()
SHARES = 4  # processes, each with every fourth configuration: importing torch costs as much as six


def _compiling(*command):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("share", range(SHARES))
def test_the_machine_code_is_what_the_kernels_promise(share):
    compiled = _compiling("-m", CODEGEN, "--share", f"{share}/{SHARES}")
    assert compiled
    assert not [breach for one in compiled for breach in one["breaches"]]
    if not OF_THIS_TRITON:
        pytest.skip(f"the table is of another Triton than {VERSION}")
    lines = TABLE.read_text().splitlines()
    changed = [one["row"] for one in compiled if one["row"] not in lines]
    assert not changed, "generated code changed; look at it, then run `make codegen`"


MUTANTS = f"""
import json
from {CODEGEN} import compiled, configurations
from dataclasses import asdict, replace
swiglu = next(iter(configurations("swiglu")))
linear = list(configurations("linear"))
eight = next(one for one in linear if "swap 64x8" in one.name)
sixteen = next(one for one in linear if "swap 64x16" in one.name)
for one in compiled((
    replace(swiglu, needs=("HGMMA",), forbids=("LDG.E.128",), ptx=("multimem.st",)),
    replace(eight, needs=("HGMMA.64x8x16",), forbids=()),
    replace(next(iter(configurations("multimem"))), atomic=False),
    replace(sixteen, constants=sixteen.constants | {{"SWAP": False}}),
)):
    print(json.dumps(asdict(one)))
"""


def test_missing_and_forbidden_instructions_are_reported():
    other, eight, atomic, plain = _compiling("-c", MUTANTS)
    assert [breach.split(": ")[1][:20] for breach in other["breaches"]] == [
        "needs HGMMA, has LDG",
        "its PTX lacks multim",
        "must not contain LDG",
    ]
    # Triton has wgmma of 8 columns from 3.8 on.
    old = tuple(map(int, VERSION.split(".")[:2])) < (3, 8)
    assert bool(eight["breaches"]) == old
    assert [breach.split()[-1] for breach in atomic["breaches"]] == ["ATOM", "RED"]
    # 16 tokens on the left do not fill the 64 rows of wgmma: the compiler falls back, silently.
    assert "HGMMA" in plain["breaches"][0]
    assert "HMMA" in plain["breaches"][1]


COUNTS = f"""
import json, re, subprocess, tempfile
from collections import Counter
from longcat.kernels.proof import machine_code
from {CODEGEN} import ARCHITECTURE, OPS, _compile, configurations, demands
print(json.dumps([one.name for op in OPS for one in configurations(op)]))
print(json.dumps([demands(op) for op in OPS]))
kernels = [_compile(one) for op in ("swiglu", "scatter_add") for one in configurations(op)]
cubins = [kernel.asm["cubin"] for kernel in kernels]
together = machine_code.instructions(cubins, ARCHITECTURE)
for cubin, mine in zip(cubins, together):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [machine_code.TOOLS / "cuobjdump", "--dump-sass", file.name]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = re.findall(r"[*]/ +(?:@!?U?P[0-9T]+ +)?([A-Z][A-Z0-9_.x]*)[^;]*;", listing)
    print(json.dumps([mine, Counter(lines)]))
"""


def test_the_table_names_every_configuration_and_code_read_in_one_piece_is_each_kernels_own():
    names, demanded, *counted = _compiling("-c", COUNTS)
    assert len(names) == len(set(names))
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    demands, rows = lines[1 : len(demanded) + 1], lines[len(demanded) + 2 :]  # without their heads
    if OF_THIS_TRITON:
        assert demands == demanded
    assert [row.split("|")[1].strip() for row in rows] == names
    assert len(counted) == 3
    assert all(together == alone for together, alone in counted)
    assert counted[0] != counted[1]
