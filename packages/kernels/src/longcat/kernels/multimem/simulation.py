"""N ranks as N processes on a CPU, with a switch that delivers stores only after a release.

The Triton kernels run as they are, in Triton's interpreter. Memory is shared and mapped at the same
addresses in every process; the atomics of the barriers are real ones. Two things are simulated:

- the switch: a load through the multicast window sums over all ranks in float32 and rounds once; a
  store through it is kept back, and delivered, in random order, when its rank does a `release`.
- the window itself: no memory lies there, and an ordinary access to it ends the process.

This proves indexing, slicing, masks, the pairing of barriers and that no release is missing. It
does not prove the acquire side, the order in which a real switch adds, what the proxies of a GPU
demand, that four blocks are resident at once, or anything about speed.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import pickle
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter as stock_interpreter

from longcat.kernels.dispatch import use_backend
from longcat.kernels.multimem.memory import PROGRAMS, SymmetricMemory
from longcat.kernels.proof.interpreter import narrow, repair, widen

PATIENCE = 60.0  # seconds at a barrier before it is called a deadlock

_Handle = stock_interpreter.TensorHandle
_ACCESS = re.compile(r"(@%\w+ )?multimem\.(ld_reduce|st)\.relaxed\.sys\.global([.\w:]*)")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one rank's function returned, and the bytes it moved through the switch."""

    value: Any
    loaded: int
    stored: int


@dataclass(frozen=True, kw_only=True)
class _Results:
    """The registers that one asm statement wrote."""

    handles: list[Any]

    def get_result(self, place: int) -> Any:
        return self.handles[place]


