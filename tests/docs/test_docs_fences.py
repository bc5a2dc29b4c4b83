"""Every block of Python in the documentation runs, and prose quotes only what a block printed."""

import json
import re
import traceback
from pathlib import Path
from typing import Any

import pytest

from longcat.cli.pages import Fence, Prose, run_fence, split_page

Run = Any  # (page) -> [(fence, output)], each page once

# A number worth checking: with a decimal point, a thousands separator, a per cent sign or three
# digits. Small whole numbers (8 experts, 2 cores) are words.
NUMBER = re.compile(r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d+\.\d+|\d{3,}|\d+(?= ?%))(?![\w])")
# Not measurements: places in the report, links, formulas, code, headings' numbers.
NOT_PROSE = re.compile(
    r"\$\$.*?\$\$|\$[^$\n]+\$|`[^`]+`|\[[^\]]*\]\([^)]*\)"
    r"|(?:sections?|equations?|figures?|tables?) [\d.]+(?: (?:and|to) [\d.]+)*",
    re.DOTALL,
)


def unprinted(prose: str, printed: str) -> list[str]:
    """The numbers of the prose that no fence printed."""
    quoted = set(NUMBER.findall(NOT_PROSE.sub(" ", prose)))
    known = set(re.findall(r"\d[\d,]*(?:\.\d+)?", printed))
    return sorted(quoted - known)


def test_every_fence_of_the_page_runs(runnable: Path, run_once: Run) -> None:
    for fence, output in run_once(runnable):
        if fence.options.get("result") or fence.options.get("html"):
            assert output.strip(), f"{runnable.name}:{fence.line} shows an empty box"


def test_numbers_of_the_tutorial_are_printed_by_its_fences(tutorial: Path, run_once: Run) -> None:
    printed = "\n".join(f"{fence.code}\n{output}" for fence, output in run_once(tutorial))
    prose = "\n".join(
        block.text
        for block in split_page(tutorial.read_text(encoding="utf-8"))
        if isinstance(block, Prose)
    )
    assert unprinted(prose, printed) == []


def test_a_number_that_no_fence_printed_is_found() -> None:
    printed = "18.69 billion, 512 of 1,024"
    assert unprinted("18.69 billion and 512 (section 2.1.1, $0.5$, `7.7`)", printed) == []
    assert unprinted("18.7 billion", printed) == ["18.7"]
    assert unprinted("a third, 34 %, of 1,025", printed) == ["1,025", "34"]


def test_the_numpy_of_the_tutorial_is_short(tutorial: Path) -> None:
    text = tutorial.read_text(encoding="utf-8")
    section = text.split("## In numpy\n", 1)[1].split("\n## ", 1)[0]
    first = next(b for b in split_page(section) if isinstance(b, Fence))
    code = [line for line in first.code.splitlines() if line.strip()]
    assert len(code) <= 25


def test_the_tutorial_has_every_part_of_the_pattern(tutorial: Path) -> None:
    headings = re.findall(r"^## (.+)$", tutorial.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == [
        "The claim",
        "The idea",
        "In numpy",
        "In torch",
        "Watch it",
        "Measured against published",
        "Exercises",
        "Source",
    ]


def test_one_namespace_per_page_lets_fences_build_on_each_other(tmp_path: Path) -> None:
    text = (
        '```python\nx = 2\n```\n\n!!! note\n\n    ```python exec="1"\n    print(x + 1)\n    ```\n'
    )
    namespace: dict[str, Any] = {}
    outputs = [
        run_fence(b, namespace, tmp_path / "p.md") for b in split_page(text) if isinstance(b, Fence)
    ]
    assert outputs == ["", "3\n"]


@pytest.mark.parametrize(
    ("code", "error"), [("x = 1\n\ny = x / 0", ZeroDivisionError), ("x = (", SyntaxError)]
)
def test_a_failing_fence_names_the_pages_own_line(
    code: str, error: type[Exception], tmp_path: Path
) -> None:
    """The control of the runner: a broken page does fail, and says where."""
    page = tmp_path / "broken.md"
    indented = code.replace("\n", "\n    ")
    page.write_text(f"# Title\n\n??? note\n\n    ```python\n    {indented}\n    ```\n")
    fence = next(b for b in split_page(page.read_text()) if isinstance(b, Fence))
    with pytest.raises(error) as failure:
        run_fence(fence, {}, page)
    last = traceback.extract_tb(failure.value.__traceback__)[-1]
    found = failure.value.lineno if isinstance(failure.value, SyntaxError) else last.lineno
    where = failure.value.filename if isinstance(failure.value, SyntaxError) else last.filename
    wanted = next(i for i, line in enumerate(page.read_text().split("\n"), 1) if code[-5:] in line)
    assert (where, found) == (str(page), wanted)


def test_an_example_inside_four_ticks_is_text() -> None:
    blocks = split_page("````markdown\n```python\nraise RuntimeError\n```\n````\n")
    assert [b.language for b in blocks if isinstance(b, Fence)] == ["markdown"]


def test_results_are_a_table_of_what_was_measured(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MKDOCS_CONFIG_DIR", str(tmp_path))
    page = root / "docs/results.md"
    fence = next(b for b in split_page(page.read_text("utf-8")) if isinstance(b, Fence))
    assert "Nothing measured yet" in run_fence(fence, {}, page)
    rows = [{"op": "route", "shape": "4|2", "us": 1234.5}, {"op": "rope", "shape": "4", "us": 0.5}]
    result = {"date": "2026-01-02", "hardware": {"cores": 2}, "rows": rows}
    (tmp_path / "bench/results").mkdir(parents=True)
    (tmp_path / "bench/results/kernels-cpu.json").write_text(json.dumps(result))
    shown = run_fence(fence, {}, page)
    assert "    - hardware: cores 2\n\n| op | shape | us |\n|---|---|---:|\n" in shown
    assert "| route | 4\\|2 | 1,234 |\n| rope | 4 | 0.500 |\n" in shown


def test_pages_cite_the_report_and_public_code_only(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"\b(SPEC|DESIGN)(\.md)?\b|/(work|home|tmp|root)/", text)
