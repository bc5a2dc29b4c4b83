"""config.json in and out: the hub's form, transformers 4.57's and transformers 5.x's.

The forms differ in three places: where RoPE's parameters sit (top level against
`rope_parameters`), `head_dim` (transformers 5 sizes its rotary embedding by it and does not
derive it), and `num_hidden_layers` (a derived 2*num_layers in transformers, ignored here).

Source: the released config.json; transformers' LongcatFlashConfig.
"""

from collections.abc import Mapping
from typing import Any

from longcat.attention import MLAConfig
from longcat.flash.config import FlashConfig
from longcat.flash.errors import ConfigError
from longcat.moe import MoEConfig
from longcat.router import RouterConfig

MODEL_TYPE = "longcat_flash"
FORMATS = ("hub", "transformers5")

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "ffn_hidden_size",
    "num_attention_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "n_routed_experts",
    "zero_expert_num",
    "moe_topk",
    "expert_ffn_hidden_size",
    "max_position_embeddings",
)

_NUMBERS = ("rms_norm_eps", "latent_norm_eps", "initializer_range", "routed_scaling_factor")


def _rope(fields: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """(theta, scaling or None) from either place."""
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(fields.get(name) or {}, Mapping):
            raise ConfigError(f"config: {name} must be an object or null; got {fields[name]!r}")
    parameters = dict(fields.get("rope_parameters") or {})
    scaling = parameters or dict(fields.get("rope_scaling") or {})
    theta = scaling.pop("rope_theta", None) or fields.get("rope_theta") or 1e7
    if not isinstance(theta, int | float):
        raise ConfigError(f"config: rope_theta must be a number; got {theta!r}")
    kind = scaling.pop("type", None)
    kind = scaling.pop("rope_type", kind) or "default"
    if kind == "default":
        return float(theta), None
    if kind != "yarn":
        raise ConfigError(f"config: rope type must be 'default' or 'yarn'; got {kind!r}")
    if not isinstance(scaling.get("factor"), int | float):
        raise ConfigError(
            f"config: rope type 'yarn' needs a 'factor', a number; got {scaling.get('factor')!r}"
        )
    return float(theta), {"rope_type": "yarn", **scaling}


def _refuse_unsupported(fields: Mapping[str, Any]) -> None:
    """Settings that would change the mathematics and that this implementation lacks."""
    kind = fields.get("model_type", MODEL_TYPE)
    if kind != MODEL_TYPE:
        raise ConfigError(f"config: model_type must be {MODEL_TYPE!r}; got {kind!r}")
    for name, allowed in (
        ("hidden_act", ("silu",)),
        ("attention_method", ("MLA",)),
        ("zero_expert_type", ("identity", None)),
        ("norm_topk_prob", (False, None)),
        ("router_bias", (False, None)),
        ("nextn_use_scmoe", (False, True, None)),
        ("tie_word_embeddings", (False, None)),
        ("attention_dropout", (0, 0.0, None)),
    ):
        if name in fields and fields[name] not in allowed:
            raise ConfigError(
                f"config: {name}={fields[name]!r} is not supported; expected {allowed[0]!r}"
            )


def parse(fields: Mapping[str, Any]) -> FlashConfig:
    """A FlashConfig from config.json's fields.

    Raises:
        ConfigError: see FlashConfig.from_hf.
    """
    _refuse_unsupported(fields)
    # transformers has its own defaults for these (256 and 6): guessing would compute another model.
    missing = [n for n in (*_SIZES, "routed_scaling_factor") if fields.get(n) is None]
    if missing:
        raise ConfigError(f"config: missing {', '.join(missing)}")
    for name in (*_SIZES, "num_key_value_heads", "num_nextn_predict_layers"):
        value = fields.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ConfigError(f"config: {name} must be an integer; got {value!r}")
    for name in _NUMBERS:
        value = fields.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"config: {name} must be a number; got {value!r}")
    heads = fields["num_attention_heads"]
    if fields.get("num_key_value_heads") not in (None, heads):
        raise ConfigError(
            f"config: num_key_value_heads={fields['num_key_value_heads']} differs from "
            f"num_attention_heads={heads}; latent attention has one key per head"
        )
    theta, scaling = _rope(fields)
    eos = fields.get("eos_token_id", 2)
    try:
        return FlashConfig(
            vocab_size=fields["vocab_size"],
            hidden_size=fields["hidden_size"],
            num_layers=fields["num_layers"],
            ffn_hidden_size=fields["ffn_hidden_size"],
            rms_norm_eps=float(fields.get("rms_norm_eps", 1e-5)),
            max_position_embeddings=fields["max_position_embeddings"],
            num_nextn_predict_layers=int(fields.get("num_nextn_predict_layers") or 0),
            mtp_layer="scmoe" if fields.get("nextn_use_scmoe") else "dense",
            bos_token_id=fields.get("bos_token_id", 1),
            eos_token_id=(eos[0] if eos else None) if isinstance(eos, list) else eos,
            pad_token_id=fields.get("pad_token_id"),
            initializer_range=float(fields.get("initializer_range", 0.02)),
            attention=MLAConfig(
                hidden_size=fields["hidden_size"],
                num_heads=fields["num_attention_heads"],
                q_lora_rank=fields["q_lora_rank"],
                kv_lora_rank=fields["kv_lora_rank"],
                qk_nope_head_dim=fields["qk_nope_head_dim"],
                qk_rope_head_dim=fields["qk_rope_head_dim"],
                v_head_dim=fields["v_head_dim"],
                rope_theta=theta,
                rope_scaling=scaling,
                max_position=fields["max_position_embeddings"],
                attention_bias=bool(fields.get("attention_bias", False)),
                latent_norm_eps=float(fields.get("latent_norm_eps", 1e-6)),
                scale_q_lora=fields.get("mla_scale_q_lora") is not False,
                scale_kv_lora=fields.get("mla_scale_kv_lora") is not False,
            ),
            moe=MoEConfig(
                expert_ffn_hidden_size=fields["expert_ffn_hidden_size"],
                router=RouterConfig(
                    hidden_size=fields["hidden_size"],
                    n_routed_experts=fields["n_routed_experts"],
                    zero_expert_num=fields["zero_expert_num"],
                    top_k=fields["moe_topk"],
                    routed_scaling_factor=float(fields["routed_scaling_factor"]),
                    expected_ffn_experts=fields.get("expected_ffn_experts"),
                ),
            ),
        )
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"config: {error}") from error


