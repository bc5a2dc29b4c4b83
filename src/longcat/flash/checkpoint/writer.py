"""Write safetensors files tensor by tensor, so that a checkpoint need never be held in memory.

The format: eight bytes with the header's length (little endian), a JSON header with type, shape and
byte range of every tensor, then the raw values in that order. The values start at a multiple of
eight bytes and wider types come first, as the safetensors library itself lays them out.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from longcat.flash.checkpoint.files import CHUNK_BYTES, CONFIG, DTYPES, INDEX, SHARD, SINGLE
from longcat.flash.checkpoint.names import DiskTensor

CODES = {dtype: code for code, dtype in DTYPES.items()}

# The values of one tensor in order, in any number of pieces and in any type.
Pieces = Callable[[DiskTensor], Iterable[torch.Tensor]]


def write_checkpoint(
    directory: Path,
    tensors: Sequence[DiskTensor],
    pieces: Pieces,
    config: dict[str, object],
    *,
    max_shard_bytes: int,
    taken: frozenset[str],
) -> None:
    """Write config.json and the weights, in one file or in shards with an index.

    Args:
        directory: an empty directory.
        tensors: what to write, in order.
        pieces: gives the values of one of them.
        config: the fields of config.json.
        max_shard_bytes: shards hold at most so many bytes, or a single larger tensor.
        taken: names that shards must not have (those of files that will be replaced).
    """
    groups = _shards(tensors, max_shard_bytes)
    names = _shard_names(len(groups), taken)
    for name, group in zip(names, groups, strict=True):
        write_safetensors(directory / name, group, pieces)
    if len(groups) > 1:
        weight_map = {t.name: name for name, g in zip(names, groups, strict=True) for t in g}
        total = sum(t.nbytes for t in tensors)
        _write_json(
            directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
    _write_json(directory / CONFIG, config)


def write_safetensors(file: Path, tensors: Sequence[DiskTensor], pieces: Pieces) -> None:
    """Write one safetensors file and wait until it is on the disk.

    Raises:
        OSError: the file cannot be written.
        ValueError: `pieces` gave another number of values than a tensor's shape calls for.
    """
    ordered = sorted(tensors, key=lambda t: -t.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for t in ordered:
        end = offset + t.nbytes
        header[t.name] = {
            "dtype": CODES[t.dtype],
            "shape": list(t.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        for t in ordered:
            before = stream.tell()
            for piece in pieces(t):
                _write_values(stream.write, piece, t.dtype)
            if stream.tell() - before != t.nbytes:
                raise ValueError(
                    f"checkpoint: {t.name} of shape {list(t.shape)} needs {t.nbytes} bytes, "
                    f"but {stream.tell() - before} came; its source has another shape"
                )
        stream.flush()
        os.fsync(stream.fileno())


def _write_values(
    write: Callable[[memoryview], int], tensor: torch.Tensor, dtype: torch.dtype
) -> None:
    flat = tensor.detach().reshape(-1)
    step = CHUNK_BYTES // dtype.itemsize
    for start in range(0, flat.numel(), step):
        chunk = flat[start : start + step].to(device="cpu", dtype=dtype).contiguous()
        write(chunk.view(torch.uint8).numpy().data)


def _shards(tensors: Sequence[DiskTensor], limit: int) -> list[list[DiskTensor]]:
    groups: list[list[DiskTensor]] = [[]]
    size = 0
    for t in tensors:
        if groups[-1] and size + t.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(t)
        size += t.nbytes
    return groups


def _shard_names(count: int, taken: frozenset[str]) -> list[str]:
    """Names for `count` files, none of them taken: the old shards must stay readable."""
    if count == 1:
        return [SINGLE]
    for version in range(len(taken) + 1):
        tag = f"-{version:x}" if version else ""
        names = [f"model{tag}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        if taken.isdisjoint(names):
            break
    return names


def is_shard(name: str) -> bool:
    """Whether a file of this name is one shard of several."""
    return SHARD.fullmatch(name) is not None


def _write_json(file: Path, value: dict[str, object]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2, ensure_ascii=False)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
