"""Figures 6 to 10 of `longcat bench paper`: what they compare, and what they conclude from data."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longcat.cli.benchmarks.paper import (
    bench,
    drafting,
    figure_06,
    figure_07,
    figure_08,
    figure_09,
    figure_10,
    heat,
    page,
)
from longcat.cli.benchmarks.paper.figure import Arm, Scale
from longcat.cli.benchmarks.paper.results import Results
from longcat.cli.benchmarks.paper.text import Text, load_text
from longcat.cli.benchmarks.paper.training import Job
from longcat.train.corpus import Corpus, Document

TINY = Scale(name="quick", width=16, steps=8, vocab_size=280, batch_size=2, seq_len=8)
WIDE = replace(TINY, width=64)  # figure 6 halves the width and needs whole heads


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    lines = [
        f'def f{a}(x):\n    """{b}"""\n    return {a} + {b} * x\n'
        for a in range(20)
        for b in range(8)
    ]
    corpus = Corpus(
        train=(Document(name="t", text="".join(lines)),),
        held_out=(Document(name="h", text="".join(lines[::9])),),
        source="sums",
        licence="none",
    )
    work = tmp_path_factory.mktemp("text")
    return load_text(work, vocab_size=280, held_out_bytes=600, corpus=lambda: corpus)


def job(text: Text, arm: Arm, scale: Scale = TINY, seed: int = 0) -> Job:
    return Job(figure=0, arm=arm, seed=seed, scale=scale, text=text)


def made(figure: Any, text: Text, work: Path, scale: Scale = TINY) -> tuple[Results, str]:
    """The results of two seeds at the tiny scale, and the page that shows them."""
    runs = bench.Bench(figure, scale, 2, text=text, work=work, say=lambda _: None)
    document = bench.normal(runs.run())
    shown = page.render(figure, document)
    assert "nan" not in re.sub(r"<[^>]*>", "", shown).lower().split()
    return Results(document), shown


# --- 6: learning rates across widths


@pytest.mark.parametrize("bottom", [5e-3, 8e-3, 1.3e-2])
def test_the_optimum_of_a_parabola_in_the_logarithm_is_found(bottom: float) -> None:
    rates = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
    losses = {rate: 3 + 0.2 * math.log(rate / bottom) ** 2 for rate in rates}
    assert figure_06.optimum(losses) == pytest.approx(bottom, rel=1e-9)
    # Control: the best rate of the grid alone is another one.
    best = min(losses, key=lambda rate: losses[rate])
    assert bottom == 8e-3 or best != pytest.approx(bottom, rel=1e-3)


def test_at_an_end_of_the_grid_or_beside_a_diverged_run_the_optimum_is_of_the_grid() -> None:
    assert figure_06.optimum({1e-3: 3.0, 2e-3: 2.0, 4e-3: 1.0}) == 4e-3
    assert figure_06.optimum({1e-3: 3.0, 2e-3: 2.0, 4e-3: math.inf}) == 2e-3


def test_the_arms_follow_the_rule_or_leave_everything_as_at_the_proxy(text: Text) -> None:
    by_key = {(a.width, a.options["rule"]): a for a in figure_06.arms(WIDE)}
    assert [w for w, _ in by_key] == [32, 64, 64, 128, 128]
    for (width, rule), arm in by_key.items():
        config, settings = job(text, arm, WIDE).config(), job(text, arm, WIDE).settings()
        s = width / 32 if rule == figure_06.RULE else 1.0
        assert config.hidden_size == width
        assert config.initializer_range == pytest.approx(0.02 / math.sqrt(s))
        assert settings.width_ratio == s
        assert settings.lr == arm.options["rate"]


def basins(bottoms: dict[tuple[int, str], float], jitter: float = 0.02) -> Results:
    """Parabolas with these best rates, as figure 6 would have stored them."""
    arms, runs = [], []
    for (width, rule), bottom in bottoms.items():
        for rate in figure_06.RATES:
            name = f"{width} {rule} {rate}"
            options = {"rule": rule, "rate": rate}
            arms.append({"name": name, "width": width, "options": options})
            for seed in range(3):
                apart = jitter * (seed - 1) * (width > 32)
                loss = 3 + 0.2 * (math.log2(rate / bottom) + apart) ** 2
                runs.append({"arm": name, "seed": seed, "loss": loss})
    return Results({"arms": arms, "seeds": [0, 1, 2], "runs": runs})


def test_the_verdicts_tell_a_rule_that_holds_from_one_that_does_not() -> None:
    rule, same = figure_06.RULE, figure_06.SAME
    proxy = figure_06.RATES[-2]
    holds = {(32, rule): proxy, (128, rule): 1.1 * proxy, (128, same): proxy / 4}
    seen = figure_06.verdicts(basins(holds))
    assert [v.seen for v in seen] == [True, True, True]
    assert "0.25 times" in seen[1].text
    scattered = figure_06.verdicts(basins(holds, jitter=0.7))
    assert not scattered[0].seen  # near on average, but the seeds disagree
    broken = {(32, rule): proxy, (128, rule): proxy / 8, (128, same): proxy}
    assert [v.seen for v in figure_06.verdicts(basins(broken))] == [False, False, False]


# --- 7: identity experts


def test_fixed_top_k_arms_use_only_ffn_experts_and_as_many_as_the_target(text: Text) -> None:
    dynamic, fixed, more = (job(text, arm).config() for arm in figure_07.arms(TINY))
    assert dynamic.router.target_ffn == fixed.router.target_ffn == fixed.router.top_k == 4
    assert more.router.top_k == dynamic.router.top_k == 6
    assert fixed.router.zero_expert_num == more.router.zero_expert_num == 0
    assert {c.router.n_routed_experts for c in (dynamic, fixed, more)} == {16}


def test_figure_7_runs_and_its_compute_is_what_the_experts_cost(text: Text, tmp_path: Path) -> None:
    results, shown = made(figure_07.FIGURE, text, tmp_path)
    row = results.runs(figure_07.FIXED)[0]
    assert row["ffn_held_out"] == [4, 4]
    assert results.runs(figure_07.MORE)[0]["flops"] > row["flops"]
    assert shown.count("<svg") == 1
    uneven = {**results.document, "runs": [dict(r) for r in results.document["runs"]]}
    for run in uneven["runs"]:
        run["flops"] *= 1.1 if run["arm"] == figure_07.DYNAMIC else 1.0
    ratio = figure_07.compute_ratio(results)
    assert figure_07.compute_ratio(Results(uneven)) == pytest.approx(1.1 * ratio)
    assert not figure_07.verdicts(Results(uneven))[0].seen or ratio < 0.93


# --- 8: standard order


def test_both_orders_begin_with_equal_weights_and_compute_different_losses(
    text: Text, tmp_path: Path
) -> None:
    shortcut, standard = (job(text, arm).trainer() for arm in figure_08.arms(TINY))
    figure_08.in_standard_order(standard)
    ours, theirs = shortcut.model.state_dict(), standard.model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(a, theirs[name]) for name, a in ours.items())
    first = [trainer.train_step()["loss"] for trainer in (shortcut, standard)]
    assert first[0] != first[1]
    # The optimizer moves the parameters that the exchanged layers use.
    moved = standard.model.state_dict()["model.layers.1.mlp.experts.down_proj"]
    assert not torch.equal(
        moved,
        job(text, figure_08.arms(TINY)[1])
        .trainer()
        .model.state_dict()["model.layers.1.mlp.experts.down_proj"],
    )


@pytest.mark.parametrize(("gap", "seen"), [(0.001, True), (0.2, False)])
def test_figure_8_calls_small_gaps_none(gap: float, seen: bool) -> None:
    names = (figure_08.SHORTCUT, figure_08.STANDARD)
    runs = [
        {"arm": name, "seed": seed, "loss": 4.0 + gap * (name == names[0]) + 1e-4 * seed}
        for name in names
        for seed in range(3)
    ]
    arms = [{"name": name} for name in names]
    results = Results({"arms": arms, "seeds": [0, 1, 2], "runs": runs})
    assert [v.seen for v in figure_08.verdicts(results)] == [seen]


# --- 9: draft heads


def test_both_heads_draft_for_the_same_model(text: Text) -> None:
    bare = job(text, figure_09.arms(TINY)[0]).trainer().model
    ids = torch.arange(12)[None] + 10
    with torch.no_grad():
        plain = bare(ids).logits
        for kind in ("dense", "scmoe"):
            model = drafting.with_head(bare, kind, seed=3)
            assert model.config.mtp_layer == kind
            assert torch.equal(model(ids).logits, plain)
            assert model.mtp(model(ids).hidden, ids)[0].shape == plain.shape


def test_the_mixture_of_a_draft_head_is_held_at_its_target(
    text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    def used() -> float:
        bare = job(text, figure_09.arms(TINY)[0]).trainer().model
        model = drafting.with_head(bare, "scmoe", seed=0)
        head: Any = model.model.mtp
        head.layers[0].transformer_layer.mlp.router.e_score_correction_bias[:16] += 0.05
        with torch.no_grad(), drafting.HeldMixture(model) as holder:
            for _ in range(60):
                ids = torch.randint(4, 250, (8, 16))
                model.mtp(torch.randn(8, 16, 16), ids)
                holder.update()
        return holder.mean(last=20) or 0.0

    torch.manual_seed(0)
    assert used() == pytest.approx(4, rel=0.05)
    monkeypatch.setattr(drafting.BiasController, "update", lambda self, bias, counts: bias)
    assert used() > 5  # the control: left alone, the head keeps its bias


def test_a_dense_head_has_no_mixture_to_hold(text: Text) -> None:
    bare = job(text, figure_09.arms(TINY)[0]).trainer().model
    with drafting.HeldMixture(drafting.with_head(bare, "dense", seed=0)) as holder:
        holder.update()
    assert holder.mean(last=3) is None


def test_figure_9_runs_and_compares_drafts(
    text: Text, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("CONTEXT", 8), ("ROUNDS", 3), ("TEXTS", 1)):
        monkeypatch.setattr(drafting, name, value)
    few = {"teach_steps": 2, "prompts": 2, "new_tokens": 6}
    arms = [replace(a, options={**a.options, **few}) for a in figure_09.arms(TINY)]
    results, shown = made(replace(figure_09.FIGURE, arms=lambda _: arms), text, tmp_path)
    dense, scmoe = (results.runs(arm)[0] for arm in (figure_09.DENSE, figure_09.SCMOE))
    assert dense["loss"] == scmoe["loss"]  # one model, two heads
    assert scmoe["head_parameters"] > scmoe["head_activated"] > dense["head_activated"]
    assert dense["teaching"]["head_ffn_experts"] is None
    assert 0 <= dense["acceptance"] <= 1
    assert min(dense[f"ms_{name}"] for name in ("one", "two", "draft")) > 0
    assert len(figure_09.verdicts(results)) == 4
    assert figure_09.SCMOE in shown


# --- 10: heat-text


def test_a_passage_keeps_its_text_and_shades_by_count() -> None:
    pieces = ["if", " a<b", ":\n", "    ", "x"]
    shown = heat.passage(pieces, [0, 3, 6, 1, 6], most=6, caption="c & d")
    assert "\n" not in shown.removesuffix("\n")
    bare = re.sub(r"<figcaption>.*?</figcaption>|<[^>]*>", "", shown).removesuffix("\n")
    assert bare == "if a&lt;b:&#10;    x"
    assert "c &amp; d" in shown
    shares = [int(s) for s in re.findall(r"(\d+)%,transparent", shown)]
    assert shares == [0, 26, 80, 5, 80]
    assert re.findall(r'title="(\d)"', shown) == ["0", "3", "6", "1", "6"]
    with pytest.raises(ValueError, match="argument"):
        heat.passage(pieces, [1], most=6, caption="")


def test_figure_10_looks_three_times_at_the_same_passage(text: Text, tmp_path: Path) -> None:
    scale = replace(TINY, steps=5, held_out_bytes=300)
    results, shown = made(figure_10.FIGURE, text, tmp_path, scale)
    looks = results.runs(figure_10.NAME)[0]["looks"]
    assert [one["step"] for one in looks] == [1, 5, 10]
    assert looks[0]["passage"] == looks[2]["passage"]
    assert looks[0]["ffn"] != looks[2]["ffn"]
    assert np.shape(looks[0]["ffn"]) == (2, len(looks[0]["passage"]))
    assert "".join(looks[0]["passage"]).lstrip().startswith("def")
    assert shown.count('<pre class="heat"') == 6
    assert "Layer 2 at 100% of the training" in shown
    assert "newline and indentation" in shown


def test_a_passage_ends_where_its_document_ends() -> None:
    assert figure_10.whole_document(["a", "b", "", "", "c"]) == 2
    assert figure_10.whole_document(["a", "b"]) == 2


@pytest.mark.parametrize("order", [1, -1])
def test_figure_10_says_which_kinds_get_less(order: int) -> None:
    def look(share: float, seed: int) -> dict[str, Any]:
        gap = order * share + 0.01 * seed
        kinds = {figure_10.FEWEST: [10, 4 - gap], figure_10.MOST: [10, 4 + gap]}
        return {"share": share, "kinds": kinds, "correlation_with_loss": 0.3 * order}

    runs = [
        {"arm": figure_10.NAME, "seed": s, "looks": [look(x, s) for x in figure_10.SHARES]}
        for s in range(3)
    ]
    results = Results({"arms": [{"name": figure_10.NAME}], "seeds": [0, 1, 2], "runs": runs})
    kinds, grown, hard = figure_10.verdicts(results)
    assert (kinds.seen, grown.seen, hard.seen) == (order == 1, True, order == 1)
