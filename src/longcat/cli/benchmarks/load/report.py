"""What a load came to: waits in percentiles, throughput, and errors by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.load.call import Outcome, Target
from longcat.cli.benchmarks.load.traffic import Traffic

POINTS = (50, 90, 95, 99)
MEASURES = {
    "ttft_ms": "time to first token",
    "per_token_ms": "per token after it",
    "gap_ms": "between events",
    "latency_ms": "whole request",
}


def summarise(
    target: Target, traffic: Traffic, outcomes: Sequence[Outcome], seconds: float
) -> dict[str, Any]:
    """One document: times of the requests that ended well, everything else beside them."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    tokens = sum(outcome.tokens for outcome in good)
    waits = {
        "ttft_ms": [o.first for o in good if o.first is not None],
        "per_token_ms": [o.per_token for o in good if o.per_token is not None],
        "gap_ms": [gap for o in good for gap in o.gaps],
        "latency_ms": [o.total for o in good],
    }
    return {
        "date": timing.today(),
        "model": target.model,
        "traffic": asdict(traffic),
        "requests": len(outcomes),
        "ended_well": len(good),
        "errors": dict(Counter(o.error for o in outcomes if o.error is not None)),
        "seconds": round(seconds, 3),
        "requests_per_s": round(len(good) / seconds, 3),
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in good),
        "tokens": tokens,
        "tokens_per_s": round(tokens / seconds, 3),
        **{name: percentiles(values) for name, values in waits.items()},
    }


def percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    """Mean, percentiles and the largest in milliseconds; None of nothing."""
    if not seconds:
        return None
    milliseconds = 1e3 * np.asarray(seconds)
    points = np.percentile(milliseconds, POINTS)
    found = {"mean": float(milliseconds.mean())}
    found |= {f"p{point}": float(value) for point, value in zip(POINTS, points, strict=True)}
    found["max"] = float(milliseconds.max())
    return {name: round(value, 3) for name, value in found.items()}


def show(document: dict[str, Any]) -> None:
    """The document as a table."""
    from rich import box
    from rich.table import Table

    from longcat.cli.ui.theme import make_console

    table = Table(
        title=(
            f"{document['model']}: {document['ended_well']} of {document['requests']} requests in "
            f"{document['seconds']:.1f} s, {document['requests_per_s']:.2f} requests/s, "
            f"{document['tokens_per_s']:.1f} tokens/s"
        ),
        title_justify="left",
        box=box.SIMPLE,
    )
    names = ["mean", *(f"p{point}" for point in POINTS), "max"]
    rows = {
        heading: [_short(document[measure][name]) for name in names]
        for measure, heading in MEASURES.items()
        if document[measure] is not None
    }
    table.add_column("ms", min_width=7)  # may wrap; the numbers beside it may not be cut
    for name, *cells in zip(names, *rows.values(), strict=True):
        table.add_column(name, justify="right", min_width=max(map(len, cells), default=0))
    for heading, numbers in rows.items():
        table.add_row(heading, *numbers)
    console = make_console()
    console.print(table, crop=False)
    for error, count in document["errors"].items():
        console.print(f"{count} requests: {error}")


def _short(milliseconds: float) -> str:
    """One decimal where it says something."""
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"
