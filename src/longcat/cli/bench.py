"""`longcat bench`: speed, and the report's figures in small, with the machine that made them."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from longcat.cli.benchmarks.acceptance.command import command as acceptance
from longcat.cli.benchmarks.serve.command import command as serve

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Measure speed on this machine, and repeat the report's figures in small. "
    "Example: longcat bench kernels",
)

Out = Annotated[Path, typer.Option(file_okay=False, help="The folder for the results' file.")]
Rounds = Annotated[int, typer.Option(min=3, help="Turns that each form gets.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the file's document.")]
RESULTS = Path("bench/results")


class Device(StrEnum):
    """Where to measure."""

    cpu = "cpu"
    cuda = "cuda"


class Size(StrEnum):
    """How large the trainings of `bench paper` are."""

    quick = "quick"
    full = "full"


@app.command()
def kernels(
    device: Annotated[Device, typer.Option(help="Where to measure.")] = Device.cpu,
    decoding: Annotated[bool, typer.Option("--decoding", help="The kernels of decoding.")] = False,
    training: Annotated[bool, typer.Option("--training", help="The kernels of training.")] = False,
    out: Out = RESULTS,
    rounds: Rounds = 15,
    as_json: AsJson = False,
) -> None:
    """Compare each op with plain torch, in turns, at the shapes of nano and bench.

    --decoding and --training time Triton's kernels at LongCat-Flash's shapes.

    On a CPU these two run interpreted, at toy sizes, and are only compared.

    Example: longcat bench kernels --rounds 5 --out bench/results
    """
    import torch

    if device is Device.cuda and not torch.cuda.is_available():
        raise ValueError(
            "bench: --device cuda needs a CUDA device, and torch sees none; use --device cpu"
        )
    out.mkdir(parents=True, exist_ok=True)  # before minutes of work, not after
    if decoding and training:
        raise ValueError("bench: --decoding and --training are two tables; ask for one of them")
    if decoding or training:
        table = "decoding" if decoding else "training"
        return _measure_graphs(table, device.value, rounds, out, as_json)
    from longcat.cli.benchmarks.kernels import table as measured

    document = measured.document(device.value, rounds, lambda line: typer.echo(line, err=True))
    path = out / f"kernels-{device.value}.json"
    _publish(path, document, "{op}, {shape}", measured.COLUMNS, as_json)


@app.command()
def train(out: Out = RESULTS, rounds: Rounds = 7, as_json: AsJson = False) -> None:
    """Compare a training step with transformers' LongcatFlashForCausalLM, taking turns, on a CPU.

    Writes train-cpu.json. Without transformers only our own steps are measured.

    Example: longcat bench train --rounds 3 --out bench/results
    """
    out.mkdir(parents=True, exist_ok=True)
    from longcat.cli.benchmarks import comparison

    document = comparison.document(rounds, lambda line: typer.echo(line, err=True))
    columns = {
        "s": ("s", "{:.3f}"),
        "tokens/s": ("tokens/s", "{:,.0f}"),
        "%_of_peak": ("% peak", "{:.0f}"),
        "peak_MB": ("MB", "{:,.0f}"),
        "x_transformers": ("x theirs", "{:.2f}"),
    }
    _publish(out / "train-cpu.json", document, "{shape}, {precision}", columns, as_json)


@app.command()
def paper(
    figure: Annotated[
        list[int] | None, typer.Option(help="A figure by number; repeat for more. Default: all.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=2, help="Trainings of each arm.")] = 3,
    scale: Annotated[Size, typer.Option(help="How large the trainings are.")] = Size.quick,
    out: Annotated[Path, typer.Option(file_okay=False, help="The folder for the pages.")] = Path(
        "docs/results"
    ),
    results: Annotated[
        Path, typer.Option(file_okay=False, help="The folder for the figures' documents.")
    ] = RESULTS,
    work: Annotated[
        Path, typer.Option(file_okay=False, help="Where finished trainings are kept.")
    ] = Path("bench/cache"),
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no training after so many minutes.")
    ] = None,
    pages: Annotated[
        bool, typer.Option("--pages", help="Train nothing; write the pages anew.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what the data say.")] = False,
) -> None:
    """Repeat the report's figures in small: train, store, plot, and say what is seen.

    Every finished training is kept at once: interrupt it, and the same command goes on. At
    --scale quick a figure takes minutes on one core.

    Example: longcat bench paper --figure 1 --minutes 4
    """
    from longcat.cli.benchmarks.paper import publish
    from longcat.cli.ui.theme import make_console

    wanted = publish.chosen(figure or [])
    if not pages:
        console = make_console(stderr=True)
        with console.status("reading the text") as status:  # on a terminal only
            publish.measure(
                wanted,
                scale=scale.value,
                seeds=seeds,
                results=results,
                work=work,
                minutes=minutes,
                say=lambda line: console.print(line, soft_wrap=True, highlight=False),
                show=status.update,
            )
    written = publish.write_pages(results, out)
    said = publish.statements(wanted, results)
    if as_json:
        import json

        typer.echo(json.dumps({"figures": said}, indent=2))
        return
    marks = {True: "seen", False: "not seen", None: "measured"}
    for one in said:
        typer.echo(f"figure {one['figure']}: {one['title']}")
        for statement in one["statements"]:
            typer.echo(f"  [{marks[statement['seen']]}] {statement['text']}")
    typer.echo(f"written: {', '.join(str(path) for path in written)}")


app.command("serve")(serve)
app.command("acceptance")(acceptance)


@app.command()
def exactness(out: Out = RESULTS, as_json: AsJson = False) -> None:
    """Compare runs that should be the same, resumed, accumulated, grown and split over processes.

    Every cell is equal bits or a measured difference; a broken promise is an error. Writes
    exactness-cpu.json.

    Example: longcat bench exactness --out bench/results
    """
    out.mkdir(parents=True, exist_ok=True)
    columns = {name: (name, "{}") for name in ("loss", "gradients", "bias", "counts")}
    _publish(out / "exactness-cpu.json", _measure_exactness(), "{against}", columns, as_json)


@app.command()
def recompute(out: Out = RESULTS, rounds: Rounds = 5, as_json: AsJson = False) -> None:
    """Measure what recomputing activations saves and costs in a training step, on a CPU.

    Writes recompute-cpu.json.

    Example: longcat bench recompute --rounds 3 --out bench/results
    """
    out.mkdir(parents=True, exist_ok=True)
    from longcat.cli.benchmarks import recompute as measured

    document = measured.document(rounds)
    columns = {
        "s": ("s", "{:.3f}"),
        "tokens/s": ("tokens/s", "{:,.0f}"),
        "peak_MB": ("MB", "{:,.0f}"),
        "x_time": ("x time", "{:.2f}"),
        "x_memory": ("x memory", "{:.2f}"),
    }
    _publish(out / "recompute-cpu.json", document, "{shape}, {precision}", columns, as_json)


@app.command()
def drill(
    trials: Annotated[int, typer.Option(min=2, help="Runs to kill.")] = 20,
    out: Out = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Kill a process of a run, again and again: do the others stop, and does the run go on?

    Exits with 1 unless every trial was whole. Writes drill-cpu.json, after each trial.

    Example: longcat bench drill --trials 4 --out bench/results
    """
    out.mkdir(parents=True, exist_ok=True)
    from longcat.cli.benchmarks import drill as made
    from longcat.cli.benchmarks.document import write

    path = out / "drill-cpu.json"
    found = made.document(
        trials, lambda line: typer.echo(line, err=True), lambda result: write(path, result)
    )
    columns = {name: (name, "{}") for name in ("killed", "seconds", "outcome")}
    _publish(path, found, "{launcher}", columns, as_json)
    raise typer.Exit(int(any(row["outcome"] != "whole" for row in found["rows"])))


