"""Compile every kernel configuration for sm_90a, without a GPU, and read what came out.

`python -m longcat.kernels.proof.codegen OP...` prints one row per configuration as JSON lines;
`--share 0/4` takes every fourth of them, for processes that share the work; `--write FILE` writes
the table of all ops instead: registers, stack, shared memory and the instructions that matter. The
table is committed; its diff shows a change in generated code.

Kernels must be compiled in a process of their own, with TRITON_INTERPRET unset: Triton reads the
variable when a kernel is defined.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

import longcat.kernels as kernels
from longcat.kernels.proof import machine_code
from longcat.kernels.proof.calls import CALLS
from longcat.kernels.proof.configuration import Configuration

OPS = tuple(
    sorted(path.parent.name for path in Path(__file__).parents[1].glob("*/triton_kernel.py"))
)

SHARED_LIMIT = 227 * 1024  # bytes a block may use on sm_90
TARGET = GPUTarget("cuda", 90, 32)
ARCHITECTURE = f"SM{TARGET.arch}a"  # which the compiler makes of it

# The instructions that the table counts: matrix products, memory, fences; the rest is arithmetic.
_COUNTED = re.compile(
    r"^(HGMMA|QGMMA|HMMA|LDG(?!DEPBAR)|UTMALDG|STG|LDSM|LDL|STL|ATOM|RED(?!UX)|MEMBAR|CCTL)"
)


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler made of one configuration: bytes, registers per thread, instructions."""

    name: str
    registers: int
    stack: int
    shared: int
    instructions: dict[str, int]
    breaches: list[str]


def configurations(op: str) -> Iterator[Configuration]:
    """Every configuration that the dispatcher can choose for the op."""
    module = importlib.import_module(f"longcat.kernels.{op}.triton_kernel")
    yield from module.configurations()


def compiled(given: Sequence[Configuration]) -> list[Compiled]:
    """Compile for sm_90a, disassemble, and compare with what each configuration demands."""
    kernels = [_compile(configuration) for configuration in given]
    counts = machine_code.instructions([kernel.asm["cubin"] for kernel in kernels], ARCHITECTURE)
    made = []
    for configuration, kernel, sass in zip(given, kernels, counts, strict=True):
        registers, stack = machine_code.usage(kernel.asm["cubin"])
        one = Compiled(
            name=configuration.name,
            registers=registers,
            stack=stack,
            shared=kernel.metadata.shared,
            instructions={name: n for name, n in sorted(sass.items()) if _COUNTED.match(name)},
            breaches=[],
        )
        one.breaches.extend(_breaches(configuration, one, kernel.asm["ptx"]))
        made.append(one)
    return made


def _compile(configuration: Configuration) -> Any:
    source = (GluonASTSource if configuration.gluon else ASTSource)(
        configuration.kernel,
        signature=configuration.signature(),
        constexprs=dict(configuration.constants),
        attrs=configuration.attributes(),
    )
    options = {"num_warps": configuration.warps, "num_stages": configuration.stages}
    return triton.compile(source, target=TARGET, options=options)


def _breaches(configuration: Configuration, one: Compiled, ptx: str) -> Iterator[str]:
    def present(instruction: str) -> bool:
        return any(name.startswith(instruction) for name in one.instructions)

    name = configuration.name
    for needed in configuration.needs:
        if not present(needed):
            yield f"{name}: needs {needed}, has {', '.join(one.instructions)}"
    for text in configuration.ptx:
        if text not in ptx:
            yield f"{name}: its PTX lacks {text}"
    for forbidden in configuration.never():
        if present(forbidden):
            yield f"{name}: must not contain {forbidden}"
    if one.stack > configuration.stack:
        yield f"{name}: {one.stack} bytes of stack, at most {configuration.stack} allowed"
    if one.shared > SHARED_LIMIT:
        yield f"{name}: {one.shared} bytes of shared memory, a block has {SHARED_LIMIT}"


def row(one: Compiled) -> str:
    """One line of the table."""
    counts = ", ".join(f"{name} {n}" for name, n in one.instructions.items())
    return f"| {one.name} | {one.registers} | {one.stack} | {one.shared} | {counts} |"


def demands(op: str) -> str:
    """One line of the table of demands: what the op's machine code must and must not contain."""
    given = list(configurations(op))
    public = [n for n in CALLS if getattr(kernels, n).__module__ == f"longcat.kernels.{op}"]
    leaves = [leaf for name in public for leaf in CALLS[name].leaves]
    needs = dict.fromkeys(need for one in given for need in (*one.needs, *one.ptx))
    # What only some must not contain is left out: one tile's instruction is another's fault.
    never = [n for n in given[0].never() if all(n in one.never() for one in given)]
    cells = (
        f"[{op}](../{op}/README.md)",
        ", ".join(public) or "-",
        ", ".join(dict.fromkeys(leaves)) or "-",
        str(len(given)),
        ", ".join(needs),
        ", ".join(never),
    )
    return f"| {' | '.join(cells)} |"


def table(made: list[Compiled]) -> str:
    """The committed page."""
    head = [
        "# Generated code",
        "",
        "What the kernels of an op must contain, each of them or some, as prefixes of SASS "
        "instructions or as pieces of PTX; what none of them may; whose gradients Triton computes.",
        "",
        "| folder | ops | gradients of | configurations | must contain | must not contain |",
        "|---|---|---|---|---|---|",
        *(demands(op) for op in OPS),
        "",
        f"Made by `make codegen` with Triton {triton.__version__} for sm_90a; a test compares it "
        "with what the compiler makes today.",
        "Registers are per thread; stack and shared memory in bytes; instructions as they stand in "
        "the code, loops counted once. None of this was run on a GPU.",
        "",
        "| configuration | registers | stack | shared | instructions |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(row(one) for one in made), ""])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m longcat.kernels.proof.codegen")
    parser.add_argument("ops", nargs="*", help=f"of {', '.join(OPS)}; default: all of them")
    parser.add_argument("--share", default="0/1", metavar="I/N", help="every Nth row, from the Ith")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table to FILE")
    options = parser.parse_args()
    first, step = map(int, options.share.split("/"))
    given = [c for op in options.ops or OPS for c in configurations(op)]
    made = compiled(given[first::step])
    if options.write:
        options.write.write_text(table(made))
        breaches = [breach for one in made for breach in one.breaches]
        if breaches:
            raise SystemExit("\n".join(breaches))
    else:
        for one in made:
            print(json.dumps(asdict(one) | {"row": row(one)}))


if __name__ == "__main__":
    main()
