"""Read a checkpoint: check all of it against the config first, then stream it into the parameters.

What is checked before a single value is read: every tensor that the config calls for is there with
its shape and in a type that can be read; every tensor that is there is used or known to be unused.
One `CheckpointError` names what is wrong, and nothing is loaded.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from longcat.flash.checkpoint.files import DTYPES, TensorFiles, name_some, read_config
from longcat.flash.checkpoint.fp8 import SCALE_SUFFIX, scale_name, scale_shape
from longcat.flash.checkpoint.names import (
    MAIN_EMBEDDING,
    MTP_EMBEDDING,
    MTP_PREFIX,
    DiskTensor,
    check_dtype,
    disk_tensors,
    empty_model,
    is_known_unused,
)
from longcat.flash.config import FlashConfig
from longcat.flash.errors import CheckpointError
from longcat.flash.model import FlashModel


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint that passed every check, open for reading.

    Attributes:
        config: from config.json; `num_nextn_predict_layers` says whether `model.mtp.*` is there.
        files: the tensors.
        tensors: what to read, by name on disk.
    """

    config: FlashConfig
    files: TensorFiles
    tensors: dict[str, DiskTensor]


@contextmanager
def open_checkpoint(directory: str | Path) -> Iterator[Checkpoint]:
    """Open a checkpoint directory (hub form or that of transformers 5.x) and check it whole.

    Raises:
        CheckpointError: a file or tensor is missing, unknown, damaged or of the wrong shape.
        ConfigError: config.json does not describe a LongCat-Flash model.
    """
    directory = Path(directory)
    config = FlashConfig.from_hf(read_config(directory))
    with TensorFiles(directory) as files:
        has_mtp = any(name.startswith(MTP_PREFIX) for name in files.stored)
        config = replace(config, num_nextn_predict_layers=int(has_mtp))
        _check_scale(files, config)
        state = empty_model(config).state_dict()
        zero_experts = config.router.zero_expert_num
        tensors = {t.name: t for t in disk_tensors(state, zero_experts=zero_experts, format="hub")}
        _check(files, tensors, config)
        yield Checkpoint(config=config, files=files, tensors=tensors)


def load_model(directory: str | Path, dtype: torch.dtype = torch.float32) -> FlashModel:
    """Load a checkpoint directory into a new model on the CPU.

    Reads single files and shards; float64, float32, bfloat16, float16 and FP8 with 128 x 128 block
    factors; with the MTP head if any `model.mtp.*` is there. Peak memory is the model and some
    40 MB, or a tenth of the largest file if that is more. Router weights and biases are float32
    whatever `dtype` says (float64 for float64).

    Args:
        directory: holds config.json and model.safetensors, or an index with its shards.
        dtype: the type of the parameters: float32, bfloat16, float16 or float64.

    Raises:
        CheckpointError: see `open_checkpoint`.
        ConfigError: config.json does not describe a LongCat-Flash model.
        ValueError: `dtype` is not one of the four.
    """
    check_dtype(dtype)
    with open_checkpoint(directory) as checkpoint:
        model = empty_model(checkpoint.config, dtype)
        shapes = model.state_dict()
        state = {
            name: torch.empty(t.shape, dtype=t.dtype)
            for name, t in shapes.items()
            if name != MTP_EMBEDDING
        }
        for name in checkpoint.files.stored:
            tensor = checkpoint.tensors.get(name)
            if tensor is not None and tensor.source in state:
                _read_into(state[tensor.source][tensor.part], checkpoint.files, name)
        if MTP_EMBEDDING in shapes:
            _load_mtp_embedding(model, state, checkpoint.files)
    model.load_state_dict(state, strict=True, assign=True)
    return model


def _load_mtp_embedding(
    model: FlashModel, state: dict[str, torch.Tensor], files: TensorFiles
) -> None:
    """Share the main embedding with the MTP head, unless the checkpoint's copy differs from it."""
    main = state[MAIN_EMBEDDING]
    if all(
        torch.equal(main[start : start + len(block)], block.to(main.dtype))
        for start, block in files.rows(MTP_EMBEDDING)
    ):
        state[MTP_EMBEDDING] = main
        return
    warnings.warn(
        f"{files.directory}: {MTP_EMBEDDING} differs from {MAIN_EMBEDDING}; "
        "the MTP head keeps an embedding of its own",
        stacklevel=4,
    )
    model.untie_mtp_embedding()
    state[MTP_EMBEDDING] = torch.empty_like(main)
    _read_into(state[MTP_EMBEDDING], files, MTP_EMBEDDING)


def _read_into(destination: torch.Tensor, files: TensorFiles, name: str) -> None:
    for start, block in files.rows(name):
        destination[start : start + len(block)].copy_(block)


def _check_scale(files: TensorFiles, config: FlashConfig) -> None:
    """Refuse a config of quite another size before a model of that size is laid out."""
    layers, experts = config.num_layers, config.router.n_routed_experts
    needed = layers * (3 * experts + 1)
    if needed > 10 * len(files.stored):
        raise CheckpointError(
            f"{files.directory} does not fit its config.json: {layers} layers of {experts} experts "
            f"need more than {needed} tensors, and {len(files.stored)} are there; nothing was "
            "loaded: check that config and weights belong together"
        )


def _check(files: TensorFiles, tensors: dict[str, DiskTensor], config: FlashConfig) -> None:
    """Raise one CheckpointError that names everything wrong with the tensors on disk."""
    stored = files.stored
    missing = [name for name in tensors if name not in stored]
    unexpected: list[str] = []
    misshapen: list[str] = []
    unreadable: list[str] = []
    for name, found in stored.items():
        tensor = tensors.get(name)
        if tensor is None:
            if not is_known_unused(name, config) and not _is_scale(name, files, tensors):
                unexpected.append(name)
            continue
        if found.shape != tensor.shape:
            misshapen.append(f"{name} {list(found.shape)} instead of {list(tensor.shape)}")
        elif found.dtype not in DTYPES or (found.dtype == "F8_E4M3" and len(found.shape) != 2):
            unreadable.append(f"{name} stored as {found.dtype}")
        elif found.dtype == "F8_E4M3":
            scale = stored.get(scale_name(name))
            if scale is None:
                missing.append(scale_name(name))
            elif scale.shape != scale_shape(found.shape):
                expected = list(scale_shape(found.shape))
                misshapen.append(f"{scale_name(name)} {list(scale.shape)} instead of {expected}")
            elif scale.dtype not in DTYPES or scale.dtype == "F8_E4M3":
                unreadable.append(f"{scale_name(name)} stored as {scale.dtype}")
    problems = [
        f"{name_some(names, 'tensor')} {what}"
        for names, what in (
            (missing, "missing"),
            (unexpected, "unexpected"),
            (misshapen, "of another shape"),
            (unreadable, f"in a type that cannot be read (known: {', '.join(DTYPES)})"),
        )
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{files.directory} does not fit its config.json: {'; '.join(problems)}; "
            "nothing was loaded: check that config and weights belong together"
        )


def _is_scale(name: str, files: TensorFiles, tensors: dict[str, DiskTensor]) -> bool:
    """Whether `name` holds the block factors of an FP8 weight that will be read."""
    weight = name.removesuffix(SCALE_SUFFIX)
    found = files.stored.get(weight)
    return weight in tensors and weight != name and found is not None and found.dtype == "F8_E4M3"
