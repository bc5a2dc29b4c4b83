"""Claims about the draft head whose one layer is a ScMoE layer (report table 5)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from longcat.flash import CheckpointError, ConfigError, FlashConfig, count_parameters, reference
from longcat.flash.checkpoint import checkpoint_tensors
from longcat.moe import StandardBlock

DOUBLE = 1e-9


@pytest.fixture
def config(tiny_config):
    return tiny_config(nextn_use_scmoe=True)


def ids(*shape):
    return torch.randint(4, 96, shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def drafts(model, text):
    """(the head's logits, the numpy file's) for one text [T]."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    hidden = model(text[None]).hidden
    found, _ = model.mtp(hidden[:, :-1], text[None, 1:])
    fields = model.config.to_hf()
    return found[0].numpy(), reference.draft(
        weights, fields, hidden[0, :-1].numpy(), text[1:].numpy()
    )


def test_the_head_agrees_with_the_numpy_file(config, random_model):
    found, expected = drafts(random_model(config, seed=5, dtype=torch.float64), ids(30))
    assert np.abs(found - expected).max() < DOUBLE


@pytest.mark.parametrize("forgotten", ["the mixture", "the second attention", "the shortcut"])
def test_a_head_that_lacks_a_part_is_rejected(config, random_model, monkeypatch, forgotten):
    model = random_model(config, seed=5, dtype=torch.float64)
    layer = model.model.mtp.layers[0].transformer_layer
    if forgotten == "the mixture":
        mixture = layer.mlp.forward
        monkeypatch.setattr(layer.mlp, "forward", lambda u, *m: (0 * u, mixture(u, *m)[1]))
    elif forgotten == "the second attention":
        monkeypatch.setattr(layer.self_attn[1], "attend", lambda state, cache: 0)
    else:  # the mixture in standard order: it reads what FFN_1 reads
        model.model.mtp.layers[0].transformer_layer = StandardBlock.of(layer)
    found, expected = drafts(model, ids(30))
    assert np.abs(found - expected).max() > 1e-3


@torch.no_grad()
def test_drafting_from_the_caches_equals_the_whole_pass(config, random_model):
    model, text = random_model(config, dtype=torch.float64), ids(2, 20)
    hidden = model(text).hidden
    whole, _ = model.mtp(hidden[:, :-1], text[:, 1:])
    cache, parts = model.new_cache(2, 32), []
    for start, end in ((0, 7), (7, 8), (8, 19)):
        seen = model(text[:, start:end], cache=cache).hidden
        parts.append(model.mtp(seen, text[:, start + 1 : end + 1], cache=cache)[0])
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-11)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafting_changes_no_token(config, random_model, temperature):
    model, text = random_model(config, dtype=torch.float64), ids(2, 12)
    settings = {"max_new_tokens": 16, "temperature": temperature, "seed": 5, "ignore_eos": True}
    plain = model.generate(text, speculative=False, **settings)
    assert torch.equal(plain, model.generate(text, **settings))


@torch.no_grad()
def test_padding_is_left_out_of_the_balance_statistics(config, random_model):
    model, text = random_model(config, dtype=torch.float64), ids(1, 12)
    mask = torch.ones_like(text)
    mask[:, :4] = 0
    counted = []
    mixture = model.model.mtp.layers[0].transformer_layer.mlp
    mixture.register_forward_hook(
        lambda _, __, out: counted.append(int(out[1].routing.counts.sum()))
    )
    hidden = model(text, mask).hidden
    model.mtp(hidden, text, mask)
    model.mtp(hidden, text)
    assert counted == [8 * 4, 12 * 4]


@pytest.mark.parametrize("format", ["hub", "transformers5"])
def test_a_checkpoint_gives_the_same_head_back(config, random_model, tmp_path, format):
    model, text = random_model(config), ids(12)
    model.save_pretrained(tmp_path / "c", format=format)
    again = type(model).from_pretrained(tmp_path / "c")
    assert again.config == config
    np.testing.assert_array_equal(drafts(again, text)[0], drafts(model, text)[0])
    names = {t.name for t in checkpoint_tensors(config)}
    main = {n.removeprefix("model.layers.0.") for n in names if n.startswith("model.layers.0.")}
    head = "model.mtp.layers.0.transformer_layer."
    assert {n.removeprefix(head) for n in names if n.startswith(head)} == main


def test_a_dense_head_under_a_scmoe_config_is_refused(config, random_model, tmp_path):
    random_model(replace(config, mtp_layer="dense")).save_pretrained(tmp_path / "c")
    path = tmp_path / "c" / "config.json"
    path.write_text(path.read_text().replace("{", '{"nextn_use_scmoe": true,', 1))
    with pytest.raises(CheckpointError, match=r"mtp\.layers\.0\.transformer_layer"):
        type(random_model(config)).from_pretrained(tmp_path / "c")


def test_the_released_configuration_names_no_other_head():
    released = FlashConfig.preset("longcat-flash")
    assert released.mtp_layer == "dense"
    assert "nextn_use_scmoe" not in released.to_hf()
    assert replace(released, mtp_layer="scmoe").to_hf()["nextn_use_scmoe"] is True
    with pytest.raises(ConfigError, match="mtp_layer must be dense or scmoe; got 'moe'"):
        replace(released, mtp_layer="moe")


@pytest.mark.parametrize("layer", ["dense", "scmoe"])
def test_the_counts_are_those_of_a_built_model(config, random_model, layer):
    model = random_model(replace(config, mtp_layer=layer))
    head = dict(model.model.mtp.named_parameters())
    del head["embed_tokens.weight"]
    router_bias = 9 if layer == "scmoe" else 0
    counted = count_parameters(model.config)
    assert counted.mtp_parameters == sum(p.numel() for p in head.values()) + router_bias


def test_at_the_released_size_the_shares_are_near_the_published_ones():
    """1.41 and 4.17 % in table 5, whose denominators are not stated; 12 experts counted."""
    dense = count_parameters(FlashConfig.preset("longcat-flash"))
    scmoe = count_parameters(replace(FlashConfig.preset("longcat-flash"), mtp_layer="scmoe"))
    assert dense.mtp_activated_mean == dense.mtp_activated_max == dense.mtp_parameters
    assert 100 * dense.mtp_activated_max / dense.activated_mean == pytest.approx(1.41, abs=0.05)
    share = scmoe.mtp_activated_max / (scmoe.activated_mean + scmoe.mtp_activated_max)
    assert 100 * share == pytest.approx(4.17, abs=0.05)
    assert scmoe.mtp_activated_max - scmoe.mtp_activated_mean == 4 * 37_748_736
