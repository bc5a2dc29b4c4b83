"""The run directory stays loadable when the disk fills up or the process is killed anywhere."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch

from longcat.flash import FlashModel
from longcat.train import directory as directory_module
from longcat.train.directory import RunDirectory, free_directory, write_text
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.prepare import prepare, reopen
from longcat.train.snapshot import write_snapshot


def writer_of(text):
    def write(folder):
        (folder / "model.safetensors").write_text(text)
        (folder / "config.json").write_text(text)
        (folder / "trainer.json").write_text(text)

    return write


@pytest.fixture
def saved_once(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    directory.save(1, writer_of("one"))
    return directory


def contents(directory):
    return {p.name: p.read_text() for p in directory.path.iterdir() if p.is_file()}


def test_restoring_what_is_there_already_leaves_nothing_beside_it(saved_once):
    saved_once.restore()
    saved_once.restore()
    assert contents(saved_once) == {"model.safetensors": "one", "config.json": "one"}


def test_a_save_replaces_the_checkpoint_and_the_older_snapshot(saved_once):
    saved_once.save(2, writer_of("two"))
    assert contents(saved_once) == {"model.safetensors": "two", "config.json": "two"}
    assert [step for step, _ in saved_once.snapshots()] == [2]
    assert not list(saved_once.state.glob(".tmp-*"))


def test_a_save_that_fails_leaves_the_last_one(saved_once):
    def full(folder):
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"step 2 .* No space left on device; make room"):
        saved_once.save(2, full)
    assert contents(saved_once)["model.safetensors"] == "one"
    assert [step for step, _ in saved_once.snapshots()] == [1]
    assert not list(saved_once.state.glob(".tmp-*"))


class Killed(BaseException):
    """Stands for a kill -9: no handler of ours may depend on it being caught."""


@pytest.mark.parametrize("function", ["mkdir", "rename", "link", "replace", "fsync"])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_killed_at_any_call_the_directory_restores_to_one_step(
    saved_once, monkeypatch, function, at
):
    """Each system call in turn is the last one that the process makes."""
    module = os if function != "mkdir" else type(saved_once.path)
    original, calls = getattr(module, function), []

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) > at:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, function, dying)
        patch.setattr(directory_module.shutil, "rmtree", lambda *a, **k: None)  # no tidying up
        with contextlib.suppress(Killed):
            saved_once.save(2, writer_of("two"))
    # before anything is restored, each file is whole
    assert all(text in ("one", "two") for text in contents(saved_once).values())
    snapshot = saved_once.restore()
    expected = "two" if snapshot.name.endswith("2") else "one"
    found = contents(saved_once)
    assert found["model.safetensors"] == found["config.json"] == expected
    assert (snapshot / "trainer.json").read_text() == expected


def test_control_saving_in_place_would_be_noticed(saved_once, monkeypatch):
    """A save that writes straight into the run leaves a mixture when it is killed."""

    def in_place(step, write):
        (saved_once.path / "model.safetensors").write_text("two")
        raise Killed

    with pytest.raises(Killed):
        in_place(2, None)
    saved = contents(saved_once)
    assert saved["model.safetensors"] != saved["config.json"]


def test_weights_are_on_disk_once(saved_once):
    snapshot = saved_once.latest()
    assert os.path.samefile(snapshot / "model.safetensors", saved_once.path / "model.safetensors")


def test_where_links_are_refused_files_are_copied(saved_once, monkeypatch):
    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    saved_once.save(2, writer_of("two"))
    assert contents(saved_once)["model.safetensors"] == "two"


def test_a_directory_in_use_is_refused(saved_once, tmp_path):
    with pytest.raises(RunError, match=r"already holds a run; go on .*--resume --out"):
        saved_once.create()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(RunError, match="not empty and is no run"):
        RunDirectory(tmp_path / "thesis").create()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        RunDirectory(tmp_path / "file").create()


def test_a_run_that_never_saved_is_abandoned_and_one_that_did_is_kept(saved_once, tmp_path):
    saved_once.abandon()
    assert saved_once.latest().is_dir()
    fresh = RunDirectory(tmp_path / "fresh")
    fresh.create()
    with pytest.raises(RunError, match="killed before it saved anything"):
        fresh.create()
    fresh.abandon()
    assert not fresh.path.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_place_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot be written: Permission denied"):
        RunDirectory(tmp_path / "run").create()


def test_a_place_below_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        RunDirectory(tmp_path / "file" / "run").create()


def test_resuming_nothing_says_so(tmp_path):
    with pytest.raises(RunError, match="expected a run with a saved snapshot"):
        RunDirectory(tmp_path / "nowhere").latest()


def test_a_free_name_is_found_beside_what_is_there(tmp_path):
    assert free_directory(tmp_path / "run") == tmp_path / "run"
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("")
    assert free_directory(tmp_path / "run") == tmp_path / "run-3"


def test_a_small_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_text(path, "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_optimizer_file_is_named(kit, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    prepared = prepare(directory, kit.corpus(), kit.settings(), kit.config())
    begin(directory, prepared)
    path = directory.latest() / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=r"optimizer\.safetensors cannot be read"):
        run(directory, reopen(directory), Exchange(), Silent())


def test_a_snapshot_of_another_model_is_refused(kit, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    prepared = prepare(directory, kit.corpus(), kit.settings(), kit.config())
    begin(directory, prepared)
    other = kit.trainer(
        config=kit.config(num_nextn_predict_layers=0), settings=kit.settings(mtp_weight=0.0)
    )
    folder = tmp_path / "other"
    folder.mkdir()
    write_snapshot(other, None, folder)
    shutil.copy(folder / "optimizer.safetensors", directory.latest())
    with pytest.raises(RunError, match="moments of another model"):
        run(directory, reopen(directory), Exchange(), Silent())


FULL_DISK = """
import resource, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, run
from longcat.train.prepare import reopen

class Fill(Silent):
    def saved(self, step):
        if step == 2:  # from now on no file may grow beyond a few kilobytes
            resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

directory = RunDirectory(Path(sys.argv[1]))
try:
    run(directory, reopen(directory), Exchange(), Fill())
except RunError as error:
    print(error)
    sys.exit(3)
"""


def test_a_disk_that_fills_up_leaves_the_last_good_run(kit, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    prepared = prepare(directory, kit.corpus(), kit.settings(steps=6, save_every=2), kit.config())
    begin(directory, prepared)
    assert resource.RLIMIT_FSIZE  # the test needs POSIX
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FULL_DISK), str(directory.path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert "saving step 4" in done.stdout
    assert "File too large" in done.stdout
    assert "longcat train --resume --out" in done.stdout
    assert directory.latest().name == "step-00000002"
    assert not list(directory.state.glob(".tmp-*"))
    loaded = FlashModel.from_pretrained(directory.path)
    assert all(isinstance(t, torch.Tensor) for t in loaded.state_dict().values())
    resumed = run(directory, reopen(directory), Exchange(), Silent())
    assert resumed.step == 6
