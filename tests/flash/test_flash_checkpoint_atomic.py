"""A save either replaces the checkpoint or leaves everything as it was."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longcat.flash.checkpoint import export_checkpoint, load_model, replace, writer
from longcat.flash.checkpoint import save_checkpoint as save
from longcat.flash.errors import CheckpointError

LAYOUTS = {"single": 10**9, "sharded": 100_000}


class Crash(BaseException):
    """Stands for a kill: nothing may catch it."""


@pytest.fixture
def models(tiny_config, random_model):
    """Two models of one config."""
    return random_model(tiny_config(), seed=0), random_model(tiny_config(), seed=1)


def contents(directory: Path) -> dict[str, bytes | None]:
    files = sorted(directory.rglob("*"))
    return {str(f.relative_to(directory)): f.read_bytes() if f.is_file() else None for f in files}


def holds(directory: Path, model) -> bool:
    state = load_model(directory).state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def found_in(directory: Path, models) -> str:
    """Which of two models, whole, is in the directory."""
    try:
        return (
            "old"
            if holds(directory, models[0])
            else "new"
            if holds(directory, models[1])
            else "mixed"
        )
    except CheckpointError:
        return "neither"


@pytest.mark.parametrize("before", LAYOUTS)
@pytest.mark.parametrize("after", LAYOUTS)
def test_saving_into_a_run_replaces_the_weights_and_keeps_the_rest(models, tmp_path, before, after):
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    others = ("tokenizer.json", "metrics.jsonl", "state/optimizer.pt", "notes.txt")
    for name in others:
        (run / name).write_text(name)
    save(models[0], run, max_shard_bytes=LAYOUTS[before])
    save(models[1], run, max_shard_bytes=LAYOUTS[after])
    assert holds(run, models[1])
    assert [(run / name).read_text() for name in others] == list(others)
    save(models[1], tmp_path / "fresh", max_shard_bytes=LAYOUTS[after])
    assert len(list(run.glob("*.safetensors*"))) == len(
        list((tmp_path / "fresh").glob("*.safetensors*"))
    )
    assert not list(tmp_path.rglob(".*saving*"))


def crash_after(monkeypatch, steps: int) -> list[int]:
    """Let `steps` renames and removals happen and crash at the next; returns the count so far."""
    done = [0]

    def counted(function):
        def step(*args, **kwargs):
            if done[0] == steps:
                raise Crash
            done[0] += 1
            return function(*args, **kwargs)

        return step

    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(os, "rename", counted(os.rename))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    return done


def outcomes_of_crashes(monkeypatch, models, directory, before, after) -> list[str]:
    """What can be loaded after a crash at each step of replacing the old weights by the new."""
    outcomes = []
    for steps in range(100):
        shutil.rmtree(directory, ignore_errors=True)
        save(models[0], directory, max_shard_bytes=LAYOUTS[before])
        with monkeypatch.context() as patch:
            crash_after(patch, steps)
            try:
                save(models[1], directory, max_shard_bytes=LAYOUTS[after])
            except Crash:
                crashed = True
            else:
                crashed = False
        outcomes.append(found_in(directory, models))
        if not crashed:
            return outcomes
    raise AssertionError("the save never ended")


@pytest.mark.parametrize("before", LAYOUTS)
@pytest.mark.parametrize("after", LAYOUTS)
def test_a_crash_at_any_step_leaves_the_old_or_the_new_weights(
    models, tmp_path, monkeypatch, before, after
):
    found = outcomes_of_crashes(monkeypatch, models, tmp_path / "c", before, after)
    switch = found.index("new")
    assert found == ["old"] * switch + ["new"] * (len(found) - switch)
    assert switch > 0


def test_control_removing_the_old_files_first_is_caught(models, tmp_path, monkeypatch):
    commit = replace._commit

    def careless(stage: Path, directory: Path) -> None:
        for file in directory.glob("*.safetensors*"):
            file.unlink()
        commit(stage, directory)

    monkeypatch.setattr(replace, "_commit", careless)
    found = outcomes_of_crashes(monkeypatch, models, tmp_path / "c", "sharded", "single")
    assert "neither" in found


@pytest.mark.parametrize(
    "failure",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt(), ValueError("bug")],
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_while_writing_leaves_everything_as_it_was(
    models, tmp_path, monkeypatch, failure, exists
):
    target = tmp_path / "run"
    if exists:
        save(models[0], target)
        (target / "metrics.jsonl").write_text("{}")
    before = contents(tmp_path)
    calls = [0]
    write_values = writer._write_values

    def fail_at_the_twentieth(*args):
        calls[0] += 1
        if calls[0] == 20:
            raise failure
        write_values(*args)

    monkeypatch.setattr(writer, "_write_values", fail_at_the_twentieth)
    expected = CheckpointError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected) as caught:
        save(models[1], target)
    assert calls[0] == 20
    assert contents(tmp_path) == before
    if isinstance(failure, OSError):
        assert "No space left on device" in str(caught.value)
        assert str(target) in str(caught.value)


def test_a_real_limit_of_the_system_is_one_sentence(models, tmp_path):
    """A file-size limit stands in for a full disk: the write itself fails."""
    save(models[0], tmp_path / "source")
    before = contents(tmp_path)
    code = (
        "import sys\n"
        "from longcat.flash.checkpoint import export_checkpoint\n"
        "try:\n"
        "    export_checkpoint(sys.argv[1], sys.argv[2])\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "source", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert "cannot write the checkpoint to" in done.stdout
    assert "File too large" in done.stdout
    assert done.stderr == ""
    assert contents(tmp_path) == before


def test_a_disk_that_is_too_small_is_refused_before_writing(models, tmp_path, monkeypatch):
    full = shutil._ntuple_diskusage(10**9, 10**9, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(CheckpointError, match=r"needs \d+ kB and 1 kB are free") as caught:
        save(models[0], tmp_path / "new" / "parents" / "c")
    cause = caught.value.__cause__
    assert isinstance(cause, OSError)
    assert cause.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
    # The control: the same target, with room.
    monkeypatch.undo()
    save(models[0], tmp_path / "new" / "parents" / "c")
    assert holds(tmp_path / "new" / "parents" / "c", models[0])


def test_a_companion_that_cannot_be_read_is_the_sources_fault(models, tmp_path, monkeypatch):
    save(models[0], tmp_path / "c")
    (tmp_path / "c" / "tokenizer.json").write_text("{}")

    def denied(self):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read: Permission denied"):
        export_checkpoint(tmp_path / "c", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_cannot_be_made_is_one_sentence(models, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointError, match=r"cannot write the checkpoint to .*choose a directory"
    ):
        save(models[0], tmp_path / "file" / "c")
    with pytest.raises(CheckpointError, match="is a file"):
        save(models[0], tmp_path / "file")

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(CheckpointError, match="Permission denied"):
        save(models[0], tmp_path / "c")


def test_a_directory_with_something_else_in_it_is_not_written_to(models, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="not empty and holds no checkpoint"):
        save(models[0], tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="'llama', which would be overwritten"):
        save(models[0], tmp_path)
    assert contents(tmp_path).keys() == {"thesis.tex", "config.json"}
    (tmp_path / "empty").mkdir()
    save(models[0], tmp_path / "empty")
    assert holds(tmp_path / "empty", models[0])


def test_what_a_killed_save_left_behind_is_cleared(models, tmp_path):
    save(models[0], tmp_path / "c")
    for left in (tmp_path / "c" / ".saving", tmp_path / ".new.saving"):
        left.mkdir()
        (left / "model.safetensors").write_text("half")
    save(models[1], tmp_path / "c")
    save(models[1], tmp_path / "new")
    assert holds(tmp_path / "c", models[1])
    assert not list(tmp_path.rglob(".*saving*"))


def test_an_export_never_touches_its_source(models, tmp_path):
    save(models[0], tmp_path / "c")
    (tmp_path / "link").symlink_to(tmp_path / "c")
    with pytest.raises(CheckpointError, match="onto itself"):
        export_checkpoint(tmp_path / "c", tmp_path / "link", format="transformers5")
    file = tmp_path / "c" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        export_checkpoint(tmp_path / "c", tmp_path / "out")
    assert not (tmp_path / "out").exists()
