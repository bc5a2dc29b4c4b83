"""What a run will cost and why it is set up as it is, said before it starts.

The only measurements are of speed: a few optimizer steps in float32 and in bfloat16 autocast, on
this device, with this model, and a matrix product, which shows what the steps could reach.
bfloat16 pays where the device multiplies it natively.
"""

import gc
import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from longcat.flash import count_parameters
from longcat.train.device import CPU, free_bytes, gpus, name_of
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange, available_cores
from longcat.train.memory import estimate_bytes, gigabytes
from longcat.train.parallel.layout import WHOLE, Layout
from longcat.train.peak import clock, measure_peak
from longcat.train.prepare import Prepared
from longcat.train.settings import Precision, TrainSettings
from longcat.train.trainer import Trainer

MOST_PROCESSES = 2
_SPEEDUP = {1: 1.0, 2: 1.7}  # of two one-thread processes over one, measured


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the card: what, its value, and the reason where something was chosen."""

    label: str
    value: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Measured speed of one process.

    Attributes:
        tokens_per_s: of training, by precision; empty where no GPU holds the whole model, and so
            nothing was measured. precision: the one to train in.
        peak: operations per second of a square matrix product in it.
    """

    tokens_per_s: dict[Precision, float]
    precision: Precision
    peak: float


def choose_processes(
    asked: int | None, micro_batches: int, device: torch.device = CPU
) -> tuple[int, str]:
    """(processes, why): by default two of one thread where there are cores, or one for each GPU.

    Raises:
        RunError: when the number asked for cannot share the micro-batches.
    """
    cores = available_cores()
    if asked is not None:
        if asked < 1 or micro_batches % asked:
            fitting = [n for n in range(1, micro_batches + 1) if micro_batches % n == 0]
            raise RunError(
                f"train: --processes {asked} cannot share {micro_batches} micro-batches of a step "
                f"evenly; choose one of {fitting}"
            )
        return asked, "as asked"
    if device.type != "cpu":
        there = gpus()
        fitting = [n for n in range(1, there + 1) if micro_batches % n == 0]
        return fitting[-1], f"one for each GPU; torch sees {there} here"
    count = max(n for n in (1, MOST_PROCESSES) if n <= cores and micro_batches % n == 0)
    if count == 1:
        return 1, f"{cores} core available"
    return count, f"{cores} cores available; two one-thread processes beat two threads by 1.6"


def probe(prepared: Prepared, device: torch.device = CPU) -> Probe:
    """Time a few steps of one process in each precision that may be chosen (`peak.clock`).

    A model that is to be split, because a GPU cannot hold it, is not measured: bfloat16 is taken.
    """
    settings = prepared.settings
    candidates: tuple[Precision, ...] = ("float32", "bf16")
    if settings.precision != "auto":
        candidates = (settings.precision,)
    if device.type != "cpu":
        need = len(candidates) * estimate_bytes(prepared.config, settings)
        if need > free_bytes(device):
            taken = candidates[-1]
            return Probe(tokens_per_s={}, precision=taken, peak=measure_peak(taken, device))
    small = replace(
        settings,
        batch_size=settings.batch_size // settings.micro_batches,
        micro_batches=1,
        measure_every=1 << 30,
        context_stages=(),
    )
    trainers = {
        name: Trainer(
            prepared.config,
            replace(small, precision=name),
            prepared.tokens,
            prepared.token_bytes,
            Exchange(device=device),
        )
        for name in candidates
    }
    best = dict.fromkeys(candidates, math.inf)
    for trainer in trainers.values():
        trainer.train_step()  # the first step allocates and measures R_g
    for _ in range(3):
        for name, trainer in trainers.items():
            started = clock(device)
            trainer.train_step()
            best[name] = min(best[name], clock(device) - started)
    tokens = small.batch_size * small.seq_len
    speeds = {name: tokens / seconds for name, seconds in best.items()}
    fastest = max(candidates, key=lambda n: speeds[n])
    trainers.clear()
    if device.type != "cpu":
        gc.collect()  # a trainer and its checks know each other
        torch.cuda.empty_cache()
    return Probe(tokens_per_s=speeds, precision=fastest, peak=measure_peak(fastest, device))


