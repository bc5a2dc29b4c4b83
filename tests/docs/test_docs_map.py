"""The paper-to-code map names files and tests that exist, and formulas that are on the sheet."""

import ast
import copy
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
STATUSES = {"exact", "scaled down", "not built yet"}
Row = dict[str, Any]


def rows() -> list[Row]:
    """All rows of the map."""
    text = (ROOT / "docs/theory/map.toml").read_text(encoding="utf-8")
    return [row for section in tomllib.loads(text)["section"] for row in section["row"]]


@cache
def anchors() -> frozenset[str]:
    """The anchors of the formula sheet."""
    text = (ROOT / "docs/theory/formulas.md").read_text(encoding="utf-8")
    return frozenset(re.findall(r"\{ #([\w-]+) \}", text))


@cache
def functions(path: Path) -> frozenset[str]:
    """Names of the functions of a test file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef))


def faults(row: Row) -> list[str]:
    """What is wrong with a row."""
    found = []
    if row["status"] not in STATUSES:
        found.append(f"status {row['status']!r}")
    if row.get("formula") is not None and row["formula"] not in anchors():
        found.append(f"no formula {row['formula']}")
    for file in row.get("code", []):
        if not (ROOT / file).is_file():
            found.append(f"no file {file}")
    for test in row.get("test", []):
        file, _, name = test.partition("::")
        if not (ROOT / file).is_file():
            found.append(f"no test file {file}")
        elif name not in functions(ROOT / file):
            found.append(f"no test {test}")
    built = row["status"] != "not built yet"
    if built != bool(row.get("code")) or built != bool(row.get("test")):
        found.append("code and test belong to built rows, and to all of them")
    return found


def test_every_row_names_what_exists() -> None:
    wrong = {row["what"]: faults(row) for row in rows() if faults(row)}
    assert wrong == {}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("status", "nearly"),
        ("status", "not built yet"),
        ("formula", "no-such-formula"),
        ("code", ["packages/router/src/longcat/router/no_such_file.py"]),
        ("test", ["tests/router/test_router_routing.py::test_that_is_not_there"]),
        ("test", ["tests/router/no_such_file.py::test_torch_agrees_with_the_definition"]),
        ("test", []),
        ("code", []),
    ],
)
def test_a_row_that_lies_is_found(key: str, value: Any) -> None:
    row = next(row for row in rows() if row["status"] == "exact" and "formula" in row)
    lie = copy.deepcopy(row) | {key: value}
    assert faults(row) == []
    assert len(faults(lie)) >= 1


def test_the_map_has_about_fifty_rows_and_no_row_twice() -> None:
    what = [row["what"] for row in rows()]
    assert len(what) == len(set(what))
    assert 45 <= len(what) <= 75


def test_every_formula_of_the_sheet_is_on_the_map() -> None:
    # The norms' formula and so on: an anchor that no row leads to would be an orphan.
    assert anchors() - {row.get("formula") for row in rows()} == set()


def test_the_sheet_restates_every_numbered_equation_of_the_report() -> None:
    text = (ROOT / "docs/theory/formulas.md").read_text(encoding="utf-8")
    cited: set[int] = set()
    for first, word, last in re.findall(r"[Ee]quations? (\d+)(?: (and|to) (\d+))?", text):
        end = int(last or first)
        cited |= set(range(int(first), end + 1)) if word == "to" else {int(first), end}
    assert cited == set(range(1, 10))


def test_formulas_are_balanced() -> None:
    """What KaTeX would show in red: uneven braces, \\left without \\right, an open environment."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        text = text.replace("\\$", "")
        displays = re.findall(r"\$\$(.+?)\$\$", text, re.DOTALL)
        inline = re.findall(r"\$([^$]+)\$", re.sub(r"\$\$.+?\$\$", "", text, flags=re.DOTALL))
        for formula in displays + inline:
            bare = formula.replace("\\{", "").replace("\\}", "")
            assert bare.count("{") == bare.count("}"), f"{page.name}: {formula}"
            lefts = len(re.findall(r"\\left(?![a-z])", formula))
            assert lefts == len(re.findall(r"\\right(?![a-z])", formula)), f"{page.name}: {formula}"
            assert formula.count("\\begin{") == formula.count("\\end{"), f"{page.name}: {formula}"
