"""What saves a run, by its layout: rank 0 alone at once, or every process in the background."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from longcat.train.directory import SHARDED, RunDirectory
from longcat.train.exchange import Exchange
from longcat.train.prepare import Prepared
from longcat.train.snapshot import read_snapshot, write_snapshot
from longcat.train.trainer import Trainer
from longcat.train.watch.keep import best_step, mean_losses

Publish = Callable[[int, Callable[[Path], None]], None]


class Saver(Protocol):
    """Saves a trainer's state; every process calls `save` and `finish` at the same steps.

    Attributes:
        last: step of the newest complete snapshot.
    """

    last: int

    def save(self) -> None:
        """Save the state as it is now, or begin to."""

    def poll(self) -> None:
        """Rank 0, between steps: give what has become complete its name."""

    def finish(self) -> None:
        """Wait until what was begun is complete."""


class WholeSaver:
    """Every process holds everything: rank 0 writes, the others wait for it in their next sum."""

    def __init__(self, trainer: Trainer, prepared: Prepared, publish: Publish) -> None:
        self.last = trainer.step
        self._trainer, self._prepared, self._publish = trainer, prepared, publish

    def save(self) -> None:
        """Write and publish."""
        trainer, tokenizer = self._trainer, self._prepared.tokenizer
        if trainer.exchange.rank == 0:
            self._publish(trainer.step, lambda folder: write_snapshot(trainer, tokenizer, folder))
        self.last = trainer.step

    def poll(self) -> None:
        """Nothing is ever pending."""

    def finish(self) -> None:
        """Nothing is ever pending."""


def make_saver(
    directory: RunDirectory,
    trainer: Trainer,
    prepared: Prepared,
    saved: Callable[[int], None] = lambda step: None,
) -> Saver:
    """The saver of the trainer's layout; `saved(step)` is told of complete snapshots in rank 0."""

    def publish(step: int, write: Callable[[Path], None]) -> None:
        directory.save(
            step,
            write,
            keep=prepared.settings.keep,
            best=lambda: best_step(mean_losses(directory)),
        )
        saved(step)

    if trainer.exchange.layout.is_whole:
        return WholeSaver(trainer, prepared, publish)
    from longcat.train.parallel.sharded import ShardedSaver

    return ShardedSaver(directory, trainer, prepared, publish)


def make_whole(directory: RunDirectory, prepared: Prepared) -> None:
    """Turn a newest snapshot that is sharded into the ordinary kind; others stay as they are."""
    if not (directory.latest() / SHARDED).is_dir():
        return
    from longcat.train.parallel.sharded import replace_pieces

    trainer = Trainer(
        prepared.config, prepared.settings, prepared.tokens, prepared.token_bytes, Exchange()
    )
    read_snapshot(trainer, directory.latest())
    replace_pieces(directory, lambda folder: write_snapshot(trainer, prepared.tokenizer, folder))
