"""`longcat train --search-lr N`: a short run per learning rate, a table, what to do next."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from longcat.cli.models import RUNS
from longcat.cli.training import chosen_settings

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from rich.table import Table

    from longcat.flash import FlashConfig
    from longcat.train import LearningRateSearch
    from longcat.train.preflight import Row

_INTERRUPTED = 130


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A search to run, and the card of a new one."""

    search: "LearningRateSearch"
    card: "list[Row] | None" = None
    config: "FlashConfig | None" = None


def ask_search(
    out: Path | None,
    wanted: dict[str, Any],
    count: int | None,
    transfer_from: Path | None,
    *,
    processes: int | None,
    device: "torch.device",
    say: Callable[[str], None],
) -> Asked:
    """The search that the options mean: a new one, or without `count` the one in `out`.

    Raises:
        RunError, ValueError: as `open_search`, or options that the search in `out` has fixed.
    """
    from longcat.train import RunError, learning_rates, open_search, read_search
    from longcat.train import transferred_settings as transferred
    from longcat.train.directory import free_directory
    from longcat.train.preflight import Row

    if count is None:
        if wanted:
            given = ", ".join(f"--{name.replace('_', '-')}" for name in wanted)
            raise RunError(f"resume: a search goes on as it was begun; leave out {given}")
        assert out is not None
        return Asked(search=read_search(out))
    settings = (
        chosen_settings(wanted, quickstart=False)
        if transfer_from is None
        else transferred(transfer_from, wanted)
    )
    place = out or free_directory(RUNS / f"{settings.preset}-lr")
    rates = learning_rates(settings.lr, count)
    search, session = open_search(
        place, settings, rates, processes=processes, device=device, say=say
    )
    row = Row(
        label="learning rates",
        value=", ".join(f"{rate:.1e}" for rate in rates),
        why=f"{count} runs like this one, one after another; the last quarter of each is compared",
    )
    run, *rest = session.card
    rows = [replace(run, value=str(place)), row, *rest]
    return Asked(search=search, card=rows, config=session.prepared.config)


def run_search(
    asked: Asked,
    console: "Console",
    *,
    processes: int | None,
    device: "torch.device",
    say: Callable[[str], None],
) -> int:
    """Train what is not trained yet; returns the exit code."""
    from longcat.cli.ui.panel import Watcher, show_card
    from longcat.train import RunError, train_run
    from longcat.train.errors import has_diverged

    search = asked.search
    if asked.card is not None and asked.config is not None:
        show_card(console, asked.card, asked.config)
    for number, trial in enumerate(search.trials, 1):
        if trial.state != "planned":
            continue
        console.print(
            f"learning rate {trial.lr:.2e}, {number} of {len(search.trials)}", style="title"
        )
        session = search.session(trial, processes=processes, device=device, say=say)
        diverged = False
        try:
            with Watcher(console, session) as watcher:
                _, interrupted = train_run(session, watcher)
        except RunError as error:
            if not has_diverged(error):
                raise
            console.print(f"  diverged at learning rate {trial.lr:.2e}", style="bad")
            diverged, interrupted = True, False
        if interrupted:
            return _interrupted(search, console)
        search = search.noted(trial, diverged=diverged)
    _conclude(search, console)
    typer.echo(json.dumps({"directory": str(search.path), **search.document()}))
    return 0


def _interrupted(search: "LearningRateSearch", console: "Console") -> int:
    command = f"longcat train --resume --out {search.path}"
    console.print("interrupted: what is done is saved; go on by", soft_wrap=True)
    console.print(f"  {command}", style="title", soft_wrap=True)
    typer.echo(json.dumps({"directory": str(search.path), "finished": False, "resume": command}))
    return _INTERRUPTED


def _conclude(search: "LearningRateSearch", console: "Console") -> None:
    console.print()
    console.print(_table(search))
    best = search.best
    if best is None:
        console.print("  every learning rate diverged; search again with a lower --lr", style="bad")
        return
    if search.at_edge:
        edge = "lowest" if best == search.trials[0] else "highest"
        console.print(
            f"  the {edge} rate did best, so the optimum may lie beyond it: search again with "
            f"--lr {best.lr:.2e}",
            style="bad",
            soft_wrap=True,
        )
    console.print("  use it at another width", style="note")
    console.print(
        f"    longcat train --transfer-from {search.path} --width WIDTH --steps STEPS",
        soft_wrap=True,
        markup=False,
    )
    console.print(f"  plot: {search.path}/lr_search.svg", soft_wrap=True)


def _table(search: "LearningRateSearch") -> "Table":
    from rich.table import Table

    best = search.best
    table = Table(
        title="loss by learning rate, last quarter of the steps", title_justify="left", box=None
    )
    for name in ("learning rate", "loss", "behind the best", "bits per byte"):
        table.add_column(name, justify="right")
    table.add_column("run")
    for trial in search.trials:
        if trial.loss is None or best is None or best.loss is None:
            table.add_row(f"{trial.lr:.2e}", trial.state, "", "", trial.run)
            continue
        behind = "best" if trial == best else f"+{trial.loss - best.loss:.3f}"
        style = "good" if trial == best else ""
        table.add_row(
            f"{trial.lr:.2e}",
            f"{trial.loss:.3f}",
            behind,
            f"{trial.bits_per_byte:.3f}",
            trial.run,
            style=style,
        )
    return table
