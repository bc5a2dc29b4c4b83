"""Claims about `longcat demo`: what it shows, and that its exit code is a verdict."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.cells import cell_len
from rich.console import RenderableType
from torch import Tensor
from typer.testing import CliRunner, Result

from longcat.cli import demo
from longcat.cli.demos import laws
from longcat.cli.demos.router import RouterDemo
from longcat.cli.ui import page
from longcat.cli.ui.keys import Stopped
from longcat.cli.ui.page import Page, Question, Verdict
from longcat.router import BiasController

STEPS = 200


def longcat_demo(*arguments: str) -> Result:
    return CliRunner().invoke(demo.app, list(arguments), env={"COLUMNS": "100"})


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """One run of the router demo and its recording."""
    svg = tmp_path_factory.mktemp("demo") / "router.svg"
    arguments = ["router", "--no-pause", "--seed", "0", "--steps", str(STEPS)]
    return longcat_demo(*arguments, "--record", str(svg)), svg


def test_the_published_law_holds_the_target_and_the_demo_exits_with_0(
    shown: tuple[Result, Path],
) -> None:
    result, _ = shown
    assert result.exit_code == 0
    assert "✓ the claim holds" in result.stdout
    assert "✗" not in result.stdout


def test_the_page_has_claim_prediction_run_verdict_and_reading(shown: tuple[Result, Path]) -> None:
    text = shown[0].stdout
    parts = (
        "Zero-computation experts",
        "Δb_i = μ e_i",
        "report, section 2.1.1, equation 2",
        "Predict",
        "load, law I",
        "The cat sat on the mat",
        "heaviest load",
        "8 = K_e",
        "measured",
        "Answer",
        "longcat/router/controller.py:",
        "longcat tutorial 01",
    )
    places = [text.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)


def test_off_a_terminal_only_the_last_frame_is_printed(shown: tuple[Result, Path]) -> None:
    text = shown[0].stdout
    assert re.findall(r"step +(\d+) of", text) == [str(STEPS)]
    assert "\x1b" not in text
    assert max(cell_len(line) for line in text.splitlines()) <= 100


def test_the_table_tells_the_laws_apart(shown: tuple[Result, Path]) -> None:
    rows = {
        line.split()[0]: line.split()[-3:]
        for line in shown[0].stdout.splitlines()
        if re.match(r"  (I|P|PD|uniform) +Δ?b = ", line)
    }
    assert set(rows) == {"I", "P", "PD", "uniform"}
    assert float(rows["I"][1]) == pytest.approx(3.0, rel=0.01)
    assert float(rows["uniform"][1]) == pytest.approx(2.0, rel=0.01)
    assert float(rows["P"][1]) < 2.9
    assert float(rows["PD"][2]) > 1.5
    assert [rows[name][0] for name in ("P", "PD", "uniform")] == ["never"] * 3


def test_the_recording_is_a_self_contained_svg(shown: tuple[Result, Path]) -> None:
    svg = shown[1].read_text()
    assert svg.startswith("<svg")
    assert "the&#160;claim&#160;holds" in svg
    fetched = re.sub(r"<!--.*?-->|xmlns=\"[^\"]*\"", "", svg, flags=re.DOTALL)
    assert "http" not in fetched
    assert "@font-face" not in fetched


def test_json_is_one_document_that_agrees_with_the_exit_code() -> None:
    result = longcat_demo("router", "--json", "--steps", "60")
    document = json.loads(result.stdout)
    assert document["holds"] is False, "60 steps are too few"
    assert result.exit_code == 1
    assert document["laws"]["I"]["steps_to_target"] is None
    assert document["activated_parameters_billion"]["mean"] == pytest.approx(27.15, abs=0.01)


def test_ascii_output_is_ascii() -> None:
    result = longcat_demo("router", "--no-pause", "--ascii", "--steps", "40")
    assert result.stdout.isascii()
    assert "FAIL the claim fails" in result.stdout


def centred(controller: BiasController, bias: Tensor, counts: Tensor) -> Tensor:
    """The controller with the FFN biases centred: loads even out, K_e is never reached."""
    n = controller.router.n_routed_experts
    moved = bias + controller.mu * controller.expert_error(counts).to(bias.dtype)
    moved[:, :n] -= moved[:, :n].mean()
    return moved


def asleep(controller: BiasController, bias: Tensor, counts: Tensor) -> Tensor:
    """The controller that does nothing."""
    return bias


@pytest.mark.parametrize("mutant", [centred, asleep])
def test_a_crippled_controller_makes_the_demo_exit_with_1(
    mutant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BiasController, "update", mutant)
    result = longcat_demo("router", "--json", "--steps", str(STEPS))
    assert result.exit_code == 1
    verdict = json.loads(result.stdout)["verdicts"][0]
    assert verdict["claim"] == "law I holds K_e"
    assert verdict["holds"] is False


def test_a_law_with_a_uniform_target_cannot_pass_for_the_published_one() -> None:
    mutants = (laws.LAWS[3], *laws.LAWS[1:])
    run = RouterDemo(seed=1, steps=STEPS, laws=mutants)
    for _ in run.frames():
        pass
    assert [verdict.holds for verdict in run.verdicts()] == [False, True, True, True]


def test_the_shape_tells_the_target_from_the_uniform_share() -> None:
    shape = laws.SHAPE
    share = shape.n_routed_experts / shape.n_experts
    assert shape.target_ffn / shape.top_k != share
    assert 8 / 12 == 512 / 768, "at the released shape the two agree, and a wrong law passes"


def test_the_error_history_starts_at_zero() -> None:
    for trial in laws.Experiment(0).trials:
        assert torch.count_nonzero(trial.router.e_score_correction_bias) == 0
        assert torch.count_nonzero(trial.controller.error) == 0


def test_the_same_seed_gives_the_same_run() -> None:
    def measured(seed: int) -> list[float]:
        experiment = laws.Experiment(seed)
        for _ in range(3):
            experiment.step()
        return [trial.ffn_mean[-1] for trial in experiment.trials]

    assert measured(5) == measured(5) != measured(6)


def test_too_few_steps_are_refused_with_a_sentence() -> None:
    with pytest.raises(ValueError, match="at least 40 steps to be judged; got 39"):
        RouterDemo(steps=39)


def test_a_recording_without_a_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    result = longcat_demo("router", "--record", str(tmp_path / "missing" / "out.svg"))
    assert result.exit_code == 2
    assert "there is no folder" in result.stderr
    assert result.stdout == ""


class Toy:
    """A walkthrough that costs nothing."""

    def __init__(self, holds: bool, trouble: BaseException | None = None) -> None:
        self.holds, self.trouble = holds, trouble
        self.page = Page(
            name="toy",
            title="A toy",
            claim="It holds.",
            formula=(),
            source="",
            question=Question(text="?", options={"a": "yes"}, answer="a", reason=""),
            read_next={"here": "x.py:1"},
        )

    def frames(self) -> Iterator[RenderableType]:
        yield "first frame"
        if self.trouble is not None:
            raise self.trouble
        yield "last frame"

    def details(self) -> RenderableType:
        return "details"

    def verdicts(self) -> list[Verdict]:
        return [Verdict(claim="it holds", measured="1", published="1", holds=self.holds)]

    def summary(self) -> dict[str, object]:
        return {"value": 1}


def use(monkeypatch: pytest.MonkeyPatch, *toys: page.Walkthrough) -> None:
    table = {f"toy{i}": lambda seed, steps, toy=toy: toy for i, toy in enumerate(toys)}
    monkeypatch.setattr(demo, "DEMOS", table)


@pytest.mark.parametrize(("second", "code"), [(True, 0), (False, 1)])
def test_all_runs_every_demo_and_fails_when_one_does(
    second: bool, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Toy(True), Toy(second), Toy(True))
    result = longcat_demo("all", "--no-pause")
    assert result.exit_code == code
    assert result.stdout.count("last frame") == 3
    assert "first frame" not in result.stdout
    document = json.loads(longcat_demo("all", "--json").stdout)
    assert document["holds"] is second
    assert len(document["demos"]) == 3


@pytest.mark.parametrize(("trouble", "code"), [(Stopped(), 0), (KeyboardInterrupt(), 130)])
def test_stopping_is_quiet(
    trouble: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Toy(True, trouble))
    result = longcat_demo("all", "--no-pause")
    assert result.exit_code == code
    assert "stopped" in result.stdout
    assert "Traceback" not in result.output
