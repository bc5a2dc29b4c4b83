"""The page of a walkthrough: a claim, a prediction, a live run, a verdict, what to read next.

Notable:
- plain scrollback: only the live part redraws itself, and only on a terminal;
- elsewhere (a pipe, a file, a recording) the same page without motion: final frames alone;
- the verdict decides the exit code, so a walkthrough is a test too.
"""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from longcat.cli.ui.keys import Keys
from longcat.cli.ui.prose import INDENT, Heading, Rows, line, spelled

_FRAMES_PER_SECOND = 20.0


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prediction to make before the run: lettered options, the true one, and why it is."""

    text: str
    options: Mapping[str, str]
    answer: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One measured figure beside the published one."""

    claim: str
    measured: str
    published: str
    holds: bool


@dataclass(frozen=True, kw_only=True)
class Page:
    """What is fixed before a walkthrough runs.

    Attributes:
        name: as in `longcat demo NAME`. title: one line.
        claim: one sentence from the report. formula: its formula. source: where it stands.
        question: the prediction.
        read_next: label -> file:line or command.
    """

    name: str
    title: str
    claim: str
    formula: Sequence[str]
    source: str
    question: Question
    read_next: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run that is over: its last frame, the reader's guess if any, and how long it took."""

    frame: RenderableType
    guess: str | None = None
    seconds: float | None = None


class Walkthrough(Protocol):
    """What a demo provides; `frames` runs it and yields what to show, the last one to keep."""

    page: Page

    def frames(self) -> Iterator[RenderableType]: ...

    def details(self) -> RenderableType: ...

    def verdicts(self) -> list[Verdict]: ...

    def summary(self) -> dict[str, object]: ...


def source_line(thing: Callable[..., Any]) -> str:
    """Where a function stands, as path:line from the top of the repository or of the install."""
    path = Path(inspect.getsourcefile(thing) or "").parts
    line = inspect.getsourcelines(thing)[1]
    for top in ("packages", "src", "longcat"):
        if top in path:
            # The last one: a clone may itself lie in a folder of that name.
            start = len(path) - 1 - path[::-1].index(top)
            return f"{'/'.join(path[start:])}:{line}"
    return f"{path[-1]}:{line}"


def opening(page: Page) -> RenderableType:
    """Title, claim, formula, source and the question."""
    options = [(letter, "net", text) for letter, text in page.question.options.items()]
    return Group(
        Heading(page.title),
        line(page.claim),
        *(line(text, "ffn", indent=6) for text in page.formula),
        line(page.source, "note"),
        Text(),
        Rows([("Predict", "net", page.question.text)]),
        Rows(options, indent=11, width=1),
        Text(),
    )


def closing(page: Page, verdicts: Sequence[Verdict], outcome: Outcome) -> RenderableType:
    """The verdicts with check or cross, the answer, what to read next."""
    said = "" if outcome.guess is None else f"You said {outcome.guess}. "
    answer = f"{said}{page.question.answer}: {page.question.options[page.question.answer]}"
    wide = max(len(label) for label in page.read_next)
    places = [f"{label:<{wide}}  {place}" for label, place in page.read_next.items()]
    took = "" if outcome.seconds is None else f" · {outcome.seconds:.1f} s"
    holds = all(verdict.holds for verdict in verdicts)
    role = "good" if holds else "bad"
    return Group(
        Text(),
        _verdict_table(verdicts),
        Text(),
        Rows([("Answer", "net", answer), ("", "net", page.question.reason)]),
        Rows([("Read" if i == 0 else "", "net", place) for i, place in enumerate(places)]),
        Text(),
        line(f"{'✓ the claim holds' if holds else '✗ the claim fails'}{took}", role, bold=True),
        Text(),
    )


def play(walk: Walkthrough, console: Console, *, pause: bool, speed: float) -> Outcome:
    """Show the opening and run the walkthrough, live on a terminal.

    Args:
        walk: what to run.
        console: where. Off a terminal nothing moves and nothing waits.
        pause: wait for the prediction before the run.
        speed: 2 plays twice as fast; what the run computes is the same.

    Raises:
        Stopped: when the reader pressed q.
    """
    console.print(opening(walk.page))
    guess: str | None = None
    frame: RenderableType = ""
    if not console.is_terminal:
        began = time.monotonic()
        *_, frame = walk.frames()
        console.print(frame)
        return Outcome(frame=frame, seconds=time.monotonic() - began)
    with Keys() as keys:
        if pause:
            guess = _ask(walk.page.question, console, keys)
        began = time.monotonic()
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            for frame in walk.frames():
                shown = time.monotonic()
                live.update(frame, refresh=True)
                keys.poll(1 / (_FRAMES_PER_SECOND * speed) - (time.monotonic() - shown))
    return Outcome(frame=frame, guess=guess, seconds=time.monotonic() - began)


def finish(walk: Walkthrough, console: Console, outcome: Outcome) -> None:
    """Print what follows the run: details, verdicts, answer, reading."""
    console.print(Padding(walk.details(), (1, 0, 0, 2)))
    console.print(closing(walk.page, walk.verdicts(), outcome))


def replay(walk: Walkthrough, console: Console, outcome: Outcome) -> None:
    """The whole page of a run that is over, without motion: for recordings."""
    console.print(opening(walk.page))
    console.print(outcome.frame)
    # No guess and no time: a recording of the same run is the same to the byte.
    finish(walk, console, Outcome(frame=outcome.frame))


def _verdict_table(verdicts: Sequence[Verdict]) -> RenderableType:
    """Mark, claim, measured, published."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("", "verdict", "measured", "published"):
        table.add_column(name)
    for verdict in verdicts:
        mark, role = ("✓", "good") if verdict.holds else ("✗", "bad")
        table.add_row(
            spelled(mark, role, bold=True),
            spelled(verdict.claim),
            spelled(verdict.measured, "bold"),
            spelled(verdict.published),
        )
    return Padding(table, (0, INDENT))


def _ask(question: Question, console: Console, keys: Keys) -> str | None:
    letters = "/".join(question.options)
    console.print(Text(f"  [{letters}], any other key to go on, q to quit", style="dim"))
    key = keys.wait()
    return key.lower() if key and key.lower() in question.options else None
