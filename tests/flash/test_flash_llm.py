"""The shipped nano behind the engine: texts of plain decoding, a draft head that matters."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from longcat.flash import CheckpointError, FlashModel, load_llm
from longcat.flash.tokenizer import Tokenizer
from longcat.serve import (
    ConstraintSpec,
    Engine,
    EngineConfig,
    Request,
    SamplingParams,
    decode,
)

FOLDER = Path(str(files("longcat.flash"))) / "nano"
PROMPT = "class Reader:\n    def read(self, size=-1):\n"
PARAMS = SamplingParams(max_tokens=60, ignore_eos=True)


@pytest.fixture
def nano() -> FlashModel:
    return FlashModel.from_pretrained(FOLDER).eval()


def acceptance(model: FlashModel) -> float:
    """Accepted of the first drafts."""
    ids = Tokenizer.load(FOLDER).encode(PROMPT, bos=True)
    engine = Engine(model, None, EngineConfig(num_drafts=1))
    for choice in range(3):
        params = SamplingParams(max_tokens=60, ignore_eos=True, temperature=0.5 * choice, seed=1)
        engine.add(Request(request_id=str(choice), prompt_ids=tuple(ids), params=params))
    while engine.has_work:
        engine.step()
    return engine.stats().acceptance


def test_load_llm_continues_text_as_plain_decoding_does(nano):
    llm = load_llm(FOLDER, config=EngineConfig(num_drafts=1))
    (completion,) = llm.generate(PROMPT, PARAMS)
    assert completion.token_ids == tuple(
        token.id for token in decode(nano, completion.prompt_ids, PARAMS, speculative=False)
    )
    assert completion.text == llm.tokenizer.decode(completion.token_ids)
    assert sum(token.drafted for token in completion.tokens) > 20
    assert llm.stats().acceptance > 0.5


def test_load_llm_holds_text_to_a_form():
    pytest.importorskip("llguidance")
    form = ConstraintSpec(regex=r"(import|from) [a-z]{2,8}")
    params = SamplingParams(constraint=form, max_tokens=20)
    (completion,) = load_llm(FOLDER).generate(PROMPT, params)
    assert re.fullmatch(form.regex, completion.text)


def test_without_llguidance_load_llm_refuses_a_form(monkeypatch):
    monkeypatch.setattr("longcat.flash.llm.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="constraint: this engine was built without structured"):
        load_llm(FOLDER).generate(PROMPT, SamplingParams(constraint=ConstraintSpec(regex="a")))


def test_load_llm_says_what_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_llm(tmp_path)


def test_log_probabilities_are_the_models_own_whatever_the_temperature(nano):
    (completion,) = load_llm(FOLDER).generate(
        PROMPT,
        SamplingParams(max_tokens=8, temperature=0.7, seed=3, logprobs=2, prompt_logprobs=1),
    )
    ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
    with torch.no_grad():
        logs = torch.log_softmax(nano(ids).logits[0], dim=-1)
    prompt = completion.prompt_logprobs
    assert prompt is not None
    assert [token.id for token in prompt] == list(completion.prompt_ids)
    assert prompt[0].logprob is None
    for place, token in enumerate([*prompt[1:], *completion.tokens]):
        assert token.logprob == pytest.approx(float(logs[place, token.id]), abs=1e-4)
        best = token.top_logprobs[0]
        assert best[1] == pytest.approx(float(logs[place].max()), abs=1e-4)
    assert all(len(token.top_logprobs) == 2 for token in completion.tokens)


def test_the_draft_head_is_worth_something_and_a_blinded_one_is_not(nano):
    assert acceptance(nano) > 0.4
    with torch.no_grad():
        nano.model.mtp.layers[0].eh_proj.weight.zero_()
    assert acceptance(nano) < 0.1


def test_a_draft_head_fed_one_place_off_is_caught(nano, monkeypatch):
    """The token that a hidden state belongs to, in place of the one that follows it."""
    fed = nano.draft_paged

    def shifted(ids, hidden, positions, layers):
        return fed(ids.roll(1, dims=0), hidden, positions, layers)

    monkeypatch.setattr(nano, "draft_paged", shifted)
    assert acceptance(nano) < 0.2
