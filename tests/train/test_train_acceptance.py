"""Drafts are counted for all prompts together as decoding each prompt alone counts them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from longcat.flash import FlashModel, generation
from longcat.flash.tokenizer import Tokenizer
from longcat.kernels import exact
from longcat.serve import SamplingParams, decode, step
from longcat.train import acceptance
from longcat.train.acceptance import even_starts, fresh_starts, measure_acceptance, sample

PROMPT, NEW, STARTS = 10, 14, [3, 40, 90, 41, 200]
WANTED = {"prompt_tokens": PROMPT, "new_tokens": NEW, "starts": STARTS}


@pytest.fixture(scope="module")
def model(kit):
    """The head hands on the token before, so that about half of its drafts stand."""
    model = FlashModel(kit.config(), seed=0).eval()
    with torch.no_grad():
        model.model.mtp.layers[0].eh_proj.weight.copy_(torch.eye(32, 64))
    return model


@pytest.fixture(scope="module")
def stream(kit):
    return kit.ids()


def alone(model, stream, *, num_drafts, temperature):
    """The definition: each prompt decoded by itself, one pass after the other."""
    found = SimpleNamespace(by_prompt=[], drafted_at=[], accepted_at=[], steps=0)
    for number, start in enumerate(STARTS):
        params = SamplingParams(
            temperature=temperature, max_tokens=NEW, ignore_eos=True, seed=number
        )
        prompt = stream[start : start + PROMPT].tolist()
        decoding = decode(model, prompt, params, speculative=True, num_drafts=num_drafts)
        tokens = list(decoding)
        judged = sum(token.drafted or token.refused for token in tokens)
        found.by_prompt.append((judged, sum(token.drafted for token in tokens)))
        found.drafted_at.append(decoding.stats.drafted_at)
        found.accepted_at.append(decoding.stats.accepted_at)
        found.steps += decoding.stats.steps
    found.drafted_at = tuple(np.sum(found.drafted_at, axis=0).tolist())
    found.accepted_at = tuple(np.sum(found.accepted_at, axis=0).tolist())
    return found


def assert_counts_as_alone(model, stream, **asked):
    with exact():
        expected = alone(model, stream, **asked)
        found = measure_acceptance(model, stream, **WANTED, **asked)
    assert [counts[:2] for counts in found.by_prompt] == expected.by_prompt
    assert found.drafted_at == expected.drafted_at
    assert found.accepted_at == expected.accepted_at
    assert found.tokens == NEW * len(STARTS)
    assert found.tokens_per_step == (NEW - 1) * len(STARTS) / expected.steps
    return found


@pytest.mark.parametrize("most_rows", [2, 128])
@pytest.mark.parametrize("temperature", [0.0, 0.3])
@pytest.mark.parametrize("num_drafts", [1, 3])
def test_together_every_prompt_has_the_drafts_that_it_has_alone(
    model, stream, monkeypatch, num_drafts, temperature, most_rows
):
    monkeypatch.setattr(generation, "_MOST_ROWS", most_rows)
    asked = {"num_drafts": num_drafts, "temperature": temperature}
    found = assert_counts_as_alone(model, stream, **asked)
    judged = zip(found.accepted_at, found.drafted_at, strict=True)
    assert all(0 < taken < tried for taken, tried in judged)


def neighbours_drafts(monkeypatch):
    """The text stays the same, and every prompt is charged with another one's drafts."""
    own = step.propose

    def propose(*args):
        tokens, q = own(*args)
        return tokens.roll(1, dims=0), q

    monkeypatch.setattr(step, "propose", propose)


def drafts_for_the_last_place(monkeypatch):
    monkeypatch.setattr(acceptance, "replace", lambda token, **_: token)


def drafts_chosen_by_the_clock(monkeypatch):
    own = acceptance.continued
    monkeypatch.setattr(acceptance, "continued", lambda *a, num_drafts: own(*a, num_drafts=None))


def one_seed_for_all(monkeypatch):
    own = acceptance.SamplingParams
    monkeypatch.setattr(acceptance, "SamplingParams", lambda **asked: own(**asked | {"seed": 0}))


@pytest.mark.parametrize(
    "mutant",
    [
        neighbours_drafts,
        drafts_for_the_last_place,
        drafts_chosen_by_the_clock,
        one_seed_for_all,
    ],
)
def test_control_counts_of_another_making_are_noticed(model, stream, monkeypatch, mutant):
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        assert_counts_as_alone(model, stream, num_drafts=3, temperature=0.3)


def test_every_token_says_what_became_of_its_draft(model, stream):
    for drafts in (1, 3):
        params = SamplingParams(max_tokens=30, ignore_eos=True)
        decoding = decode(model, stream[:10].tolist(), params, num_drafts=drafts)
        tokens = list(decoding)
        stats = decoding.stats
        assert sum(t.drafted for t in tokens) == stats.accepted
        # A pass refuses at most one draft that counts; the drafts behind it were never looked at.
        refused = sum(t.refused for t in tokens)
        looked_at = sum(a for a in stats.accepted_at) + refused
        assert refused <= stats.steps
        assert looked_at <= stats.drafted
        if drafts == 1:
            assert looked_at == stats.drafted
        assert not any(t.drafted and t.refused for t in tokens)
        assert not tokens[0].drafted
        assert not tokens[0].refused


