"""Figure 5: the loss against Adam's epsilon at two widths (figure 7)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from longcat.cli.benchmarks.paper import page
from longcat.cli.benchmarks.paper.figure import Arm, Figure, Row, Scale
from longcat.cli.benchmarks.paper.plot import Panel, plot
from longcat.cli.benchmarks.paper.results import Point, Results
from longcat.cli.benchmarks.paper.training import Job, follow
from longcat.cli.benchmarks.paper.verdict import Verdict, difference
from longcat.optim import epsilon_share

EPSILONS = (1e-1, 1e-3, 1e-5, 1e-7, 1e-8, 1e-16)
SMALLEST = EPSILONS[-1]
HARMFUL = 1e-3  # from here on, by the range of gradients the report gives for its smallest model


def arms(scale: Scale) -> Sequence[Arm]:
    """Every epsilon at the scale's width and at twice that."""
    settings = {"steps": scale.steps // 5, "batch_size": max(1, scale.batch_size // 2)}
    return [
        Arm(
            name=f"width {width}, {eps:g}",
            width=width,
            settings={**settings, "eps": eps},
        )
        for width in (scale.width, 2 * scale.width)
        for eps in EPSILONS
    ]


def run(job: Job) -> Row:
    """Train, then look at every coordinate's denominator."""
    trainer = job.trainer()
    row = follow(job, trainer, read=("grad_rms",), points=12, marks=1)
    return {**row, "overruled": epsilon_share(trainer.optimizer)}


def widths(results: Results) -> list[int]:
    """The widths there are, narrow first."""
    return sorted({results.settings(arm)["width"] for arm in results.arms})


def arm_of(width: int, eps: float) -> str:
    """The name of an arm."""
    return f"width {width}, {eps:g}"


def verdicts(results: Results) -> Sequence[Verdict]:
    """A large epsilon spoils the loss, a small one is harmless, and gradients shrink with width."""
    said = []
    for width in widths(results):
        base = results.values(arm_of(width, SMALLEST), "loss")
        for eps in EPSILONS[:-1]:
            said.append(
                difference(
                    f"held-out loss at width {width}",
                    results.values(arm_of(width, eps), "loss"),
                    base,
                    of=(f"epsilon {eps:g}", f"{SMALLEST:g}"),
                    expected="higher" if eps >= HARMFUL else "same",
                )
            )
    narrow, wide = (
        results.values(arm_of(width, SMALLEST), lambda row: row["curve"]["grad_rms"][-1])
        for width in widths(results)
    )
    said.append(
        difference(
            "gradient RMS at the end, in decades,",
            [math.log10(v) for v in wide],
            [math.log10(v) for v in narrow],
            of=("the wide model", "the narrow one"),
            expected="lower",
            digits=2,
        )
    )
    return said


def body(results: Results) -> Iterable[str]:
    """Loss and overruled coordinates over epsilon, one curve a width."""

    def over(read: str) -> dict[str, list[Point]]:
        sizes = {w: results.settings(arm_of(w, SMALLEST))["parameters"] for w in widths(results)}
        return {
            f"width {width}, {size:,} parameters": [
                Point(x=eps, y=results.estimate(arm_of(width, eps), read)) for eps in EPSILONS
            ]
            for width, size in sizes.items()
        }

    yield plot(
        [Panel(series=over("loss"), x_label="Adam's epsilon", log_x=True)],
        title="Held-out loss at the end against epsilon; mean of the seeds with its interval.",
        y_label="nats per token",
    )
    yield plot(
        [Panel(series=over("overruled"), x_label="Adam's epsilon", log_x=True)],
        title="Share of the coordinates whose step epsilon shortens noticeably: where it is more "
        "than a tenth of the denominator.",
        y_label="share of coordinates",
        limits=(0.0, 1.0),
    )
    yield page.table(
        [
            {
                "width": str(width),
                "epsilon": f"{eps:g}",
                "held-out loss": results.estimate(arm_of(width, eps)).show(),
                "share overruled": results.estimate(arm_of(width, eps), "overruled").show(),
                "gradient RMS": f"{gradient_rms(results, arm_of(width, eps)):.1e}",
            }
            for width in widths(results)
            for eps in EPSILONS
        ]
    )


def gradient_rms(results: Results, arm: str) -> float:
    """At the end, mean of the seeds."""
    return results.estimate(arm, lambda row: row["curve"]["grad_rms"][-1]).mean


FIGURE = Figure(
    number=5,
    title="Adam's epsilon",
    report="figure 7",
    shows="at four sizes from 390 thousand to 400 million parameters the loss is flat while "
    "epsilon is small and deteriorates once epsilon reaches the range of the gradients' RMS (about "
    "2e-6 to 8e-5 for 400 million parameters: loss 3.96 up to 1e-7, 4.2 at 1e-5, 6.0 at 1e-3, 8.1 "
    "at 1e-1). The larger the model, the smaller its gradients, hence epsilon = 1e-16.",
    differs="two widths, short runs, and beside the loss the share of coordinates where epsilon "
    "is more than a tenth of Adam's denominator, so that one sees where it takes over.",
    arms=arms,
    verdicts=verdicts,
    body=body,
    run=run,
)
