"""Put a finished checkpoint in place: all of it or nothing, without touching other files.

Everything is written to a directory beside (or, if the target exists, inside) the target first. A
new target appears by one rename. In an existing one the files are renamed into place so that at
every moment a complete set of weights can be read: model.safetensors is replaced by one rename, and
new shards never carry the name of an old one, so the old index stays valid until the new one
replaces it. Files of the old checkpoint that are no longer used go last.
"""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from longcat.flash.checkpoint.files import CONFIG, INDEX, SINGLE, read_config
from longcat.flash.checkpoint.writer import is_shard
from longcat.flash.errors import CheckpointError
from longcat.flash.hf_config import MODEL_TYPE

# A directory with one of these is a run or a checkpoint, and weights may be written there.
_OURS = (CONFIG, SINGLE, INDEX, "tokenizer.json", "metrics.jsonl")


@contextmanager
def replacing(directory: Path, needed_bytes: int) -> Iterator[Path]:
    """Yield an empty directory; what is written there replaces the checkpoint in `directory`.

    On an error or interruption inside the block the new files are removed and `directory` is as it
    was. Two processes must not save to the same directory at the same time.

    Args:
        directory: the checkpoint's place: new, empty, a checkpoint or a run directory.
        needed_bytes: what will be written, to refuse at once if the disk has less.

    Raises:
        CheckpointError: `directory` holds something else, or cannot be written.
    """
    check_target(directory)
    exists = directory.is_dir()
    stage = directory / ".saving" if exists else directory.parent / f".{directory.name}.saving"
    absent = [parent for parent in directory.parents if not parent.exists()]
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Left behind by a save that was killed.
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir()
    except OSError as error:
        _remove_empty(absent)
        raise _unwritable(directory, error) from error
    try:
        free = shutil.disk_usage(stage).free
        if free < needed_bytes:
            raise CheckpointError(
                f"cannot write the checkpoint to {directory}: it needs {_size(needed_bytes)} and "
                f"{_size(free)} are free; nothing was changed: free some space or use another disk"
            ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield stage
        if exists:
            _commit(stage, directory)
        else:
            os.rename(stage, directory)
        _sync(directory.parent if not exists else directory)
    except OSError as error:
        raise _unwritable(directory, error) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        _remove_empty(absent)


def check_target(directory: Path) -> None:
    """Refuse a target that holds anything but a LongCat-Flash checkpoint or run.

    Raises:
        CheckpointError: it says what is there instead.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is a file; a checkpoint is written to a directory")
    present = {entry.name for entry in directory.iterdir()} - {".saving"}
    if not present:
        return
    if present.isdisjoint(_OURS):
        raise CheckpointError(
            f"{directory} is not empty and holds no checkpoint; give a new directory, "
            "or empty this one"
        )
    if CONFIG in present:
        kind = read_config(directory).get("model_type")
        if kind != MODEL_TYPE:
            raise CheckpointError(
                f"{directory} holds a model of type {kind!r}, which would be overwritten; "
                "give another directory"
            )


def existing_files(directory: Path) -> frozenset[str]:
    """The names of the files in `directory`; none if there is no such directory."""
    return frozenset(p.name for p in directory.iterdir()) if directory.is_dir() else frozenset()


def _commit(stage: Path, directory: Path) -> None:
    new = {entry.name for entry in stage.iterdir()}
    _sync(stage)
    # Whatever makes the new weights visible comes after everything that they need.
    last = [name for name in (SINGLE, INDEX, CONFIG) if name in new]
    for name in [*sorted(new.difference(last)), *last]:
        os.replace(stage / name, directory / name)
    _sync(directory)
    stale = [name for name in (SINGLE, INDEX) if name not in new]
    shards = [name for name in existing_files(directory) if is_shard(name) and name not in new]
    for name in [*stale, *shards]:
        (directory / name).unlink(missing_ok=True)


def _remove_empty(directories: Iterable[Path]) -> None:
    """Remove those that hold nothing, innermost first: they were made for a save that failed."""
    for directory in directories:
        with suppress(OSError):
            directory.rmdir()


def _sync(directory: Path) -> None:
    """Make renames in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unwritable(directory: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"cannot write the checkpoint to {directory}: {error.strerror or error}; what was there is "
        "unchanged: free some space, or choose a directory that you may write to"
    )


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.3g} TB"
