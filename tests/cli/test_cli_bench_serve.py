"""Claims about `longcat bench serve`: the same work, counted right, and drafts at a chosen rate."""

import json
from pathlib import Path

import pytest

from longcat.cli import main
from longcat.cli.benchmarks.serve import (
    batching,
    decode,
    drafts,
    parts,
    precision,
    prefill,
    shapes,
)
from longcat.cli.benchmarks.serve.forms import FreshPrompts, Ours, check_alike, contestants
from longcat.cli.benchmarks.serve.replayed import Replayed
from longcat.flash import FlashConfig, FlashModel
from longcat.flash.operations import causal_pairs, training_operations

TOY = FlashConfig.preset("nano", vocab_size=256, hidden_size=64, num_layers=1)
COUNT = 24


@pytest.fixture(scope="module")
def toy() -> FlashModel:
    return FlashModel(TOY, seed=0).eval()


def test_nothing_is_timed_of_models_that_say_different_things(toy: FlashModel) -> None:
    prompts = FreshPrompts(TOY.vocab_size)(5)
    check_alike({"a": Ours(toy), "b": Ours(toy)}, prompts)
    other = FlashModel(TOY, seed=1).eval()
    with pytest.raises(ValueError, match="must continue a prompt alike"):
        check_alike({"a": Ours(toy), "b": Ours(other)}, prompts)


def test_weights_of_8_bits_are_half_of_what_a_pass_reads_and_go_on_alike() -> None:
    read = {}
    for kept_in in ("bfloat16", "int8"):
        model, forms = contestants(TOY, kept_in, compare=False)
        read[kept_in] = shapes.touched_bytes(model, 1.0)
        assert len(forms["longcat"](FreshPrompts(TOY.vocab_size)(5), [4])[0]) == 4
    kept = 2 * sum(  # the head, norms, the router and kv_b_proj stay as they are
        p.numel()
        for name, p in model.named_parameters()
        if ".mtp." not in name and "embed_tokens" not in name
    )
    assert read["int8"] - kept == pytest.approx((read["bfloat16"] - kept) / 2, rel=0.05)


def test_the_number_of_drafts_that_is_chosen_is_beside_the_best_fixed_one(
    toy: FlashModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "TOKENS", 8)
    monkeypatch.setattr(drafts, "BATCHES", (1,))
    prompts = FreshPrompts(TOY.vocab_size)(6)
    case = drafts.Case(name="toy", text="", model=Replayed(toy, 0.8), prompts=prompts)
    rows = drafts.measure(case, 3)
    fixed = [float(row["%_behind_best"]) for row in rows if row["drafts"] != "chosen"]
    assert min(fixed) == 0.0
    assert max(fixed) > 0.0


def test_replayed_drafts_change_no_token(toy: FlashModel) -> None:
    prompts = FreshPrompts(TOY.vocab_size)(6, 3)
    model = Replayed(toy, 0.8)
    plain = Ours(model)(prompts, [COUNT, 9])
    assert len(set(plain[0])) == COUNT, "the walk visits every token before it repeats one"
    assert Ours(model, drafts=3)(prompts, [COUNT, 9]) == plain


@pytest.mark.parametrize(("rate", "low", "high"), [(0.0, 0, 0), (0.8, 0.55, 0.99), (1.0, 1, 1)])
def test_replayed_drafts_are_right_at_the_rate_asked_for(
    toy: FlashModel, rate: float, low: float, high: float
) -> None:
    run = Ours(Replayed(toy, rate), drafts=1)
    run(FreshPrompts(TOY.vocab_size)(9), [COUNT])
    assert low <= run.engine.stats().acceptance <= high


def test_experts_are_counted_once_per_token_and_once_per_pass(toy: FlashModel) -> None:
    with shapes.ExpertCount(toy) as counted:
        Ours(toy)(FreshPrompts(TOY.vocab_size)(12, 12), [3, 3])
    prefill, *passes = counted.passes
    assert len(passes) == 2
    top_k, layers = TOY.router.top_k, len(toy.model.layers)
    assert 24 < prefill.slots <= 24 * top_k * layers
    for one in passes:
        assert 0 < one.unique <= min(one.slots, TOY.router.n_routed_experts * layers)
        assert one.slots <= 2 * top_k * layers


def test_a_pass_that_uses_every_expert_reads_all_weights_but_embedding_and_head(
    toy: FlashModel,
) -> None:
    every = TOY.router.n_routed_experts * len(toy.model.layers)
    left_out = [
        p
        for name, p in toy.named_parameters()
        if ".mtp." in name or name == "model.embed_tokens.weight"
    ]
    total = sum(4 * p.numel() for p in toy.parameters())
    assert shapes.touched_bytes(toy, every) == total - sum(4 * p.numel() for p in left_out)
    assert shapes.touched_bytes(toy, 0) < shapes.touched_bytes(toy, every)


def test_a_prompt_is_worth_a_third_of_a_training_step_less_unwanted_logits() -> None:
    step = training_operations(
        TOY, tokens=7, pairs=causal_pairs(1, 7), ffn_slots=20, draft_head=False
    )
    unwanted = 2 * TOY.vocab_size * TOY.hidden_size * 6
    assert shapes.prefill_operations(TOY, 7, 20) == pytest.approx(step / 3 - unwanted)


