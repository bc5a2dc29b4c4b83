"""One way to compile a kernel, and what its machine code must and must not contain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A kernel with its compile-time constants, as the dispatcher would launch it on sm_90a.

    kernel: the @triton.jit function.
    name: a row of the table, such as "linear swap 64x16".
    types: the type of each run-time argument that is not told by its name: `*_ptr` is a pointer to
        bfloat16, anything else an int32. "*fp32", "i64", "tensordesc<bf16[64,64]>" and so on.
    constants: the constexpr arguments.
    divisible: integer arguments known to be multiples of 16, as Triton sees real widths to be;
        pointers always are.
    needs, forbids: instructions, as prefixes of SASS mnemonics ("HGMMA.64x16x16").
    ptx: what the PTX must contain, for what has no mnemonic of its own ("multimem.st").
    stack: bytes of local memory allowed; 0 unless a spill is known and told.
    atomic: it adds with atomics, on purpose; no other kernel may, for its bits would then depend on
        who comes first.
    gluon: the kernel is written in Gluon.
    """

    kernel: Any
    name: str
    types: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()
    warps: int = 4
    stages: int = 3
    needs: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()
    ptx: tuple[str, ...] = ()
    stack: int = 0
    atomic: bool = False
    gluon: bool = False

    def never(self) -> tuple[str, ...]:
        """What its instructions must not begin with, spills and atomics included."""
        spills = () if self.stack else ("LDL", "STL")
        return (*self.forbids, *spills, *(() if self.atomic else ("ATOM", "RED")))

    def signature(self) -> dict[str, str]:
        """The type of every argument, "constexpr" for constants."""
        return {name: self._type(name) for name in self.kernel.arg_names}

    def attributes(self) -> dict[tuple[int], list[list[Any]]]:
        """Which arguments are multiples of 16."""
        signature = self.signature()
        return {
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(self.kernel.arg_names)
            if signature[name].startswith("*") or name in self.divisible
        }

    def _type(self, name: str) -> str:
        if name in self.constants:
            return "constexpr"
        return self.types.get(name, "*bf16" if name.endswith("_ptr") else "i32")
