"""Speculation on and off in bfloat16: the shipped nano, and a large model with replayed drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import Row, rounded
from longcat.cli.benchmarks.serve.forms import FreshPrompts, Ours, Prompts
from longcat.cli.benchmarks.serve.replayed import Replayed
from longcat.cli.models import shipped_nano
from longcat.flash import FlashConfig, FlashModel
from longcat.flash.packed import as_served
from longcat.flash.tokenizer import Tokenizer
from longcat.serve import PagedModel

DRAFTS: dict[str, int | None] = {"off": 0, "1": 1, "2": 2, "3": 3, "chosen": None}
ACCEPTANCE = 0.8
PROMPT, TOKENS = 64, 64
BATCHES = (1, 4)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model in bfloat16, and the prompts that it continues."""

    name: str
    text: str
    model: PagedModel
    prompts: Prompts


def replayed_case(name: str, config: FlashConfig) -> Case:
    """Random weights that say what was laid down, the head at ACCEPTANCE."""
    served = as_served(FlashModel(config, seed=0, dtype=torch.bfloat16).eval())
    model = Replayed(served, ACCEPTANCE)
    prompts = FreshPrompts(config.vocab_size)(*[PROMPT] * max(BATCHES))
    return Case(
        name=f"{name}, random weights",
        text=f"replayed, drafts right at a rate of {ACCEPTANCE}",
        model=model,
        prompts=prompts,
    )


def nano_case() -> Case | None:
    """The shipped nano on held-out text; None where it is not shipped."""
    found = shipped_nano()
    if found is None:
        return None
    from longcat.train.sources import read_corpus

    tokenizer = Tokenizer.load(found)
    texts = [document.text for document in read_corpus([]).held_out]
    ids = [tokenizer.encode(text, bos=True) for text in texts]
    prompts = [text[:PROMPT] for text in ids if len(text) >= PROMPT]
    while len(prompts) < max(BATCHES):  # few long documents: go on within them
        longest = max(ids, key=len)
        start = PROMPT * len(prompts)
        prompts.append(longest[start : start + PROMPT])
    model = as_served(FlashModel.from_pretrained(found, dtype=torch.bfloat16).eval())
    return Case(
        name="nano, shipped",
        text="greedy after held-out text",
        model=model,
        prompts=prompts[: max(BATCHES)],
    )


def measure(case: Case, rounds: int) -> list[Row]:
    """Every number of drafts in turns; prefill, which is the same for all, is part of the time."""
    rows: list[Row] = []
    for batch in BATCHES:
        prompts = case.prompts[:batch]
        runs = {name: Ours(case.model, drafts=count) for name, count in DRAFTS.items()}
        turns: dict[str, Callable[[], object]] = {
            name: partial(run, prompts, [TOKENS] * batch) for name, run in runs.items()
        }
        samples = timing.in_turns(turns, rounds=rounds)
        timings = {name: timing.summary(taken, "cpu") for name, taken in samples.items()}
        best = min(timings[name].median for name, count in DRAFTS.items() if count is not None)
        for name, run in runs.items():
            stats, taken = run.engine.stats(), timings[name]
            figures = {
                "acceptance": stats.acceptance,
                "tokens_per_pass": stats.tokens / stats.steps / batch,
                "ms_per_token": 1e3 * taken.median / (TOKENS * batch),
                "spread_%": 100 * taken.spread,
                "wall_ms": 1e3 * taken.wall / (TOKENS * batch),
                "x_off": timings["off"].median / taken.median,
                "%_behind_best": 100 * (taken.median / best - 1),
            }
            where = {"model": case.name, "text": case.text, "batch": str(batch), "drafts": name}
            rows.append({**where, **rounded(figures)})
    return rows
