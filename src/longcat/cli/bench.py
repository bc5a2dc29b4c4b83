"""`longcat bench`: speed on this machine, written down with the machine it was measured on."""

from __future__ import annotations

import json
import os
import tempfile
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Measure speed on this machine. Example: longcat bench kernels",
)


class Device(StrEnum):
    """Where to measure."""

    cpu = "cpu"
    cuda = "cuda"


@app.callback()
def bench() -> None:
    """Keeps `kernels` a command of its own while it is the only one."""


@app.command()
def kernels(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="The folder for kernels-DEVICE.json.")
    ] = Path("bench/results"),
    rounds: Annotated[int, typer.Option(min=3, help="Turns that each form gets.")] = 15,
    as_json: Annotated[bool, typer.Option("--json", help="Print the file's document.")] = False,
) -> None:
    """Compare the forms of each op, taking turns, at the shapes of nano and bench.

    Example: longcat bench kernels --rounds 5 --out bench/results
    """
    import torch

    if device is Device.cuda and not torch.cuda.is_available():
        raise ValueError(
            "bench: --device cuda needs a CUDA device, and torch sees none; use --device cpu"
        )
    out.mkdir(parents=True, exist_ok=True)  # before minutes of work, not after
    document = _measure(device.value, rounds)
    path = out / f"kernels-{device.value}.json"
    _write(path, document)
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    from longcat.cli.ui.theme import make_console

    console = make_console()
    console.print(_table(document))
    console.print(f"written: {path}")


def _measure(device: str, rounds: int) -> dict[str, Any]:
    from longcat.cli.benchmarks import timing
    from longcat.cli.benchmarks.kernels import cases

    started, cpu, load = time.perf_counter(), time.process_time(), timing.load()
    rows: list[dict[str, str | float]] = []
    with timing.pinned_threads(1):
        machine = timing.machine(device)
        for case in cases(device):
            timings = timing.interleaved(case.forms, rounds=rounds, device=device)
            naive = next(iter(timings.values()))
            for form, taken in timings.items():
                figures = {
                    "us": 1e6 * taken.median,
                    "spread_%": 100 * taken.spread,
                    "wall_us": 1e6 * taken.wall,
                    "GB/s": case.bytes / taken.median / 1e9,
                    "GFLOP/s": case.flops / taken.median / 1e9,
                    "x_naive": naive.median / taken.median,
                }
                rounded = {key: float(f"{value:.4g}") for key, value in figures.items()}
                rows.append({"op": case.op, "shape": case.shape, "form": form, **rounded})
            typer.echo(f"measured {case.op}, {case.shape}", err=True)
    clock = "processor time of one thread" if device == "cpu" else "wall time"
    return {
        "date": timing.today(),
        "command": f"longcat bench kernels --device {device} --rounds {rounds}",
        "times": f"medians of {clock}, in turns; spread: middle half over the median",
        **machine,
        "load": {"before": load, "after": timing.load()},
        "seconds": {
            "wall": round(time.perf_counter() - started, 1),
            "cpu": round(time.process_time() - cpu, 1),
        },
        "rows": rows,
    }


def _table(document: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    hardware = ", ".join(f"{key} {value}" for key, value in document["hardware"].items())
    load = "load {before} before, {after} after".format(**document["load"])
    table = Table(
        title=f"{hardware}; {load}\n{document['times']}", title_justify="left", box=box.SIMPLE
    )
    table.add_column("shape")
    for name in ("us", "spread %", "GB/s", "GFLOP/s", "x naive"):
        table.add_column(name, justify="right")
    last = ""
    for row in document["rows"]:
        case = f"{row['op']}, {row['shape']}"
        if case != last:
            table.add_row(f"[title]{case}[/title]")
            last = case
        times = (f"{row[key]:,.0f}" for key in ("us", "spread_%"))
        rates = (f"{row[key]:.1f}" for key in ("GB/s", "GFLOP/s"))
        table.add_row(f"  {row['form']}", *times, *rates, f"{row['x_naive']:.2f}")
    return table


def _write(path: Path, document: dict[str, Any]) -> None:
    """The whole file or none of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(json.dumps(document, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
