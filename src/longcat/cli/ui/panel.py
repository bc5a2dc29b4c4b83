"""What `longcat train` shows: the card, the live panel or plain lines, and the closing report.

Notable:
- on a terminal the panel lives at the bottom and is redrawn at most four times a second; nothing
  is drawn where output goes to a file or pipe, where one dense line per interval stands instead;
- the panel only looks: what it shows is in metrics.jsonl.
"""

import math
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from longcat.cli.ui.plot import Bars, Line
from longcat.cli.ui.shade import Shade
from longcat.flash import FlashConfig
from longcat.train.charts import smoothed
from longcat.train.metrics import Record, read_metrics
from longcat.train.peak import percent, usual
from longcat.train.preflight import Row
from longcat.train.report_words import figures, next_steps

if TYPE_CHECKING:
    from longcat.train import Session
    from longcat.train.summary import Summary

_REDRAWS_PER_SECOND = 4
_SECONDS_BETWEEN_LINES = 5.0
_WIDE = 76  # columns from which two plots stand beside each other
_TALL = 30  # lines from which plots take their full height
_TOLD_EVERY_TIME = ("corruption", "rollback", "spike")
_WARMING_UP = 5  # steps that are left out of the speed shown


def show_card(console: Console, rows: list[Row], config: FlashConfig) -> None:
    """The preflight card."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="title", no_wrap=True)
    table.add_column(overflow="fold", ratio=3)
    table.add_column(style="note", overflow="fold", ratio=3)
    for row in rows:
        table.add_row(row.label, row.value, row.why)
    console.print(Panel(table, title="before it starts", title_align="left"))


class Watcher:
    """An observer of a run, as a context manager: a live panel on a terminal, lines elsewhere."""

    def __init__(self, console: Console, session: "Session") -> None:
        self._console = console
        self._session = session
        self._target = session.prepared.config.router.target_ffn
        # A resumed run's curves begin where the run did.
        self._history: list[Record] = [
            record
            for record in read_metrics(session.directory.path)
            if record["step"] <= (session.resumed_from or 0)
        ]
        self._measured: Record = {}
        self._told: set[str] = set()
        self._saved = session.resumed_from or 0
        self._left: float | None = None
        self._progress = 0.0
        self._drawn = 0.0
        self._live: Live | None = None

    def __enter__(self) -> "Watcher":
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            if self._history:
                self._live.update(self._panel(), refresh=True)
            self._live.stop()

    def step(self, record: Record, progress: float, seconds_left: float | None) -> None:
        """Take note of a step, and show it when it is time."""
        while self._history and self._history[-1]["step"] >= record["step"]:
            self._history.pop()  # the run went back
        self._history.append(record)
        self._progress, self._left = progress, seconds_left
        if record["r_g"] is not None:
            self._measured = record
        for alarm in record["alarms"]:
            # A condition that lasts is told when it begins; all of it is in metrics.jsonl.
            if alarm["kind"] not in self._told or alarm["kind"] in _TOLD_EVERY_TIME:
                self._told.add(alarm["kind"])
                text = f"  step {record['step']}: {alarm['text']}; the run goes on"
                self._console.print(text, style="bad", soft_wrap=True, markup=False)
        now = time.monotonic()
        if self._live is not None:
            if now - self._drawn > 1 / _REDRAWS_PER_SECOND:
                self._drawn = now
                self._live.update(self._panel(), refresh=True)
            return
        # Lines stand at measured steps, so that each of them has its R_g.
        due = record["router_similarity"] is not None and now - self._drawn > _SECONDS_BETWEEN_LINES
        if due or progress >= 1 or self._drawn == 0:
            self._drawn = now
            self._console.print(Text(self._line(record)), soft_wrap=True)

    def saved(self, step: int) -> None:
        """A snapshot is complete."""
        self._saved = step

    def _line(self, record: Record) -> str:
        steps = self._session.prepared.settings.steps
        parts = [
            f"step {record['step']:>5}" + (f"/{steps}" if steps else ""),
            f"loss {record['loss']:.3f}",
            f"{record['bits_per_byte']:.3f} bits/byte",
            f"lr {record['lr']:.1e}",
            f"grad {record['grad_norm']:.2f}",
            f"FFN experts {_listed(record['ffn_experts_mean'])} (target {self._target:g})",
            f"heaviest {_listed(record['expert_load_max'])}",
            f"R_g {_listed(self._measured.get('r_g') or [], 3)}",
            f"{self._speed():,.0f} tokens/s",
            f"MFU {percent(usual(self._history[-50:]))}",
            f"{_clock(self._left)} left",
        ]
        return " | ".join(parts)

    def _speed(self) -> float:
        """Tokens per second over the last steps, the first ones left out."""
        recent = (self._history[_WARMING_UP:] or self._history)[-50:]
        seconds = sum(1 / r["tokens_per_s"] for r in recent if r["tokens_per_s"])
        return len(recent) / seconds if seconds else 0.0

    def _panel(self) -> RenderableType:
        last, history = self._history[-1], self._history
        # The frame is as wide as the whole run, so that the curves grow into it.
        tall = self._console.height >= _TALL
        length = max(len(history), round(len(history) / max(self._progress, 1e-6)))
        loss = Line(
            {"loss": _smoothed([r["loss"] for r in history])},
            height=7 if tall else 5,
            title="loss (nats per token)",
            length=length,
        )
        layers = len(last["ffn_experts_mean"])
        experts = Line(
            {
                f"layer {i + 1}": layer_curve([r["ffn_experts_mean"] for r in history], i)
                for i in range(min(layers, 4))
            },
            self._target,
            height=7 if tall else 5,
            title="FFN experts per token",
            length=length,
        )
        load = (self._measured or last).get("expert_load") or []
        bars = [
            Bars(one, target=1.0, height=4 if tall else 3, title=f"load per expert, layer {i + 1}")
            for i, one in enumerate(load[:2])
        ]
        parts: list[RenderableType] = [
            self._headline(last),
            self._bar(),
            *self._beside(loss, experts),
            *self._beside(*bars),
        ]
        place = str(self._session.directory.path)
        return Panel(Group(*parts), title=f"longcat train · {place}", title_align="left")

    def _bar(self) -> RenderableType:
        # A bar ends no line of its own accord; a grid's row does.
        row = Table.grid(expand=True)
        row.add_row(ProgressBar(total=1.0, completed=min(1.0, self._progress)))
        return row

    def _beside(self, *plots: RenderableType) -> list[RenderableType]:
        """The plots beside each other where there is room, below each other elsewhere."""
        if self._console.width < _WIDE or len(plots) < 2:
            return list(plots)
        row = Table.grid(expand=True, padding=(0, 1))
        for _ in plots:
            row.add_column(ratio=1)
        row.add_row(*plots)
        return [row]

    def _headline(self, last: Record) -> Text:
        cells: list[tuple[str, str]] = [
            ("step", f"{last['step']:,}"),
            ("loss", f"{last['loss']:.3f}"),
            ("bits/byte", f"{last['bits_per_byte']:.3f}"),
            ("grad norm", f"{last['grad_norm']:.2f}"),
            ("heaviest", _listed(last["expert_load_max"])),
            ("R_g", _listed(self._measured.get("r_g") or [], 3)),
            ("tokens/s", f"{self._speed():,.0f}"),
            ("MFU", percent(usual(self._history[-50:]))),
            ("saved", f"{self._saved:,}"),
            ("left", _clock(self._left)),
        ]
        text = Text()
        for label, value in cells:
            # No-break spaces keep a figure on the line of its name.
            text.append(f"{label}\u00a0".replace(" ", "\u00a0"), style="note")
            text.append(value.replace(" ", "\u00a0"), style="title")
            text.append("   ")
        return text


def show_summary(console: Console, summary: "Summary") -> None:
    """The report, in short."""
    console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="title", justify="right")
    table.add_column()
    for label, value in figures(summary):
        table.add_row(value, label)
    console.print(Panel(table, title="the run", title_align="left"))
    held_out = summary["held_out"]
    if held_out:
        console.print(_compressors(held_out))
        console.print(_kinds(held_out, summary["ffn_experts_target"]))
        _heat(console, held_out["heat"][:120])
    if summary["sample"]:
        text = Text(summary["sample"]["prompt"], style="note")
        text.append(summary["sample"]["text"], style="default")
        console.print(Panel(text, title="a sample", title_align="left"))
    for step in next_steps(summary):
        console.print(f"  {step.why}", style="note", soft_wrap=True)
        console.print(f"    {step.command}", soft_wrap=True, markup=False)
    console.print(f"  report: {summary['directory']}/report.html", soft_wrap=True)


def _compressors(held_out: dict[str, Any]) -> Table:
    table = Table(title="bits per byte, the same held-out bytes", title_justify="left", box=None)
    rows = {**held_out["compressors"], "this model": held_out["bits_per_byte"]}
    for name in rows:
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:.3f}" for value in rows.values()))
    return table


def _kinds(held_out: dict[str, Any], target: float) -> Table:
    table = Table(
        title=f"FFN experts per token, by kind (target {target:g})", title_justify="left", box=None
    )
    for name in ("kind", "FFN experts", "tokens"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    for kind in held_out["kinds"]:
        table.add_row(kind["kind"], f"{kind['ffn_experts']:.2f}", f"{kind['tokens']:,}")
    return table


def _heat(console: Console, heat: list[dict[str, Any]]) -> None:
    if not heat or not console.is_terminal:
        return
    means = [sum(token["ffn"]) / len(token["ffn"]) for token in heat]
    shade = Shade(
        [token["text"] for token in heat],
        means,
        low=min(means),
        high=max(means),
        unit="FFN experts",
    )
    console.print(Panel(shade, title="held-out text, shaded by compute", title_align="left"))


def layer_curve(rows: list[list[float]], layer: int) -> list[float]:
    """One layer's smoothed figure per step; NaN, a gap, before a grown run had that layer."""
    known = [row[layer] for row in rows if layer < len(row)]
    return [math.nan] * (len(rows) - len(known)) + _smoothed(known)


def _smoothed(values: list[float]) -> list[float]:
    """One value per step, averaged over the steps just before."""
    return [y for _, y in smoothed(list(enumerate(values)), 0.8)]


def _listed(values: list[float], digits: int = 2) -> str:
    return " ".join(f"{v:.{digits}f}" for v in values[:4]) + (" ..." if len(values) > 4 else "")


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
