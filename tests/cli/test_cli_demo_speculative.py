"""Claims about `longcat demo speculative`: drafts one can see, verdicts that can fail."""

import io
import json

import pytest
from rich.cells import cell_len
from rich.color import ColorSystem
from typer.testing import CliRunner, Result

from longcat.cli import demo
from longcat.cli.demos import drafts
from longcat.cli.demos.drafts import RULES, Rule, Watched
from longcat.cli.demos.speculative import SpeculativeDemo
from longcat.cli.ui import page
from longcat.cli.ui.theme import ROLES, make_console

FEWEST = "24"


def longcat_demo(*arguments: str) -> Result:
    runner = CliRunner()
    return runner.invoke(demo.app, ["speculative", *arguments], env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def walk() -> SpeculativeDemo:
    """A run, finished."""
    walk = SpeculativeDemo(steps=int(FEWEST))
    *_, _ = walk.frames()
    return walk


def replayed(walk: SpeculativeDemo, *, ascii_only: bool = False, colour: bool = False) -> str:
    """The whole page of a run, as a pipe or a terminal gets it."""
    out = io.StringIO()
    console = make_console(file=out, width=80, ascii_only=ascii_only)
    if colour:
        console._force_terminal, console._color_system = True, ColorSystem.TRUECOLOR
    page.replay(walk, console, page.Outcome(frame=walk.last_frame))
    return out.getvalue()


def test_the_claims_hold_and_the_page_tells_drafts_apart_with_colour_and_without(
    walk: SpeculativeDemo,
) -> None:
    shown = replayed(walk)
    parts = ("report, sections 2.4 and 5", "Predict", "refused", "+ drafted, accepted",
             "faulty: replaced from p", "measured", "Answer", "serve/speculation.py:",
             "longcat tutorial 10")  # fmt: skip
    places = [shown.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    assert "✓ the claim holds" in shown
    assert "✗" not in shown
    assert max(cell_len(line) for line in shown.splitlines()) <= 80
    ledger = shown[: shown.index("+ drafted, accepted")].splitlines()[-8:-1]
    assert any(line.strip().startswith("+") for line in ledger)
    assert any("-" in line and "=" in line for line in ledger)
    assert "\x1b" not in shown
    assert replayed(walk, ascii_only=True).isascii()
    coloured = replayed(walk, colour=True)
    for role in ("good", "bad", "net"):
        red, green, blue = (int(ROLES[role][i : i + 2], 16) for i in (1, 3, 5))
        assert f"38;2;{red};{green};{blue}m" in coloured, role

    document = json.loads(json.dumps(walk.summary()))
    for g in (1, 2, 3):
        row = document["drafts"][str(g)]
        assert len(row["acceptance"]) == g
        # The pass that ends a text may be cut, and then counts none of its g drafts.
        cut = g * walk._drafting.cut_passes(g)
        assert row["tokens_per_pass"] == pytest.approx(1 + sum(row["acceptance"]), abs=cut)
    assert document["drafts"]["3"]["tokens_per_pass"] > 1.2


def test_a_decoding_that_takes_drafts_on_trust_exits_with_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def trusting(self: Watched, drafts: list[int], chosen: list[int]) -> int:
        chosen[: len(drafts)] = drafts
        return len(drafts)

    monkeypatch.setattr(Watched, "_accept", trusting, raising=False)
    result = longcat_demo("--json", "--steps", FEWEST)
    failed = [v["claim"] for v in json.loads(result.stdout)["verdicts"] if not v["holds"]]
    assert result.exit_code == 1
    assert "drafts change no text" in failed


def test_a_faulty_rule_that_is_called_sound_fails_its_verdict() -> None:
    rule = next(rule for rule in RULES if rule.name == "faulty: replaced from p")
    sound = Rule(name=rule.name, faulty=False, apply=rule.apply)
    walk = SpeculativeDemo(steps=int(FEWEST), rules=(*RULES[:3], sound, *RULES[3:5]))
    for prompt in range(len(drafts.PROMPTS)):
        for g in (0, 1):
            walk._drafting.finish(prompt, g, walk._drafting.start(prompt, g))
    walk._measure()
    held = {verdict.claim: verdict.holds for verdict in walk.verdicts()}
    assert not held["sound rules keep the distribution"]
    assert held["faulty rules bend it"]


def test_too_few_tokens_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="at least 24 tokens to be judged; got 5"):
        SpeculativeDemo(steps=5)
