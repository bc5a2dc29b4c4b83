"""Claims about what commands draw with: colours, plots, shaded text, recordings, keys."""

import io
import os
import re
import select
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console, RenderableType

from longcat.cli.ui import record, theme
from longcat.cli.ui.page import Outcome, Page, Question, Verdict, closing, opening, source_line
from longcat.cli.ui.plot import Bars, Line
from longcat.cli.ui.prose import Rows
from longcat.cli.ui.shade import Shade

WIDTHS = (60, 80, 120)
WAVE = [3 - np.exp(-i / 40) for i in range(300)]
PAGE = Page(
    name="toy",
    title="A toy",
    claim="μ − Δ ≠ 0, as long as the words of this sentence go on and on to wrap around the page.",
    formula=("Δb_i = μ e_i",),
    source="nowhere",
    question=Question(
        text="Which?", options={"a": "this → one", "b": "that"}, answer="a", reason="So be it."
    ),
    read_next={"here": "somewhere.py:1"},
)
VERDICTS = [
    Verdict(claim="holds", measured="1", published="1", holds=True),
    Verdict(claim="fails", measured="2", published="1", holds=False),
]


def drawn(what: RenderableType, width: int = 80, *, ascii_only: bool = False) -> str:
    """What a console without colour prints."""
    console = theme.make_console(file=io.StringIO(), width=width, ascii_only=ascii_only)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def colored(what: RenderableType, width: int = 80) -> Console:
    """A console that recorded it in colour."""
    console = theme.make_console(file=io.StringIO(), width=width, record=True)
    console.print(what)
    return console


