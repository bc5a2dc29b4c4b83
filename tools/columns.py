"""Docstrings as the site shows them: names in a column become a definition list.

A docstring says in columns what fields and arguments mean, which reads well in an editor and in
help(). To Markdown such lines are one paragraph, names and meanings run together.
"""

import re
from typing import Any

import griffe

_ENTRY = re.compile(r"([\w*]+(?:, [\w*]+)*) {2,}(\S.*)")


class Columns(griffe.Extension):
    """What mkdocs.yml gives mkdocstrings to read sources with."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)


def listed(text: str) -> str:
    """The docstring with each paragraph of `name  meaning` lines as a definition list."""
    return "\n\n".join(map(_paragraph, text.split("\n\n")))


def _paragraph(text: str) -> str:
    entries: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        if entry := _ENTRY.fullmatch(line):
            entries.append((entry[1], [entry[2]]))
        elif entries and line.startswith("  "):
            entries[-1][1].append(line.strip())
        else:
            return text
    return "\n\n".join(
        ", ".join(f"`{name}`" for name in names.split(", ")) + "\n:   " + " ".join(meaning)
        for names, meaning in entries
    )
