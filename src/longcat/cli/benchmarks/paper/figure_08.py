"""Figure 8: the shortcut-connected layer against the same layer in standard order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from longcat.cli.benchmarks.paper import page
from longcat.cli.benchmarks.paper.figure import Arm, Figure, Row, Scale
from longcat.cli.benchmarks.paper.results import Results
from longcat.cli.benchmarks.paper.training import Job, follow
from longcat.cli.benchmarks.paper.verdict import Verdict, difference
from longcat.moe import StandardBlock
from longcat.train.trainer import Trainer

SHORTCUT, STANDARD = "ScMoE", "standard order"
ALIKE = 0.01  # of the loss: curves that differ by less lie on top of each other in a plot


def arms(_: Scale) -> Sequence[Arm]:
    """One layer in two orders, the same parameters at the start."""
    return (Arm(name=SHORTCUT), Arm(name=STANDARD, options={"order": "standard"}))


def in_standard_order(trainer: Trainer) -> None:
    """Let every mixture read what the second dense FFN reads; no parameter changes."""
    layers: Any = trainer.model.model.layers
    for i, block in enumerate(layers):
        layers[i] = StandardBlock.of(block)


def run(job: Job) -> Row:
    """The ordinary run, in the arm's order."""
    trainer = job.trainer()
    if job.arm.options.get("order") == "standard":
        in_standard_order(trainer)
    return follow(job, trainer, read=("ffn_experts_mean",))


def verdicts(results: Results) -> Sequence[Verdict]:
    """Whether the gap, with its interval, is too small to see."""
    first, second = (results.values(arm, "loss") for arm in (SHORTCUT, STANDARD))
    return [
        difference(
            "held-out loss",
            first,
            second,
            of=(f"the {SHORTCUT} layer", f"the {STANDARD}"),
            expected="same",
            tolerance=float(f"{ALIKE * fmean(second):.2g}"),
            unit=" nats",
            digits=4,
        )
    ]


def body(results: Results) -> Iterable[str]:
    """Loss on three axes, and the table."""
    yield page.loss_plots(
        results,
        results.arms,
        title="Held-out loss of the same layer with the shortcut and in standard order; mean of "
        "the seeds with its interval.",
    )
    yield page.table(
        [
            {
                "arm": arm,
                "FFN experts per token": results.estimate(
                    arm, lambda row: fmean(row["curve"]["ffn_experts_mean"][-1])
                ).show(2),
                "active FLOPs": f"{fmean(results.values(arm, 'flops')):.3g}",
                "CPU seconds": f"{fmean(results.values(arm, 'cpu_seconds')):.1f}",
                "held-out loss": results.estimate(arm).show(4),
            }
            for arm in results.arms
        ]
    )
    yield (
        "What the shortcut is for cannot be seen here: on one process there is no communication to "
        "hide, and the two orders take the same time. Only that it costs no quality is tested."
    )


FIGURE = Figure(
    number=8,
    title="ScMoE against the standard order of a layer",
    report="section 2.2, loss curves with and without the shortcut",
    shows="the curves of models with the shortcut and of the same models without it lie on top of "
    "each other, for several sizes and kinds of attention: the overlap costs no quality.",
    differs="in standard order the mixture reads what the second dense FFN of its layer reads, "
    "beside it; with the shortcut it reads what the first reads. Parameters, their initial values, "
    "arithmetic and data are the same. Called seen when the whole interval of the gap lies within "
    f"{ALIKE:.0%} of the loss.",
    arms=arms,
    verdicts=verdicts,
    body=body,
    run=run,
)
