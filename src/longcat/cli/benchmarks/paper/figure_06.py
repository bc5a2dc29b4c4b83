"""Figure 6: the best learning rate at three widths, with the transfer rule and without it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from longcat.cli.benchmarks.paper import page
from longcat.cli.benchmarks.paper.figure import Arm, Figure, Row, Scale
from longcat.cli.benchmarks.paper.interval import Estimate, estimate
from longcat.cli.benchmarks.paper.plot import Panel, plot
from longcat.cli.benchmarks.paper.results import Point, Results
from longcat.cli.benchmarks.paper.training import Job, follow
from longcat.cli.benchmarks.paper.verdict import Verdict, difference

HEAD_STD = 0.02  # of the output head at the proxy's width
RATES = tuple(2.0**k * 1e-3 for k in range(2, 7))
RULE, SAME = "with the rule", "same rate everywhere"
FACTOR = 2.0  # between neighbours of RATES: how near is near


def widths(scale: Scale) -> tuple[int, int, int]:
    """Proxy, middle and target: the target is four times the proxy."""
    return scale.width // 2, scale.width, 2 * scale.width


def arms(scale: Scale) -> Sequence[Arm]:
    """Every rate at every width under either rule; at the proxy's width the two are one."""
    proxy, *wider = widths(scale)
    made = [arm(scale, proxy, RULE, rate) for rate in RATES]
    for width in wider:
        made += [arm(scale, width, rule, rate) for rule in (RULE, SAME) for rate in RATES]
    return made


