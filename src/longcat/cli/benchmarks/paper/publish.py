"""From figures to files: documents under bench/results, pages under docs/results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from longcat.cli.benchmarks.document import write_text
from longcat.cli.benchmarks.paper import bench, page
from longcat.cli.benchmarks.paper.figure import SCALES, Figure, figures
from longcat.cli.benchmarks.paper.results import Results
from longcat.cli.benchmarks.paper.text import load_text

INDEX = "paper.md"  # beside the folder of pages' own names, which all begin with figure-


def chosen(numbers: Sequence[int]) -> list[Figure]:
    """The figures of these numbers, all of them for none.

    Raises:
        ValueError: naming the numbers there are.
    """
    known = figures()
    unknown = sorted(set(numbers) - set(known))
    if unknown:
        raise ValueError(
            f"bench paper: expected --figure among {sorted(known)}, got {unknown}; see "
            "docs/results for what each is"
        )
    return [known[number] for number in dict.fromkeys(numbers or sorted(known))]


def measure(
    wanted: Sequence[Figure],
    *,
    scale: str,
    seeds: int,
    results: Path,
    work: Path,
    minutes: float | None,
    say: Callable[[str], None],
    show: Callable[[str], None] = lambda line: None,
) -> bool:
    """Make the runs that are missing and write each figure's document; False when time ran out."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    sizes = SCALES[scale]
    results.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    text = load_text(work, vocab_size=sizes.vocab_size, held_out_bytes=sizes.held_out_bytes)
    for figure in wanted:
        runs = bench.Bench(
            figure, sizes, seeds, text=text, work=work, say=say, show=show, deadline=deadline
        )
        try:
            document = runs.run()
        except bench.OutOfTime:
            say(
                f"figure {figure.number}: stopped after --minutes {minutes:g}; what was done is "
                "stored, and the same command goes on from it"
            )
            return False
        write_text(results / page.file_name(figure), bench.to_json(document))
    return True


def write_pages(results: Path, out: Path) -> list[Path]:
    """Every page that the documents in `results` give, and the page that lists them."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in pages(results).items():
        write_text(out / name, text)
        written.append(out / name)
    return written


def pages(results: Path) -> dict[str, str]:
    """File name -> Markdown, from the documents alone."""
    there = {
        figure.number: (figure, read(results / page.file_name(figure)))
        for figure in figures().values()
        if (results / page.file_name(figure)).exists()
    }
    made = {page.page_name(f): page.render(f, document) for f, document in there.values()}
    return {**made, INDEX: page.index(there)}


def read(path: Path) -> dict[str, Any]:
    """A figure's document.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"bench paper: {path} is damaged ({error}); restore or remove it"
        ) from error
    return document


def statements(wanted: Sequence[Figure], results: Path) -> list[Mapping[str, Any]]:
    """What each figure's data say, for `--json`."""
    found: list[Mapping[str, Any]] = []
    for figure in wanted:
        path = results / page.file_name(figure)
        if path.exists():
            verdicts = figure.verdicts(Results(read(path)))
            said = [{"seen": v.seen, "text": v.text} for v in verdicts]
            found.append({"figure": figure.number, "title": figure.title, "statements": said})
    return found
