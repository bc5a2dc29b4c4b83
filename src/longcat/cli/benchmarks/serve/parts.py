"""The parts of `longcat bench serve`: each can be measured alone, and fills tables of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import Row
from longcat.cli.benchmarks.serve import batching, decode, drafts, precision, prefill, shapes

Tables = dict[str, list[Row]]
TABLES = {
    "prefill": ("peak", "prefill"),
    "decode": ("bandwidth", "decode"),
    "ragged": ("ragged",),
    "prefix": ("prefix",),
    "drafts": ("drafts",),
    "quality": ("quality",),
}


def measure(part: str, rounds: int, *, compare: bool) -> Iterator[Tables]:
    """The tables of one part, again and again as they grow."""
    run: Callable[[int, bool], Iterator[Tables]] = {
        "prefill": _prefill,
        "decode": _decode,
        "ragged": _ragged,
        "prefix": _prefix,
        "drafts": _drafts,
        "quality": _quality,
    }[part]
    tables: Tables = {name: [] for name in TABLES[part]}
    for found in run(rounds, compare):
        for name, rows in found.items():
            tables[name] = tables[name] + rows
        yield dict(tables)


def merged(before: dict[str, Any], header: dict[str, Any], part: str, rows: Tables) -> Tables:
    """The tables of a document with those of one part in place of the old ones.

    Only what the same machine and the same versions have measured stands in one document.
    """
    alike = all(before.get(name) == header[name] for name in ("hardware", "versions"))
    kept: Tables = {}
    for other, names in TABLES.items():
        for name in names:
            if other == part:
                kept[name] = rows[name]
            elif alike and before.get(name):
                kept[name] = before[name]
    return kept


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


def chosen(only: Sequence[str]) -> list[str]:
    """The parts to measure, in their order; all when none is named.

    Raises ValueError for a name that is none.
    """
    unknown = [name for name in only if name not in TABLES]
    if unknown:
        raise ValueError(
            f"bench serve: --only {unknown[0]} is no part; there are {', '.join(TABLES)}"
        )
    return [name for name in TABLES if not only or name in only]


def _prefill(rounds: int, compare: bool) -> Iterator[Tables]:
    for name, config in shapes.shapes().items():
        for dtype in shapes.PRECISIONS:
            yield prefill.measure(name, config, dtype, rounds, compare=compare)


def _decode(rounds: int, compare: bool) -> Iterator[Tables]:
    for name, config in shapes.shapes().items():
        for dtype in shapes.PRECISIONS:
            yield decode.measure(name, config, dtype, rounds, compare=compare)


def _ragged(rounds: int, compare: bool) -> Iterator[Tables]:
    for name, config in shapes.shapes().items():
        yield {"ragged": batching.measure_ragged(name, config, rounds, compare=compare)}


def _prefix(rounds: int, compare: bool) -> Iterator[Tables]:
    for name, config in shapes.shapes().items():
        yield {"prefix": batching.measure_prefix(name, config, rounds)}


def _drafts(rounds: int, compare: bool) -> Iterator[Tables]:
    nano = drafts.nano_case()
    if nano is not None:
        yield {"drafts": drafts.measure(nano, rounds)}
    *_, largest = shapes.shapes().items()
    yield {"drafts": drafts.measure(drafts.replayed_case(*largest), rounds)}


def _quality(rounds: int, compare: bool) -> Iterator[Tables]:
    yield {"quality": precision.measure()}
