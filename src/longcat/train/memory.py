"""What a run needs of memory, by an estimate, and what the machine or a GPU has of it."""

import os

import torch

from longcat.flash import FlashConfig, count_parameters
from longcat.train.device import CPU, free_bytes
from longcat.train.errors import RunError
from longcat.train.parallel.layout import WHOLE, Layout
from longcat.train.settings import TrainSettings

_BYTES_PER_PARAMETER = 16  # float32 weights, gradients and Adam's two moments


def check_memory(
    config: FlashConfig,
    settings: TrainSettings,
    processes: int,
    layout: Layout = WHOLE,
    device: torch.device = CPU,
) -> int:
    """Bytes the run needs (an estimate): all processes together, or each on its GPU.

    Raises:
        RunError: when the machine, or this process's GPU, has clearly less.
    """
    if device.type == "cpu":
        need, available = processes * estimate_bytes(config, settings), _available_bytes()
        where = f"with {processes} process(es), this machine has"
    else:
        need = estimate_bytes(config, settings, layout.share(processes, config))
        available = free_bytes(device)
        where = f"on each of {processes} GPU(s), the first has"
    if available is not None and need > available:
        raise RunError(
            f"train: preset {settings.preset} needs about {gigabytes(need)} to train {where} "
            f"{gigabytes(available)} free; choose a smaller preset, --batch-size or --seq-len, "
            "more --micro-batches, or --recompute layer"
            + ("" if device.type == "cpu" else ", or split the model: --fsdp, --expert-parallel")
        )
    return need


def estimate_bytes(config: FlashConfig, settings: TrainSettings, share: float = 1.0) -> int:
    """Weights, gradients, moments and the activations of one micro-batch, in one process.

    Args:
        share: of the weights that the process holds (`Layout.share`).
    """
    counts = count_parameters(config)
    held = share * (counts.total_parameters + counts.mtp_parameters)
    weights = round(held * _BYTES_PER_PARAMETER)
    tokens = settings.batch_size // settings.micro_batches * settings.seq_len
    logits = tokens * config.vocab_size * 4 * 6  # both heads: logits, log-softmax, gradient
    # About 40 tensors of the model's width per layer, and the expanded slots of the experts.
    width = 40 * config.hidden_size + 6 * config.ffn_hidden_size
    slots = config.router.top_k * (2 * config.hidden_size + 4 * config.moe.expert_ffn_hidden_size)
    layer = tokens * (width + slots) * 4
    activations = config.num_layers * layer
    if settings.recompute != "none":  # one layer's, and the input of each
        activations = layer + config.num_layers * tokens * config.hidden_size * 4
    return weights + logits + activations


def gigabytes(count: float) -> str:
    """A size in words."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.0f} MB"


def _available_bytes() -> int | None:
    """Memory that can be had without swapping; None where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: ask the system library below
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