def render(config: FlashConfig, format: str = "hub") -> dict[str, Any]:
    """config.json's fields for one of FORMATS."""
    if format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}; known formats: {', '.join(FORMATS)}")
    attention, router = config.attention, config.router
    fields: dict[str, Any] = {
        "architectures": ["LongcatFlashForCausalLM"],
        "model_type": MODEL_TYPE,
        "attention_method": "MLA",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.num_heads,
        "q_lora_rank": attention.q_lora_rank,
        "kv_lora_rank": attention.kv_lora_rank,
        "qk_nope_head_dim": attention.qk_nope_head_dim,
        "qk_rope_head_dim": attention.qk_rope_head_dim,
        "v_head_dim": attention.v_head_dim,
        "head_dim": attention.qk_rope_head_dim,
        "attention_bias": attention.attention_bias,
        "attention_dropout": 0.0,
        "mla_scale_q_lora": attention.scale_q_lora,
        "mla_scale_kv_lora": attention.scale_kv_lora,
        "ffn_hidden_size": config.ffn_hidden_size,
        "expert_ffn_hidden_size": config.moe.expert_ffn_hidden_size,
        "n_routed_experts": router.n_routed_experts,
        "zero_expert_num": router.zero_expert_num,
        "zero_expert_type": "identity",
        "moe_topk": router.top_k,
        "norm_topk_prob": False,
        "router_bias": False,
        "routed_scaling_factor": router.routed_scaling_factor,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "num_nextn_predict_layers": config.num_nextn_predict_layers,
        "tie_word_embeddings": False,
        "initializer_range": config.initializer_range,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    if config.mtp_layer == "scmoe":
        fields["nextn_use_scmoe"] = True
    if attention.latent_norm_eps != MLAConfig.latent_norm_eps:
        fields["latent_norm_eps"] = attention.latent_norm_eps
    if router.expected_ffn_experts is not None:
        fields["expected_ffn_experts"] = router.expected_ffn_experts
    scaling = dict(attention.rope_scaling) if attention.rope_scaling else None
    if format == "hub":
        fields["rope_theta"] = attention.rope_theta
        fields["rope_scaling"] = scaling
    else:
        fields["rope_parameters"] = {
            "rope_type": "default",
            **(scaling or {}),
            "rope_theta": attention.rope_theta,
        }
    return fields
