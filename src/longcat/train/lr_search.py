"""A learning-rate search: short runs that differ in nothing but their learning rate.

    DIR/lr_search.json     the plan, and what each trial came to so far
    DIR/lr_search.svg      loss against learning rate
    DIR/lr-4.00e-03/       one trial: a run directory like any other

A trial is scored by its mean training loss over the last quarter of its steps. Weights and batches
follow from the seed, so all trials are scored on the same windows. It is one seed: gaps of a few
hundredths of a nat between neighbours are ties.

Source: report section 3.1.1 (the rate is sought on a narrow proxy and transferred).
"""

import json
import math
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch

from longcat.train.charts import line_chart, standalone
from longcat.train.device import CPU
from longcat.train.directory import RunDirectory, write_text
from longcat.train.errors import RunError
from longcat.train.loop import begin
from longcat.train.metrics import read_metrics
from longcat.train.prepare import reopen
from longcat.train.session import Say, Session, open_run, resume_run
from longcat.train.settings import TrainSettings

PLAN, PLOT = "lr_search.json", "lr_search.svg"
SCORED = 0.25  # of a trial's steps, at its end
FEWEST = 3  # rates; fewer cannot have the best one inside


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One learning rate.

    Attributes:
        run: the trial's folder below the search's. loss, bits_per_byte: means over the scored
            steps; None until it is finished, and for one that diverged.
    """

    lr: float
    run: str
    state: Literal["planned", "finished", "diverged"] = "planned"
    loss: float | None = None
    bits_per_byte: float | None = None


@dataclass(frozen=True, kw_only=True)
class LearningRateSearch:
    """The trials of one search, lowest rate first."""

    path: Path
    trials: tuple[Trial, ...]

    @property
    def is_finished(self) -> bool:
        """Whether every trial has come to its end."""
        return all(trial.state != "planned" for trial in self.trials)

    @property
    def best(self) -> Trial | None:
        """The finished trial with the lowest loss so far."""
        scored = [(trial.loss, trial) for trial in self.trials if trial.loss is not None]
        return min(scored, key=lambda pair: pair[0])[1] if scored else None

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or highest tried: the optimum may lie outside."""
        return self.best in (self.trials[0], self.trials[-1])

    def session(
        self, trial: Trial, *, processes: int | None, device: torch.device = CPU, say: Say
    ) -> Session:
        """A trial ready to train, from its beginning or from where it was interrupted."""
        directory = RunDirectory(self.path / trial.run)
        if not directory.snapshots():
            directory.abandon()
            _copy_run(RunDirectory(self.path / self.trials[0].run), directory, trial.lr)
        return resume_run(directory.path, {}, processes=processes, device=device, say=say)

    def noted(self, trial: Trial, *, diverged: bool) -> "LearningRateSearch":
        """The search with a trial that has ended; written to the plan and the plot."""
        ended = replace(trial, state="diverged" if diverged else "finished")
        if not diverged:
            records = read_metrics(self.path / trial.run)
            last = records[-max(1, round(SCORED * len(records))) :]
            ended = replace(
                ended,
                loss=fmean(record["loss"] for record in last),
                bits_per_byte=fmean(record["bits_per_byte"] for record in last),
            )
        trials = tuple(ended if one == trial else one for one in self.trials)
        search = replace(self, trials=trials)
        search.write()
        return search

    def document(self) -> dict[str, Any]:
        """What lr_search.json holds."""
        best = self.best
        return {
            "scored": f"mean training loss, last {SCORED:.0%} of the steps",
            "finished": self.is_finished,
            "best": None if best is None else asdict(best),
            "at_edge": self.at_edge if best else None,
            "trials": [asdict(trial) for trial in self.trials],
        }

    def write(self) -> None:
        """Write the plan, and the plot once there is something on it, each in one step."""
        if self.best is not None:
            write_text(self.path / PLOT, self.plot())
        write_text(self.path / PLAN, json.dumps(self.document(), indent=1) + "\n")

    def plot(self) -> str:
        """Loss against learning rate as a self-contained SVG."""
        ticks = {math.log2(trial.lr): f"{trial.lr:.1e}" for trial in self.trials}
        points = [(math.log2(t.lr), t.loss) for t in self.trials if t.loss is not None]
        chart = line_chart({"loss": points}, x_label="learning rate", x_ticks=ticks)
        return standalone(chart, "Training loss against learning rate")


def learning_rates(centre: float, count: int, factor: float = 2.0) -> list[float]:
    """`count` rates around `centre`, which is one of them, each `factor` times the one before.

    Raises:
        RunError: with fewer than three.
    """
    if count < FEWEST:
        raise RunError(
            f"train: --search-lr needs at least {FEWEST} learning rates, so that the best one can "
            f"lie between others; got {count}"
        )
    return [centre * factor ** (i - count // 2) for i in range(count)]


def open_search(
    out: Path,
    settings: TrainSettings,
    rates: list[float],
    *,
    processes: int | None = None,
    device: torch.device = CPU,
    say: Say,
) -> tuple[LearningRateSearch, Session]:
    """A new search in `out`, and the session of its first trial, for the card.

    Raises:
        RunError: `out` is in use, or no number of steps is given. Else as `open_run`.
    """
    if is_search(out):
        raise RunError(
            f"train: {out} already holds a learning-rate search; go on with it by "
            f"`longcat train --resume --out {out}`, or choose another --out"
        )
    if settings.steps is None:
        raise RunError("train: --search-lr compares runs of equal length; give --steps N")
    RunDirectory(out).check_new()
    was_there = out.exists()
    trials = tuple(Trial(lr=rate, run=f"lr-{rate:.2e}") for rate in rates)
    first = replace(settings, lr=rates[0])
    try:
        session = open_run(out / trials[0].run, first, processes=processes, device=device, say=say)
    except BaseException:
        if not was_there:
            with suppress(OSError):
                out.rmdir()
        raise
    search = LearningRateSearch(path=out, trials=trials)
    search.write()
    return search, session


def read_search(path: Path) -> LearningRateSearch:
    """The search in `path`, as far as it came.

    Raises:
        RunError: when its plan cannot be read.
    """
    try:
        plan = json.loads((path / PLAN).read_text(encoding="utf-8"))
        trials = tuple(Trial(**trial) for trial in plan["trials"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"resume: the learning-rate search in {path} is damaged: {error}") from error
    return LearningRateSearch(path=path, trials=trials)


def is_search(path: Path) -> bool:
    """Whether a learning-rate search was ever begun in `path`."""
    return (path / PLAN).is_file()


def best_run(path: Path) -> Path:
    """The run directory of the best rate of a finished search.

    Raises:
        RunError: the search is not finished, or all of its trials diverged.
    """
    search = read_search(path)
    if not search.is_finished:
        raise RunError(
            f"transfer: the learning-rate search in {path} is not finished; go on with it by "
            f"`longcat train --resume --out {path}`"
        )
    if search.best is None:
        raise RunError(
            f"transfer: all learning rates of {path} diverged; search again with a lower --lr"
        )
    return path / search.best.run


def _copy_run(source: RunDirectory, target: RunDirectory, lr: float) -> None:
    """The same run at its first step, with another learning rate; the data files are shared."""
    prepared = reopen(source)
    prepared = replace(prepared, settings=replace(prepared.settings, lr=lr))
    target.create()
    try:
        for file in source.data.iterdir():
            try:
                os.link(file, target.data / file.name)
            except OSError:
                shutil.copyfile(file, target.data / file.name)
        begin(target, prepared)
    except BaseException:
        target.abandon()
        raise
