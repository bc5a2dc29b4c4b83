"""What a kernel reads and writes, lane by lane, while Triton's interpreter runs it.

Every tensor argument of a launch is known by its parameter's name. A lane that touches memory
outside all of them stops the launch; the interpreter itself would read whatever lies there. Bytes
are counted once per address and instruction, as the memory system is asked for them, so that a
kernel's traffic can be compared with its analytic model on a machine without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from triton.runtime import interpreter as stock_interpreter

_Builder = stock_interpreter.InterpreterBuilder
_Executor = stock_interpreter.GridExecutor


class Stray(RuntimeError):
    """A lane outside every tensor of its launch."""


@dataclass
class Traffic:
    """One tensor argument of one launch.

    loaded, stored: bytes; writes: how often each element of the tensor's storage span was written
    (elements between the rows of a strided view included; `of` picks the view's own).
    """

    tensor: Tensor
    loaded: int = 0
    stored: int = 0
    writes: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))

    def __post_init__(self) -> None:
        self.writes = np.zeros(self.span, np.int32)

    @property
    def size(self) -> int:
        """Bytes per element."""
        return self.tensor.element_size()

    @property
    def start(self) -> int:
        """Address of the first element."""
        return self.tensor.data_ptr()

    @property
    def span(self) -> int:
        """Elements from the first to the last one."""
        if not self.tensor.numel():
            return 0
        steps = zip(self.tensor.shape, self.tensor.stride(), strict=True)
        return 1 + sum((length - 1) * stride for length, stride in steps)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's own elements."""
        return self.tensor.numel() * self.size

    def written(self) -> NDArray[np.int32]:
        """How often each element was written, in the tensor's shape."""
        strides = [4 * stride for stride in self.tensor.stride()]
        shape = tuple(self.tensor.shape)
        return np.lib.stride_tricks.as_strided(self.writes, shape, strides, writeable=False)


@dataclass
class Launch:
    """One kernel launch: its name and what it did to each tensor, by parameter name."""

    kernel: str
    traffic: dict[str, Traffic]

    def __getitem__(self, parameter: str) -> Traffic:
        return self.traffic[parameter]

    def find(self, addresses: NDArray[np.uint64], width: int, verb: str) -> Iterator[Any]:
        """(traffic, element numbers) for each tensor that the addresses fall into.

        Raises:
            Stray: an address in none of them.
        """
        left = addresses
        for traffic in self.traffic.values():
            if not traffic.span or traffic.size != width:
                continue
            inside = (left >= traffic.start) & (left < traffic.start + traffic.span * width)
            if inside.any():
                yield traffic, (left[inside] - np.uint64(traffic.start)) // np.uint64(width)
                left = left[~inside]
                if not left.size:
                    return
        if left.size:
            raise Stray(
                f"{self.kernel}: {left.size} lanes {verb} outside every tensor of the launch "
                f"({', '.join(self.traffic)}); the first at {self._nearest(int(left[0]))}"
            )

    def _nearest(self, address: int) -> str:
        def distance(named: tuple[str, Traffic]) -> int:
            return min(abs(address - named[1].start), abs(address - self._end(named[1])))

        name, traffic = min(self.traffic.items(), key=distance)
        return f"element {(address - traffic.start) // traffic.size} of {name} [{traffic.span}]"

    @staticmethod
    def _end(traffic: Traffic) -> int:
        return traffic.start + traffic.span * traffic.size


class Probe:
    """The launches seen inside `probed()`."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def __getitem__(self, kernel: str) -> Launch:
        """The only launch of the kernel of this name."""
        (launch,) = (launch for launch in self.launches if launch.kernel == kernel)
        return launch

    def loaded(self, tensor: Tensor) -> int:
        """Bytes that all launches loaded from memory that this tensor spans."""
        return sum(t.loaded for t in self._of(tensor))

    def stored(self, tensor: Tensor) -> int:
        """Bytes that all launches stored to memory that this tensor spans."""
        return sum(t.stored for t in self._of(tensor))

    def _of(self, tensor: Tensor) -> Iterator[Traffic]:
        for launch in self.launches:
            seen: set[int] = set()
            for traffic in launch.traffic.values():
                if traffic.start == tensor.data_ptr() and traffic.start not in seen:
                    seen.add(traffic.start)
                    yield traffic

    def check_written_once(self) -> None:
        """Every launch wrote each element of each tensor that it writes to exactly once.

        Raises:
            AssertionError: an element left out or written twice, by name.
        """
        for launch in self.launches:
            for name, traffic in launch.traffic.items():
                if traffic.stored:
                    counts = traffic.written()
                    assert (counts == 1).all(), (
                        f"{launch.kernel}: {name} has {int((counts == 0).sum())} elements never "
                        f"written and {int((counts > 1).sum())} written more than once"
                    )


@contextmanager
def probed(**reached: Tensor) -> Iterator[Probe]:
    """Watch every interpreted launch inside the block.

    reached: tensors that kernels find through a table of addresses, under names of your choice.
    """
    probe = Probe()
    call, load, store = (
        _Executor.__call__,
        _Builder.create_masked_load,
        _Builder.create_masked_store,
    )

    def watched_call(self: Any, *arguments: Any, **named: Any) -> None:
        given = reached | dict(zip(self.arg_names, arguments, strict=False)) | named
        tensors = {name: getattr(value, "base", value) for name, value in given.items()}
        traffic = {n: Traffic(tensor=t) for n, t in tensors.items() if isinstance(t, Tensor)}
        probe.launches.append(Launch(kernel=self.fn.__name__, traffic=traffic))
        call(self, *arguments, **named)

    def watched_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        lanes = np.unique(_active(pointers, mask))
        for traffic, elements in probe.launches[-1].find(lanes, _width(pointers), "load"):
            traffic.loaded += traffic.size * elements.size
        return load(self, pointers, mask, *rest, **named)

    def watched_store(
        self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any
    ) -> Any:
        lanes = _active(pointers, mask)
        for traffic, elements in probe.launches[-1].find(lanes, _width(pointers), "store"):
            traffic.stored += traffic.size * elements.size
            np.add.at(traffic.writes, elements.astype(np.int64), 1)
        return store(self, pointers, value, mask, *rest, **named)

    _Executor.__call__ = watched_call
    _Builder.create_masked_load, _Builder.create_masked_store = watched_load, watched_store
    try:
        yield probe
    finally:
        _Executor.__call__ = call
        _Builder.create_masked_load, _Builder.create_masked_store = load, store


def _active(pointers: Any, mask: Any) -> NDArray[np.uint64]:
    """The addresses of the lanes that the mask lets through."""
    shown = np.asarray(mask.data).astype(bool)
    lanes: NDArray[np.uint64] = np.broadcast_to(pointers.data, shown.shape)[shown]
    return lanes


def _width(pointers: Any) -> int:
    """Bytes per element behind the pointers."""
    bits: int = pointers.get_element_ty().primitive_bitwidth
    return max(1, bits // 8)
