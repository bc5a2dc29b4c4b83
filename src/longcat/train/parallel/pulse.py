"""A sign of life from every process, so that a run whose process has vanished does not hang.

A process that is killed closes its connections, and the next sum of every other one fails at
once. One that is frozen, or whose machine lost its network, closes nothing: the others would wait
for the backend's own timeout, which must be long because rank 0 may be busy saving. So a thread
of every process counts up a key of its own in the run's meeting place and watches the others'.

When a count stands still for SILENCE seconds the process says so and ends by `os._exit`: gloo has
no way to wake a thread that waits in a sum (its `abort` was tried and does not).
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

BEAT = 4.0  # seconds between signs
SILENCE = 40.0  # seconds without one after which a process counts as lost
_LEFT = "left"


class Pulse:
    """One process's sign of life, and its watch over the others'; a context manager.

    Args:
        store: the meeting place; only this thread may use this object of it.
        rank, world: of this process. lost: called once with a sentence when a process is silent.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world: int,
        lost: Callable[[str], None] | None = None,
        *,
        beat: float = BEAT,
        silence: float = SILENCE,
    ) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._lost = lost or end_process
        self._beat, self._silence = beat, silence
        self._leaving = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="pulse")

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join(timeout=2 * self._beat)

    def _run(self) -> None:
        others = [rank for rank in range(self._world) if rank != self._rank]
        seen = {rank: (b"", time.monotonic()) for rank in others}
        count = 0
        while not self._leaving.wait(self._beat):
            count += 1
            try:
                self._store.set(_key(self._rank), str(count))
                signs = {r: self._store.get(_key(r)) for r in others if self._has(r)}
            except RuntimeError:
                signs = {}  # the meeting place is gone, and with it every sign
            now = time.monotonic()
            for rank, sign in signs.items():
                if sign == _LEFT.encode():
                    seen.pop(rank, None)
                elif rank in seen and sign != seen[rank][0]:
                    seen[rank] = (sign, now)
            silent = [r for r, (_, since) in seen.items() if now - since > self._silence]
            if silent:
                self._lost(
                    f"train: no sign of life from process {silent[0]} for {self._silence:.0f} s; "
                    "this process stops. What was saved stands: go on by `longcat train --resume`"
                )
                return
        try:
            self._store.set(_key(self._rank), _LEFT)
        except RuntimeError:
            return  # nobody is left to read it

    def _has(self, rank: int) -> bool:
        return bool(self._store.check([_key(rank)]))


def end_process(sentence: str) -> None:
    """Say it and end, whatever the main thread waits for."""
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    print(f"{show_cursor}{sentence}", file=sys.stderr, flush=True)
    os._exit(1)


def _key(rank: int) -> str:
    return f"pulse/{rank}"
