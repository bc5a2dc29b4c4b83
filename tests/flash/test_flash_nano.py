"""Claims about the weights that ship with the package: small, whole, and really trained."""

import inspect
import json
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from longcat.flash import FlashConfig, FlashModel
from longcat.flash.tokenizer import Tokenizer
from longcat.kernels import use_backend
from longcat.serve import SamplingParams, decode

FOLDER = Path(str(files("longcat.flash"))) / "nano"


@pytest.fixture(scope="module")
def nano():
    return FlashModel.from_pretrained(FOLDER).eval(), Tokenizer.load(FOLDER)


def test_it_is_the_preset_in_at_most_ten_megabytes():
    stored = json.loads((FOLDER / "config.json").read_text())
    assert FlashConfig.from_hf(stored) == FlashConfig.preset("nano")
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 10_000_000


@torch.no_grad()
def test_it_predicts_python_and_the_untrained_preset_does_not(nano):
    model, tokenizer = nano
    text = inspect.getsource(inspect)[20_000:22_000]
    ids = torch.tensor([tokenizer.encode(text, bos=True)])

    def bits_per_byte(candidate):
        logits = candidate(ids[:, :-1]).logits[0].double()
        nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        return nats.item() / 0.6931471805599453 / len(text.encode())

    assert bits_per_byte(model) < 2.0
    assert bits_per_byte(FlashModel(model.config, seed=0)) > 3.0


def test_its_draft_head_is_right_most_of_the_time_and_a_blinded_one_is_not(nano):
    model, tokenizer = nano
    prompt = tokenizer.encode("class Reader:\n    def read(self, size=-1):\n", bos=True)
    params = SamplingParams(max_tokens=120, ignore_eos=True)

    def accepted():
        decoding = decode(model, prompt, params)
        tokens = [token.id for token in decoding]
        return tokens, decoding.stats.acceptance

    tokens, rate = accepted()
    assert rate > 0.6
    weight = model.model.mtp.layers[0].eh_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
        blinded_tokens, blinded = accepted()
        weight.copy_(kept)
    assert blinded < 0.2
    assert blinded_tokens == tokens  # a bad draft costs speed, never a token


def test_the_numpy_definitions_write_the_same_text(nano):
    model, tokenizer = nano
    prompt = tokenizer.encode("def main(", bos=True)
    params = SamplingParams(max_tokens=12, ignore_eos=True)
    want = [token.id for token in decode(model, prompt, params)]
    with use_backend("numpy"):
        assert [token.id for token in decode(model, prompt, params)] == want
