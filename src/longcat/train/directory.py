"""The run directory: always loadable, whatever happens to the process or the disk.

    DIR/config.json, model.safetensors, tokenizer.json, ...   the newest checkpoint, complete
    DIR/metrics.jsonl                                         one object per step
    DIR/data/                                                 ids and held-out text of this run
    DIR/state/step-00000200/                                  a snapshot: the checkpoint and all
                                                              that resuming needs; the highest
                                                              number is the newest
A snapshot is written under a temporary name, synced, and renamed as a whole; then its checkpoint
files are linked into DIR, each replacing its predecessor in one step; then older snapshots go,
each under a temporary name first, so that half of one is never taken for a snapshot.
So a kill or a full disk at any moment leaves the previous snapshot or the new one, never a
mixture, and resuming reads model and optimizer from the same folder.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from longcat.flash import CheckpointError
from longcat.train.errors import RunError

_PREFIX = "step-"
_TEMPORARY = ".tmp-"
# Files of a snapshot that belong to resuming alone; all others are the checkpoint.
STATE_FILES = ("optimizer.safetensors", "trainer.json", "settings.json")
SHARDED = "sharded"  # in a snapshot of a divided model: the pieces, in place of the checkpoint


class RunDirectory:
    """A directory that holds one training run. See the module's text for its layout."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.state = self.path / "state"
        self.data = self.path / "data"

    def check_new(self) -> None:
        """Refuse a place for a new run that holds something already.

        Raises:
            RunError: saying what is there and what to do.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"train: --out must be a directory; {self.path} is a file")
        if self.path.is_dir() and any(self.path.iterdir()):
            if self.is_run() and not self.snapshots():
                raise RunError(
                    f"train: {self.path} holds a run that was killed before it saved anything; "
                    "remove it, or choose another --out"
                )
            if self.is_run():
                raise RunError(
                    f"train: {self.path} already holds a run; go on with it by "
                    f"`longcat train --resume --out {self.path}`, or choose another --out"
                )
            raise RunError(f"train: {self.path} is not empty and is no run; choose another --out")

    def create(self) -> None:
        """Make the directory for a new run.

        Raises:
            RunError: when it holds something already, or cannot be written.
        """
        self.check_new()
        with _explained(f"train: {self.path} cannot be written"):
            self.state.mkdir(parents=True)
            self.data.mkdir()

    def abandon(self) -> None:
        """Remove what a run that never saved has left; one with a snapshot is never touched."""
        if self.is_run() and not self.snapshots():
            shutil.rmtree(self.path)

    def is_run(self) -> bool:
        """Whether a run was ever begun here."""
        return self.state.is_dir()

    def snapshots(self) -> list[tuple[int, Path]]:
        """(step, folder) of complete snapshots, oldest first."""
        if not self.state.is_dir():
            return []
        found = [p for p in self.state.iterdir() if p.name.startswith(_PREFIX)]
        return sorted((int(p.name.removeprefix(_PREFIX)), p) for p in found)

    def latest(self) -> Path:
        """The newest snapshot.

        Raises:
            RunError: when there is none.
        """
        snapshots = self.snapshots()
        if not snapshots:
            raise RunError(
                f"resume: expected a run with a saved snapshot in {self.path}, found none; start "
                "one by `longcat train --out DIR` without --resume"
            )
        return snapshots[-1][1]

    def at(self, step: int) -> Path:
        """The snapshot of that step.

        Raises:
            RunError: when it was not kept, with the steps that were.
        """
        there = dict(self.snapshots())
        if step not in there:
            raise RunError(
                f"resume: {self.path} has no snapshot of step {step}; it has kept those of steps "
                f"{sorted(there)}"
            )
        return there[step]

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        *,
        keep: int = 1,
        best: Callable[[], int | None] = lambda: None,
    ) -> Path:
        """Write a snapshot atomically; `write(folder)` puts all its files into a new folder.

        Args:
            keep: how many of the newest stay. best: asked afterwards for the step of one more
                that stays, whatever its age.

        Raises:
            RunError: when the disk is full or cannot be written; the last snapshot stands.
        """
        name = f"{_PREFIX}{step:08d}"
        temporary, final = self.state / f"{_TEMPORARY}{name}", self.state / name
        if final.is_dir():
            return final  # resumed and stopped before another step was made
        try:
            with _explained(f"train: saving step {step} in {self.path} failed"):
                self.clean()
                temporary.mkdir()
                write(temporary)
                sync_tree(temporary)
                os.rename(temporary, final)
                _sync(self.state)
                self.publish(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        kept_anyway = best()
        for old_step, old in self.snapshots()[:-keep]:
            if old_step != kept_anyway:
                self._remove(old)
        return final

    def rewind(self, step: int) -> Path:
        """Remove the snapshots after `step`, so that this one is the newest, and return it.

        Raises:
            RunError: when there is no snapshot of that step; nothing is removed then.
        """
        self.at(step)
        for later_step, later in reversed(self.snapshots()):
            if later_step > step:
                self._remove(later)
        return self.restore()

    def _remove(self, snapshot: Path) -> None:
        """Whole, or not at all for those who look: the name goes before the files do."""
        doomed = snapshot.with_name(f"{_TEMPORARY}{snapshot.name}")
        with suppress(OSError):  # what cannot be removed does no harm by staying
            os.rename(snapshot, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def publish(self, snapshot: Path) -> None:
        """Put the snapshot's checkpoint files into the run directory, each in one step.

        A sharded snapshot has none; it gets them when the run ends.
        """
        if (snapshot / SHARDED).is_dir():
            return
        for source in sorted(snapshot.iterdir()):
            if source.name in STATE_FILES:
                continue
            fresh = self.path / f"{_TEMPORARY}{source.name}"
            fresh.unlink(missing_ok=True)
            try:
                os.link(source, fresh)  # no second copy of the weights
            except OSError:
                shutil.copyfile(source, fresh)
                _sync(fresh)
            os.replace(fresh, self.path / source.name)
            fresh.unlink(missing_ok=True)  # of two names of one file a rename leaves both
        _sync(self.path)

    def restore(self) -> Path:
        """The newest snapshot, after mending what a kill in the middle of saving left behind.

        A kill between renaming a snapshot and linking its files would leave the run directory
        with the checkpoint of the snapshot before.
        """
        snapshot = self.latest()
        with _explained(f"resume: {self.path} cannot be written"):
            self.clean()
            self.publish(snapshot)
        return snapshot

    def replace_settings(self, snapshot: Path, text: str) -> None:
        """Change a snapshot's settings, for a run that goes on with another length."""
        with _explained(f"resume: {self.path} cannot be written"):
            write_text(snapshot / "settings.json", text)

    def clean(self) -> None:
        """Remove unfinished snapshots and files."""
        for leftover in self.state.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover)
        for leftover in self.path.glob(f"{_TEMPORARY}*"):
            leftover.unlink()


def free_directory(path: Path) -> Path:
    """`path` if nothing is there, else path-2, path-3, ..."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return path
    number = 2
    while path.with_name(f"{path.name}-{number}").exists():
        number += 1
    return path.with_name(f"{path.name}-{number}")


def write_text(path: Path, text: str) -> None:
    """Write a small file in one step: it is there whole, or the old one stays."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_tree(folder: Path) -> None:
    """fsync every file below folder, and folder itself."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn an operating system's refusal into a sentence."""
    try:
        yield
    except (OSError, SafetensorError, CheckpointError) as error:
        system = error if isinstance(error, OSError) else _system_error(error)
        reason = system.strerror or system
        raise RunError(
            f"{what}: {reason}; make room or choose another --out. What was saved "
            "before still stands"
        ) from system


def _system_error(error: Exception) -> OSError:
    """The system's refusal behind an error; safetensors names it only as `(os error 28)`."""
    if isinstance(error.__cause__, OSError):
        return error.__cause__
    found = re.search(r"os error (\d+)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1]))) if found else OSError(str(error))
