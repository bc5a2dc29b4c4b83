"""Claims about `longcat demo optimisation` and `longcat demo growth`: verdicts that can fail."""

import json
import sys

import pytest
import torch
from rich.cells import cell_len
from typer.testing import CliRunner, Result

import longcat.train.growth
import longcat.train.step
import longcat.train.trainer
from longcat.cli import demo
from longcat.cli.demos import growth, toy
from longcat.cli.demos.growth import GrowthDemo
from longcat.cli.demos.optimisation import OptimisationDemo
from longcat.cli.demos.scales import grown_trainer, is_stacked
from longcat.optim import adamw, transfer

FEWEST = {"optimisation": 20, "growth": 24}
TUTORIAL = {"optimisation": "06", "growth": "07"}


def longcat_demo(*arguments: str) -> Result:
    return CliRunner().invoke(demo.app, list(arguments), env={"COLUMNS": "80"})


def verdicts(result: Result) -> dict[str, bool]:
    """Claim -> whether it holds."""
    return {v["claim"]: v["holds"] for v in json.loads(result.stdout)["verdicts"]}


@pytest.fixture(scope="module", params=FEWEST)
def shown(request: pytest.FixtureRequest) -> tuple[str, Result]:
    """One run of each demo, as short as it may be."""
    name = request.param
    return name, longcat_demo(name, "--no-pause", "--steps", str(FEWEST[name]))


def test_the_claims_hold_and_the_page_is_whole(shown: tuple[str, Result]) -> None:
    name, result = shown
    assert result.exit_code == 0, result.output
    parts = (
        "LongCat-Flash report, section",
        "Predict",
        "measured",
        "Answer",
        f"longcat tutorial {TUTORIAL[name]}",
    )
    places = [result.stdout.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    assert "✓ the claim holds" in result.stdout
    assert "✗" not in result.stdout
    assert "_contextlib" not in result.stdout  # a decorated function would be found there
    assert max(cell_len(line) for line in result.stdout.splitlines()) <= 80


def test_without_the_z_loss_the_demo_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(longcat.train.step, "hidden_z_loss", lambda z, weight, mask: 0 * z.sum())
    result = longcat_demo("optimisation", "--json", "--steps", "20")
    assert result.exit_code == 1
    failed = [claim for claim, holds in verdicts(result).items() if not holds]
    assert failed == ["the z-loss holds activations"]


def test_an_optimizer_with_a_fixed_epsilon_fails_the_epsilon_claims(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def deaf(model, **options):
        return adamw(model, **{**options, "eps": 1e-3})

    monkeypatch.setattr(longcat.train.trainer, "adamw", deaf)
    walk = OptimisationDemo(steps=20)
    *_, _ = walk.frames()
    held = {verdict.claim: verdict.holds for verdict in walk.verdicts()}
    assert not held["above it, worse and worse"]
    assert not held["the microscope sees it"]


def test_a_rate_that_is_not_divided_makes_the_growth_demo_exit_with_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The package's function of that name hides the module.
    module = sys.modules["longcat.optim.adamw"]
    monkeypatch.setattr(module, "learning_rate_factor", lambda role, ratio: 1.0)
    monkeypatch.setattr(growth, "RATES", growth.RATES[::2])
    result = longcat_demo("growth", "--json", "--steps", "24")
    assert result.exit_code == 1
    held = verdicts(result)
    assert not held["the rule evens out widths"]
    assert not held["the narrow model's rate serves"]
    assert held["layer j is layer j mod n"]
    assert transfer.learning_rate_factor("hidden", 4.0) == 0.25


def test_layers_repeated_in_place_are_not_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    def interleaved(names, num_layers, times):
        for name in names:
            for layer in range(num_layers):
                if f"model.layers.{layer}." in name:
                    for copy in range(times):
                        new = f"model.layers.{layer * times + copy}."
                        yield name.replace(f"model.layers.{layer}.", new), name
                    break
            else:
                yield name, name

    small = toy.tiny_trainer(16, 2, steps=2)
    small.train_step()
    assert is_stacked(grown_trainer(small, 2, 2).model, small.model)
    monkeypatch.setattr(longcat.train.growth, "stacked_names", interleaved)
    assert not is_stacked(grown_trainer(small, 2, 2).model, small.model)


def test_a_grown_trainer_carries_moments_controller_and_step() -> None:
    small = toy.tiny_trainer(16, 2, steps=3, decay=0.0)
    for _ in range(2):
        small.train_step()
    grown = grown_trainer(small, 2, 5)
    assert (grown.step, grown.settings.steps) == (2, 5)
    assert grown.learning_rate == pytest.approx(small.learning_rate)
    pairs = dict(grown.model.named_parameters())
    for name, parameter in small.model.named_parameters():
        deep = pairs[name.replace("layers.1.", "layers.3.")]
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(
                grown.optimizer.state[deep][key], small.optimizer.state[parameter][key]
            )
    assert torch.equal(grown.controller.error, torch.cat([small.controller.error] * 2))
    assert small.controller.error.any()


def test_the_text_has_eight_successors_and_the_token_before_picks_four() -> None:
    ids = toy.text(0)[:20_000]
    pairs: dict[int, set[int]] = {}
    triples: dict[tuple[int, int], set[int]] = {}
    for before, last, after in zip(ids, ids[1:], ids[2:], strict=False):
        pairs.setdefault(int(last), set()).add(int(after))
        triples.setdefault((int(before) % 2, int(last)), set()).add(int(after))
    assert max(map(len, pairs.values())) == 8
    assert max(map(len, triples.values())) == 4


@pytest.mark.parametrize(
    ("walk", "words"),
    [(OptimisationDemo, "at least 20 steps to be judged; got 3"), (GrowthDemo, "at least 24")],
)
def test_too_few_steps_are_refused_with_a_sentence(walk: type, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        walk(steps=3)
