"""The parts of `longcat bench serve`: each can be measured alone, and fills tables of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import Row
from longcat.cli.benchmarks.serve import batching, decode, drafts, precision, prefill, shapes
from longcat.flash import FlashConfig

BYTES = "nano-bytes"  # the preset of a small vocabulary
Tables = dict[str, list[Row]]
TABLES = {
    "prefill": ("peak", "prefill"),
    "decode": ("bandwidth", "decode"),
    "ragged": ("ragged",),
    "prefix": ("prefix",),
    "drafts": ("drafts",),
    "quality": ("quality",),
}


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How a part is measured: turns of each form, beside transformers or alone, and which rows.

    rows  words that must all be in a row's model and precision, such as "bench float32"
    """

    rounds: int
    compare: bool
    rows: str = ""

    def wants(self, model: str, precision: str = "float32") -> bool:
        """Whether rows of this model and precision are to be measured."""
        named = f"{model} {precision}".replace(",", "").split()
        return all(word in named for word in self.rows.split())


def measure(part: str, measuring: Measuring) -> Iterator[Tables]:
    """The tables of one part, again and again as they grow."""
    run: Callable[[Measuring], Iterator[Tables]] = {
        "prefill": _prefill,
        "decode": _decode,
        "ragged": _ragged,
        "prefix": _prefix,
        "drafts": _drafts,
        "quality": _quality,
    }[part]
    tables: Tables = {name: [] for name in TABLES[part]}
    for found in run(measuring):
        for name, rows in found.items():
            tables[name] = tables[name] + rows
        yield dict(tables)


def merged(before: dict[str, Any], header: dict[str, Any], part: str, rows: Tables) -> Tables:
    """The tables of a document with those of one part in place of the old ones.

    Of that part, models and precisions that were not measured anew keep their rows. Only what the
    same machine and the same versions have measured stands in one document.
    """
    alike = all(before.get(name) == header[name] for name in ("hardware", "versions"))
    kept: Tables = {}
    for other, names in TABLES.items():
        for name in names:
            old: list[Row] = before.get(name, []) if alike else []
            if other == part:
                kept[name] = _renewed(old, rows[name])
            elif old:
                kept[name] = old
    return kept


def _renewed(old: list[Row], new: list[Row]) -> list[Row]:
    """New rows in the places of the old ones of the same model and precision."""

    def case(row: Row) -> tuple[object, object]:
        return row.get("model"), row.get("precision")

    anew = {case(row) for row in new}
    renewed: list[Row] = []
    for row in old:
        if case(row) not in anew:
            renewed.append(row)
        elif not any(case(row) == case(other) for other in renewed):
            renewed += [other for other in new if case(other) == case(row)]
    return renewed + [row for row in new if row not in renewed]


class Stopwatch:
    """Says when something was measured, how often, how long and under what load."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        self._load = timing.load()
        self._cpu = time.process_time()

    def said(self) -> str:
        """In words."""
        return (
            f"{timing.today()}; {self._rounds} rounds; {time.process_time() - self._cpu:.0f} s of "
            f"processor time; load {self._load:g} before and {timing.load():g} after"
        )


def chosen(only: Sequence[str], rows: str = "") -> list[str]:
    """The parts to measure, in their order: all when none is named, but those without such rows.

    Raises ValueError for a name that is none, and for rows that there are not.
    """
    unknown = [name for name in only if name not in TABLES]
    if unknown:
        raise ValueError(
            f"bench serve: --only {unknown[0]} is no part; there are {', '.join(TABLES)}"
        )
    named = [name for name in TABLES if not only or name in only]
    measuring = Measuring(rounds=0, compare=False, rows=rows)
    wanted = [part for part in named if any(measuring.wants(*case) for case in _cases(part))]
    if not wanted:
        raise ValueError(
            f"bench serve: --rows {rows!r} fits no row of {', '.join(named)}; name a model "
            f"(nano, {', '.join(shapes.shapes())}), a precision ({', '.join(shapes.SERVED)}), "
            "or both"
        )
    return wanted


def _cases(part: str) -> list[tuple[str, str]]:
    """The models and precisions of a part's rows."""
    models = list(shapes.shapes())
    if part == "prefill":
        return [(model, dtype) for model in models for dtype in shapes.PRECISIONS]
    if part == "decode":
        return [(model, precision) for model in models for precision in shapes.SERVED]
    if part == "drafts":
        return [(model, "bfloat16") for model in ("nano", BYTES, models[-1])]
    if part == "quality":
        return [("nano", precision) for precision in shapes.SERVED]
    return [(model, "float32") for model in models]


def _wanted(part: str, measuring: Measuring) -> Iterator[tuple[str, FlashConfig, str]]:
    """(model, its sizes, precision) of a part's rows that are to be measured."""
    configs = {BYTES: FlashConfig.preset(BYTES), "nano": FlashConfig.preset("nano")}
    configs |= shapes.shapes()
    for name, kept_in in _cases(part):
        if measuring.wants(name, kept_in):
            yield name, configs[name], kept_in


def _prefill(measuring: Measuring) -> Iterator[Tables]:
    for case in _wanted("prefill", measuring):
        yield prefill.measure(*case, measuring.rounds, compare=measuring.compare)


def _decode(measuring: Measuring) -> Iterator[Tables]:
    for case in _wanted("decode", measuring):
        yield decode.measure(*case, measuring.rounds, compare=measuring.compare)


def _ragged(measuring: Measuring) -> Iterator[Tables]:
    for name, config, _ in _wanted("ragged", measuring):
        rows = batching.measure_ragged(name, config, measuring.rounds, compare=measuring.compare)
        yield {"ragged": rows}


def _prefix(measuring: Measuring) -> Iterator[Tables]:
    for name, config, _ in _wanted("prefix", measuring):
        yield {"prefix": batching.measure_prefix(name, config, measuring.rounds)}


def _drafts(measuring: Measuring) -> Iterator[Tables]:
    for name, config, _ in _wanted("drafts", measuring):
        case = drafts.nano_case() if name == "nano" else drafts.replayed_case(name, config)
        if case is not None:
            yield {"drafts": drafts.measure(case, measuring.rounds)}


def _quality(measuring: Measuring) -> Iterator[Tables]:
    yield {"quality": precision.measure()}
