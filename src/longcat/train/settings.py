"""Everything that decides what a run computes, in one frozen object that is saved with it."""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from longcat.flash.config import MTPLayerKind
from longcat.flash.recompute import Recompute
from longcat.optim import cosine, warmup_stable_decay
from longcat.train.errors import RunError
from longcat.train.stages import ContextStage, check_stages

Precision = Literal["auto", "bf16", "float32", "float64"]
Schedule = Literal["wsd", "cosine"]


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The settings of one run.

    The report does not publish learning rate, betas, weight decay, schedule or MTP weight; these
    are this project's, found at hidden size 128 (see `default_lr` for other widths).

    Args:
        preset: name of the model configuration.
        data: `--data` arguments; empty means the default corpus.
        init: the checkpoint that the run starts from, with its sizes and its tokenizer; None starts
            from random weights. preset is then only a name.
        sft: `--sft` arguments, conversations to fine-tune on instead of text. template: the chat
            format they are written in.
        vocab_size: entries of the tokenizer trained for this run.
        seed: decides initial weights and data order.
        steps: optimizer steps; None when `time_budget` decides.
        time_budget: seconds of wall time to train for; the learning rate then follows elapsed
            time, so that such a run is not reproducible to the bit.
        batch_size: windows per optimizer step. micro_batches: shares that one forward and
            backward sees; processes divide these among themselves, so that the mathematics does
            not depend on how many there are.
        seq_len: tokens per window.
        document_mask: keep the documents of a window apart: no attention across their borders,
            positions from 0 in each.
        context_stages: when windows become longer and at which rotary base; none keeps `seq_len`
            and the preset's base.
        lr: peak learning rate. warmup_steps: steps of linear rise.
        schedule: what follows, "wsd" (a plateau, then a linear fall to 0 over the last `decay` of
            the run) or "cosine" (half a cosine to 0 over all that is left).
        weight_decay, beta1, beta2, eps, grad_clip: AdamW and the gradient-norm limit.
        mtp_weight: weight of the MTP head's cross entropy; 0 trains no head. mtp_layer: what the
            head's layer is, "dense" as released or "scmoe", a whole layer with a mixture, whose
            router the bias controller moves too.
        z_loss_weight: lambda of the hidden z-loss (the report's figure 6 shows 1e-7).
        balance_weight: alpha of the balance loss, small enough for R_g < 0.1.
        balance_groups: D of the balance loss.
        hold_balance: let the monitor lower alpha so that R_g stays below 0.1 after warm-up.
        mu, mu_final, mu_steps: gain of the bias controller, falling from mu to mu_final.
        mu_mean: its gain on the mean over FFN experts; None is the published law, without one.
        freeze_bias_at: steps after which the router biases stay as they are; None moves them to
            the end.
        precision: arithmetic of the linears; "auto" is replaced by what was measured to be fast.
        recompute: "layer" keeps no activations of a layer and computes them again in the backward
            pass, "layer-reentrant" does so in torch's older way; less memory, the same bits.
        width: hidden size, when it is not the preset's (`FlashConfig.widened`).
        width_ratio: width over that of the run whose `lr` this is; hidden and output matrices
            learn at lr / width_ratio (`longcat.optim.transfer`). 1 without a transfer.
        distill_steps: steps of the MTP-only phase after training; 0 leaves it out.
        save_every: steps between snapshots. keep: how many of the newest stay, beside the one with
            the lowest running mean of the training loss.
        measure_every: steps between measurements of R_g.
        rollback: how many times to go back after a spike, a corruption or a loss that is no number.
        sdc_every: steps between checks for silent corruption; 0 makes none.

    Raises:
        RunError: for settings that contradict each other.
    """

    preset: str = "nano"
    data: tuple[str, ...] = ()
    init: str | None = None
    sft: tuple[str, ...] = ()
    template: str = "longcat"
    vocab_size: int = 2048
    seed: int = 0
    steps: int | None = None
    time_budget: float | None = None
    batch_size: int = 8
    micro_batches: int = 2
    seq_len: int = 256
    document_mask: bool = False
    context_stages: tuple[ContextStage, ...] = ()
    lr: float = 4e-3
    warmup_steps: int = 40
    schedule: Schedule = "wsd"
    decay: float = 0.3
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-16
    grad_clip: float = 1.0
    mtp_weight: float = 0.3
    mtp_layer: MTPLayerKind = "dense"
    z_loss_weight: float = 1e-7
    balance_weight: float = 5e-4
    balance_groups: int = 1
    hold_balance: bool = True
    mu: float = 1.0
    mu_final: float = 0.1
    mu_steps: int = 400
    mu_mean: float | None = 1.0
    freeze_bias_at: int | None = None
    precision: Precision = "auto"
    recompute: Recompute = "none"
    width: int | None = None
    width_ratio: float = 1.0
    distill_steps: int = 0
    save_every: int = 200
    keep: int = 2
    measure_every: int = 20
    rollback: int = 0
    sdc_every: int = 0

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.time_budget is None):
            raise RunError(
                "train: give either --steps N or --time-budget SECONDS; got "
                f"steps={self.steps}, time_budget={self.time_budget}"
            )
        positive = {
            "--steps": 1 if self.steps is None else self.steps,
            "--time-budget": 1 if self.time_budget is None else self.time_budget,
            "--batch-size": self.batch_size,
            "--seq-len": self.seq_len,
            "--save-every": self.save_every,
            "--keep": self.keep,
            "--lr": self.lr,
            "--grad-clip": self.grad_clip,
            "measure_every": self.measure_every,
            "--width": 1 if self.width is None else self.width,
            "width_ratio": self.width_ratio,
        }
        for name, value in positive.items():
            if not value > 0:
                raise RunError(f"train: {name} must be positive; got {value}")
        if self.distill_steps < 0 or (self.distill_steps and not self.mtp_weight):
            raise RunError(
                "train: --distill-steps must not be negative, and needs a draft head; got "
                f"{self.distill_steps} with mtp_weight={self.mtp_weight}"
            )
        counted = {
            "--seed": self.seed,
            "--warmup-steps": self.warmup_steps,
            "--freeze-bias-at": self.freeze_bias_at or 0,
            "--rollback": self.rollback,
            "--sdc-every": self.sdc_every,
        }
        for name, value in counted.items():
            if value < 0:
                raise RunError(f"train: {name} must not be negative; got {value}")
        if self.schedule not in get_args(Schedule):
            raise RunError(f"train: --schedule must be wsd or cosine; got {self.schedule}")
        if self.mtp_layer not in get_args(MTPLayerKind):
            raise RunError(f"train: --mtp-layer must be dense or scmoe; got {self.mtp_layer}")
        if self.recompute not in get_args(Recompute):
            raise RunError(
                f"train: --recompute must be one of {', '.join(get_args(Recompute))}; got "
                f"{self.recompute}"
            )
        if not 0 <= self.decay <= 1:
            raise RunError(f"train: --decay is a fraction of the run, 0 to 1; got {self.decay}")
        if self.sft and (self.init is None or self.data):
            raise RunError(
                "train: --sft goes with --init MODEL, the checkpoint to fine-tune, and without "
                "--data"
            )
        if self.micro_batches < 1 or self.batch_size % self.micro_batches:
            raise RunError(
                f"train: a batch of {self.batch_size} windows cannot be cut into "
                f"{self.micro_batches} equal micro-batches"
            )
        if self.sft and self.context_stages:
            raise RunError(
                "train: --context-stage does not go with --sft, whose conversations are packed "
                "into windows once; give the length by --seq-len"
            )
        check_stages(
            self.context_stages,
            steps=self.steps,
            batch_size=self.batch_size,
            micro_batches=self.micro_batches,
            seq_len=self.seq_len,
        )

    @property
    def longest_window(self) -> int:
        """Tokens per window in the last stage of the context."""
        return self.context_stages[-1].seq_len if self.context_stages else self.seq_len

    def learning_rate(self, step: int, progress: float) -> float:
        """After `step` steps and that share of the run: warm-up by steps, then the schedule."""
        warmup, share = self.warmup_steps, 0.0
        if self.steps is not None:
            warmup = min(warmup, self.steps // 4)
            share = warmup / self.steps
        rise = min(1.0, (step + 1) / max(1, warmup))
        if self.schedule == "cosine":
            fall = cosine(max(progress, share), warmup=share)
        else:
            fall = warmup_stable_decay(progress, warmup=0.0, decay=self.decay)
        return self.lr * rise * fall

    def to_json(self) -> str:
        """One JSON object, the inverse of `from_json`."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "TrainSettings":
        """Settings as saved.

        Raises:
            RunError: when a field is unknown: the run is of another version.
        """
        saved: dict[str, Any] = json.loads(text)
        unknown = sorted(set(saved) - {f.name for f in fields(cls)})
        if unknown:
            raise RunError(
                f"resume: the run was saved with settings this version does not know: {unknown}"
            )
        for name in ("data", "sft"):
            saved[name] = tuple(saved.get(name, ()))
        stages = saved.get("context_stages", ())
        saved["context_stages"] = tuple(ContextStage(*stage) for stage in stages)
        return cls(**saved)


def default_lr(hidden_size: int) -> float:
    """4e-3 at hidden size 128, falling in proportion to the width.

    Source: report section 3.1.1, the transfer rule for hidden matrices (learning rate / s).
    """
    return 4e-3 * min(1.0, 128 / hidden_size)
