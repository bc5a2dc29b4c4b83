"""The page of `longcat bench acceptance`, made from its file alone: every figure is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

import numpy as np

from longcat.cli.benchmarks.acceptance.runs import DEPTH, EVERY, FILE_NAME
from longcat.cli.benchmarks.paper.interval import estimate
from longcat.cli.benchmarks.paper.page import table
from longcat.train.acceptance import CUSTOMARY, GRAM
from longcat.train.interval import ratio_interval

PAGE_NAME = "acceptance.md"
CPU_LIMIT = 1200.0  # seconds of training and teaching together
BITS_LIMIT = 1.87  # the quickstart's own
# Shares of drafts to be accepted: of all, and of those where no 5-gram repeats.
GOALS = {"nano": (0.88, 0.80), "nano-bytes": (0.97, 0.93)}
ALL, FRESH = (0, 1), (2, 3)  # columns of `by_prompt`: tried, taken

_MARKS = {True: ("exact", "reached"), False: ("absent", "missed")}

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Share:
    """A share of drafts, mean of the seeds.

    Attributes:
        seeds: one share per seed. over_prompts: half its 95 % interval over prompts, each prompt
            counted once with the drafts of all seeds. over_seeds: the same over seeds, by Student's
            t; None for one seed.
    """

    seeds: tuple[float, ...]
    over_prompts: float
    over_seeds: float | None

    @property
    def mean(self) -> float:
        """Of the seeds."""
        return fmean(self.seeds)

    def show(self) -> str:
        """In per cent, with both intervals."""
        shown = f"{self.mean:.1%} ± {self.over_prompts:.1%} over prompts"
        return shown if self.over_seeds is None else f"{shown}, ± {self.over_seeds:.1%} over seeds"


def share(runs: Sequence[Row], columns: tuple[int, int]) -> Share:
    """Of the drafts of runs that continued the same prompts."""
    tried, taken = np.array([run["by_prompt"] for run in runs]).transpose(2, 0, 1)[list(columns)]
    seeds = tuple((taken.sum(axis=1) / tried.sum(axis=1)).tolist())
    return Share(
        seeds=seeds,
        over_prompts=ratio_interval(taken.sum(axis=0), tried.sum(axis=0)) or 0.0,
        over_seeds=estimate(seeds).half if len(seeds) > 1 else None,
    )


def render(document: Mapping[str, Any]) -> str:
    """The whole page as Markdown."""
    presets = _by_preset(document)
    blocks = [
        "---\nhide: [toc]\n---",
        f"<!-- Written by `longcat bench acceptance` from bench/results/{FILE_NAME}: edits here "
        "are lost. -->",
        "# Draft acceptance",
        "How often the draft head says the token that the model itself says next, after joint "
        "training and a phase that teaches the head alone (`--distill-steps`). Prompts of held-out "
        "text, none of them looked at while the recipe was chosen, are continued greedily. "
        f"Repetition is easy to draft, so the share over tokens that complete no {GRAM}-gram seen "
        "before stands beside it.",
        *(block for name, runs in presets.items() for block in _preset(name, runs)),
        "## Side by side",
        table([_beside(name, runs) for name, runs in presets.items()]),
        "A token of a larger vocabulary is more text and harder to guess, so shares of accepted "
        "drafts compare within a vocabulary alone; between vocabularies the bytes of a pass do.",
        "## How it was made",
        "\n".join(_method(document["runs"])),
    ]
    return "\n\n".join(blocks) + "\n"


def sentences(document: Mapping[str, Any]) -> Iterator[str]:
    """What was aimed at and whether it is reached, as plain lines."""
    for name, runs in _by_preset(document).items():
        yield name
        for reached, sentence in _verdicts(name, runs):
            yield f"  [{_MARKS[reached][1]}] {sentence}"


def _by_preset(document: Mapping[str, Any]) -> dict[str, list[Row]]:
    return {name: list(runs) for name, runs in groupby(document["runs"], lambda r: r["preset"])}


def _preset(name: str, runs: Sequence[Row]) -> Iterator[str]:
    yield f"## `{name}`"
    lines = []
    for reached, sentence in _verdicts(name, runs):
        kind, mark = _MARKS[reached]
        lines.append(f'- <span class="status {kind}">{mark}</span> {sentence}')
    yield "\n".join(lines)
    yield table([_line(run) for run in runs])


def _verdicts(name: str, runs: Sequence[Row]) -> Iterator[tuple[bool, str]]:
    """Whether each aim is reached, and the sentence that says so."""
    count = "one seed" if len(runs) == 1 else f"mean of {len(runs)} seeds"
    if name in GOALS:
        kinds = ((ALL, "of all drafts"), (FRESH, f"where no {GRAM}-gram repeats"))
        for (columns, of), goal in zip(kinds, GOALS[name], strict=True):
            found = share(runs, columns)
            yield (
                found.mean >= goal,
                f"Accepted {of}: {found.show()} ({count}); aimed at {goal:.0%}.",
            )
    cpu = max(map(_cpu_seconds, runs))
    yield (
        cpu <= CPU_LIMIT,
        f"Processor time of a checkpoint, teaching included: {cpu:,.0f} s at most; aimed at "
        f"{CPU_LIMIT:,.0f} s.",
    )
    bits = max(run["bits_per_byte"] for run in runs)
    yield (
        bits <= BITS_LIMIT,
        f"Held-out text: {bits:.3f} bits per byte at most; the quickstart's limit is {BITS_LIMIT}.",
    )


def _cpu_seconds(run: Row) -> float:
    parts = (run[f"{part}cpu_seconds"] for part in ("", "settle_", "distill_"))
    return float(sum(parts))


def _line(run: Row) -> dict[str, str]:
    """A run's row."""
    every, fresh = share([run], ALL), share([run], FRESH)
    return {
        "seed": str(run["seed"]),
        "bits per byte": f"{run['bits_per_byte']:.3f}",
        "FFN experts": ", ".join(f"{mean:.2f}" for mean in run["ffn_experts_mean"]),
        "CPU s, training": f"{run['cpu_seconds']:,.0f}",
        "settling": f"{run['settle_cpu_seconds']:,.0f}",
        "teaching": f"{run['distill_cpu_seconds']:,.0f}",
        "accepted": f"{every.mean:.1%} ± {every.over_prompts:.1%}",
        "without repeats": f"{fresh.mean:.1%} ± {fresh.over_prompts:.1%}",
        "sampled": f"{run['sampled']:.1%}",
        "by depth": ", ".join(f"{s:.0%}" for s in run["by_depth"]),
        "repeating tokens": f"{run['repeated']:.0%}",
        "tokens a pass": f"{run['tokens_per_pass']:.2f}",
        "bytes a pass": f"{run['bytes_per_pass']:.2f}",
    }


