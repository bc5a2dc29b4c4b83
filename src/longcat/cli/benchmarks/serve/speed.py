"""Prompts and single tokens: our engine and transformers' generate, taking turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import Row, rounded
from longcat.cli.benchmarks.serve.forms import FreshPrompts, Ours, Prompts, Theirs, load_ours
from longcat.cli.benchmarks.serve.shapes import (
    PRECISIONS,
    ExpertCount,
    Experts,
    prefill_operations,
    touched_bytes,
)
from longcat.cli.benchmarks.timing import Timing
from longcat.flash import FlashConfig, FlashModel
from longcat.train.peak import square_products

PROMPTS = (512, 2048)
BATCHES = (1, 8)
DECODE_PROMPT, DECODED = 64, 24
PRODUCT = 2048  # of the square matrices that show the peak
READ = 8192  # of the square float32 matrix that is read for the bandwidth

Continue = Callable[[Prompts, Sequence[int]], list[list[int]]]


@dataclass(kw_only=True)
class Speed:
    """Rows of three tables."""

    limits: list[Row] = field(default_factory=list)
    prefill: list[Row] = field(default_factory=list)
    decode: list[Row] = field(default_factory=list)


def measure(name: str, config: FlashConfig, precision: str, rounds: int, *, compare: bool) -> Speed:
    """All figures of one model in one precision.

    Raises:
        ValueError: the two do not continue a prompt alike in float32; then they are not the same
            model.
    """
    dtype = PRECISIONS[precision]
    with tempfile.TemporaryDirectory() as directory:
        FlashModel(config, seed=0).save_pretrained(directory, format="transformers5")
        model = load_ours(directory, dtype)
        forms: dict[str, Continue] = {"longcat": Ours(model)}
        if compare:
            forms["transformers"] = Theirs(directory, dtype)
    fresh = FreshPrompts(config.vocab_size)
    if precision == "float32":
        check_alike(forms, fresh(40))
    limits = _limits(dtype)
    samples = timing.in_turns({**limits, **_turns(forms, fresh)}, rounds=rounds)
    timings = {turn: timing.summary(taken, "cpu") for turn, taken in samples.items()}
    where: Row = {"model": name, "precision": precision}
    rates = {turn: _rate(turn, timings[turn]) for turn in limits}
    found = Speed(
        limits=[
            {
                **where,
                "limit": turn,
                "unit": "GB/s" if turn.startswith("read") else "GFLOP/s",
                **rounded({"rate": rate, "spread_%": 100 * timings[turn].spread}),
            }
            for turn, rate in rates.items()
        ]
    )
    peak = max(rate for turn, rate in rates.items() if turn.startswith("product"))
    bandwidth = max(rate for turn, rate in rates.items() if turn.startswith("read"))
    for tokens in PROMPTS:
        used = _experts(model, fresh(tokens), 1)[0]
        worth = prefill_operations(config, tokens, used.slots) / 1e9
        turns = {form: timings[f"{form}, prefill {tokens}"] for form in forms}
        found.prefill += [
            {**where, "prompt": str(tokens), "form": form, **rounded(figures)}
            for form, figures in _prefill_figures(turns, tokens, worth / peak).items()
        ]
    for batch in BATCHES:
        passes = _experts(model, fresh(*[DECODE_PROMPT] * batch), DECODED)[1:]
        read = touched_bytes(model, sum(one.unique for one in passes) / len(passes)) / 1e9
        turns = {form: _per_pass(samples, f"{form}, batch {batch}") for form in forms}
        found.decode += [
            {**where, "batch": str(batch), "form": form, **rounded(figures)}
            for form, figures in _decode_figures(turns, batch, read, bandwidth).items()
        ]
    return found


def _rate(turn: str, taken: Timing) -> float:
    """GFLOP/s of a product, GB/s of a read."""
    amount = 4 * READ**2 if turn.startswith("read") else 2 * PRODUCT**3
    return amount / taken.median / 1e9


def _prefill_figures(
    turns: dict[str, Timing], tokens: int, at_peak: float
) -> dict[str, dict[str, float]]:
    return {
        form: {
            "s": taken.median,
            "spread_%": 100 * taken.spread,
            "wall_s": taken.wall,
            "tokens/s": tokens / taken.median,
            "%_of_peak": 100 * at_peak / taken.median,
        }
        | _against(turns, form)
        for form, taken in turns.items()
    }


def _decode_figures(
    turns: dict[str, Timing], batch: int, gigabytes: float, bandwidth: float
) -> dict[str, dict[str, float]]:
    return {
        form: {
            "ms": 1e3 * taken.median,
            "spread_%": 100 * taken.spread,
            "wall_ms": 1e3 * taken.wall,
            "tokens/s": batch / taken.median,
            "MB_read": 1e3 * gigabytes,
            "%_of_bandwidth": 100 * gigabytes / taken.median / bandwidth,
        }
        | _against(turns, form)
        for form, taken in turns.items()
    }


def check_alike(forms: dict[str, Continue], prompts: Prompts) -> None:
    """Raise ValueError unless all forms continue the prompts with the same tokens."""
    texts = {name: form(prompts, [8] * len(prompts)) for name, form in forms.items()}
    first, *others = texts.values()
    if any(text != first for text in others):
        raise ValueError(
            "bench: the same weights must continue a prompt alike, got "
            f"{texts}; no time is measured of work that differs"
        )


def _limits(dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """What this machine multiplies, and what it reads, with one thread."""
    made: dict[str, Callable[[], object]] = {
        f"product, {name}": run for name, run in square_products(dtype, PRODUCT).items()
    }
    matrix = torch.rand(READ, READ)
    vector = torch.rand(READ)
    made["read, sum"] = lambda: matrix.sum()
    made["read, matrix times vector"] = lambda: matrix @ vector
    return made


def _turns(forms: dict[str, Continue], fresh: FreshPrompts) -> dict[str, Callable[[], object]]:
    made: dict[str, Callable[[], object]] = {}
    for tokens in PROMPTS:
        for name, form in forms.items():
            made[f"{name}, prefill {tokens}"] = partial(_first_token, form, fresh, tokens)
    for batch in BATCHES:
        prompts = fresh(*[DECODE_PROMPT] * batch)
        for name, form in forms.items():
            for count in (1, 1 + DECODED):
                made[f"{name}, batch {batch}, {count}"] = partial(form, prompts, [count] * batch)
    return made


def _first_token(form: Continue, fresh: FreshPrompts, tokens: int) -> object:
    return form(fresh(tokens), [1])


def _experts(model: FlashModel, prompts: Prompts, count: int) -> list[Experts]:
    with ExpertCount(model) as counted:
        Ours(model)(prompts, [count] * len(prompts))
    return counted.passes


def _per_pass(samples: dict[str, list[tuple[float, float]]], turn: str) -> Timing:
    """A decoding pass: what the long continuation takes beyond the short one, round by round."""
    rounds = zip(samples[f"{turn}, {1 + DECODED}"], samples[f"{turn}, 1"], strict=True)
    return timing.summary(
        [
            ((long[0] - short[0]) / DECODED, (long[1] - short[1]) / DECODED)
            for long, short in rounds
        ],
        "cpu",
    )


def _against(turns: dict[str, Timing], form: str) -> dict[str, float]:
    if "transformers" not in turns:
        return {}
    return {"x_transformers": turns["transformers"].median / turns[form].median}
