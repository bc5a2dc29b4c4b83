"""What is in a cubin: registers, stack, and the instructions of its kernel.

The tools come with Triton. Starting the disassembler costs a quarter of a second and reading a
kernel next to nothing, so it is given the code of all of them in one piece.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

_INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.x]*)", re.MULTILINE
)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


def usage(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) per thread."""
    found = _USAGE.search(_run("cuobjdump", "--dump-resource-usage", content=cubin))
    if found is None:
        raise RuntimeError("cuobjdump --dump-resource-usage: no line with REG and STACK found")
    return int(found[1]), int(found[2])


def instructions(cubins: Sequence[bytes], architecture: str) -> list[Counter[str]]:
    """How often each instruction stands in each cubin, by its SASS mnemonic."""
    pieces = [code(cubin) for cubin in cubins]
    ends = list(accumulate(map(len, pieces)))
    counts = [Counter[str]() for _ in cubins]
    if pieces:
        listing = _run("nvdisasm", "--binary", architecture, content=b"".join(pieces))
        for place, mnemonic in _INSTRUCTION.findall(listing):
            counts[bisect_right(ends, int(place, 16))][mnemonic] += 1
    return counts


def code(cubin: bytes) -> bytes:
    """The instructions of a cubin's kernel: the section of an ELF file that is named .text.*.

    Raises:
        ValueError: none of them, or several.
    """
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, number, names = struct.unpack_from("<HHH", cubin, 0x3A)
    # Of each section header: where its name stands, four fields of no concern, place, length.
    heads = [struct.unpack_from("<IIQQQQ", cubin, table + size * i) for i in range(number)]
    strings = heads[names][4]
    texts = [
        cubin[place : place + length]
        for name, *_, place, length in heads
        if cubin.startswith(b".text.", strings + name)
    ]
    if len(texts) != 1:
        raise ValueError(f"code: expected one kernel in the cubin, got {len(texts)}")
    return texts[0]


def _run(tool: str, *options: str, content: bytes) -> str:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        command = [str(TOOLS / tool), *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