def _beside(name: str, runs: Sequence[Row]) -> dict[str, str]:
    def mean(read: Callable[[Row], float]) -> float:
        return fmean(map(read, runs))

    return {
        "preset": f"`{name}`",
        "vocabulary": f"{runs[0]['vocabulary']:,}",
        "parameters": f"{runs[0]['parameters'] / 1e6:.2f} M",
        "of a draft head": f"{runs[0]['draft_parameters'] / 1e6:.2f} M",
        "seeds": str(len(runs)),
        "bits per byte": f"{mean(lambda run: run['bits_per_byte']):.3f}",
        "accepted": f"{share(runs, ALL).mean:.1%}",
        "without repeats": f"{share(runs, FRESH).mean:.1%}",
        "tokens a pass": f"{mean(lambda run: run['tokens_per_pass']):.2f}",
        "bytes a pass": f"{mean(lambda run: run['bytes_per_pass']):.2f}",
    }


def _method(runs: Sequence[Row]) -> Iterator[str]:
    asked, text = runs[0]["prompts"], runs[0]["text"]
    commands = "; ".join(f"`{run['command']}`" for run in runs)
    yield f"- Each run: {commands}."
    yield "- Then `longcat bench acceptance RUN...`, in float32 on one thread."
    spaced = ", ".join(map(str, CUSTOMARY[:-1])) + f" and {CUSTOMARY[-1]}"
    yield (
        f"- {asked['count']} prompts of {asked['tokens']} tokens from the held-out part of "
        f"{text}, each continued by {asked['continued_by']}. Their places are drawn at random, "
        f"clear of the {spaced} evenly spaced prompts that the training summary, "
        "`longcat evaluate` and the choice of the recipe look at."
    )
    yield (
        "- Intervals of 95 %: over prompts, as tokens of one prompt are not independent; over "
        f"seeds by Student's t. Of every {EVERY}th prompt: drafts and model sampled at temperature "
        f"1, and {DEPTH} drafts a pass by depth."
    )
    machines = [run["machine"] | {"date": run["date"]} for run in runs]
    for machine in {str(machine): machine for machine in machines}.values():
        hardware = ", ".join(f"{key} {value}" for key, value in machine["hardware"].items())
        versions = ", ".join(f"{key} {value}" for key, value in machine["versions"].items())
        yield f"- Machine: {hardware}; {versions}; measured {machine['date']}."
