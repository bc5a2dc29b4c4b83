"""Requests of different lengths at once, and prompts that begin alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import Row, rounded
from longcat.cli.benchmarks.serve.forms import FreshPrompts, Ours, contestants
from longcat.flash import FlashConfig, FlashModel
from longcat.flash.packed import as_served

ASKED = (512, 16, 352, 96, 256, 48, 448, 160)  # tokens in, and out
ANSWERED = (16, 128, 48, 96, 32, 112, 64, 80)
PROMPT, SHARED = 1024, 928  # of the prefix cache's prompts: all tokens, and those in common


def measure_ragged(name: str, config: FlashConfig, rounds: int, *, compare: bool) -> list[Row]:
    """Eight requests that arrive together, each leaving when it is done, against a padded batch."""
    _, forms = contestants(config, "float32", compare=compare)
    prompts = FreshPrompts(config.vocab_size)(*ASKED)
    turns: dict[str, Callable[[], object]] = {
        form: partial(run, prompts, ANSWERED) for form, run in forms.items()
    }
    samples = timing.in_turns(turns, rounds=rounds)
    timings = {form: timing.summary(taken, "cpu") for form, taken in samples.items()}
    rows: list[Row] = []
    for form, taken in timings.items():
        figures = {
            "s": taken.median,
            "spread_%": 100 * taken.spread,
            "wall_s": taken.wall,
            "tokens/s": sum(ANSWERED) / taken.median,
        }
        if compare:
            figures["x_transformers"] = timings["transformers"].median / taken.median
        rows.append({"model": name, "precision": "float32", "form": form, **rounded(figures)})
    return rows


def measure_prefix(name: str, config: FlashConfig, rounds: int) -> list[Row]:
    """The first token of a long prompt: all of it new, or most of it in the prefix cache."""
    model = as_served(FlashModel(config, seed=0).eval())
    fresh = FreshPrompts(config.vocab_size)
    run = Ours(model, prefix_cache=True)
    (shared,) = fresh(SHARED)

    def cold() -> object:
        return run(fresh(PROMPT), [1])

    def hit() -> object:
        return run([shared + fresh(PROMPT - SHARED)[0]], [1])

    samples = timing.in_turns({"cold": cold, "hit": hit}, rounds=rounds)
    timings = {form: timing.summary(taken, "cpu") for form, taken in samples.items()}
    found = run.engine.stats().prefix_hits
    if found != rounds * SHARED:
        raise ValueError(
            f"bench: {rounds} prompts had to find {SHARED} tokens each in the prefix cache, "
            f"and found {found} together"
        )
    return [
        {
            "model": name,
            "precision": "float32",
            "form": form,
            **rounded(
                {
                    "s": taken.median,
                    "spread_%": 100 * taken.spread,
                    "wall_s": taken.wall,
                    "x_cold": taken.median / timings["cold"].median,
                }
            ),
        }
        for form, taken in timings.items()
    ]
