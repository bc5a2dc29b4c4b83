"""A form's step in a process of its own, for forms that take turns without disturbing each other.

In one process they do: oneDNN keeps the code it generated for the shapes it has seen in one cache,
and a form whose expert batches are new shapes in every step pushes the others' out of it.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType

import torch

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.shares import shares
from longcat.cli.benchmarks.train import Form, Step, batch
from longcat.flash import FlashConfig
from longcat.train.allocator import keep_freed_memory


class Apart:
    """`form`'s step with the weights of a checkpoint in transformers' form, on one thread.

    A context manager: the process ends with it. The directory is read by the first call.
    """

    def __init__(self, form: Form, config: FlashConfig, directory: str) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler tells when it begins and ends
        self._pool = ProcessPoolExecutor(
            max_workers=1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_set_up,
            initargs=(form, directory, config.vocab_size),
        )

    def loss(self) -> float:
        """Of a batch that no step is made on."""
        return self._pool.submit(_loss).result()

    def turn(self) -> tuple[float, float]:
        """(wall, CPU) seconds of one step."""
        return self._pool.submit(_turn).result()

    def shares(self) -> dict[str, float]:
        """Of the kinds of operation in a step, see `longcat.cli.benchmarks.shares`."""
        return self._pool.submit(_shares).result()

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown()


_steps: list[Step] = []  # in the form's own process: the one step


def _set_up(form: Form, directory: str, vocab_size: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()  # as `longcat train` does; transformers has the good of it, too
    _steps.append(Step(form.load(directory), form, vocab_size))


def _loss() -> float:
    (step,) = _steps
    with torch.no_grad():
        return float(step.loss(batch(step.vocab_size, torch.Generator().manual_seed(1))))


def _turn() -> tuple[float, float]:
    (step,) = _steps
    return timing.sample(step)


def _shares() -> dict[str, float]:
    (step,) = _steps
    return shares(step)
