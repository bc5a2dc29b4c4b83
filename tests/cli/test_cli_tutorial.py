"""`longcat tutorial`: a page read in the terminal, its code executed."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from longcat.cli import tutorial
from longcat.cli.main import main
from longcat.cli.pages import Choices, Curves, Sweep, find, list_tutorials, open_tutorial
from longcat.cli.pages.plain import plain_markdown, plain_math
from longcat.cli.pages.svg import spread

PAGE = """# A page

## First

Take $x_i \\le 2$:

```python exec="1" source="above" result="text" session="p"
x = 2
print("x is", x)
```

```python exec="1" html="1" session="p"
from longcat.cli.pages import Curves

print(Curves({"falling": [3.0, 2.0, 1.0]}, 1.5, title="It falls.", y_label="height"))
```

## Exercises

??? question "Answer"

    It is this:

    ```python exec="1" source="above" result="text" session="p"
    print("twice is", 2 * x)
    ```
"""


def shown(page: Path, *, pause: bool = False) -> tuple[int, str]:
    """Exit code and text of a page."""
    text = io.StringIO()
    console = Console(file=text, width=80)
    return tutorial.play(page, console, pause=pause), text.getvalue()


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "01-a-page.md"
    path.write_text(PAGE, encoding="utf-8")
    return path


def test_prose_code_and_output_come_in_order(page: Path) -> None:
    code, text = shown(page)
    places = [text.index(part) for part in ("First", "x_i ≤ 2", 'print("x is"', "│ x is 2")]
    assert code == 0
    assert places == sorted(places)


def test_a_long_line_of_output_is_whole(page: Path) -> None:
    page.write_text(PAGE.replace('"x is", x', '"x" * 200'), encoding="utf-8")
    assert "x" * 200 in shown(page)[1]


def test_a_figure_draws_itself_and_its_code_stays_hidden(page: Path) -> None:
    _, text = shown(page)
    assert "height" in text
    assert "1.50 ┤" in text
    assert "<svg" not in text
    assert "Curves" not in text


def test_a_box_becomes_a_title_and_its_fence_runs(page: Path) -> None:
    _, text = shown(page)
    assert "Answer" in text
    assert "???" not in text
    assert "│ twice is 4" in text


def test_a_failing_fence_gives_the_pages_line_and_exit_code_1(page: Path) -> None:
    page.write_text(PAGE.replace('print("twice is", 2 * x)', "print(2 / 0)"), encoding="utf-8")
    line = page.read_text().split("\n").index("    print(2 / 0)") + 1
    code, text = shown(page)
    assert code == 1
    assert f"{page}:{line}: ZeroDivisionError" in text


def test_it_waits_at_sections_and_answers_and_q_stops(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["", "", "q"])
    monkeypatch.setattr("builtins.input", lambda: next(answers))
    code, text = shown(page, pause=True)
    assert code == 0
    assert "Enter for: Answer" in text
    assert "twice" not in text


def test_the_list_and_its_json_agree(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tutorial", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert main(["tutorial"]) == 0
    text = capsys.readouterr().out
    assert listed[0]["number"] == "01"
    assert all(one["title"] in text for one in listed)


def test_an_unknown_tutorial_is_one_sentence_with_what_there_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["tutorial", "77"]) == 2
    error = capsys.readouterr().err
    assert "no tutorial '77'" in error
    assert "01 (zero-computation-experts)" in error


def test_a_tutorial_opens_by_number_or_name() -> None:
    first = list_tutorials()[0]
    assert open_tutorial("1") == open_tutorial("01") == open_tutorial("zero") == first


def test_an_installed_wheel_brings_its_own_tutorials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site-packages/longcat/cli"
    (site / "pages").mkdir(parents=True)
    monkeypatch.setattr(find, "files", lambda package: site / "pages")
    with pytest.raises(FileNotFoundError, match="no tutorials found"):
        find.tutorial_directory()
    (site / "tutorials").mkdir()
    (site / "tutorials/01-one.md").write_text("# One\n")
    assert [t.title for t in list_tutorials()] == ["One"]


def test_the_first_tutorial_plays_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LONGCAT_FAST", "1")
    assert main(["tutorial", "01", "--no-pause"]) == 0
    text = capsys.readouterr().out
    assert "18,693,794,816, 18.6 billion" in text
    assert "longcat demo router" in text
    assert not {"???", "$", "\\frac", "<svg"} & set(text.split())


@pytest.mark.parametrize(
    ("tex", "plain"),
    [
        (r"\frac{K_e}{K N} - \frac{T_i}{\sum_j T_j}", "K_e/(K N) - T_i/(Σ_j T_j)"),
        (r"\gamma \sum_{i \in \mathcal{T}} s_i", "γ Σ_(i ∈ T) s_i"),
        (r"\mathbb{R}^{N+Z}", "R^(N+Z)"),
        (r"K\,T_\text{all} \ne \frac12", "K T_all ≠ 1/2"),
        (r"a \\ b", "a\nb"),
    ],
)
def test_formulas_become_unicode(tex: str, plain: str) -> None:
    assert plain_math(tex) == plain


def test_prices_are_not_formulas_and_page_links_keep_their_words() -> None:
    text, titles, inside = plain_markdown("It costs \\$2 or \\$3, see [the map](map.md).")
    assert text == "It costs $2 or $3, see the map."
    assert (titles, inside) == ([], False)


def test_figures_are_one_line_of_svg_with_a_spoken_title() -> None:
    for figure in (
        Curves({"a": [1.0, 2.0], "b": [2.0, 2.0]}, 2.0, title="Two < three."),
        Choices({"token 0": [0, 3]}, 2, 4, title="Two < three."),
        Sweep(["1", "2"], {"a": [1.0, 2.0]}, title="Two < three.", x_label="x", y_label="y"),
    ):
        text = str(figure)
        assert text.count("\n") == 1
        assert "<title>Two &lt; three.</title>" in text
        assert "var(--ffn,#299fcd)" in text


def test_a_sweep_marks_each_setting_and_names_it() -> None:
    sweep = Sweep(
        ["1e-3", "1e-2", "1e-1"],
        {"narrow": [2.0, 1.0, 3.0], "wide": [2.5, 1.5, 2.5]},
        title="Two basins.",
        x_label="learning rate",
        y_label="loss",
    )
    svg = str(sweep)
    assert svg.count("<circle") == 6
    assert all(f">{name}<" in svg for name in ("1e-3", "1e-2", "1e-1", "learning rate", "wide"))
    text = io.StringIO()
    Console(file=text, width=60).print(sweep)
    last = text.getvalue().rstrip("\n").splitlines()[-1]
    assert last.split() == ["1e-3", "learning", "rate", "1e-1"]


def test_labels_that_stand_too_close_move_apart_and_stay_above_the_axis() -> None:
    heights = [
        height for height, _, _ in spread([(90, "a", ""), (95, "b", ""), (20, "c", "")], 100)
    ]
    assert heights[2] == 100
    assert heights[2] - heights[1] == 17
    free = [height for height, _, _ in spread([(10, "a", ""), (60, "b", "")], 100)]
    assert free == [10, 60]
