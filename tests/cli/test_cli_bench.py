"""Claims about `longcat bench`: turns, the same work, what is written beside a number, refusals."""

import contextlib
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longcat.cli import main
from longcat.cli.benchmarks import comparison, kernels, memory, timing, train
from longcat.cli.benchmarks.apart import Apart
from longcat.flash import FlashConfig, FlashModel


def spin(seconds: float) -> Callable[[], object]:
    def run() -> object:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return None

    return run


@pytest.fixture
def one_small_case(monkeypatch: pytest.MonkeyPatch) -> None:
    case = kernels.Case(
        op="spin",
        shape="4 float32",
        forms={"naive": spin(0.004), "ours": spin(0.001)},
        bytes=4e6,
        flops=8e6,
    )
    monkeypatch.setattr(kernels, "cases", lambda device: iter([case]))


@pytest.mark.usefixtures("one_small_case")
def test_the_file_holds_the_figures_and_the_machine_but_not_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "results"
    assert main.main(["bench", "kernels", "--rounds", "3", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    text = (out / "kernels-cpu.json").read_text(encoding="utf-8")
    assert json.loads(text) == printed
    assert [row["form"] for row in printed["rows"]] == ["naive", "ours"]
    naive, ours = printed["rows"]
    assert naive["x_naive"] == 1.0
    assert ours["x_naive"] > 1.5
    assert ours["GB/s"] == pytest.approx(4e6 / ours["us"] / 1e3, rel=1e-2)
    assert {"date", "command", "hardware", "versions", "load", "seconds"} <= set(printed)
    assert printed["hardware"]["threads"] == 1
    assert str(tmp_path) not in text
    assert platform.node() not in text
    assert [path.name for path in out.iterdir()] == ["kernels-cpu.json"]


@pytest.mark.usefixtures("one_small_case")
def test_without_json_a_table_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "kernels", "--rounds", "3", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for word in ("shape", "us", "GB/s", "GFLOP/s", "x naive", "spin, 4 float32", "load"):
        assert word in shown


def test_forms_take_turns() -> None:
    calls: list[str] = []
    forms = {name: (lambda name=name: (calls.append(name), time.sleep(0.01))) for name in "ab"}
    timing.interleaved(forms, rounds=4, device="cpu")
    assert "".join(calls[-8:]) == "abababab"


def test_without_a_cuda_device_the_answer_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "results"
    assert main.main(["bench", "kernels", "--device", "cuda", "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "needs a CUDA device" in shown.err
    assert shown.err.count("\n") == 1
    assert not out.exists()


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 rounds, got 2"):
        timing.interleaved({"a": lambda: None}, rounds=2, device="cpu")


def test_threads_are_restored_after_a_failure() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with timing.pinned_threads(before + 1):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.get_num_threads() == before


def test_every_case_computes_the_same_in_each_of_its_forms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "TOKENS", 8)
    monkeypatch.setattr(kernels, "CONTEXT", 12)
    seen = 0
    for case in kernels.cases("cpu"):
        if "bfloat16" in case.shape or "D=512" in case.shape:
            continue
        naive, *others = (form() for form in case.forms.values())
        for other in others:
            pairs = zip(naive, other, strict=True) if isinstance(naive, tuple) else [(naive, other)]
            for want, got in pairs:
                assert torch.allclose(got, want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))
        seen += 1
    assert seen >= 6


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
