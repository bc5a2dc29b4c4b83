"""`longcat demo`: walkthroughs that run one mechanism live and check its claim.

Each exits with 1 when its claim fails, so `longcat demo all --no-pause` is a test.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from longcat.cli.ui import page
from longcat.cli.ui.keys import Stopped
from longcat.cli.ui.record import svg, write
from longcat.cli.ui.theme import make_console

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Watch one mechanism work, and check its claim. Example: longcat demo router",
)

_Seed = Annotated[int, typer.Option(help="Decides everything random in the run.")]
_Steps = Annotated[
    int | None, typer.Option(min=1, help="Steps of the run, where the demo has steps.")
]
_Pause = Annotated[bool, typer.Option("--pause/--no-pause", help="Wait for your prediction.")]
_Speed = Annotated[float, typer.Option(min=0.01, help="2 plays twice as fast.")]
_Record = Annotated[
    Path | None, typer.Option(dir_okay=False, help="Also write the page as an SVG file.")
]
_Ascii = Annotated[bool, typer.Option("--ascii", help="Draw with ASCII characters only.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and no page.")]


def _router(seed: int, steps: int | None) -> page.Walkthrough:
    from longcat.cli.demos.router import STEPS, RouterDemo

    return RouterDemo(seed=seed, steps=steps or STEPS)


def _optimisation(seed: int, steps: int | None) -> page.Walkthrough:
    from longcat.cli.demos.optimisation import STEPS, OptimisationDemo

    return OptimisationDemo(seed=seed, steps=steps or STEPS)


def _growth(seed: int, steps: int | None) -> page.Walkthrough:
    from longcat.cli.demos.growth import STEPS, GrowthDemo

    return GrowthDemo(seed=seed, steps=steps or STEPS)


def _speculative(seed: int, steps: int | None) -> page.Walkthrough:
    from longcat.cli.demos.speculative import TOKENS, SpeculativeDemo

    return SpeculativeDemo(seed=seed, steps=steps or TOKENS)


def _corruption(seed: int, steps: int | None) -> page.Walkthrough:
    from longcat.cli.demos.corruption import STEPS, CorruptionDemo

    return CorruptionDemo(seed=seed, steps=steps or STEPS)


def _disaggregation(seed: int, steps: int | None) -> page.Walkthrough:
    from longcat.cli.demos.disaggregation import TOKENS, DisaggregationDemo

    return DisaggregationDemo(seed=seed, tokens=steps or TOKENS)


def _kernels(seed: int, steps: int | None) -> page.Walkthrough:
    from longcat.cli.demos.kernels import TOKENS, KernelsDemo

    return KernelsDemo(seed=seed, tokens=steps or TOKENS)


DEMOS: dict[str, Callable[[int, int | None], page.Walkthrough]] = {
    "router": _router,
    "optimisation": _optimisation,
    "growth": _growth,
    "kernels": _kernels,
    "speculative": _speculative,
    "corruption": _corruption,
    "disaggregation": _disaggregation,
}


def _command(name: str, words: str, example: str = "--no-pause") -> None:
    """Make `longcat demo NAME`; all demos whose run has steps take the same options."""

    def play(
        seed: _Seed = 0,
        steps: _Steps = None,
        pause: _Pause = True,
        speed: _Speed = 1.0,
        record: _Record = None,
        ascii_only: _Ascii = False,
        as_json: _Json = False,
    ) -> None:
        _play(name, seed, steps, pause, speed, record, ascii_only, as_json)

    app.command(name, help=f"{words}\n\nExample: longcat demo {name} {example}")(play)


_command(
    "router",
    "The bias controller holds K_e FFN experts per token, live, beside three laws that do not.",
    "--no-pause --record router.svg",
)
_command(
    "optimisation",
    "Adam's epsilon, the hidden z-loss and R_g, each beside the setting that goes wrong.",
)
_command(
    "growth",
    "A model grown by stacking, and a learning rate carried to another width.",
)
_command(
    "speculative",
    "Drafts of the MTP head accepted, refused and replaced; rules of acceptance right and wrong.",
)
_command(
    "corruption",
    "Faults put into a run, a flipped bit or a stale expert: who notices, and what then.",
)


@app.command()
def disaggregation(
    seed: _Seed = 0,
    steps: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Tokens of the prompt.")
    ] = None,
    pause: _Pause = True,
    speed: _Speed = 1.0,
    record: _Record = None,
    ascii_only: _Ascii = False,
    as_json: _Json = False,
) -> None:
    """A prompt's latents cross to another process layer by layer, which is then killed.

    Example: longcat demo disaggregation --no-pause
    """
    _play("disaggregation", seed, steps, pause, speed, record, ascii_only, as_json)


@app.command()
def kernels(
    seed: _Seed = 0,
    steps: Annotated[
        int | None, typer.Option("--tokens", min=1, help="Tokens that choose.")
    ] = None,
    pause: _Pause = True,
    speed: _Speed = 1.0,
    record: _Record = None,
    ascii_only: _Ascii = False,
    as_json: _Json = False,
) -> None:
    """A decoding step's experts as tiles of the tensor core, and how much of them is padding.

    Example: longcat demo kernels --no-pause
    """
    _play("kernels", seed, steps, pause, speed, record, ascii_only, as_json)


@app.command("all")
def every(
    seed: _Seed = 0,
    pause: _Pause = True,
    speed: _Speed = 1.0,
    ascii_only: _Ascii = False,
    as_json: _Json = False,
) -> None:
    """All walkthroughs, one after another; exits with 1 when a claim fails.

    Example: longcat demo all --no-pause
    """
    results = [_show(name, seed, None, pause, speed, None, ascii_only, as_json) for name in DEMOS]
    holds = all(result["holds"] for result in results)
    if as_json:
        typer.echo(json.dumps({"holds": holds, "demos": results}, indent=2))
    raise typer.Exit(0 if holds else 1)


def _play(
    name: str,
    seed: int,
    steps: int | None,
    pause: bool,
    speed: float,
    record: Path | None,
    ascii_only: bool,
    as_json: bool,
) -> None:
    """One demo as a command: its page or its JSON, and the verdict as exit code."""
    if record is not None and not record.absolute().parent.is_dir():
        raise typer.BadParameter(f"--record: there is no folder {record.parent} to write to")
    result = _show(name, seed, steps, pause, speed, record, ascii_only, as_json)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    raise typer.Exit(0 if result["holds"] else 1)


def _show(
    name: str,
    seed: int,
    steps: int | None,
    pause: bool,
    speed: float,
    recording: Path | None,
    ascii_only: bool,
    as_json: bool,
) -> dict[str, object]:
    """Run one demo, on the page or in silence; returns its summary with `holds`."""
    walk = DEMOS[name](seed, steps)
    console = make_console(ascii_only=ascii_only, file=io.StringIO() if as_json else None)
    try:
        outcome = page.play(walk, console, pause=pause, speed=speed)
    except Stopped:
        console.print("\n  stopped", style="dim")
        raise typer.Exit(0) from None
    except KeyboardInterrupt:
        console.print("\n  stopped", style="dim")
        raise typer.Exit(130) from None
    page.finish(walk, console, outcome)
    if recording is not None:
        tape = make_console(ascii_only=ascii_only, file=io.StringIO(), width=100, record=True)
        page.replay(walk, tape, outcome)
        write(recording, svg(tape, f"longcat demo {name}"))
        console.print(f"  recorded to {recording}", style="dim")
    verdicts = walk.verdicts()
    return {
        "demo": name,
        "holds": all(verdict.holds for verdict in verdicts),
        **walk.summary(),
        "verdicts": [vars(verdict) for verdict in verdicts],
    }
