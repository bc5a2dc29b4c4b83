"""The runs of `longcat bench acceptance`: draft heads on prompts that nothing was chosen by.

A recipe that was chosen by looking at some prompts flatters itself on them. So the prompts here are
drawn at random from the held-out text, clear of those that are looked at in daily work
(`longcat.train.acceptance.fresh_starts`), and the same for every seed of a preset.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.paper.bench import rounded
from longcat.cli.training import chosen_settings
from longcat.flash import FlashModel
from longcat.train import RunError, TrainSettings
from longcat.train.acceptance import NEW_TOKENS, PROMPT_TOKENS, fresh_starts, measure_acceptance
from longcat.train.batches import tokenize
from longcat.train.directory import RunDirectory
from longcat.train.prepare import reopen

FILE_NAME = "acceptance.json"
DRAW = 2025  # seed of the prompts' places
DEPTH = 3  # drafts per pass, where acceptance is told by depth
EVERY = 4  # sampled and deeper drafts are told of every so many prompts

Row = dict[str, Any]


def measure_run(path: Path, prompts: int, *, say: Callable[[str], None] = lambda line: None) -> Row:
    """A finished run's figures, and its drafts: greedy, sampled, and several a pass.

    Raises:
        RunError: the run is not finished, or its draft head was not taught.
    """
    prepared, summary = reopen(RunDirectory(path)), _summary(path)
    settings = prepared.settings
    with timing.pinned_threads(1):
        machine = timing.machine("cpu")
        model = FlashModel.from_pretrained(path).eval()
        stream = tokenize(prepared.held_out, prepared.tokenizer).astype(np.int64)
        wanted: dict[str, Any] = {
            "starts": fresh_starts(len(stream), prompts, seed=DRAW),
            "token_bytes": prepared.token_bytes,
        }
        say(f"{settings.preset}, seed {settings.seed}: drafting on {prompts} prompts")
        greedy = measure_acceptance(model, stream, **wanted)
        wanted["starts"] = wanted["starts"][::EVERY]
        sampled = measure_acceptance(model, stream, temperature=1.0, **wanted)
        deep = measure_acceptance(model, stream, num_drafts=DEPTH, **wanted)
    assert greedy is not None  # a taught head is there
    assert sampled is not None
    assert deep is not None
    depths = zip(deep.accepted_at, deep.drafted_at, strict=True)
    row: Row = {
        "preset": settings.preset,
        "seed": settings.seed,
        "command": command_of(settings),
        "date": timing.today(),
        "text": prepared.card["source"],
        "parameters": summary["parameters"]["total"],
        "draft_parameters": summary["parameters"]["mtp"],
        "vocabulary": prepared.config.vocab_size,
        "tokens": summary["tokens"],
        "cpu_seconds": summary["cpu_seconds"],
        "settle_cpu_seconds": (summary["settled"] or {"cpu_seconds": 0.0})["cpu_seconds"],
        "distill_cpu_seconds": summary["distilled"]["cpu_seconds"],
        "bits_per_byte": summary["held_out"]["bits_per_byte"],
        "ffn_experts_mean": summary["held_out"]["ffn_experts_mean"],
        "repeated": greedy.repeated,
        "tokens_per_pass": greedy.tokens_per_step,
        "bytes_per_pass": greedy.bytes_per_step,
        "sampled": sampled.rate,
        "by_depth": [taken / max(1, tried) for taken, tried in depths],
        "prompts": {"count": prompts, "tokens": PROMPT_TOKENS, "continued_by": NEW_TOKENS},
        "machine": machine,
        "by_prompt": greedy.by_prompt,
    }
    exact: Row = rounded(row)
    return exact


def command_of(settings: TrainSettings) -> str:
    """The command that makes the run: what differs from the defaults, as flags."""
    asked = {
        "preset": settings.preset,
        "steps": settings.steps,
        "seed": settings.seed,
        "distill_steps": settings.distill_steps,
    }
    usual = asdict(chosen_settings(asked, quickstart=False))
    # The precision is measured where it is not given; a probe decides it, not the recipe.
    others = {
        name: value
        for name, value in asdict(settings).items()
        if value != usual[name] and name != "precision"
    }
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in (asked | others).items()]
    return " ".join(["longcat train", *flags])


def read(file: Path) -> list[Row]:
    """The runs that the file holds; none when it is not there.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        runs: list[Row] = json.loads(file.read_text(encoding="utf-8"))["runs"]
    except FileNotFoundError:
        return []
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"bench acceptance: {file} is damaged ({error}); restore or remove it"
        ) from error
    return runs


def merged(stored: list[Row], measured: Row) -> list[Row]:
    """All runs by preset and seed; the new one replaces the old one of its place.

    Raises:
        ValueError: the others were measured on other prompts.
    """
    runs = {(run["preset"], run["seed"]): run for run in [*stored, measured]}
    for run in runs.values():
        if run["prompts"] != measured["prompts"]:
            raise ValueError(
                f"bench acceptance: {run['preset']}, seed {run['seed']} was measured on "
                f"{run['prompts']['count']} prompts, not on {measured['prompts']['count']}; "
                "measure all runs alike"
            )
    return [runs[place] for place in sorted(runs)]


def _summary(path: Path) -> Row:
    """What the run said of itself at its end."""
    file = path / "run.json"
    if not file.is_file():
        raise RunError(
            f"bench acceptance: {path} is not finished; go on with it by "
            f"`longcat train --resume --out {path}`"
        )
    summary: Row = json.loads(file.read_text(encoding="utf-8"))
    if not summary.get("distilled") or not summary.get("held_out"):
        raise RunError(
            f"bench acceptance: expected a run with held-out text and a taught draft head, found "
            f"none in {path}; train with --distill-steps"
        )
    return summary
