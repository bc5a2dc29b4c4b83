"""The released 560 B model, without its memory: names, shapes and counts."""

import math

import pytest
import torch

from longcat.flash import FlashConfig, count_parameters
from longcat.flash.checkpoint import checkpoint_tensors

TOTAL = 560_664_980_480  # with the router biases, without the draft head
ROUTER_BIASES = 28 * 768
UNUSED_BY_TRANSFORMERS = 28 * 256 * 2 * 2048 * 6144


@pytest.fixture(scope="module")
def released() -> FlashConfig:
    return FlashConfig.preset("longcat-flash")


@pytest.fixture(scope="module")
def theirs():
    """(transformers' model on the meta device, what its own save would write: name -> shape)."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    loading = pytest.importorskip("transformers.core_model_loading")
    with torch.device("meta"):
        model = transformers.LongcatFlashForCausalLM(transformers.LongcatFlashConfig())
    written = loading.revert_weight_conversion(model, model.state_dict())
    return model, {name: tuple(tensor.shape) for name, tensor in written.items()}


def test_transformers5_form_has_the_names_and_shapes_that_transformers_5_writes(released, theirs):
    _, expected = theirs
    ours = {t.name: t.shape for t in checkpoint_tensors(released, "transformers5")}
    head = {name for name in ours if name.startswith("model.mtp.")}
    assert len(head) == 17
    assert {name: shape for name, shape in ours.items() if name not in head} == expected
    assert len(expected) == 58_075


def test_control_the_hub_form_is_told_apart(released, theirs):
    _, expected = theirs
    hub = {t.name for t in checkpoint_tensors(released) if not t.name.startswith("model.mtp.")}
    assert hub < expected.keys()
    assert len(expected) - len(hub) == 28 * 256 * 2
    assert all(".mlp.experts." in name for name in expected.keys() - hub)


def test_the_total_is_560_664_980_480(released, theirs):
    sizes = {t.name: math.prod(t.shape) for t in checkpoint_tensors(released)}
    main = sum(n for name, n in sizes.items() if not name.startswith("model.mtp."))
    assert main == TOTAL
    model, _ = theirs
    counted = sum(p.numel() for p in model.parameters())
    assert counted - UNUSED_BY_TRANSFORMERS + ROUTER_BIASES == TOTAL
    accounting = count_parameters(released)
    assert accounting.total_parameters == TOTAL
    head = sum(sizes.values()) - main - sizes["model.mtp.embed_tokens.weight"]
    assert accounting.mtp_parameters == head


def test_activated_parameters_are_the_published_range(released):
    accounting = count_parameters(released)
    assert accounting.activated_min == 18_693_794_816  # no FFN expert
    assert accounting.activated_mean == 27_149_511_680  # 8 of 12
    assert accounting.activated_max == 31_377_370_112  # all 12
    figures = (accounting.activated_min, accounting.activated_mean, accounting.activated_max)
    assert [math.floor(n / 1e8) / 10 for n in figures] == [18.6, 27.1, 31.3]


def test_routers_are_float32_and_the_rest_bfloat16(released):
    for t in checkpoint_tensors(released, "hub", torch.bfloat16):
        assert t.dtype == (torch.float32 if ".router." in t.name else torch.bfloat16), t.name


def test_the_preset_is_what_transformers_takes_for_the_released_model(released):
    transformers = pytest.importorskip("transformers", minversion="5.0")
    defaults = transformers.LongcatFlashConfig().to_dict()
    read = transformers.LongcatFlashConfig(**released.to_hf("transformers5")).to_dict()
    differing = {key for key in defaults if read[key] != defaults[key]}
    assert differing <= {"architectures", "pad_token_id", "dtype"}
    assert FlashConfig.from_hf(defaults).attention == released.attention
    assert FlashConfig.from_hf(defaults).moe == released.moe
