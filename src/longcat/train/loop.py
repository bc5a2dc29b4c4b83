"""The loop around the optimizer step: metrics, snapshots, an orderly end.

Rank 0 runs `run`, the other processes `work`; both make the same steps and find the same end,
because the end is decided from exchanged figures.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange, connected
from longcat.train.metrics import MetricsWriter, Record
from longcat.train.origin import initial_model
from longcat.train.parallel.saving import make_saver, make_whole
from longcat.train.prepare import Prepared, reopen
from longcat.train.snapshot import read_snapshot, write_snapshot
from longcat.train.trainer import Trainer
from longcat.train.watch.rerun import rerun
from longcat.train.watch.rollback import Rollback


class Observer(Protocol):
    """Somebody who watches a run: the live panel, or plain lines."""

    def step(self, record: Record, progress: float, seconds_left: float | None) -> None:
        """One optimizer step is done."""

    def saved(self, step: int) -> None:
        """A snapshot is complete."""


class Silent:
    """An observer that looks away."""

    def step(self, record: Record, progress: float, seconds_left: float | None) -> None:
        """Nothing."""

    def saved(self, step: int) -> None:
        """Nothing."""


def begin(directory: RunDirectory, prepared: Prepared) -> None:
    """Save the initial weights: from here on the directory is loadable at any moment."""
    trainer = make_trainer(prepared, Exchange())
    if prepared.settings.init is not None:
        first = initial_model(prepared.settings, prepared.config)
        trainer.model.load_state_dict(first.state_dict())
    directory.save(0, lambda folder: write_snapshot(trainer, prepared.tokenizer, folder))


def make_trainer(prepared: Prepared, exchange: Exchange) -> Trainer:
    """A trainer at step 0."""
    return Trainer(
        prepared.config, prepared.settings, prepared.tokens, prepared.token_bytes, exchange
    )


def run(
    directory: RunDirectory,
    prepared: Prepared,
    exchange: Exchange,
    observer: Observer,
    stopping: Callable[[], bool] = lambda: False,
    peak: float | None = None,
) -> Trainer:
    """Train from the newest snapshot to the end or until `stopping()`; rank 0's loop.

    Args:
        peak: operations per second of one process here, as measured; told to no other, since only
            the metrics line shows it.

    Returns:
        The trainer; it has ended early when its `progress` is below 1. Its state is saved.

    Raises:
        RunError: the loss is not finite, a process is gone, or the disk is full; the last
            snapshot stands, and the message says which.
    """
    trainer = make_trainer(prepared, exchange)
    read_snapshot(trainer, directory.restore())
    trainer.peak = None if peak is None else peak * exchange.world
    saver = make_saver(directory, trainer, prepared, observer.saved)
    writer = MetricsWriter(directory.path, restored_step=trainer.step)
    try:
        with connected():  # split models talk inside the forward pass, too
            trainer.start_clock()
            steps = Rollback(trainer, directory)
            while not trainer.is_done:
                record = steps.step(stop=stopping())
                if record is None:  # it went wrong, and the trainer stands earlier again
                    writer.close()
                    saver.last = trainer.step
                    writer = MetricsWriter(directory.path, restored_step=saver.last)
                    continue
                writer.write(record)
                observer.step(record, trainer.progress, seconds_left(trainer))
                if trainer.step % prepared.settings.save_every == 0 or trainer.is_done:
                    saver.save()
                    if prepared.settings.rollback:
                        saver.finish()  # a run that may go back has none that is only begun
                    trainer.start_clock()
                saver.poll()
            saver.finish()
    except (RunError, OSError) as error:
        reason = str(error) if isinstance(error, RunError) else f"train: {error}"
        raise RunError(
            f"{reason}. The snapshot of step {saver.last} stands in {directory.path}; go on from "
            f"it by `longcat train --resume --out {directory.path}`"
        ) from (error.__cause__ or error)
    finally:
        writer.close()
    make_whole(directory, prepared)
    return trainer


def work(path: Path, exchange: Exchange, *, verify: bool = False) -> None:
    """The other processes' loop: the same steps, no words, no files but pieces of snapshots.

    Args:
        verify: make steps twice first, as `session.train_run` does in rank 0.
    """
    directory = RunDirectory(path)
    prepared = reopen(directory)
    if verify:
        with connected():
            if rerun(prepared, directory.latest(), exchange).differing:
                return
    trainer = make_trainer(prepared, exchange)
    read_snapshot(trainer, directory.latest())
    saver = make_saver(directory, trainer, prepared)
    trainer.start_clock()
    steps = Rollback(trainer, directory)
    with connected():
        while not trainer.is_done:
            if steps.step() is not None and (
                trainer.step % prepared.settings.save_every == 0 or trainer.is_done
            ):
                saver.save()
                if prepared.settings.rollback:
                    saver.finish()
        saver.finish()


def seconds_left(trainer: Trainer) -> float | None:
    """Training time that remains at the pace so far."""
    if trainer.settings.time_budget is not None:
        return max(0.0, trainer.settings.time_budget - trainer.seconds)
    if trainer.step == 0:
        return None
    return trainer.seconds / trainer.step * ((trainer.settings.steps or 0) - trainer.step)


@contextmanager
def interruptible(*, patient: bool = False) -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM ask for an orderly end; a second Ctrl-C ends at once.

    Args:
        patient: a second Ctrl-C too only asks.

    Yields:
        A function that says whether an end was asked for.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and number == signal.SIGINT and not patient:
            raise KeyboardInterrupt
        asked.set()

    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
