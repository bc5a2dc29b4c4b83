"""Docstrings that explain names in columns are lists on the site, and nothing else is."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
listed = runpy.run_path(str(ROOT / "tools/columns.py"))["listed"]


def test_names_in_a_column_become_a_definition_list() -> None:
    text = """How it is continued.

running, waiting  sequences computed, and queued
pages_*           pages of the cache,
                  altogether

Raises ValueError."""
    assert (
        listed(text)
        == """How it is continued.

`running`, `waiting`
:   sequences computed, and queued

`pages_*`
:   pages of the cache, altogether

Raises ValueError."""
    )
    assert "extensions: [tools/columns.py]" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "Prose, of one line\nand another.",
        "Code in a block:\n\n    target  one pass\n    verify  which drafts stand",
        "Args:\n    x: [T, D].\n    y: the same.",
        "name  a meaning\nand then a line that belongs to no entry",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert listed(text) == text
