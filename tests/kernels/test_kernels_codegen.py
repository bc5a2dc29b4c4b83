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
OPS = sorted(path.parent.name for path in TABLE.parent.parent.glob("*/triton_kernel.py"))
SHARES = [tuple(OPS[start::2]) for start in range(2)]  # importing torch costs more than compiling


def _compiling(*command):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("ops", SHARES, ids=" ".join)
def test_the_machine_code_is_what_the_kernels_promise(ops):
    compiled = _compiling("-m", CODEGEN, *ops)
    assert compiled
    assert not [breach for one in compiled for breach in one["breaches"]]
    version = importlib.metadata.version("triton")
    text = TABLE.read_text()
    if f"Triton {version} " not in text:
        pytest.skip(f"the table is of another Triton than {version}")
    changed = [one["row"] for one in compiled if one["row"] not in text.splitlines()]
    assert not changed, "generated code changed; look at it, then run `make codegen`"


MUTANT = f"""
import dataclasses, json
from {CODEGEN} import compile_one, configurations
from dataclasses import asdict
one = next(iter(configurations("swiglu")))
wrong = dataclasses.replace(one, needs=("HGMMA",), forbids=("LDG.E.128",), ptx=("multimem.st",))
print(json.dumps(asdict(compile_one(wrong))))
"""


def test_missing_and_forbidden_instructions_are_reported():
    [one] = _compiling("-c", MUTANT)
    assert [breach.split(": ")[1][:20] for breach in one["breaches"]] == [
        "needs HGMMA, has LDG",
        "its PTX lacks multim",
        "must not contain LDG",
    ]