class Simulation:
    """Symmetric memory of `nbytes` for each of `world` ranks; `run` starts the processes."""

    def __init__(self, world: int, nbytes: int, seed: int = 0) -> None:
        self.world, self.nbytes, self.seed = world, -(-nbytes // 4096) * 4096, seed
        self._heap = mmap.mmap(-1, world * (self.nbytes + 4096))
        heap = np.frombuffer(self._heap, dtype=np.uint8).reshape(world, self.nbytes + 4096)
        self.buffers, self.signals = heap[:, : self.nbytes], heap[:, self.nbytes :]
        self.window = _no_mans_land(self.nbytes)

    def run(self, function: Callable[[SymmetricMemory], Any]) -> list[Outcome]:
        """function(memory) on every rank at once.

        Raises:
            RuntimeError: a rank failed or died; the sentence holds what it said.
        """
        context = multiprocessing.get_context("fork")
        pipes = [context.Pipe(duplex=False) for _ in range(self.world)]
        ranks = [
            context.Process(target=self._rank, args=(rank, function, pipes[rank][1]), daemon=True)
            for rank in range(self.world)
        ]
        for process in ranks:
            process.start()
        for _, sender in pipes:
            sender.close()
        waiting: dict[Any, int] = {receiver: rank for rank, (receiver, _) in enumerate(pipes)}
        outcomes: dict[int, Outcome] = {}
        try:
            while waiting:
                for receiver in wait(list(waiting)):
                    rank = waiting.pop(receiver)
                    outcomes[rank] = self._outcome(rank, receiver, ranks[rank])
        finally:
            for process in ranks:  # those that still wait for one that failed
                if len(outcomes) < self.world:
                    process.kill()
                process.join()
        return [outcomes[rank] for rank in range(self.world)]

    @staticmethod
    def _outcome(rank: int, receiver: Any, process: Any) -> Outcome:
        try:
            said: Outcome | str = pickle.loads(receiver.recv_bytes())
        except EOFError:
            process.join()
            raise RuntimeError(f"rank {rank} died with exit code {process.exitcode}") from None
        if isinstance(said, str):
            raise RuntimeError(f"rank {rank}: {said}")
        return said

    def memory(self, rank: int) -> SymmetricMemory:
        """One rank's view."""
        return SymmetricMemory(
            rank=rank,
            world=self.world,
            buffer=torch.from_numpy(self.buffers[rank]),
            multicast=self.window,
            signals=torch.tensor([row.ctypes.data for row in self.signals], dtype=torch.int64),
            epochs=torch.zeros(PROGRAMS, dtype=torch.int32),
        )

    def _rank(self, rank: int, function: Callable[[SymmetricMemory], Any], sender: Any) -> None:
        link = _Link(self, np.random.default_rng([self.seed, rank]))
        link.install()
        try:
            with use_backend("triton"):
                value = function(self.memory(rank))
            said: Outcome | str = Outcome(value=value, loaded=link.loaded, stored=link.stored)
        except Exception as error:  # told to the parent, which raises it
            said = f"{type(error).__name__}: {error}"
        # Tensors by value: torch's own pickler would leave them in files of a process that ends.
        sender.send_bytes(pickle.dumps(said))


class _Link:
    """One rank's way to the switch, put in place of the interpreter's asm and atomics."""

    def __init__(self, simulation: Simulation, random: np.random.Generator) -> None:
        self.simulation, self.random = simulation, random
        self.units = simulation.buffers.reshape(simulation.world, -1, 16)
        self.pending: list[tuple[NDArray[np.int64], NDArray[np.uint8]]] = []
        self.loaded = self.stored = 0
        self.arrived = time.monotonic()

    def install(self) -> None:
        repair()
        builder: Any = stock_interpreter.InterpreterBuilder
        semantics = stock_interpreter._ir.MEM_SEMANTIC
        atomic = builder.create_atomic_rmw

        def create_atomic_rmw(
            builder: Any, op: Any, pointer: Any, value: Any, mask: Any, sem: Any, scope: Any
        ) -> Any:
            if sem in (semantics.RELEASE, semantics.ACQUIRE_RELEASE):
                self._deliver()
            if value.data.any():
                self.arrived = time.monotonic()
            else:  # a look at the counters: somebody else should run
                time.sleep(0.001)
                if time.monotonic() > self.arrived + PATIENCE:
                    raise RuntimeError(f"nobody came to the barrier in {PATIENCE:.0f} s")
            return atomic(builder, op, pointer, value, mask, sem, scope)

        def create_inline_asm(
            builder: Any, asm: str, constraints: str, values: Any, types: Any, pure: bool, pack: int
        ) -> _Results:
            access = _ACCESS.search(asm)
            if access is None or pack != 1:
                raise NotImplementedError(f"the simulated switch does not know this asm: {asm}")
            if pure:
                raise RuntimeError("an access through the switch must not be marked pure")
            *operands, mask = (np.asarray(value.data) for value in values)
            inside = mask.astype(bool) | (access[1] is None)  # without a predicate every lane acts
            if access[2] == "ld_reduce":
                return self._load(operands[0], inside, "bf16x2" in access[3])
            return self._store(operands, inside)

        builder.create_atomic_rmw = create_atomic_rmw
        builder.create_inline_asm = create_inline_asm

    def _places(self, addresses: NDArray[Any], inside: NDArray[np.bool_]) -> NDArray[np.int64]:
        offsets = addresses[inside].astype(np.int64) - self.simulation.window
        if offsets.size and (offsets.min() < 0 or offsets.max() > self.simulation.nbytes - 16):
            raise RuntimeError(
                f"lanes reach bytes {offsets.min()} to {offsets.max() + 16} through the switch; "
                f"the symmetric memory has {self.simulation.nbytes}"
            )
        if (offsets % 16).any():
            raise RuntimeError("an access through the switch is not at a multiple of 16 bytes")
        return offsets // 16

    def _load(self, addresses: NDArray[Any], inside: NDArray[np.bool_], bf16: bool) -> _Results:
        places = self._places(addresses, inside)
        self.loaded += 16 * places.size
        # The order in which a switch adds is not known: each load takes another one.
        order = self.random.permutation(self.simulation.world)
        parts = self.units[order][:, places]
        if bf16:
            total = widen(parts.view(np.uint16), tl.bfloat16).sum(axis=0, dtype=np.float32)
            sums = narrow(total, tl.bfloat16).view(np.int32)
        else:
            sums = parts.view(np.float32).sum(axis=0, dtype=np.float32).view(np.int32)
        registers = np.zeros((4, *addresses.shape), dtype=np.int32)
        registers[:, inside] = sums.T
        return _Results(handles=[_Handle(register, tl.int32) for register in registers])

    def _store(self, operands: list[NDArray[Any]], inside: NDArray[np.bool_]) -> _Results:
        addresses, *words = operands
        places = self._places(addresses, inside)
        self.stored += 16 * places.size
        values = np.stack([word[inside].astype(np.int32) for word in words], axis=-1)
        self.pending.append((places, values.view(np.uint8)))
        return _Results(handles=[_Handle(np.zeros(addresses.shape, np.int32), tl.int32)])

    def _deliver(self) -> None:
        for number in self.random.permutation(len(self.pending)):
            places, values = self.pending[number]
            lanes = self.random.permutation(len(places))
            self.units[:, places[lanes]] = values[lanes]
        self.pending.clear()


def _no_mans_land(nbytes: int) -> int:
    """The address of a range without memory: whoever touches it dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    nothing = 0
    address = libc.mmap(None, nbytes, nothing, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "multimem: cannot reserve the multicast window")
    return int(address)
