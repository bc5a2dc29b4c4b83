"""The trainings of a figure, one after another: each is stored at once, none is made twice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from longcat.cli.benchmarks import document, timing
from longcat.cli.benchmarks.paper.figure import Figure, Row, Scale
from longcat.cli.benchmarks.paper.text import Text
from longcat.cli.benchmarks.paper.training import Job, train_curve


class OutOfTime(Exception):
    """The time that was given is used up; what was done is stored."""


class Bench:
    """The runs of one figure at one scale.

    Args:
        work: where runs are stored. text: what every arm trains on.
        say: receives one line after each run. show: receives what is going on, step by step, for
            a line that is written over. deadline: `time.monotonic()` after which no run is
            begun.
    """

    def __init__(
        self,
        figure: Figure,
        scale: Scale,
        seeds: int,
        *,
        text: Text,
        work: Path,
        say: Callable[[str], None],
        show: Callable[[str], None] = lambda line: None,
        deadline: float | None = None,
    ) -> None:
        self.figure, self.scale, self.seeds = figure, scale, list(range(seeds))
        self.text, self.work, self.deadline = text, work, deadline
        self.say, self.show = say, show
        self.arms = figure.arms(scale)

    def run(self) -> Row:
        """Make every run that is missing; returns the figure's document.

        Raises:
            OutOfTime: before a run, when the deadline has passed.
        """
        jobs = list(self._jobs())
        missing = [job for job in jobs if self._stored(job) is None]
        took: list[float] = []
        for i, job in enumerate(missing, start=1):
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise OutOfTime
            begun = time.monotonic()
            row = self._make(job)
            took.append(time.monotonic() - begun)
            left = sum(took) / i * (len(missing) - i)
            loss = "diverged" if row["loss"] is None else f"held-out loss {row['loss']:.3f}"
            self.say(
                f"figure {self.figure.number}, {job.arm.name}, seed {job.seed}: {loss}, "
                f"{took[-1]:.0f} s; {len(jobs) - len(missing) + i} of {len(jobs)} runs, about "
                f"{left:.0f} s left"
            )
        return self._assemble([(job, self._stored(job) or {}) for job in jobs])

    def _jobs(self) -> Iterator[Job]:
        """Seed by seed, so that an early end leaves whole comparisons."""
        for seed in self.seeds:
            for arm in self.arms:
                yield Job(
                    figure=self.figure.number,
                    arm=arm,
                    seed=seed,
                    scale=self.scale,
                    text=self.text,
                    show=partial(self._show, arm.name, seed),
                )

    def _show(self, arm: str, seed: int, done: int, steps: int) -> None:
        self.show(f"figure {self.figure.number}, {arm}, seed {seed}: step {done} of {steps}")

    def _make(self, job: Job) -> Row:
        with timing.pinned_threads(1):
            machine = timing.machine("cpu")
            made = (self.figure.run or train_curve)(job)
        row = {"arm": job.arm.name, "seed": job.seed, "date": timing.today(), **rounded(made)}
        path = self._path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        document.write(path, {"made_from": _identity(job), "machine": machine, "run": row})
        return row

    def _path(self, job: Job) -> Path:
        name = f"{job.arm.slug}-seed{job.seed}.json"
        return self.work / "runs" / f"{job.figure:02d}-{job.scale.name}" / name

    def _read(self, job: Job) -> Row | None:
        """The stored file, if it was made from what the job says now."""
        try:
            stored: Row = json.loads(self._path(job).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"bench: {self._path(job)} is damaged ({error}); remove it") from error
        return stored if stored.get("made_from") == _identity(job) else None

    def _stored(self, job: Job) -> Row | None:
        stored = self._read(job)
        run: Row | None = None if stored is None else stored["run"]
        return run

    def _assemble(self, done: Sequence[tuple[Job, Row]]) -> Row:
        machines: list[Any] = []
        for job, _ in done:
            stored = self._read(job)
            if stored is not None and stored["machine"] not in machines:
                machines.append(stored["machine"])
        parameters = {job.arm.name: run["parameters"] for job, run in done}
        return {
            "figure": self.figure.number,
            "command": f"longcat bench paper --figure {self.figure.number} --scale "
            f"{self.scale.name} --seeds {len(self.seeds)}",
            "scale": asdict(self.scale),
            "seeds": self.seeds,
            "text": self.text.card,
            "machines": machines,
            "model": self.scale.model,
            "settings": self.scale.settings,
            "arms": [{**asdict(arm), "parameters": parameters[arm.name]} for arm in self.arms],
            "runs": [run for _, run in done],
        }


def _identity(job: Job) -> Row:
    """All that decides a run, as JSON gives it back; another torch computes other bits."""
    return normal(
        {
            "figure": job.figure,
            "arm": asdict(job.arm),
            "seed": job.seed,
            "model": job.scale.model,
            "settings": job.scale.settings,
            "text": job.text.card,
            "torch": timing.machine("cpu")["versions"]["torch"],
        }
    )


def normal(value: Mapping[str, Any]) -> Row:
    """What JSON makes of it: lists for tuples, and no more."""
    made: Row = json.loads(json.dumps(value))
    return made


def rounded(value: Any, digits: int = 6) -> Any:
    """Floats to so many significant digits, inside of lists and objects too; nan becomes None."""
    if isinstance(value, Mapping):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if value == value else None
    return value


def to_json(figure_document: Mapping[str, Any]) -> str:
    """The document with a line for each run, so that a change of one is a change of one line."""
    head = {key: value for key, value in figure_document.items() if key != "runs"}
    runs = ",\n".join("  " + json.dumps(run) for run in figure_document["runs"])
    opening = json.dumps(head, indent=1).removesuffix("\n}")
    return f'{opening},\n "runs": [\n{runs}\n ]\n}}\n'
