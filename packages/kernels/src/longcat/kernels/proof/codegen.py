"""Compile every kernel configuration for sm_90a, without a GPU, and read what came out.

`python -m longcat.kernels.proof.codegen OP...` prints one row per configuration as JSON lines,
`--write FILE` writes the table of all ops instead: registers, stack, shared memory and the
instructions that matter. The table is committed; its diff shows a change in generated code.

Kernels must be compiled in a process of their own, with TRITON_INTERPRET unset: Triton reads the
variable when a kernel is defined.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

from longcat.kernels.proof.configuration import Configuration

OPS = tuple(
    sorted(path.parent.name for path in Path(__file__).parents[1].glob("*/triton_kernel.py"))
)

SHARED_LIMIT = 227 * 1024  # bytes a block may use on sm_90
TARGET = GPUTarget("cuda", 90, 32)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# The instructions that the table counts: matrix products, memory, fences; the rest is arithmetic.
_COUNTED = re.compile(
    r"^(HGMMA|QGMMA|HMMA|LDG(?!DEPBAR)|UTMALDG|STG|LDSM|LDL|STL|ATOM|RED(?!UX)|MEMBAR|CCTL)"
)
_SASS = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]*)", re.MULTILINE)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


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


def compile_one(configuration: Configuration) -> Compiled:
    """Compile for sm_90a, disassemble, and compare with what the configuration demands."""
    source = (GluonASTSource if configuration.gluon else ASTSource)(
        configuration.kernel,
        signature=configuration.signature(),
        constexprs=dict(configuration.constants),
        attrs=configuration.attributes(),
    )
    options = {"num_warps": configuration.warps, "num_stages": configuration.stages}
    kernel = triton.compile(source, target=TARGET, options=options)
    registers, stack = _usage(kernel.asm["cubin"])
    sass = Counter(_SASS.findall(_cuobjdump("--dump-sass", kernel.asm["cubin"])))
    compiled = Compiled(
        name=configuration.name,
        registers=registers,
        stack=stack,
        shared=kernel.metadata.shared,
        instructions={name: n for name, n in sorted(sass.items()) if _COUNTED.match(name)},
        breaches=[],
    )
    compiled.breaches.extend(_breaches(configuration, compiled, kernel.asm["ptx"]))
    return compiled


def _breaches(configuration: Configuration, compiled: Compiled, ptx: str) -> Iterator[str]:
    def present(instruction: str) -> bool:
        return any(name.startswith(instruction) for name in compiled.instructions)

    name = configuration.name
    for needed in configuration.needs:
        if not present(needed):
            yield f"{name}: needs {needed}, has {', '.join(compiled.instructions)}"
    for text in configuration.ptx:
        if text not in ptx:
            yield f"{name}: its PTX lacks {text}"
    for forbidden in (*configuration.forbids, *(() if configuration.stack else ("LDL", "STL"))):
        if present(forbidden):
            yield f"{name}: must not contain {forbidden}"
    if compiled.stack > configuration.stack:
        yield f"{name}: {compiled.stack} bytes of stack, at most {configuration.stack} allowed"
    if compiled.shared > SHARED_LIMIT:
        yield f"{name}: {compiled.shared} bytes of shared memory, a block has {SHARED_LIMIT}"


def _cuobjdump(what: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), what, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) per thread."""
    found = _USAGE.search(_cuobjdump("--dump-resource-usage", cubin))
    if found is None:
        raise RuntimeError("cuobjdump --dump-resource-usage: no line with REG and STACK found")
    return int(found[1]), int(found[2])


def row(compiled: Compiled) -> str:
    """One line of the table."""
    counts = ", ".join(f"{name} {n}" for name, n in compiled.instructions.items())
    return (
        f"| {compiled.name} | {compiled.registers} | {compiled.stack} | {compiled.shared} "
        f"| {counts} |"
    )


def table(compiled: list[Compiled]) -> str:
    """The committed page."""
    head = [
        "# Generated code",
        "",
        f"Made by `make codegen` with Triton {triton.__version__} for sm_90a; a test compares it "
        "with what the compiler makes today.",
        "Registers are per thread; stack and shared memory in bytes; instructions as they stand in "
        "the code, loops counted once. None of this was run on a GPU.",
        "",
        "| configuration | registers | stack | shared | instructions |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(row(one) for one in compiled), ""])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m longcat.kernels.proof.codegen")
    parser.add_argument("ops", nargs="*", help=f"of {', '.join(OPS)}; default: all of them")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table to FILE")
    options = parser.parse_args()
    made = [compile_one(c) for op in options.ops or OPS for c in configurations(op)]
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
