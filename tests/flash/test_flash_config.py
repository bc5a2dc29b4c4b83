"""Claims about configurations: the published figures, every form of config.json, clear refusals."""

import io

import pytest
from rich.console import Console

from longcat.flash import ConfigError, FlashConfig, FlashModel, count_parameters
from longcat.flash.presets import PRESETS
from longcat.optim import role_of, variance_factor


def test_the_released_size_has_the_published_counts():
    figures = count_parameters(FlashConfig.preset("longcat-flash"))
    assert figures.total_parameters == 560_664_980_480
    assert figures.activated_min == 18_693_794_816
    assert figures.activated_mean == 27_149_511_680
    assert figures.activated_max == 31_377_370_112
    assert figures.cache_bytes_per_token() == 64_512
    # The report prints truncations: 18.6 and 31.3 billion.
    assert int(figures.activated_min / 1e8) == 186
    assert int(figures.activated_max / 1e8) == 313


def test_one_expert_more_costs_1_057_billion_at_the_released_size():
    figures = count_parameters(FlashConfig.preset("longcat-flash"))
    assert figures.activated_max - figures.activated_mean == 4 * 28 * figures.expert_parameters
    assert figures.expert_parameters == 37_748_736


def test_bounds_of_ffn_experts_follow_from_k_n_and_z():
    few = FlashConfig.preset("nano", zero_expert_num=2, n_routed_experts=5, moe_topk=6)
    figures, layers = count_parameters(few), few.num_layers
    span = figures.activated_max - figures.activated_min
    assert span == layers * (5 - 4) * figures.expert_parameters


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("format", ["hub", "transformers5"])
def test_config_json_round_trips(name, format):
    config = FlashConfig.preset(name)
    assert FlashConfig.from_hf(config.to_hf(format)) == config


@pytest.mark.parametrize("format", ["hub", "transformers5"])
def test_optional_settings_round_trip(format):
    yarn = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256}
    config = FlashConfig.preset(
        "nano", rope_scaling=yarn, latent_norm_eps=1e-5, expected_ffn_experts=3, attention_bias=True
    )
    again = FlashConfig.from_hf(config.to_hf(format))
    assert again == config
    assert again.router.target_ffn == 3
    assert "latent_norm_eps" not in FlashConfig.preset("nano").to_hf()


def test_rope_is_read_from_either_place():
    flat = FlashConfig.preset("nano", rope_theta=5e6)
    fields = {**PRESETS["nano"], "rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}
    del fields["rope_theta"]
    assert FlashConfig.from_hf(fields) == flat
    # num_hidden_layers is derived in transformers (2 * num_layers) and never read here.
    assert FlashConfig.from_hf({**PRESETS["nano"], "num_hidden_layers": 4}).num_layers == 2


def test_the_target_defaults_to_the_uniform_share():
    assert FlashConfig.preset("longcat-flash").router.target_ffn == 8
    assert FlashConfig.preset("nano").router.target_ffn == 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type must be 'longcat_flash'; got 'llama'"),
        ({"hidden_size": None}, "missing hidden_size"),
        # transformers would fill in 6 and 256 here; a silent 1 and 0 would be another model.
        ({"routed_scaling_factor": None}, "missing routed_scaling_factor"),
        ({"zero_expert_num": None}, "missing zero_expert_num"),
        ({"nextn_use_scmoe": "yes"}, "nextn_use_scmoe='yes' is not supported"),
        ({"hidden_size": "128"}, "hidden_size must be an integer; got '128'"),
        ({"num_layers": 0}, "num_layers must be a positive integer"),
        ({"moe_topk": 25}, "top_k must lie between 1 and"),
        ({"qk_rope_head_dim": 5}, "must be even"),
        ({"norm_topk_prob": True}, "norm_topk_prob=True is not supported"),
        ({"router_bias": True}, "router_bias=True is not supported"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings=True is not supported"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, "must be 'default' or 'yarn'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "needs a 'factor'"),
        ({"num_nextn_predict_layers": 2}, "must be 0 or 1"),
        ({"eos_token_id": 1.5}, "eos_token_id must be an integer or null"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number of at least 0"),
        ({"routed_scaling_factor": -1}, "routed_scaling_factor must be a positive number"),
        ({"eos_token_id": 5000}, "eos_token_id=5000 lies outside the vocabulary"),
        ({"expected_ffn_experts": 7}, "expected_ffn_experts must satisfy"),
    ],
)
def test_contradictions_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        FlashConfig.from_hf({**PRESETS["nano"], **changes})


def test_parts_must_share_one_width():
    a, b = FlashConfig.preset("nano"), FlashConfig.preset("bench")
    with pytest.raises(ConfigError, match=r"attention\.hidden_size=512 differs"):
        FlashConfig(**{**a.__dict__, "attention": b.attention})


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ConfigError, match="known presets: bench, longcat-flash, nano"):
        FlashConfig.preset("giant")


def test_an_unknown_format_lists_the_known_ones():
    with pytest.raises(ConfigError, match="known formats: hub, transformers5"):
        FlashConfig.preset("nano").to_hf("gguf")


def test_the_card_shows_the_published_figures():
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(FlashConfig.preset("longcat-flash"))
    text = console.export_text()
    for figure in ("560.66 B", "18.69 B / 27.15 B / 31.38 B", "64,512 bytes", "0 to 12"):
        assert figure in text


def test_a_widened_model_follows_the_transfer_table():
    proxy = FlashConfig.preset("nano")
    target = proxy.widened(512)
    assert (target.num_layers, target.router.top_k) == (proxy.num_layers, proxy.router.top_k)
    narrow, wide = (dict(FlashModel(c, seed=0).named_parameters()) for c in (proxy, target))
    assert narrow.keys() == wide.keys()
    for name, parameter in narrow.items():
        role = role_of(name, parameter.ndim)
        if role != "vector":
            ratio = wide[name].var().item() / parameter.var().item()
            # The smallest tensor has 3,072 entries, so its variance is known to 5 per cent.
            assert ratio == pytest.approx(variance_factor(role, 4.0), rel=0.12), name


def test_a_width_that_does_not_divide_is_named():
    with pytest.raises(ConfigError, match=r"at width 100 num_attention_heads would be 3\.125"):
        FlashConfig.preset("nano").widened(100)
