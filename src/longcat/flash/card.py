"""A configuration as a card: what was set, and what follows from it (dimmed)."""

from rich.panel import Panel
from rich.table import Table

from longcat.flash.accounting import count_parameters
from longcat.flash.config import FlashConfig


def human(count: float) -> str:
    """A count with its unit: 560.66 B, 47.8 M, 512."""
    for limit, unit, digits in ((1e9, "B", 2), (1e6, "M", 2), (1e4, "k", 1)):
        if count >= limit:
            return f"{count / {'B': 1e9, 'M': 1e6, 'k': 1e3}[unit]:.{digits}f} {unit}"
    return f"{count:,.0f}"


def rows(config: FlashConfig) -> list[tuple[str, str, bool]]:
    """(label, value, derived) in the order of the card."""
    figures = count_parameters(config)
    a, r = config.attention, config.router
    rope = "" if not a.rope_scaling else f", YaRN x{a.rope_scaling['factor']:g}"
    result = [
        ("layers", f"{config.num_layers} ScMoE, each 2 attentions + 2 dense FFNs + 1 MoE", False),
        ("width", f"{config.hidden_size:,}; dense FFN {config.ffn_hidden_size:,}", False),
        (
            "attention",
            f"{a.num_heads} heads, latents q {a.q_lora_rank:,} / kv {a.kv_lora_rank:,}, "
            f"nope {a.qk_nope_head_dim} + rope {a.qk_rope_head_dim}, v {a.v_head_dim}",
            False,
        ),
        ("scale correction", f"alpha_q {a.alpha_q:.4g}, alpha_kv {a.alpha_kv:.4g}", True),
        (
            "experts",
            f"{r.n_routed_experts} FFN of width {config.moe.expert_ffn_hidden_size:,} + "
            f"{r.zero_expert_num} identity, top-{r.top_k}, gates x{r.routed_scaling_factor:g}",
            False,
        ),
        (
            "FFN experts per token",
            f"{max(0, r.top_k - r.zero_expert_num)} to {min(r.top_k, r.n_routed_experts)}, "
            f"held at {r.target_ffn:g} on average",
            True,
        ),
        ("vocabulary", f"{config.vocab_size:,}", False),
        (
            "positions",
            f"{config.max_position_embeddings:,}, RoPE theta {a.rope_theta:g}{rope}",
            False,
        ),
        ("draft head", _draft_head(config), False),
        ("parameters", f"{human(figures.total_parameters)} ({figures.total_parameters:,})", True),
        (
            "activated per token",
            f"{human(figures.activated_min)} / {human(figures.activated_mean)} / "
            f"{human(figures.activated_max)} (min / mean / max)",
            True,
        ),
        (
            "latent cache",
            f"{figures.cache_bytes_per_token():,} bytes per token in bfloat16",
            True,
        ),
    ]
    if config.has_mtp:
        result.append(("draft head parameters", human(figures.mtp_parameters), True))
    return result


def _draft_head(config: FlashConfig) -> str:
    kind = "ScMoE" if config.mtp_layer == "scmoe" else "dense"
    return f"one {kind} MTP layer" if config.has_mtp else "none"


def card(config: FlashConfig, title: str = "LongCat-Flash") -> Panel:
    """The card as a rich renderable."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, value, derived in rows(config):
        table.add_row(label, value, style="dim" if derived else "")
    return Panel(table, title=title, title_align="left", expand=False)