def card(
    prepared: Prepared,
    speed: Probe,
    processes: int,
    why_processes: str,
    directory: str,
    layout: Layout = WHOLE,
    device: torch.device = CPU,
) -> list[Row]:
    """The preflight card's rows, in the order they are told."""
    on_cpu = device.type == "cpu"
    config, settings, corpus = prepared.config, prepared.settings, prepared.card
    counts = count_parameters(config)
    tokens_per_step = settings.batch_size * settings.seq_len
    gain = _SPEEDUP.get(processes, processes) if on_cpu else processes
    per_second = speed.tokens_per_s.get(speed.precision, 0.0) * gain  # 0: not measured
    seconds = (
        settings.time_budget
        if settings.time_budget is not None
        else (settings.steps or 0) * tokens_per_step / (per_second or math.inf)
    )
    tokens = (
        settings.steps * tokens_per_step
        if settings.steps is not None
        else int(seconds * per_second)
    )
    others = ", ".join(f"{name} {v:,.0f} tokens/s" for name, v in speed.tokens_per_s.items())
    precise = "measured: " + others if len(speed.tokens_per_s) > 1 else "as asked"
    held = estimate_bytes(config, settings, 1.0 if on_cpu else layout.share(processes, config))
    memory = processes * held if on_cpu else held
    heads = " with a draft head" if config.has_mtp else ""
    rows = [
        Row(label="run", value=directory),
        Row(
            label="text",
            value=f"{corpus['source']}; {corpus['train_bytes'] / 1e6:.2f} MB in "
            f"{corpus['train_documents']:,} documents",
            why=f"licence: {corpus['licence']}",
        ),
        Row(
            label="held out",
            value=f"{corpus['held_out_bytes'] / 1e6:.3f} MB in {corpus['held_out_documents']:,} "
            "documents",
            why="one in twenty, by folder and a hash of the name; never trained on",
        ),
        Row(
            label="tokenizer",
            value=f"{prepared.tokenizer.vocab_size:,} entries, "
            f"{corpus['train_bytes'] / max(1, corpus['train_tokens']):.2f} bytes per token",
            why="byte-level BPE learned from the training text"
            if settings.init is None
            else f"of {settings.init}",
        ),
        Row(
            label="model",
            value=f"{settings.preset}: {counts.total_parameters / 1e6:.2f} M parameters{heads}",
            why=f"a token activates {counts.activated_min / 1e6:.2f} to "
            f"{counts.activated_max / 1e6:.2f} M, {counts.activated_mean / 1e6:.2f} M on average",
        ),
        Row(
            label="FFN experts per token",
            value=f"{config.router.target_ffn:g} on average of top-{config.router.top_k}",
            why=f"{config.router.n_routed_experts} FFN + {config.router.zero_expert_num} identity "
            "experts; the bias controller holds the mean",
        ),
        Row(
            label="processes",
            value=f"{processes} x {'1 thread' if on_cpu else name_of(device)}",
            why=f"{why_processes}; {layout.describe(processes)}",
        ),
        Row(label="precision", value=speed.precision, why=precise),
        Row(
            label="peak",
            value=f"{processes * speed.peak / 1e9:,.0f} G operations/s",
            why="of all processes, from a square product in this precision; MFU is the share of it "
            "that training turns into model operations",
        ),
        Row(
            label="step",
            value=f"{settings.batch_size} windows of {settings.seq_len} = {tokens_per_step:,} "
            "tokens",
            why=f"in {settings.micro_batches} micro-batches, AdamW at {settings.lr:.1e}, "
            f"{settings.schedule} schedule"
            + ("; documents do not see each other" if settings.document_mask else ""),
        ),
        *(
            Row(
                label=f"from step {stage.step}",
                value=f"{tokens_per_step // stage.seq_len} windows of {stage.seq_len}, rotary base "
                f"{stage.theta:g}",
                why="context extension; tokens per step stay the same",
            )
            for stage in settings.context_stages
        ),
        Row(
            label="tokens",
            value=f"about {tokens / 1e6:.2f} M" if settings.steps is None else f"{tokens:,}",
            why=f"{tokens / max(1, corpus['train_tokens']):.2f} passes over the text",
        ),
        _time_row(settings, seconds if per_second else None, on_cpu=on_cpu),
        Row(
            label="memory",
            value=f"about {gigabytes(memory)}" + ("" if on_cpu else " on each GPU"),
            why="weights, gradients, Adam's moments, activations of one micro-batch"
            + ("" if settings.recompute == "none" else ", a layer at a time"),
        ),
        Row(
            label="saves",
            value=f"every {settings.save_every} steps",
            why=f"the newest {settings.keep} and the best stay; Ctrl-C saves too; a killed run "
            "goes on from the last",
        ),
    ]
    if "chats" in corpus:
        rows.insert(2, _chats_row(corpus["chats"], corpus["train_tokens"]))
    return rows


def _time_row(settings: TrainSettings, seconds: float | None, *, on_cpu: bool) -> Row:
    """How long it takes; seconds is None where no speed was measured."""
    if settings.time_budget is not None:
        why = "a budget; the learning rate follows it"
        return Row(label="time", value=_duration(settings.time_budget), why=why)
    if seconds is None:
        why = "no GPU here holds the whole model, which is what would be measured"
        return Row(label="time", value="not estimated", why=why)
    why = (
        "from the measured speed, other work on the machine not counted"
        if on_cpu
        else "from the measured speed of one GPU, sums between several not counted"
    )
    return Row(label="time", value=f"{_duration(seconds)} (estimate)", why=why)


def _chats_row(chats: dict[str, Any], tokens: int) -> Row:
    """What is learned of the conversations, and what became of those that are too long."""
    return Row(
        label="learned",
        value=f"{chats['learned_tokens']:,} tokens of the assistant, of {tokens:,} read",
        why=f"{chats['template']} format, {chats['windows']:,} windows filled to "
        f"{chats['filled']:.0%}; {chats['cut']} conversations cut at the window, "
        f"{chats['skipped']} skipped",
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