def arm(scale: Scale, width: int, rule: str, rate: float) -> Arm:
    """One training: hidden and output matrices learn at rate / s and the head starts narrower, or
    everything learns at `rate` and the head starts as at the proxy's width.
    """
    proxy = widths(scale)[0]
    # `widened` divides the deviation by the root of width / scale.width.
    reference = proxy if rule == RULE else width
    ratio = width / proxy if rule == RULE else 1.0
    return Arm(
        name=f"{width}, {rule}, {rate:g}",
        model={
            "num_layers": 1,
            "initializer_range": HEAD_STD * math.sqrt(reference / scale.width),
        },
        width=width,
        settings={"steps": scale.steps // 4, "batch_size": 4, "lr": rate, "width_ratio": ratio},
        options={"rule": rule, "rate": rate},
    )


def run(job: Job) -> Row:
    """The ordinary run; only its end is wanted."""
    return follow(job, job.trainer(), points=4, marks=1)


Curve = dict[float, list[float]]  # rate -> one loss per seed; infinite where training diverged


def curves(results: Results) -> dict[tuple[int, str], Curve]:
    """(width, rule) -> held-out losses."""
    found: dict[tuple[int, str], Curve] = {}
    for one in results.document["arms"]:
        key = (int(one["width"]), str(one["options"]["rule"]))
        losses = [math.inf if v != v else v for v in results.values(one["name"], "loss")]
        found.setdefault(key, {})[float(one["options"]["rate"])] = losses
    return found


def optimum(losses: Mapping[float, float]) -> float:
    """The rate at the bottom of the parabola through the lowest loss and its neighbours.

    In the logarithm of the rate; at an end of the grid the end itself.
    """
    rates = sorted(losses)
    best = min(range(len(rates)), key=lambda i: losses[rates[i]])
    if not 0 < best < len(rates) - 1:
        return rates[best]
    left, middle, right = (losses[rates[best + i]] for i in (-1, 0, 1))
    bend = left - 2 * middle + right
    if not (math.isfinite(bend) and bend > 0):
        return rates[best]
    # Rates are FACTOR apart, so the parabola has equal steps in the logarithm.
    return float(rates[best] * FACTOR ** (0.5 * (left - right) / bend))


def optima(curve: Curve) -> list[float]:
    """The best rate of each seed."""
    seeds = len(next(iter(curve.values())))
    return [optimum({rate: losses[i] for rate, losses in curve.items()}) for i in range(seeds)]


def moved(results: Results, width: int, rule: str) -> Estimate:
    """How far the optimum is from the proxy's, in doublings, seed by seed."""
    found = curves(results)
    proxy = min(width for width, _ in found)
    pairs = zip(optima(found[width, rule]), optima(found[proxy, RULE]), strict=True)
    return estimate([math.log2(wide / narrow) for wide, narrow in pairs])


def best_rate(curve: Curve) -> float:
    """The rate of the grid with the lowest mean loss."""
    return min(curve, key=lambda rate: fmean(curve[rate]))


def verdicts(results: Results) -> Sequence[Verdict]:
    """Whether the optimum stays with the rule, moves without it, and what using it costs."""
    found = curves(results)
    proxy, target = min(w for w, _ in found), max(w for w, _ in found)
    rate = best_rate(found[proxy, RULE])
    stays, drifts = (moved(results, target, rule) for rule in (RULE, SAME))
    doubling = math.log2(FACTOR)
    kept, shifted = -doubling < stays.low and stays.high < doubling, drifts.high < 0
    losses = [found[target, rule][rate] for rule in (RULE, SAME)]
    return [
        Verdict(
            seen=kept,
            text=f"with the rule the best learning rate at width {target} is "
            f"{_times(stays)} that at width {proxy}: "
            + (
                "the whole interval lies within a factor of 2."
                if kept
                else "the interval does not lie within a factor of 2."
            ),
        ),
        Verdict(
            seen=shifted,
            text=f"without it the best rate is {_times(drifts)} that at width {proxy}: "
            + ("it falls as the width grows." if shifted else "the interval does not exclude 1."),
        ),
        difference(
            f"held-out loss of width {target} at the rate best at width {proxy} ({rate:g})",
            *losses,
            of=("the rule", "the same rate everywhere"),
            expected="lower",
        ),
    ]


def _times(doublings: Estimate) -> str:
    low, high = (2**end for end in (doublings.low, doublings.high))
    return f"{2**doublings.mean:.2f} times (interval {low:.2f} to {high:.2f})"


def body(results: Results) -> Iterable[str]:
    """The basins, and a table of their bottoms."""
    found = curves(results)
    every = sorted({width for width, _ in found})

    def points(curve: Curve) -> list[Point]:
        finite = {rate: ls for rate, ls in sorted(curve.items()) if all(map(math.isfinite, ls))}
        return [Point(x=rate, y=estimate(losses)) for rate, losses in finite.items()]

    proxy = found[every[0], RULE]
    lowest = min(fmean(losses) for curve in found.values() for losses in curve.values())
    first = fmean(proxy[best_rate(proxy)])
    panels = [
        Panel(
            series={f"width {width}": points(found.get((width, rule), proxy)) for width in every},
            x_label=f"learning rate, {rule}",
            log_x=True,
        )
        for rule in (RULE, SAME)
    ]
    yield plot(
        panels,
        title=f"Held-out loss against the learning rate at three widths, {RATES[0]:g} to "
        f"{RATES[-1]:g}, each twice the one before: with the rule the rate is that of embeddings, "
        "and matrices learn at 1/s of it; mean of the seeds with its interval.",
        y_label="held-out loss, nats per token",
        limits=(lowest - 0.05, first + 2.5 * max(0.1, first - lowest)),
    )
    rows = []
    for (width, rule), curve in found.items():
        best = best_rate(curve)
        mean = estimate([math.log2(rate) for rate in optima(curve)])
        rows.append(
            {
                "width": str(width),
                "learning rate": "proxy" if width == every[0] else rule,
                "best of the grid": f"{best:g}",
                "bottom of the parabola": f"{2**mean.mean:.4f}",
                "moved from the proxy's": ""
                if width == every[0]
                else _times(moved(results, width, rule)),
                "loss at the best": estimate(curve[best]).show(),
                "loss at the proxy's best": estimate(curve[best_rate(proxy)]).show(),
            }
        )
    yield page.table(rows)
    edges = [
        f"{width} ({rule})"
        for (width, rule), curve in found.items()
        if best_rate(curve) in (min(curve), max(curve))
    ]
    if edges:
        yield (
            "The lowest loss lies at an end of the grid for " + ", ".join(edges) + ": there the "
            "true optimum may be further out."
        )


FIGURE = Figure(
    number=6,
    title="The best learning rate across widths",
    report="section 3.1.1, table 1; the report prints no curve",
    shows="learning rates and initial variances found on a narrow proxy serve the full width, 8 "
    "times as wide, when hidden and output matrices learn at 1/s of the proxy's rate and start "
    "with 1/s of its variance; embeddings keep both.",
    differs="one ScMoE layer at three widths, four times as wide at the most. Hidden matrices "
    "start by fan-in in every arm, which is the rule's variance already; without the rule all "
    "matrices learn at one rate and the output head starts as wide as the proxy's. Runs are short, "
    "so that the best rates are higher than those of long ones.",
    arms=arms,
    verdicts=verdicts,
    body=body,
    run=run,
)
