"""What every `longcat bench` command writes and shows: its rows, and the machine beside them."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from longcat.cli.benchmarks import timing

Row = dict[str, str | float]


class Clock:
    """Started before measuring; says afterwards when, how long and under what load."""

    def __init__(self) -> None:
        self.load, self.clocks = timing.load(), timing.clocks()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def document(self, command: str, times: str, **rest: Any) -> dict[str, Any]:
        """The file's document: the command, what its times are, then `rest` with load and time."""
        tables = {name: value for name, value in rest.items() if isinstance(value, list)}
        return {
            "date": timing.today(),
            "command": command,
            "times": times,
            **{name: value for name, value in rest.items() if name not in tables},
            "load": {"before": self.load, "after": timing.load()},
            "clocks": {
                f"{name} {when}": rate
                for when, rates in (("before", self.clocks), ("after", timing.clocks()))
                for name, rate in rates.items()
            },
            "seconds": {
                "wall": round(time.perf_counter() - self.wall, 1),
                "cpu": round(time.process_time() - self.cpu, 1),
            },
            **tables,
        }


def rounded(figures: Mapping[str, float]) -> Row:
    """Four significant digits: more would be noise."""
    return {key: float(f"{value:.4g}") for key, value in figures.items()}


Columns = dict[str, tuple[str, str]]  # key of a row -> (heading, number format)


def publish(path: Path, document: dict[str, Any], case: str, columns: Columns) -> None:
    """Write the file, and show its rows as a table.

    Args:
        case: how rows are grouped, a format of their keys.
        columns: what to show of a row, where the rows have it.
    """
    write(path, document)
    from longcat.cli.ui.theme import make_console

    console = make_console()
    console.print(_table(document, case, columns), crop=False)  # narrow: lines wrap, none is cut
    console.print(f"written: {path}")


def publish_json(path: Path, document: dict[str, Any]) -> None:
    """Write the file, and print the same document."""
    write(path, document)
    typer.echo(json.dumps(document, indent=2))


def _table(document: dict[str, Any], case: str, columns: Columns) -> Any:
    from rich import box
    from rich.table import Table

    hardware = ", ".join(f"{key} {value}" for key, value in document["hardware"].items())
    load = "load {before} before, {after} after".format(**document["load"])
    table = Table(
        title=f"{hardware}; {load}\n{document['times']}", title_justify="left", box=box.SIMPLE
    )
    shown = [key for key in columns if key in document["rows"][0]]
    # A heading may wrap in its narrow column; the numbers beside it may not be cut.
    table.add_column("shape", min_width=2 + max(len(row["form"]) for row in document["rows"]))
    for key in shown:
        table.add_column(columns[key][0], justify="right", no_wrap=True)
    last = ""
    for row in document["rows"]:
        heading = case.format(**row)
        if heading != last:
            table.add_row(f"[title]{heading}[/title]")
            last = heading
        table.add_row(f"  {row['form']}", *(columns[key][1].format(row[key]) for key in shown))
    return table


def write(path: Path, document: dict[str, Any]) -> None:
    """The whole file or none of it."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """The whole file or none of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