def _publish(
    path: Path,
    result: dict[str, Any],
    case: str,
    columns: dict[str, tuple[str, str]],
    as_json: bool,
) -> None:
    from longcat.cli.benchmarks import document

    if as_json:
        document.publish_json(path, result)
    else:
        document.publish(path, result, case, columns)


def _measure_graphs(table: str, device: str, rounds: int, out: Path, as_json: bool) -> None:
    from longcat.cli.benchmarks import decoding, graphs, training

    cases = {"decoding": decoding.cases, "training": training.cases}[table]
    result = graphs.document(cases, table, device, rounds)
    _publish(out / f"{table}-{device}.json", result, "{op}, {shape}", graphs.COLUMNS, as_json)


def _measure_exactness() -> dict[str, Any]:
    from longcat.cli.benchmarks import exactness, timing
    from longcat.cli.benchmarks.document import Clock, Row
    from longcat.cli.benchmarks.exactness_runs import STEPS

    clock = Clock()
    rows: list[Row] = []
    with timing.pinned_threads(1):
        machine = timing.machine("cpu")
        for case in exactness.cases():
            rows.append(exactness.row_of(case))
            typer.echo(f"measured {case.name}", err=True)
    return clock.document(
        "longcat bench exactness",
        f"none; largest differences over {STEPS} float64 steps of nano, gradients' "
        "over the tensor's largest entry",
        **machine,
        rows=rows,
    )
