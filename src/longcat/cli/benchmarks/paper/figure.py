"""What a figure is made of: a scale, arms that are compared, and how their results are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longcat.cli.benchmarks.paper.results import Results
    from longcat.cli.benchmarks.paper.training import Job
    from longcat.cli.benchmarks.paper.verdict import Verdict

Row = dict[str, Any]
_MODULE = re.compile(r"figure_(\d\d)\.py")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the trainings are; an arm says what it changes.

    Args:
        width: hidden size; the other widths are in proportion. vocab_size: of the tokenizer.
        steps: of an ordinary arm. batch_size, seq_len: windows a step, and tokens a window.
        held_out_bytes: text that held-out losses are measured on, the same for every arm.
    """

    name: str
    width: int
    steps: int
    vocab_size: int = 1024
    batch_size: int = 8
    seq_len: int = 128
    held_out_bytes: int = 48_000

    @property
    def model(self) -> dict[str, Any]:
        """config.json fields: two ScMoE layers, 16 FFN and 8 identity experts, K = 6, K_e = 4.

        These are the ratios of the released model: two FFN experts in three, N : Z = K_e : K - K_e.
        """
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.width,
            "num_layers": 2,
            "num_attention_heads": max(1, self.width // 32),
            "q_lora_rank": self.width // 2,
            "kv_lora_rank": 3 * self.width // 8,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
            "ffn_hidden_size": 2 * self.width,
            "expert_ffn_hidden_size": self.width // 2,
            "n_routed_experts": 16,
            "zero_expert_num": 8,
            "moe_topk": 6,
            "expected_ffn_experts": 4,
            "routed_scaling_factor": 4.0,
            "rope_theta": 1e4,
            "max_position_embeddings": max(256, self.seq_len),
            "num_nextn_predict_layers": 0,
        }

    @property
    def settings(self) -> dict[str, Any]:
        """TrainSettings fields that differ from its defaults."""
        return {
            "vocab_size": self.vocab_size,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "micro_batches": 1,
            "seq_len": self.seq_len,
            "mtp_weight": 0.0,
            "precision": "float32",
            "measure_every": 1_000_000,  # an arm that reads R_g asks for it
        }


SCALES = {
    "quick": Scale(name="quick", width=64, steps=240),
    "full": Scale(name="full", width=128, steps=400),
}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One thing compared.

    Args:
        name: unique in the figure; shown in plots, so keep it short.
        model: config.json fields over the scale's. width: hidden size, the rest in proportion
            (`FlashConfig.widened`, applied after `model`). settings: TrainSettings fields.
        options: what the figure's own `run` reads. All values must be JSON.
    """

    name: str
    model: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The name as part of a file name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.lower()).strip("-")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One of the report's figures, as this project repeats it.

    Args:
        number: of the page and the files. title: of the page.
        report: what it stands for there, such as "figures 3b and 3c". shows: what can be seen in
            the report's figure, in plain words. differs: what is other here than there.
        arms: what is compared. run: one training; None means `training.train_curve`.
        verdicts: sentences from the data. body: Markdown from the data.
    """

    number: int
    title: str
    report: str
    shows: str
    differs: str
    arms: Callable[[Scale], Sequence[Arm]]
    verdicts: Callable[[Results], Sequence[Verdict]]
    body: Callable[[Results], Iterable[str]]
    run: Callable[[Job], Row] | None = None


def figures() -> dict[int, Figure]:
    """Every figure there is, by number."""
    found: dict[int, Figure] = {}
    for path in sorted(Path(__file__).parent.glob("figure_*.py")):
        if _MODULE.fullmatch(path.name):
            module = import_module(f"longcat.cli.benchmarks.paper.{path.stem}")
            figure: Figure = module.FIGURE
            found[figure.number] = figure
    return found
