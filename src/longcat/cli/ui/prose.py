"""Short lines of prose for pages: headings, indented lines, labelled rows.

All of them spell themselves in ASCII where the console can do no better.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from longcat.cli.ui.theme import ROLES, spell, style

INDENT = 2


@dataclass(frozen=True)
class Spelled:
    """Text in the console's spelling (see `theme.spell`); fits in table cells."""

    text: Text

    def _spelled(self, options: ConsoleOptions) -> Text:
        plain = spell(self.text.plain, ascii_only=options.ascii_only)
        return self.text if plain == self.text.plain else Text(plain, style=self.text.style)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._spelled(options)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement.get(console, options, self._spelled(options))


def spelled(text: str, role: str = "", *, bold: bool = False) -> Spelled:
    """Text in a role's colour, or in a style of the theme (`note`)."""
    return Spelled(Text(text, style=style(role, bold=bold) if role in ROLES else role))


def line(text: str, role: str = "", *, bold: bool = False, indent: int = INDENT) -> Padding:
    """An indented paragraph; see `spelled`."""
    return Padding(spelled(text, role, bold=bold), (0, INDENT, 0, indent))


@dataclass(frozen=True)
class Heading:
    """A title in a rule across the page, with a line of air around it."""

    title: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        title = spell(self.title, ascii_only=options.ascii_only)
        rule = Rule(Text(title, style("ffn", bold=True)), align="left", style="dim")
        yield Padding(rule, (1, INDENT))


@dataclass(frozen=True)
class Rows:
    """Rows of (label, role, text); text that wraps stays clear of the labels.

    Args:
        rows: what to show; the label takes the role's colour.
        indent: columns before the labels.
        width: columns of the labels.
    """

    rows: Sequence[tuple[str, str, str]]
    indent: int = INDENT
    width: int = 7

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(width=self.width)
        table.add_column(overflow="fold")  # a path that is cut off leads nowhere
        for label, role, text in self.rows:
            table.add_row(spelled(label, role, bold=True), spelled(text))
        yield Padding(table, (0, INDENT, 0, self.indent))