def test_prompts_that_begin_alike_find_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "PROMPT", 64)
    monkeypatch.setattr(batching, "SHARED", 48)
    cold, hit = batching.measure_prefix("toy", TOY, 3)
    assert (cold["form"], cold["x_cold"]) == ("cold", 1.0)
    assert hit["form"] == "hit"


def test_a_part_measured_anew_takes_the_place_of_its_own_tables_alone() -> None:
    header = {"hardware": {"cpu": "a"}, "versions": {"torch": "2"}}
    before = {**header, "decode": [{"ms": 1.0}], "bandwidth": [{"x": 1.0}], "ragged": [{"s": 1.0}]}
    rows: parts.Tables = {"decode": [{"ms": 2.0}], "bandwidth": [{"x": 2.0}]}
    kept = parts.merged(before, header, "decode", rows)
    assert kept == {**rows, "ragged": [{"s": 1.0}]}
    # What another machine, or another version, has measured is no part of the same document.
    for name in header:
        assert parts.merged(before, {**header, name: {}}, "decode", rows) == rows
    assert parts.merged({}, header, "decode", rows) == rows


def test_rows_measured_anew_take_the_places_of_those_of_their_model_and_precision() -> None:
    def row(model: str, precision: str, ms: float) -> dict[str, str | float]:
        return {"model": model, "precision": precision, "ms": ms}

    header = {"hardware": {"cpu": "a"}, "versions": {"torch": "2"}}
    old = [row("a", "float32", 1.0), row("a", "float32", 2.0), row("b", "float32", 3.0)]
    new = [row("a", "float32", 4.0), row("c", "bfloat16", 5.0)]
    rows: parts.Tables = {"decode": new, "bandwidth": []}
    kept = parts.merged({**header, "decode": old}, header, "decode", rows)
    assert kept["decode"] == [new[0], old[2], new[1]]
    assert parts.merged({"decode": old}, header, "decode", rows)["decode"] == new


def test_rows_are_named_by_words_of_their_model_and_precision() -> None:
    assert parts.chosen([], "bench float32") == ["prefill", "decode", "ragged", "prefix"]
    assert parts.chosen([], "nano") == ["drafts", "quality"]
    assert parts.chosen(["decode"], "bfloat16") == ["decode"]
    assert parts.chosen([], "int8") == ["decode", "quality"]
    assert parts.chosen([], "nano-bytes") == ["drafts"]
    for words in ("benc", "nano bench", "float32 bfloat16"):
        with pytest.raises(ValueError, match=f"--rows '{words}' fits no row of prefill"):
            parts.chosen([], words)


def test_a_part_that_there_is_not_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "serve", "--only", "everything", "--out", str(tmp_path / "new")]
    assert main.main(arguments) == 2
    assert "there are prefill, decode, ragged" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_one_part_alone_is_measured_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shapes, "shapes", lambda: {"toy": TOY})
    monkeypatch.setattr(batching, "PROMPT", 64)
    monkeypatch.setattr(batching, "SHARED", 48)
    arguments = ["bench", "serve", "--only", "prefix", "--rounds", "3", "--out", str(tmp_path)]
    assert main.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "x cold" in shown
    assert "3 rounds" in shown
    kept = json.loads((tmp_path / "serve-cpu.json").read_text(encoding="utf-8"))
    assert [row["form"] for row in kept["prefix"]] == ["cold", "hit"]
    assert "decode" not in kept


@pytest.mark.slow
def test_the_whole_document_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", minversion="5.0")
    monkeypatch.setattr(shapes, "shapes", lambda: {"toy": TOY})
    for module, name, value in (
        (prefill, "PROMPTS", (16,)),
        (prefill, "PRODUCT", 64),
        (decode, "TOKENS", 3),
        (decode, "SIDE", 64),
        (decode, "BATCHES", (1, 2)),
        (drafts, "TOKENS", 8),
        (drafts, "BATCHES", (1, 2)),
        (batching, "ASKED", (5, 9)),
        (batching, "ANSWERED", (3, 2)),
        (batching, "PROMPT", 64),
        (batching, "SHARED", 48),
        (precision, "BYTES", 2000),
    ):
        monkeypatch.setattr(module, name, value)
    assert main.main(["bench", "serve", "--rounds", "3", "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "serve-cpu.json").read_text(encoding="utf-8")) == printed
    assert set(printed["measured"]) == set(parts.TABLES)
    for table in (
        "peak",
        "bandwidth",
        "prefill",
        "decode",
        "ragged",
        "prefix",
        "drafts",
        "quality",
    ):
        assert printed[table]
    for table in ("prefill", "decode", "ragged"):
        ours, theirs = printed[table][:2]
        assert (ours["form"], theirs["form"], theirs["x_transformers"]) == (
            "longcat",
            "transformers",
            1.0,
        )
    half, single = printed["quality"][1], printed["quality"][0]
    assert abs(half["bits_per_byte"] - single["bits_per_byte"]) < 0.05