def samples() -> dict[str, RenderableType]:
    """One of each thing that can be drawn."""
    return {
        "line": Line({"one": WAVE, "two": [2.0] * 100}, 3.0, title="a title", length=400),
        "single": Line({"loss": [5.0, 4.0, float("nan"), 3.0]}, height=4, title="loss"),
        "empty": Line({}, 3.0, height=3),
        "bars": Bars(
            [0.5, 1.0, 1.5, 0.2],
            ["a", "b", "c", "d"],
            1.0,
            title="load",
            roles=["ffn"] * 3 + ["zero"],
            legend={"ffn": "FFN", "zero": "identity"},
        ),
        "many bars": Bars(list(range(512)), height=3),
        "no bars": Bars([], height=3),
        "shade": Shade(["The", " cat", "\nsat…", " " * 9], [0, 2, 4, 0], low=0, high=4, unit="×"),
        "opening": opening(PAGE),
        "closing": closing(PAGE, VERDICTS, Outcome(frame="", guess="b", seconds=1.0)),
    }


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", samples())
def test_everything_stays_within_its_width(name: str, width: int) -> None:
    lines = drawn(samples()[name], width).splitlines()
    assert max(cell_len(line) for line in lines) <= width
    text = colored(samples()[name], width).export_text()
    assert max(cell_len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize("name", samples())
def test_ascii_means_ascii(name: str) -> None:
    assert drawn(samples()[name], ascii_only=True).isascii()
    assert not drawn(samples()["line"]).isascii()


def test_plots_fill_exactly_the_width_and_height_they_are_given() -> None:
    lines = drawn(Line({"x": WAVE}, height=7, title="t"), 90).splitlines()
    assert len(lines) == 1 + 7 + 2  # title, drawing, axis with its labels
    assert {cell_len(line) for line in lines} == {90}


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_a_terminal() -> str:
        file = io.StringIO()
        console = Console(theme=theme.THEME, file=file, force_terminal=True, width=80)
        console.print(samples()["line"])
        return file.getvalue()

    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[38" in on_a_terminal()
    assert "●" not in on_a_terminal()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[38" not in on_a_terminal()
    assert "●" in on_a_terminal(), "without colour the curves differ by their marks"


def row_with(text: str, mark: str) -> int:
    return next(i for i, line in enumerate(text.splitlines()) if mark in line)


def test_a_curve_on_its_target_lies_on_the_dashed_line() -> None:
    on, off = [3.0 + 0.02 * (-1) ** i for i in range(200)], [2.7] * 200
    for values, expected in ((on, True), (off, False)):
        text = drawn(Line({"x": values, "y": [1.0]}, 3.0, limits=(1.8, 3.2), height=10))
        marked = [line for line in text.splitlines() if "●" in line and "┤" in line]
        assert any("3.0" in line for line in marked) is expected


def test_a_value_that_is_not_finite_leaves_a_gap() -> None:
    whole = drawn(Line({"x": [1.0, 2.0, 3.0, 4.0, 5.0]}, height=5))
    broken = drawn(Line({"x": [1.0, 2.0, float("nan"), 4.0, 5.0]}, height=5))
    ink = [len(re.findall("[▘▝▀▖▌▞▛▗▚▐▜▄▙▟█]", text)) for text in (whole, broken)]
    assert ink[1] < 0.8 * ink[0]


def test_bars_show_heights_and_never_hide_a_peak() -> None:
    text = drawn(Bars([1.0, 2.0, 4.0], height=4), 30)
    assert text.splitlines()[0].count("█") < text.splitlines()[3].count("█")
    spike = [0.0] * 600
    spike[333] = 1.0
    assert "█" in drawn(Bars(spike, height=4), 40).splitlines()[0]


def test_a_bar_at_its_target_ends_in_the_middle_of_the_dashed_row() -> None:
    text = drawn(Bars([1.0, 0.0], target=1.0, top=1.6, height=8), 40)
    assert "▄" in text.splitlines()[row_with(text, "╌")]


def test_two_curves_in_one_cell_are_both_seen() -> None:
    lines = Line({"up": [0.74] * 50, "down": [0.6] * 50}, limits=(0.0, 1.0), height=4)
    shared = [s for s in colored(lines).render(lines) if s.text.startswith("▀▀")]
    assert shared
    assert shared[0].style is not None
    assert shared[0].style.color != shared[0].style.bgcolor is not None


@pytest.mark.parametrize("kind", ["labels", "roles"])
def test_bars_name_what_does_not_fit(kind: str) -> None:
    with pytest.raises(ValueError, match=f"Bars: {kind} needs one entry per value, 2; got 1"):
        Bars([1.0, 2.0], **{kind: ["ffn"]})  # type: ignore[arg-type]


def test_shaded_text_is_the_text_and_carries_numbers_without_colour() -> None:
    shade = Shade(
        ["def", " f", "(", "x", ")", ":\n", "  pass"], [3, 1, 0, 2, 0, 4, 2], low=0, high=4
    )
    lines = [line.rstrip() for line in drawn(shade, 40).splitlines()]
    assert lines[:4] == ["def f(x):", "3   10204", "  pass", "  2"]
    assert "def f(x):" in colored(shade, 40).export_text()


def test_stronger_values_get_stronger_shades_with_readable_ink() -> None:
    shade = Shade([], [], low=0, high=4)
    backgrounds = [shade.shade(v).bgcolor for v in range(5)]
    sums = [sum(c.triplet) for c in backgrounds if c is not None and c.triplet is not None]
    assert sums == sorted(sums)
    assert len(set(sums)) == 5
    assert shade.shade(0).color != shade.shade(4).color


def test_shading_needs_a_value_per_token() -> None:
    with pytest.raises(ValueError, match="got 1 tokens and 2 values"):
        Shade(["a"], [1, 2], low=0, high=1)


def external(svg: str) -> list[str]:
    """Addresses a viewer would fetch: names of formats and remarks are not fetched."""
    svg = re.sub(r"<!--.*?-->|xmlns=\"[^\"]*\"", "", svg, flags=re.DOTALL)
    return re.findall(r"https?://[^\"')\s]+", svg)


def test_a_recording_asks_no_other_host() -> None:
    console = colored(samples()["line"])
    assert external(console.export_svg(clear=False)), "rich's own export names a font host"
    svg = record.svg(console, "a recording")
    assert external(svg) == []
    assert "@font-face" not in svg
    assert "a&#160;recording" in svg


def test_a_recording_draws_blocks_as_rectangles() -> None:
    svg = record.svg(colored(samples()["bars"]), "bars")
    texts = "".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    assert not re.search("[▁▂▃▄▅▆▇█▀│─╌]", texts)
    assert "load" in texts
    assert svg.count("crispEdges") > 20


def test_a_recording_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out.svg"
    record.write(target, "<svg/>")
    assert target.read_text() == "<svg/>"
    with pytest.raises(UnicodeEncodeError):
        record.write(target, "\ud800")
    assert target.read_text() == "<svg/>"
    assert [p.name for p in tmp_path.iterdir()] == ["out.svg"]
    absent = tmp_path / "missing" / "out.svg"
    with pytest.raises(FileNotFoundError) as caught:
        record.write(absent, "<svg/>")
    assert caught.value.filename == str(absent)


def test_a_page_says_what_was_claimed_measured_and_published() -> None:
    text = drawn(samples()["closing"], 100)
    assert "✓  holds" in text
    assert "✗  fails" in text
    assert "✗ the claim fails" in text
    assert "You said b. a: this → one" in text
    assert "FAIL the claim fails" in drawn(samples()["closing"], 100, ascii_only=True)


def test_source_lines_point_at_the_definition() -> None:
    place, line = source_line(source_line).split(":")
    assert place in ("src/longcat/cli/ui/page.py", "longcat/cli/ui/page.py")
    file = sys.modules[source_line.__module__].__file__
    assert file is not None
    assert "def source_line" in Path(file).read_text().splitlines()[int(line) - 1]


def test_a_place_to_read_is_whole_however_narrow_the_screen() -> None:
    console = Console(file=io.StringIO(), width=40, theme=theme.THEME)
    path = "packages/kernels/src/longcat/kernels/experts/triton_kernel.py:22"
    console.print(Rows([("Read", "net", path)]))
    assert isinstance(console.file, io.StringIO)
    assert path in "".join(console.file.getvalue().split())


KEYS = """
import sys
from longcat.cli.ui.keys import Keys, Stopped
with Keys() as keys:
    print("ready", flush=True)
    try:
        print("key", keys.wait(), flush=True)
        print("key", keys.wait(), flush=True)
    except Stopped:
        print("stopped", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix terminal")
def test_keys_are_read_without_enter_and_q_stops() -> None:
    import pty

    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", KEYS])
    seen, sent = "", 0
    while select.select([terminal], [], [], 20)[0]:
        try:
            chunk = os.read(terminal, 1024).decode()
        except OSError:  # how Linux says that the other side has gone
            break
        seen += chunk
        for count, (mark, key) in enumerate((("ready", b"b"), ("key b", b"q"))):
            if mark in seen and sent == count:
                os.write(terminal, key)
                sent += 1
        if not chunk or "stopped" in seen:
            break
    os.waitpid(pid, 0)
    os.close(terminal)
    assert "key b" in seen
    assert "stopped" in seen
