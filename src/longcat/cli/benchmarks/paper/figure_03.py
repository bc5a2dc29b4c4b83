"""Figure 3: a model grown by stacking against one of its depth from random weights (figure 5b)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from longcat.cli.benchmarks.paper import page
from longcat.cli.benchmarks.paper.figure import Arm, Figure, Row, Scale
from longcat.cli.benchmarks.paper.interval import estimate
from longcat.cli.benchmarks.paper.plot import Panel, plot
from longcat.cli.benchmarks.paper.results import Results
from longcat.cli.benchmarks.paper.training import Job, follow
from longcat.cli.benchmarks.paper.verdict import Verdict, difference
from longcat.train.directory import RunDirectory
from longcat.train.growth import grow_run
from longcat.train.snapshot import read_snapshot, write_snapshot
from longcat.train.trainer import Trainer

GROWN, RANDOM = "grown", "random"
ROLES = {GROWN: "ffn", RANDOM: "net", "small": "zero"}
TIMES = 2


def arms(scale: Scale) -> Sequence[Arm]:
    """Both at one learning rate from warm-up to the end, so that any two steps may be compared."""
    first = extra = scale.steps // 2
    constant = {"decay": 0.0}
    return (
        Arm(
            name=GROWN,
            settings={**constant, "steps": first + extra},
            options={"small_steps": first, "times": TIMES},
        ),
        # More steps than the grown model's compute pays for (the embedding and the output head do
        # not double), so that the place of equal compute is met on the way.
        Arm(
            name=RANDOM,
            model={"num_layers": TIMES * scale.model["num_layers"]},
            settings={**constant, "steps": 3 * first // 4 + extra},
        ),
    )


def run(job: Job) -> Row:
    """Random: train. Grown: train the small model, stack its layers, go on."""
    first = job.arm.options.get("small_steps")
    if first is None:
        return follow(job, job.trainer(), marks=14)
    small = job.trainer(settings=job.settings(steps=first))
    before = follow(job, small, marks=4)
    grown = grow_trainer(small, job)
    after = follow(job, grown, marks=20, flops=before["flops"])
    return {**after, "small": {name: before[name] for name in ("loss", "held_out", "curve")}}


def grow_trainer(small: Trainer, job: Job) -> Trainer:
    """A trainer of TIMES the layers, grown as `longcat grow` grows a run."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "small", Path(folder) / "grown"
        directory = RunDirectory(source)
        directory.create()
        directory.save(small.step, lambda into: write_snapshot(small, job.text.tokenizer, into))
        config = grow_run(source, target, TIMES)
        grown = job.trainer(config, replace(small.settings, steps=job.settings().steps))
        read_snapshot(grown, RunDirectory(target).latest())
    return grown


def loss_at(row: Row, axis: str, place: float) -> float:
    """Held-out loss where the run had spent `place`, between the nearest measurements."""
    table = row["held_out"]
    xs, losses = table[axis], table["loss"]
    for (x, y), (later, then) in zip(
        zip(xs, losses, strict=True), zip(xs[1:], losses[1:], strict=True), strict=False
    ):
        if x <= place <= later:
            return float(y + (then - y) * (place - x) / (later - x))
    return float(losses[-1])


def comparisons(results: Results) -> tuple[list[float], list[float], list[float]]:
    """Final losses of the grown model; of the random one at equal extra steps; at equal FLOPs."""
    grown, random = results.runs(GROWN), results.runs(RANDOM)
    extra = grown[0]["held_out"]["step"][-1] - grown[0]["held_out"]["step"][0]
    return (
        [run["loss"] for run in grown],
        [loss_at(run, "step", extra) for run in random],
        [loss_at(run, "flops", g["flops"]) for run, g in zip(random, grown, strict=True)],
    )


def verdicts(results: Results) -> Sequence[Verdict]:
    """Equal extra steps, equal total compute, and the jump at the moment of growth."""
    grown, same_steps, same_flops = comparisons(results)
    jump = [run["held_out"]["loss"][0] - run["small"]["loss"] for run in results.runs(GROWN)]
    gap = estimate(jump)
    of = ("growth", "random weights")
    return (
        difference(
            "held-out loss after equal extra steps", grown, same_steps, of=of, expected="lower"
        ),
        difference(
            "held-out loss at equal total FLOPs, the small model's included,",
            grown,
            same_flops,
            of=of,
            expected="lower",
        ),
        Verdict(
            seen=gap.low > 0,
            text=f"at the moment of growth the loss changes by {gap.mean:+.3f} ± {gap.half:.3f} "
            "nats from the small model's (the report's curve rises first).",
        ),
    )


def body(results: Results) -> Iterable[str]:
    """Loss over extra steps and over total operations; then how close growth begins."""
    grown, random = (
        results.curve(arm, "loss", x="step", table="held_out") for arm in (GROWN, RANDOM)
    )
    first = grown[0].x
    shifted = [replace(point, x=point.x - first) for point in grown]
    yield plot(
        [
            Panel(
                series={GROWN: shifted, RANDOM: random[1:]}, x_label="extra steps of the deep model"
            )
        ],
        title="Held-out loss over the steps of the deep model; the small model's steps are not "
        "counted.",
        y_label="nats per token",
        roles=ROLES,
    )
    small = [
        {**run, "held_out": run["small"]["held_out"], "arm": "small"} for run in results.runs(GROWN)
    ]
    with_small = Results(
        {
            **results.document,
            "arms": [*results.document["arms"], {"name": "small"}],
            "runs": [*results.document["runs"], *small],
        }
    )
    names = ("small", GROWN, RANDOM)
    yield page.loss_plots(
        with_small,
        names,
        title="Held-out loss over everything that was spent, the small model's part included.",
        roles=ROLES,
    )
    losses = [run["small"]["loss"] for run in results.runs(GROWN)]
    begun = [run["held_out"]["loss"][0] for run in results.runs(GROWN)]
    blank = [run["held_out"]["loss"][0] for run in results.runs(RANDOM)]
    after = comparisons(results)
    rows = (
        ("small model at its end", losses),
        ("grown, before its first step", begun),
        ("random, before its first step", blank),
        ("grown, at its end", after[0]),
        ("random, after as many extra steps", after[1]),
        ("random, after as many FLOPs in all", after[2]),
    )
    yield page.table([{"model": n, "held-out loss": estimate(v).show()} for n, v in rows])


FIGURE = Figure(
    number=3,
    title="Growth by stacking against random weights",
    report="figure 5b",
    shows="a model grown by stacking a trained one of half its depth starts with a higher loss "
    "than the small model ended with, then falls faster and ends below the model of the same depth "
    "that started from random weights.",
    differs="two layers become four, with optimizer, controller and schedule carried on, as "
    "`longcat grow` does it; the learning rate stays constant after warm-up, so that losses may be "
    "compared at any step. Shown at equal extra steps, as in the report, and at equal total FLOPs "
    "with the small model's included.",
    arms=arms,
    verdicts=verdicts,
    body=body,
    run=run,
)
