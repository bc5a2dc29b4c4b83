"""Figure 4: the hidden z-loss under a harsh learning rate (figure 6)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from longcat.cli.benchmarks.paper import page
from longcat.cli.benchmarks.paper.figure import Arm, Figure, Row, Scale
from longcat.cli.benchmarks.paper.plot import Panel, plot
from longcat.cli.benchmarks.paper.results import Results
from longcat.cli.benchmarks.paper.training import Job, follow
from longcat.cli.benchmarks.paper.verdict import Verdict, difference

OFF, ON = "off", "lambda 1e-7"
RATE = 3e-2  # 7.5 times the rate that suits these models


def arms(scale: Scale) -> Sequence[Arm]:
    """Without it, and at the weight of the report's figure."""
    settings = {"lr": RATE, "steps": 2 * scale.steps // 3}
    return [
        Arm(name=name, settings={**settings, "z_loss_weight": weight})
        for name, weight in ((OFF, 0.0), (ON, 1e-7))
    ]


def run(job: Job) -> Row:
    """Train, reading the size of the last layer's output before the final norm."""
    return follow(job, job.trainer(), read=("hidden_rms", "grad_norm"))


def final_norm(row: Row, width: int) -> float:
    """Mean L2 norm of a token's last-layer output over the last stretch of the run."""
    return float(row["curve"]["hidden_rms"][-1]) * math.sqrt(width)


def verdicts(results: Results) -> Sequence[Verdict]:
    """The norm falls, and the loss does not suffer."""
    width = results.document["scale"]["width"]
    norms, losses = (
        [results.values(arm, read) for arm in (ON, OFF)]
        for read in (lambda row: math.log10(final_norm(row, width)), "loss")
    )
    name, of = "last-layer L2 norm at the end, in decades,", (ON, "none")
    return (
        difference(name, *norms, of=of, expected="lower", digits=2),
        difference("held-out loss", *losses, of=of, expected="same"),
    )


def body(results: Results) -> Iterable[str]:
    """The norm over the run on a logarithmic axis, the loss, and both at the end."""
    width = results.document["scale"]["width"]
    norm = {arm: results.curve(arm, "hidden_rms", x="step") for arm in results.arms}
    yield plot(
        [Panel(series=norm, x_label="step")],
        title="RMS of the last layer's output before the final norm, over all features of a batch; "
        "mean of the seeds with its interval.",
        y_label="RMS",
        log_y=True,
    )
    loss = {arm: results.curve(arm, "loss", x="step") for arm in results.arms}
    yield plot(
        [Panel(series=loss, x_label="step")],
        title="Training loss under the harsh learning rate.",
        y_label="loss, nats per token",
    )
    yield page.loss_plots(results, results.arms, title="Held-out loss.")
    yield page.table(
        [
            {
                "hidden z-loss": arm,
                "last-layer L2 norm at the end": results.estimate(
                    arm, lambda row: final_norm(row, width)
                ).show(0),
                "largest gradient norm": results.estimate(
                    arm, lambda row: max(row["curve"]["grad_norm"])
                ).show(2),
                "held-out loss": results.estimate(arm).show(),
            }
            for arm in results.arms
        ]
    )


FIGURE = Figure(
    number=4,
    title="Hidden z-loss under a harsh learning rate",
    report="figure 6",
    shows="without the hidden z-loss the L2 norm of the last layer's output climbs from 1e2 to "
    "1e5 and jumps to 1e7 while the loss spikes, near step 20,000; with it (lambda = 1e-7) the "
    "norm stays at 150 to 250, and the loss is otherwise the same.",
    differs=f"a learning rate of {RATE:g}, 7.5 times the one that suits these models, for far "
    "fewer steps; the gradient's norm is clipped at 1 as in every run here.",
    arms=arms,
    verdicts=verdicts,
    body=body,
    run=run,
)
