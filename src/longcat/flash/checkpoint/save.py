"""Write a model as a checkpoint, or one checkpoint as another, without holding a second copy."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from longcat.flash.checkpoint.load import Checkpoint, open_checkpoint
from longcat.flash.checkpoint.names import (
    DiskTensor,
    Format,
    check_dtype,
    check_format,
    disk_tensors,
    empty_model,
    stored_dtype,
)
from longcat.flash.checkpoint.replace import existing_files, replacing
from longcat.flash.checkpoint.writer import write_checkpoint
from longcat.flash.config import FlashConfig
from longcat.flash.errors import CheckpointError
from longcat.flash.model import FlashModel

MAX_SHARD_BYTES = 5 * 10**9
LATENT_NORM_EPS = 1e-6

# Files beside the weights that belong to a model and are copied with it.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def save_checkpoint(
    model: FlashModel,
    directory: str | Path,
    *,
    format: Format = "hub",
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model to `directory`, atomically; other files of a run in it are kept.

    Args:
        model: on any device.
        directory: new, empty, or a LongCat-Flash checkpoint or run whose weights are replaced.
        format: "hub" (vLLM, SGLang, transformers 4.57) or "transformers5".
        dtype: the type to write; None keeps the model's. Routers stay float32 or wider.
        max_shard_bytes: more than this is split into several files.

    Raises:
        CheckpointError: the directory cannot be written, or holds something else; it is unchanged.
        ValueError: unknown format or type.
    """
    _check_options(format, dtype, max_shard_bytes)
    state = model.state_dict()
    zero_experts = model.config.router.zero_expert_num
    tensors = list(disk_tensors(state, zero_experts=zero_experts, format=format, dtype=dtype))

    def pieces(tensor: DiskTensor) -> Iterator[torch.Tensor]:
        if tensor.source is None:
            yield torch.zeros(tensor.shape, dtype=tensor.dtype)
        else:
            yield state[tensor.source][tensor.part]

    directory = Path(directory)
    config = _config_fields(model.config, format, dtype or model.lm_head.weight.dtype)
    with replacing(directory, sum(t.nbytes for t in tensors)) as stage:
        write_checkpoint(
            stage,
            tensors,
            pieces,
            config,
            max_shard_bytes=max_shard_bytes,
            taken=existing_files(directory),
        )


def export_checkpoint(
    source: str | Path,
    directory: str | Path,
    *,
    format: Format = "hub",
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Rewrite a checkpoint in another form, from disk to disk, with its tokenizer files.

    Args:
        source: any checkpoint that `load_model` reads.
        directory: the new one; not `source`.
        format: "hub" or "transformers5".
        dtype: the type to write; None keeps the stored one (bfloat16 for FP8).
        max_shard_bytes: more than this is split into several files.

    Raises:
        CheckpointError: `source` cannot be read or `directory` not written; nothing is changed.
        ConfigError: the config of `source` is not a LongCat-Flash model's.
        ValueError: unknown format or type.
    """
    _check_options(format, dtype, max_shard_bytes)
    source, directory = Path(source), Path(directory)
    if directory.resolve() == source.resolve():
        raise CheckpointError(
            f"cannot export {source} onto itself; give another directory for the result"
        )
    companions = _read_companions(source)
    with open_checkpoint(source) as checkpoint:
        tensors = _export_tensors(checkpoint, format, dtype)

        def pieces(tensor: DiskTensor) -> Iterator[torch.Tensor]:
            if tensor.source is None:
                yield torch.zeros(tensor.shape, dtype=tensor.dtype)
            else:
                for _, block in checkpoint.files.rows(tensor.name):
                    yield block

        head = next(t.dtype for t in tensors if t.name == "lm_head.weight")
        config = _config_fields(checkpoint.config, format, head)
        with replacing(directory, sum(t.nbytes for t in tensors)) as stage:
            write_checkpoint(
                stage,
                tensors,
                pieces,
                config,
                max_shard_bytes=max_shard_bytes,
                taken=existing_files(directory),
            )
            for name, content in companions.items():
                (stage / name).write_bytes(content)


def _read_companions(source: Path) -> dict[str, bytes]:
    """The files beside the weights, read first: what fails later is the writing."""
    found = [name for name in COMPANIONS if (source / name).is_file()]
    try:
        return {name: (source / name).read_bytes() for name in found}
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error


def _export_tensors(
    checkpoint: Checkpoint, format: Format, dtype: torch.dtype | None
) -> list[DiskTensor]:
    """What an export writes: each tensor in `dtype`, or in the type that its values have."""
    config = checkpoint.config
    state = empty_model(config).state_dict()
    tensors = []
    kept = torch.float32
    for t in disk_tensors(state, zero_experts=config.router.zero_expert_num, format=format):
        if t.source is not None:  # zeros take the type of the expert before them
            kept = checkpoint.files.dtype(t.name)
        tensors.append(replace(t, dtype=stored_dtype(t.name, dtype or kept)))
    return tensors


def _config_fields(config: FlashConfig, format: Format, dtype: torch.dtype) -> dict[str, object]:
    """config.json, after refusing what transformers would read and then ignore."""
    attention = config.attention
    if format == "transformers5":
        ignored = [
            name
            for name, value, fixed in (
                ("latent_norm_eps", attention.latent_norm_eps, LATENT_NORM_EPS),
                ("mla_scale_q_lora", attention.scale_q_lora, True),
                ("mla_scale_kv_lora", attention.scale_kv_lora, True),
            )
            if value != fixed
        ]
        if ignored:
            raise CheckpointError(
                f"transformers has no setting for {', '.join(ignored)} and would compute something "
                "else than this model; write the hub format instead"
            )
    key = "torch_dtype" if format == "hub" else "dtype"
    return {**config.to_hf(format), key: str(dtype).removeprefix("torch.")}


def _check_options(format: Format, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    check_format(format)
    if dtype is not None:
        check_dtype(dtype)
    if max_shard_bytes < 1:
        raise ValueError(f"checkpoint: max_shard_bytes must be positive, got {max_shard_bytes}")
