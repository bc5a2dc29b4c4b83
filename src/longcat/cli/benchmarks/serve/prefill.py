"""A prompt until its first token: our engine and transformers' generate, taking turns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import Row, rounded
from longcat.cli.benchmarks.serve.forms import Continue, FreshPrompts, Ours, contestants
from longcat.cli.benchmarks.serve.shapes import PRECISIONS, ExpertCount, prefill_operations
from longcat.flash import FlashConfig, FlashModel
from longcat.train.peak import square_products

PROMPTS = (512, 2048)
PRODUCT = 2048  # of the square matrices that show the peak


def measure(
    name: str, config: FlashConfig, precision: str, rounds: int, *, compare: bool
) -> dict[str, list[Row]]:
    """The fastest products, and prompts beside them: rows of `peak` and of `prefill`."""
    dtype = PRECISIONS[precision]
    model, forms = contestants(config, precision, compare=compare)
    fresh = FreshPrompts(config.vocab_size)
    products = square_products(dtype, PRODUCT)
    turns: dict[str, Callable[[], object]] = dict(products)
    for tokens in PROMPTS:
        for form, run in forms.items():
            turns[f"{form}, {tokens}"] = partial(_first_token, run, fresh, tokens)
    timings = {
        turn: timing.summary(taken, "cpu")
        for turn, taken in timing.in_turns(turns, rounds=rounds).items()
    }
    rates = {product: 2 * PRODUCT**3 / timings[product].median / 1e9 for product in products}
    where: Row = {"model": name, "precision": precision}
    peaks: list[Row] = [
        {
            **where,
            "product": product,
            **rounded({"GFLOP/s": rate, "spread_%": 100 * timings[product].spread}),
        }
        for product, rate in rates.items()
    ]
    rows: list[Row] = []
    for tokens in PROMPTS:
        at_peak = prefill_operations(config, tokens, _slots(model, tokens)) / 1e9
        at_peak /= max(rates.values())
        for form in forms:
            taken = timings[f"{form}, {tokens}"]
            figures = {
                "s": taken.median,
                "spread_%": 100 * taken.spread,
                "wall_s": taken.wall,
                "tokens/s": tokens / taken.median,
                "%_of_peak": 100 * at_peak / taken.median,
            }
            if compare:
                theirs = timings[f"transformers, {tokens}"].median
                figures["x_transformers"] = theirs / taken.median
            rows.append({**where, "prompt": str(tokens), "form": form, **rounded(figures)})
    return {"peak": peaks, "prefill": rows}


def _first_token(form: Continue, fresh: FreshPrompts, tokens: int) -> object:
    return form(fresh(tokens), [1])


def _slots(model: FlashModel, tokens: int) -> int:
    """FFN experts that a prompt uses, over its tokens and the layers."""
    with ExpertCount(model) as counted, torch.inference_mode():
        Ours(model)(FreshPrompts(model.vocab_size, seed=2)(tokens), [1])
    return sum(one.slots for one in counted.passes)
