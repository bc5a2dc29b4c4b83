"""The `longcat` command: a table of commands, each imported only when it is used.

Notable:
- `longcat --help` reads the table below and imports no command, so it does not wait for torch;
- a command lives in the module of its name, as a function `command` or a typer `app`;
- what goes wrong comes out as one sentence on standard error and an exit code (`errors.py`).
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from longcat.cli import errors

# name -> one line for `longcat --help`.
COMMANDS: dict[str, str] = {
    "info": "Show a model's sizes: parameters, activated per token, cache.",
    "train": "Train a small LongCat-Flash: a card first, then the run, then a report.",
    "generate": "Continue a prompt, drafting with the MTP head.",
    "chat": "Talk with a model in the terminal, here or behind a server.",
    "serve": "Serve a checkpoint behind the OpenAI API: completions, chat, tools, streams.",
    "evaluate": "Score a checkpoint: bits per byte, FFN experts by kind, drafts, questions.",
    "grow": "Grow a model by stacking its layers.",
    "export": "Write a checkpoint in another format.",
    "demo": "Watch one mechanism work, and check its claim.",
    "tutorial": "Read a tutorial here, its code executed as you go.",
    "bench": "Measure speed on this machine, and repeat the report's figures in small.",
}


class LazyGroup(TyperGroup):
    """Lists the commands from stand-ins, and imports the real one when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that args name, imported now, and the arguments left for it."""
        name, _, rest = super().resolve_command(ctx, args)
        if not {"-h", "--help"}.intersection(rest):
            # torch would import numpy from C, where a Ctrl-C is swallowed and leaves half of it.
            import_module("numpy")
        return name, None if name is None else load(name), rest


def load(name: str) -> Any:
    """Import the command of that name and build it."""
    module = import_module(f"longcat.cli.{name}")
    target = getattr(module, "app", None) or module.command
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command(name)(target)
        target = single
    command = get_command(target)
    command.name = name
    _flow(command)
    return command


def _flow(command: Any) -> None:
    """Let the lines of help run to the terminal's width; they are broken where the source's are."""
    if command.help:
        paragraphs = command.help.split("\n\n")
        command.help = "\n\n".join(" ".join(lines.split()) for lines in paragraphs)
    for inner in getattr(command, "commands", {}).values():
        _flow(inner)


app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: longcat info longcat-flash",
)


def _stand_in(name: str, summary: str) -> None:
    def never_called() -> None:
        raise AssertionError(f"{name} is a stand-in; LazyGroup imports the command itself")

    register: Callable[[Callable[[], None]], object] = app.command(name, help=summary)
    register(never_called)


for _name, _summary in COMMANDS.items():
    _stand_in(_name, _summary)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"longcat-flash {version('longcat-flash')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and stop."
        ),
    ] = False,
) -> None:
    """LongCat-Flash, small enough to read and real enough to run."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 ok, 1 failed, 2 bad usage, 130 interrupted."""
    errors.install_warnings()
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        # Generated text may hold characters that the terminal's encoding lacks, and what is piped
        # in bytes that are none.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        get_command(app)(args=argv, prog_name="longcat")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if errors.debugging():
            raise
        return errors.report(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
