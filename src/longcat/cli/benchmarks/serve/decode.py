"""One token more for each of a batch: our engine and transformers' generate, taking turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import Row, rounded
from longcat.cli.benchmarks.serve.forms import FreshPrompts, Ours, contestants
from longcat.cli.benchmarks.serve.shapes import ExpertCount, touched_bytes
from longcat.cli.benchmarks.timing import Timing
from longcat.flash import FlashConfig, FlashModel

BATCHES = (1, 8)
PROMPT, TOKENS = 64, 16
SIDE = 8192  # of the square float32 matrix that is read for the bandwidth


def measure(
    name: str, config: FlashConfig, precision: str, rounds: int, *, compare: bool
) -> dict[str, list[Row]]:
    """The fastest reads, and passes beside them: rows of `bandwidth` and of `decode`."""
    model, forms = contestants(config, precision, compare=compare)
    reads = _reads()
    turns: dict[str, Callable[[], object]] = dict(reads)
    for batch in BATCHES:
        prompts = FreshPrompts(config.vocab_size)(*[PROMPT] * batch)
        for form, run in forms.items():
            for count in (1, 1 + TOKENS):
                turns[f"{form}, {batch}, {count}"] = partial(run, prompts, [count] * batch)
    samples = timing.in_turns(turns, rounds=rounds)
    where: Row = {"model": name, "precision": precision}
    bandwidths: list[Row] = []
    fastest = 0.0
    for read in reads:
        taken = timing.summary(samples[read], "cpu")
        rate = 4 * SIDE**2 / taken.median / 1e9
        fastest = max(fastest, rate)
        figures = {"GB/s": rate, "spread_%": 100 * taken.spread}
        bandwidths.append({**where, "read": read, **rounded(figures)})
    rows: list[Row] = []
    for batch in BATCHES:
        gigabytes = _read_by_a_pass(model, batch) / 1e9
        passes = {form: _pass(samples, f"{form}, {batch}") for form in forms}
        for form, taken in passes.items():
            figures = {
                "ms": 1e3 * taken.median,
                "spread_%": 100 * taken.spread,
                "wall_ms": 1e3 * taken.wall,
                "tokens/s": batch / taken.median,
                "MB_read": 1e3 * gigabytes,
                "%_of_bandwidth": 100 * gigabytes / taken.median / fastest,
            }
            if precision == "int8" and form == "transformers":  # it reads bfloat16
                del figures["MB_read"], figures["%_of_bandwidth"]
            if compare:
                figures["x_transformers"] = passes["transformers"].median / taken.median
            rows.append({**where, "batch": str(batch), "form": form, **rounded(figures)})
    return {"bandwidth": bandwidths, "decode": rows}


def _reads() -> dict[str, Callable[[], object]]:
    """What one thread reads from memory, in two ways."""
    matrix, vector = torch.rand(SIDE, SIDE), torch.rand(SIDE)
    return {"sum": matrix.sum, "matrix times vector": lambda: matrix @ vector}


def _pass(samples: dict[str, list[tuple[float, float]]], turn: str) -> Timing:
    """What a long continuation takes beyond a short one, per pass, round by round."""
    rounds = zip(samples[f"{turn}, {1 + TOKENS}"], samples[f"{turn}, 1"], strict=True)
    return timing.summary(
        [((long[0] - short[0]) / TOKENS, (long[1] - short[1]) / TOKENS) for long, short in rounds],
        "cpu",
    )


def _read_by_a_pass(model: FlashModel, batch: int) -> float:
    """Bytes of weights, with the experts that random prompts choose."""
    with ExpertCount(model) as counted:
        prompts = FreshPrompts(model.vocab_size, seed=2)(*[PROMPT] * batch)
        Ours(model)(prompts, [1 + TOKENS] * batch)
    passes = counted.passes[-TOKENS:]
    return touched_bytes(model, sum(one.unique for one in passes) / len(passes))
