"""`longcat bench acceptance`: measure the draft heads of finished runs, and write the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="Finished runs with a taught draft head."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Fresh held-out prompts.")] = 256,
    results: Annotated[
        Path, typer.Option(file_okay=False, help="The folder for the figures' document.")
    ] = Path("bench/results"),
    out: Annotated[Path, typer.Option(file_okay=False, help="The folder for the page.")] = Path(
        "docs/results"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print the file's document.")] = False,
) -> None:
    """Measure how often drafts are accepted, on prompts that no recipe was chosen by.

    The runs given take their places in acceptance.json, by preset and seed; the others there stay.
    Without a RUN the page is written anew from the file.

    Example: longcat bench acceptance runs/nano-shipped
    """
    from longcat.cli.benchmarks.acceptance import page
    from longcat.cli.benchmarks.acceptance.runs import FILE_NAME, measure_run, merged, read
    from longcat.cli.benchmarks.document import write_text
    from longcat.cli.benchmarks.paper.bench import to_json

    file = results / FILE_NAME
    stored = read(file)
    if not runs and not stored:
        raise ValueError(
            f"bench acceptance: there is no {file}; name finished runs, such as those of "
            "`longcat train --distill-steps`"
        )
    results.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    for run in runs or []:
        measured = measure_run(run, prompts, say=lambda line: typer.echo(line, err=True))
        stored = merged(stored, measured)
        write_text(file, to_json({"command": "longcat bench acceptance RUN...", "runs": stored}))
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    write_text(out / page.PAGE_NAME, page.render(document))
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    for line in page.sentences(document):
        typer.echo(line)
    typer.echo(f"written: {file}, {out / page.PAGE_NAME}")
