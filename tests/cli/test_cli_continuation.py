"""A prompt continued by an engine: the tokens of plain decoding, and the counts that it gives."""

import json
import shutil
from pathlib import Path

import pytest

from longcat.cli.continuation import Continuation
from longcat.cli.main import main
from longcat.flash import FlashConfig, FlashModel
from longcat.flash.packed import as_served
from longcat.serve import SamplingParams, decode

PROMPT = (5, 9, 33, 40, 8)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> FlashModel:
    return FlashModel.from_pretrained(tiny_checkpoint).eval()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("drafts", [0, 1, 3])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tokens_passes_and_drafts_are_those_of_plain_decoding(
    model: FlashModel, drafts: int, temperature: float, packed: bool
) -> None:
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=30, ignore_eos=True)
    decoding = decode(model, PROMPT, params, drafts > 0, max(1, drafts))
    expected = [token.id for token in decoding]
    text = Continuation(as_served(model) if packed else model, PROMPT, params, drafts)
    assert [token.id for token in text] == expected
    assert (text.steps, text.finish_reason) == (decoding.stats.steps, "length")
    assert text.tokens_per_step == decoding.stats.tokens_per_step
    # The last pass may hold a draft more, which plain decoding knows it has no room for.
    assert 0 <= text.accepted - decoding.stats.accepted <= 1
    assert (text.acceptance is None) == (drafts == 0)
    if drafts == 1:
        assert text.drafted - decoding.stats.drafted in (0, 1)


def test_the_counts_can_be_read_at_any_time(model: FlashModel) -> None:
    text = Continuation(model, PROMPT, SamplingParams(temperature=1.0, max_tokens=12), 1)
    assert (text.steps, text.drafted, text.acceptance, text.tokens_per_step) == (0, 0, None, 1.0)
    assert text.params.seed is not None
    for count, _ in enumerate(text, start=1):
        assert len(text.tokens) == count
        assert text.accepted <= text.drafted <= count


def test_what_does_not_fit_is_refused_before_anything_is_computed(model: FlashModel) -> None:
    with pytest.raises(ValueError, match="ask for at most"):
        Continuation(model, PROMPT, SamplingParams(max_tokens=10**6), 1)


def test_drafts_asked_of_a_model_without_a_head_are_told_and_not_made(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "headless"
    shutil.copytree(tiny_checkpoint, directory)
    model = FlashModel.from_pretrained(tiny_checkpoint)
    config = FlashConfig.from_hf({**model.config.to_hf(), "num_nextn_predict_layers": 0})
    FlashModel(config, seed=0).save_pretrained(directory)
    argv = ["generate", "--model", str(directory), "--prompt", "def", "--max-tokens", "4"]
    assert main([*argv, "--json"]) == 0
    shown = capsys.readouterr()
    assert (json.loads(shown.out)["drafted"], shown.err) == (0, "")
    assert main([*argv, "--speculative"]) == 0
    assert "has no MTP head: decoding without drafts" in capsys.readouterr().err
