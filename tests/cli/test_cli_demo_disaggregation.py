"""Claims about `longcat demo disaggregation`: latents seen to cross, verdicts that can fail."""

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len
from typer.testing import CliRunner

from longcat.cli import demo
from longcat.cli.demos.crossing import CHUNK
from longcat.cli.demos.disaggregation import DisaggregationDemo
from longcat.cli.ui import page
from longcat.cli.ui.theme import make_console
from longcat.serve import Engine
from longcat.serve.disaggregation import Broken, LocalPrefill, Message, Span, Timeline


class Here(LocalPrefill):
    """The other side in this process, so that its death is cheap."""

    def __init__(self, factory: Callable[[], Engine]) -> None:
        super().__init__(factory())
        self.dead = False

    def kill(self) -> None:
        self.dead = True

    def receive(self, seconds: float = 0.0) -> Message | None:
        if self.dead:
            self.dead = False
            raise Broken("it was killed")
        return super().receive(seconds)

    def timeline(self) -> Timeline:
        computing = Span(kind="compute", start=0.0, end=2.0)
        return Timeline([computing, Span(kind="send", start=0.5, end=1.0)])


class Fearless(Here):
    """Control: does not die when it is killed."""

    def kill(self) -> None:
        pass


@pytest.fixture(scope="module")
def walk() -> DisaggregationDemo:
    """A run, finished."""
    walk = DisaggregationDemo(tokens=2 * CHUNK, prefill=Here)
    *_, _ = walk.frames()
    return walk


def replayed(walk: DisaggregationDemo, *, ascii_only: bool = False) -> str:
    out = io.StringIO()
    console = make_console(file=out, width=80, ascii_only=ascii_only)
    page.replay(walk, console, page.Outcome(frame=walk.last_frame))
    return out.getvalue()


def test_the_claims_hold_and_the_page_shows_every_attention(walk: DisaggregationDemo) -> None:
    shown = replayed(walk)
    parts = ("section 6", "Predict", "attention 0", "MTP head", "a mark wherever", "Answer",
             "disaggregation/front.py:", "docs/guides/disaggregation.md")  # fmt: skip
    places = [shown.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    assert "✓ the claim holds" in shown
    assert "✗" not in shown
    assert max(cell_len(line) for line in shown.splitlines()) <= 80
    assert replayed(walk, ascii_only=True).isascii()
    document = json.loads(json.dumps(walk.summary()))
    assert document["restarts"] == 1
    assert document["keys_and_values_over_latents"] > 2


def test_latents_that_come_chunk_by_attention_fail_their_verdict(walk: DisaggregationDemo) -> None:
    pieces = list(walk.pieces)
    walk.pieces.sort()
    try:
        assert not walk.layer_wise
    finally:
        walk.pieces[:] = pieces
    assert walk.layer_wise


def test_a_process_that_does_not_die_fails_its_verdict() -> None:
    walk = DisaggregationDemo(tokens=2 * CHUNK, prefill=Fearless)
    *_, _ = walk.frames()
    held = {verdict.claim: verdict.holds for verdict in walk.verdicts()}
    assert not held["a killed process is replaced"]


def test_a_prompt_of_one_chunk_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="at least 256 tokens, which are two chunks; got 5"):
        DisaggregationDemo(tokens=5)


@pytest.mark.slow
def test_two_real_processes_hold_the_claims() -> None:
    arguments: list[Any] = ["disaggregation", "--json"]
    result = CliRunner().invoke(demo.app, arguments, env={"COLUMNS": "80"})
    document = json.loads(result.stdout)
    assert result.exit_code == 0, document
    assert document["restarts"] == 1
