"""`longcat train` with its checks: steps made twice before the run, in every process."""

import shutil

import pytest

from longcat.cli.main import main
from longcat.train.watch import rerun

SMALL = ["--batch-size", "2", "--seq-len", "32", "--vocab-size", "300", "--precision", "float32"]


def train(*arguments):
    return main(["train", *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of a finished run."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "text.txt").write_text("def alpha(count):\n    return count + 12\n\n" * 60)
    arguments = [str(folder / "text.txt"), "--out", str(folder / "run"), "--steps", "2"]
    assert train(*arguments, "--processes", "1", *SMALL) == 0
    return folder / "run"


@pytest.mark.parametrize("processes", [1, 2])
def test_determinism_is_verified_before_the_run_goes_on(
    finished, tmp_path, capsys, monkeypatch, processes
):
    shutil.copytree(finished, tmp_path / "run")
    arguments = ["--resume", "--out", str(tmp_path / "run"), "--verify-determinism"]
    arguments += ["--processes", str(processes)]
    if processes == 1:
        assert train(*arguments) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "in one process of 1 thread, every bit the same in loss, gradients, counts" in said
    monkeypatch.setattr(rerun, "same_bits", lambda a, b: False)  # in this process alone
    assert train(*arguments, "--steps", "9") == 1
    whose = "" if processes == 1 else " of process 0"
    said = " ".join(capsys.readouterr().out.split())
    assert f"the bits{whose} differ in loss, gradients" in said
    assert "of process 1" not in said
    assert not (tmp_path / "run" / "state" / "step-00000009").exists()


def test_a_search_refuses_what_is_for_one_run(capsys):
    arguments = ("--steps", "2", "--search-lr", "3", "--verify-determinism")
    assert train(*arguments) == 2
    assert "--verify-determinism is for one run; a search has many" in " ".join(
        capsys.readouterr().err.split()
    )
