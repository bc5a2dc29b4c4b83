"""The launches that the guide to several processes shows, run with launchers that only tell: what
reaches torchrun, and what torchrun hands to `longcat`, must parse.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longcat.cli.main import load
from longcat.cli.pages import Fence, split_page

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "distributed.md"
# Each prints its arguments as one line of JSON; srun starts what it is given.
TELLS = f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv))\n"
LAUNCHERS = {
    "torchrun": TELLS,
    "longcat": TELLS,
    "srun": '#!/bin/bash\nexec "$@"\n',
    "scontrol": "#!/bin/bash\nprintf 'node0\\nnode1\\n'\n",
}


def told(script: str, folder: Path, **more: str) -> list[list[str]]:
    """The arguments of each launch that a shell script makes."""
    for name, text in LAUNCHERS.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", **more}
    made = subprocess.run(
        ["bash", "-euc", script], env=environment, capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in made.stdout.splitlines()]


def parsed(launch: list[str]) -> dict[str, Any]:
    """The options that `longcat train` gets of a launch.

    Raises:
        SystemExit, click's UsageError: torchrun, or longcat, does not understand it.
    """
    from torch.distributed.run import get_args_parser

    words = launch[1:]
    if Path(launch[0]).name == "torchrun":
        asked = get_args_parser().parse_args(words)
        assert asked.module
        assert asked.training_script == "longcat.cli.main"
        words = asked.training_script_args
    assert words[0] == "train"
    context: dict[str, Any] = load("train").make_context("train", words[1:]).params
    return context


def scripts() -> list[str]:
    """The shell fences of the guide."""
    blocks = split_page(GUIDE.read_text(encoding="utf-8"))
    return [b.code for b in blocks if isinstance(b, Fence) and b.language == "bash"]


SLURM = {"SLURM_NNODES": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-3]"}


@pytest.mark.parametrize("script", scripts())
def test_every_launch_of_the_guide_parses(script: str, tmp_path: Path) -> None:
    launches = told(script, tmp_path, **SLURM)
    assert launches
    for launch in launches:
        parsed(launch)


def test_the_batch_job_begins_a_run_and_goes_on_with_it(tmp_path: Path) -> None:
    (script,) = [script for script in scripts() if script.startswith("#!/bin/bash")]
    script = script.replace("/shared", str(tmp_path))
    first = told(script, tmp_path, **SLURM)[0]
    assert first[first.index("--rdzv-endpoint") + 1] == "node0:29500"
    begun = parsed(first)
    assert (bool(begun["data"]), begun["resume"]) == (True, False)
    (tmp_path / "runs" / "notes" / "state").mkdir(parents=True)
    again = parsed(told(script, tmp_path, **SLURM)[0])
    assert (bool(again["data"]), again["resume"]) == (False, True)
    assert again["out"] == begun["out"]
    assert again["device"] == begun["device"] == "cuda"


@pytest.mark.parametrize(
    "script",
    [
        "torchrun --nodes 2 -m longcat.cli.main train",
        "torchrun --nproc-per-node 2 -m longcat.cli.main train --gpu",
        "longcat train --expert-parallel many",
    ],
)
def test_control_a_launch_that_does_not_parse_is_found(script: str, tmp_path: Path) -> None:
    with pytest.raises((SystemExit, Exception), match=r"^2$|No such option|valid integer"):
        parsed(told(script, tmp_path)[0])
