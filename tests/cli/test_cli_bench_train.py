"""Claims about `longcat bench train`: the same work in turns, memory, where the time goes."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from longcat.cli import main
from longcat.cli.benchmarks import comparison, memory, shares, timing, train
from longcat.cli.benchmarks.apart import Apart
from longcat.flash import FlashConfig, FlashModel


class Near(contextlib.nullcontext[Any]):
    """An Apart in this process: starting one takes seconds."""

    def __init__(self, form: train.Form, config: FlashConfig, directory: str) -> None:
        super().__init__(self)
        self.step = train.Step(form.load(directory), form, config.vocab_size)

    def loss(self) -> float:
        with torch.no_grad():
            ids = train.batch(self.step.vocab_size, torch.Generator().manual_seed(1))
            return float(self.step.loss(ids))

    def turn(self) -> tuple[float, float]:
        return timing.sample(self.step)

    def shares(self) -> dict[str, float]:
        return shares.shares(self.step)


@pytest.fixture
def toy_steps(monkeypatch: pytest.MonkeyPatch) -> FlashConfig:
    config = FlashConfig.preset(
        "nano", num_nextn_predict_layers=0, vocab_size=96, hidden_size=64, num_layers=1
    )
    monkeypatch.setattr(train, "shapes", lambda: {"toy": config})
    monkeypatch.setattr(train, "BATCH", 2)
    monkeypatch.setattr(train, "TOKENS", 16)
    monkeypatch.setattr(train, "SIZE", 64)
    monkeypatch.setattr(memory, "peak_bytes", lambda form, config: 5_000_000)
    monkeypatch.setattr(comparison, "Apart", Near)
    return config


@pytest.fixture(scope="module")
def transformers_5() -> None:
    pytest.importorskip("transformers", minversion="5.0")


@pytest.mark.usefixtures("toy_steps", "transformers_5")
def test_a_step_is_compared_with_transformers_in_both_precisions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["bench", "train", "--rounds", "3", "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    text = (tmp_path / "train-cpu.json").read_text(encoding="utf-8")
    assert json.loads(text) == printed
    assert str(tmp_path) not in text
    assert "transformers" in printed["versions"]
    single = [row for row in printed["rows"] if row["precision"] == "float32"]
    assert [row["form"] for row in single] == ["longcat", "transformers"]
    half = [row for row in printed["rows"] if row["precision"] == "bfloat16"]
    assert len(half) == 3
    # The ratio is taken against the faster of theirs, whose own ratio is 1.
    assert max(row["x_transformers"] for row in half[1:]) == 1.0
    fastest = min(row["s"] for row in half[1:])
    assert half[0]["x_transformers"] == pytest.approx(fastest / half[0]["s"], rel=1e-2)
    assert half[0]["tokens/s"] == pytest.approx(2 * 16 / half[0]["s"], rel=1e-2)
    peak = max(row["GFLOP/s"] for row in printed["peaks"] if row["precision"] == "float32")
    assert single[0]["%_of_peak"] == pytest.approx(100 * single[0]["GFLOP/s"] / peak, rel=1e-2)
    assert single[0]["peak_MB"] == 5.0
    for precision, row in (("float32", single[0]), ("bfloat16", half[0])):
        parts = [part for part in printed["shares"] if part["precision"] == precision]
        assert sum(part["share_%"] for part in parts) == pytest.approx(100, abs=0.1)
        products = parts[0]
        assert products["kind"] == "matrix products"
        if products["share_%"]:
            limit = 100 * row["%_of_peak"] / products["share_%"]
            assert products["%_of_peak"] == pytest.approx(limit, rel=1e-2)


def test_a_steps_time_falls_to_the_kinds_of_its_operations() -> None:
    big = torch.ones(400, 400)
    copied = torch.empty(400, 400)
    products = shares.shares(lambda: [big @ big for _ in range(20)])
    copies = shares.shares(lambda: [copied.copy_(big) for _ in range(200)])
    for found, most in ((products, shares.PRODUCTS), (copies, "copies, casts, rows moved")):
        assert sum(found.values()) == pytest.approx(100)
        assert max(list(found)[:-1], key=found.__getitem__) == most


@pytest.mark.usefixtures("toy_steps")
def test_without_transformers_one_sentence_and_our_own_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> str:
        raise train.PackageNotFoundError(name)

    monkeypatch.setattr(train, "version", absent)
    assert main.main(["bench", "train", "--rounds", "3", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("transformers") == 2  # what is needed, and how to get it
    assert "longcat, autocast" in shown.out
    assert "x theirs" not in shown.out
    rows = json.loads((tmp_path / "train-cpu.json").read_text(encoding="utf-8"))["rows"]
    assert [row["form"] for row in rows] == ["longcat", "longcat, autocast"]


@pytest.mark.usefixtures("toy_steps")
def test_recomputation_is_measured_against_keeping_everything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = train.shapes()["toy"]
    monkeypatch.setattr(train, "shapes", lambda: {"bench": toy})
    held = {"none": 8_000_000, "layer": 4_000_000, "layer-reentrant": 2_000_000}
    monkeypatch.setattr(memory, "peak_bytes", lambda form, config: held[form.recompute])
    assert main.main(["bench", "recompute", "--rounds", "3", "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "recompute-cpu.json").read_text(encoding="utf-8")) == printed
    for precision in ("float32", "bfloat16"):
        rows = [row for row in printed["rows"] if row["precision"] == precision]
        assert [row["form"] for row in rows] == list(held)
        assert [row["x_memory"] for row in rows] == [1.0, 0.5, 0.25]
        assert rows[1]["x_time"] == pytest.approx(rows[1]["s"] / rows[0]["s"], rel=1e-2)


@pytest.mark.usefixtures("transformers_5")
def test_models_that_compute_different_losses_are_not_timed(
    toy_steps: FlashConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = train.Form.load

    def mutant(form: train.Form, directory: str) -> torch.nn.Module:
        model = honest(form, directory)
        if form.ours:
            with torch.no_grad():
                model.get_parameter("model.norm.weight").mul_(1.05)
        return model

    monkeypatch.setattr(train.Form, "load", mutant)
    with pytest.raises(ValueError, match="the same loss from the same weights"):
        comparison.compare(toy_steps, "float32", 3, with_theirs=True)


def test_model_operations_are_the_multiplications_that_a_token_needs(
    toy_steps: FlashConfig,
) -> None:
    model = FlashModel(toy_steps, seed=0)
    used: list[float] = []

    def count(module: torch.nn.Module, operands: tuple[torch.Tensor, ...]) -> None:
        weights = [weight[0].numel() for weight in module.parameters()]
        if isinstance(module, torch.nn.Linear):
            used.append(operands[0].numel() * module.out_features)
        else:  # stacked experts: every row goes through one of them
            used.append(operands[0].shape[0] * sum(weights))

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) or name.endswith("experts"):
            module.register_forward_pre_hook(count)
    stated = train.model_operations(toy_steps, model)
    a = toy_steps.attention
    pairs = 2 * 2 * a.num_heads * (16 * 17 / 2)
    router = toy_steps.router.n_experts * toy_steps.hidden_size * 2 * 16
    counted = 6 * (sum(used) + router * (not any(u == router for u in used)))
    counted += 6 * pairs * (a.qk_head_dim + a.v_head_dim)
    assert stated == pytest.approx(counted, rel=0.02)  # the norms' weights are among `stated`


def test_both_models_see_the_same_batches(toy_steps: FlashConfig) -> None:
    forms = train.forms("float32", compare=False)
    made = [train.Step(forms["longcat"].build(toy_steps), forms["longcat"], 96) for _ in range(2)]
    assert made[0]() == made[1]()
    first, second = (train.batch(96, made[0].generator) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_a_step_apart_is_the_step_here(tmp_path: Path) -> None:
    config = FlashConfig.preset("nano", num_nextn_predict_layers=0)
    form = train.forms("float32", compare=False)["longcat"]
    FlashModel(config, seed=0).save_pretrained(tmp_path, format="transformers5")
    with Apart(form, config, str(tmp_path)) as step:
        assert step.loss() == Near(form, config, str(tmp_path)).loss()
        wall, cpu = step.turn()
        assert wall > 0
        assert cpu > 0
        assert sum(step.shares().values()) == pytest.approx(100)


@pytest.mark.slow
def test_the_peak_of_a_larger_model_is_larger() -> None:
    form = train.forms("float32", compare=False)["longcat"]
    sizes = [
        memory.peak_bytes(form, FlashConfig.preset("nano", num_nextn_predict_layers=0, **more))
        for more in ({}, {"vocab_size": 32768})
    ]
    # 2 x 30,720 more rows of 128 float32, held four times: weight, gradient, two moments.
    assert sizes[1] - sizes[0] > 2 * 30_720 * 128 * 4 * 4


def test_the_text_beside_the_figures_names_the_batch() -> None:
    assert f"{train.BATCH} x {train.TOKENS} tokens" in comparison.STEP
    assert f"{train.SIZE} x {train.SIZE}" in comparison.PEAK
