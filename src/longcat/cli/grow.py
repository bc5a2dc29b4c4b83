"""`longcat grow`: a deeper model from a trained one."""

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="A run, or any checkpoint directory.")],
    out: Annotated[Path, typer.Option(help="The directory to write.")],
    times: Annotated[int, typer.Option(help="How often the stack is repeated.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Grow a model by stacking its layers.

    A run keeps its step, schedule, optimizer and controller, and goes on by longcat train --resume.

    Example: longcat grow runs/nano --out runs/nano-grown
    """
    from longcat.flash import count_parameters
    from longcat.flash.card import human
    from longcat.train.directory import RunDirectory
    from longcat.train.growth import grow_run

    config = grow_run(run, out, times)
    parameters = count_parameters(config).total_parameters
    goes_on = bool(RunDirectory(out).snapshots())
    if as_json:
        document = {
            "out": str(out),
            "num_layers": config.num_layers,
            "total_parameters": parameters,
            "resumable": goes_on,
        }
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(
        f"wrote {out}: {config.num_layers // times} layers became {config.num_layers}, "
        f"{human(parameters)} parameters"
    )
    if goes_on:
        typer.echo(f"go on by: longcat train --resume --out {out} --steps N")