def test_sampled_and_deeper_drafts_are_measured_alike(model, stream):
    wanted = {**WANTED, "token_bytes": np.ones(300, dtype=np.int64)}
    sampled = measure_acceptance(model, stream, temperature=1.0, **wanted)
    assert sampled == measure_acceptance(model, stream, temperature=1.0, **wanted)
    deep = measure_acceptance(model, stream, num_drafts=3, **wanted)
    assert len(deep.drafted_at) == len(deep.accepted_at) == 3
    assert list(deep.accepted_at) == sorted(deep.accepted_at, reverse=True)
    assert deep.bytes_per_step == deep.tokens_per_step
    assert sampled.to_dict()["acceptance"] == sampled.rate


def test_the_figures_fit_each_other(model, stream):
    figures = measure_acceptance(model, stream, prompts=4, prompt_tokens=10, new_tokens=20)
    assert figures.tokens == 80
    assert 0 <= figures.fresh_accepted <= figures.accepted <= figures.drafted
    assert figures.fresh_drafted <= figures.drafted
    assert figures.tokens_per_step == pytest.approx(76 / (76 - figures.accepted))


@pytest.mark.parametrize("num_drafts", [1, 3])
def test_a_perfect_draft_is_always_accepted_and_a_wrong_one_never(
    model, stream, monkeypatch, num_drafts
):
    wanted = {"prompt_tokens": PROMPT, "starts": [40], "num_drafts": num_drafts}
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    prompt = stream[40 : 40 + PROMPT].tolist()
    text = torch.tensor(prompt + [t.id for t in decode(model, prompt, params)])

    def guess(off):
        def propose(logits, sampler, rules, positions):
            return (text[positions] + off) % 300, None

        monkeypatch.setattr(step, "propose", propose)
        return measure_acceptance(model, stream, new_tokens=17, **wanted)

    right = guess(0)
    assert right.rate == 1.0
    assert right.accepted_at == right.drafted_at
    assert right.tokens_per_step == 1.0 + num_drafts  # 16 tokens behind the prompt's pass
    wrong = guess(1)
    assert wrong.rate == 0.0
    assert wrong.accepted_at == (0,) * num_drafts
    assert wrong.tokens_per_step == 1.0


def test_without_a_head_there_is_no_acceptance(kit):
    plain = FlashModel(kit.config(num_nextn_predict_layers=0), seed=0)
    assert measure_acceptance(plain, np.arange(4, 200)) is None


def test_damaged_weights_end_in_one_sentence(kit, stream):
    damaged = FlashModel(kit.config(), seed=0).eval()
    with torch.no_grad():
        damaged.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"^acceptance: .*logits hold NaN or infinity"):
        measure_acceptance(damaged, stream, **WANTED)


def test_a_sample_is_the_same_every_time_with_a_head_or_without(kit):
    tokenizer = Tokenizer.train_bpe([kit.text(0, 50)], 300)
    for heads in (0, 1):
        config = kit.config(num_nextn_predict_layers=heads)
        model = FlashModel(config, seed=0).eval()
        first = sample(model, tokenizer, "def alpha", tokens=12)
        assert isinstance(first, str)
        assert first == sample(model, tokenizer, "def alpha", tokens=12)


def test_fresh_prompts_share_no_token_with_each_other_or_with_those_looked_at_before():
    length, width = 60_000, 64
    starts = fresh_starts(length, 200, seed=1)
    assert len(starts) == 200
    assert min(np.diff(starts)) >= width
    assert max(starts) <= length - width

    def clear(candidates):
        looked_at = [start for count in (32, 64, 256) for start in even_starts(length, count)]
        return all(abs(start - other) >= width for start in candidates for other in looked_at)

    assert clear(starts)
    assert starts == fresh_starts(length, 200, seed=1)
    assert starts != fresh_starts(length, 200, seed=2)
    # The control: places drawn without looking are not clear.
    assert not clear(fresh_starts(length, 200, seed=1, known=()))


def test_a_short_stream_has_no_room_for_fresh_prompts():
    with pytest.raises(ValueError, match="room for 0 fresh prompts of 64, not for 5"):
        fresh_starts(2_000, 5, seed=0)


def test_each_prompts_counts_add_up_to_the_whole(model, stream):
    found = measure_acceptance(model, stream, **WANTED)
    columns = np.array(found.by_prompt).sum(axis=0).tolist()
    assert columns == [
        found.drafted, found.accepted, found.fresh_drafted, found.fresh_accepted,
    ]  # fmt: skip
    assert found.prompts == len(STARTS)
    alone = measure_acceptance(model, stream, **{**WANTED, "starts": [40]})
    assert alone.by_prompt[0] == found.by_prompt[1]
    assert "by_prompt" not in found.to_dict()
