"""The files of a checkpoint directory: which tensor lies where, read a few megabytes at a time.

Files are mapped by safetensors: a read costs one copy, from the page cache into its destination.
Pages of a mapping count as the process's memory until it is closed; it is therefore opened anew
after a twentieth of the file (at least `WINDOW_BYTES`), which bounds what loading needs beside the
model itself.
"""

import json
import re
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from longcat.flash.checkpoint.fp8 import BLOCK, dequantize, scale_name
from longcat.flash.errors import CheckpointError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model(?:-[0-9a-f]+)?-\d{5}-of-\d{5}\.safetensors")

WINDOW_BYTES = 16 * 2**20
CHUNK_BYTES = 8 * 2**20

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies: its file, its shape, and its type by safetensors' name for it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class TensorFiles:
    """The tensors of a checkpoint directory, read in row blocks. Use it as a context manager.

    Attributes:
        directory: the checkpoint.
        stored: name -> StoredTensor, in the order of the files.

    Raises:
        CheckpointError: a file is missing, not safetensors, truncated, or disagrees with the index.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.stored: dict[str, StoredTensor] = {}
        self._file: Path | None = None
        self._handle: Any = None
        self._unread = 0  # bytes that the open mapping may still bring into memory
        # The order of transformers and vLLM: a single file comes before an index.
        if (directory / SINGLE).is_file():
            self.stored = _scan(directory / SINGLE)
        elif (directory / INDEX).is_file():
            self._scan_shards()
        else:
            raise CheckpointError(
                f"no weights in {directory}: expected {SINGLE} or {INDEX} with its shards; "
                "if the weights are in another form, convert them to safetensors first"
            )

    def _scan_shards(self) -> None:
        weight_map = _read_weight_map(self.directory / INDEX)
        files = dict.fromkeys(weight_map.values())
        absent = [name for name in files if not (self.directory / name).is_file()]
        if absent:
            raise CheckpointError(
                f"{self.directory} is incomplete: {name_some(absent, 'shard')} named in {INDEX} "
                "but missing; download or copy the checkpoint again"
            )
        repeated: Counter[str] = Counter()
        for name in files:
            found = _scan(self.directory / name)
            repeated.update(found.keys())
            self.stored.update(found)
        lost = [
            t
            for t, file in weight_map.items()
            if t not in self.stored or self.stored[t].file.name != file
        ]
        lost += [t for t in self.stored if t not in weight_map] + [
            t for t, n in repeated.items() if n > 1
        ]
        if lost:
            raise CheckpointError(
                f"{self.directory / INDEX} and its shards disagree: {name_some(lost, 'tensor')} "
                "not where the index says; files of two checkpoints may be mixed: copy it again"
            )

    def dtype(self, name: str) -> torch.dtype:
        """The type that the values of a tensor deserve: its own, bfloat16 for FP8 with factors."""
        dtype = DTYPES[self.stored[name].dtype]
        return torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype

    def rows(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield (first row, block of rows) of one tensor, in order; FP8 weights come as float32.

        A block is a view of the mapped file and must not be kept past the next step.
        """
        stored = self.stored[name]
        if not stored.shape:
            raise CheckpointError(
                f"{self.directory}: {name} is a scalar, expected a vector or matrix"
            )
        scale = None
        if stored.dtype == "F8_E4M3":
            scale = torch.cat([block for _, block in self.rows(scale_name(name))])
        total = stored.shape[0]
        row_bytes = torch.Size(stored.shape[1:]).numel() * DTYPES[stored.dtype].itemsize
        step = max(CHUNK_BYTES // max(row_bytes, 1) // BLOCK, 1) * BLOCK
        for start in range(0, total, step):
            stop = min(start + step, total)
            view = self._open(stored.file, (stop - start) * row_bytes).get_slice(name)
            block = view[start:stop]
            if scale is not None:
                block = dequantize(block, scale[start // BLOCK : -(-stop // BLOCK)])
            del view
            yield start, block

    def _open(self, file: Path, nbytes: int) -> Any:
        if self._file != file or self._unread < nbytes:
            self._close()
            self._handle, self._file = _safe_open(file), file
            self._unread = max(WINDOW_BYTES, file.stat().st_size // 20)
        self._unread -= nbytes
        return self._handle

    def _close(self) -> None:
        self._handle = self._file = None

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()


def name_some(names: list[str], noun: str, shown: int = 3) -> str:
    """`names` for a sentence: "tensor a is", "tensors a, b are", or the first few and how many."""
    listed = ", ".join(names[:shown])
    if len(names) == 1:
        return f"{noun} {listed} is"
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{len(names)} {noun}s ({listed}{more}) are"


def read_config(directory: Path) -> dict[str, Any]:
    """Read config.json of a checkpoint directory.

    Raises:
        CheckpointError: there is no such directory or file, or it is not a JSON object.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"no checkpoint at {directory}: expected a directory with {CONFIG} and {SINGLE}"
        )
    if not (directory / CONFIG).is_file():
        raise CheckpointError(
            f"no {CONFIG} in {directory}: a checkpoint is a directory with {CONFIG} and {SINGLE}"
        )
    return _read_json_object(directory / CONFIG)


def _read_weight_map(index: Path) -> dict[str, str]:
    weight_map = _read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map of tensor names to files")
    for name, file in weight_map.items():
        # A file elsewhere could be anything; a checkpoint is one directory.
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(
                f"{index}: {name} must name a file beside the index, not {file!r}"
            )
    return weight_map


def _read_json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is not readable as JSON: {error}; restore the file"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} holds {type(value).__name__}, expected a JSON object")
    return value


def _safe_open(file: Path) -> Any:
    try:
        file.open("rb").close()  # safetensors calls every refusal of the system a missing file
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is not a complete safetensors file ({error}); it may be cut off: copy it again"
        ) from error


def _scan(file: Path) -> dict[str, StoredTensor]:
    _safe_open(file)  # checks the header against the file's length
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    in_order = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return {
        name: StoredTensor(file=file, shape=tuple(entry["shape"]), dtype=entry["dtype"])
        for name, entry in in_order
    }
