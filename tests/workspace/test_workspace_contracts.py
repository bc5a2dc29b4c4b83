"""The import contracts of pyproject.toml hold, and each of them rejects a tree that breaks it."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["kernels", "chat", "router", "optim", "attention", "moe", "serve", "flash", "train", "cli"]

# An edge along every allowed direction that a rule might wrongly forbid.
GOOD_TREE = {f"{part}/__init__.py": "" for part in PARTS} | {
    "cli/main.py": "import longcat.train, longcat.flash, longcat.serve, longcat.chat\n",
    "flash/model.py": "import torch, longcat.moe, longcat.attention, longcat.serve\n",
    "moe/block.py": "import torch, longcat.router, longcat.kernels\n",
    "serve/decode.py": "import torch, longcat.attention, longcat.chat\n",
    "router/reference.py": "import numpy\n",
    "kernels/rope/__init__.py": "",
    "kernels/rope/reference.py": "import numpy\n",
    "kernels/rope/triton_kernel.py": "import torch, triton\n",
}
BAD_FILES = [
    ("imports only run downwards", "router/up.py", "import longcat.moe\n"),
    ("imports only run downwards", "moe/side.py", "import longcat.serve\n"),
    ("imports only run downwards", "router/side.py", "import longcat.optim\n"),
    ("imports only run downwards", "chat/side.py", "import longcat.kernels\n"),
    ("imports only run downwards", "extra/__init__.py", ""),
    ("only kernels imports triton", "moe/kernel.py", "import triton.language\n"),
    ("a reference never imports torch", "router/reference.py", "import torch\n"),
    ("a reference never imports torch", "kernels/rope/reference.py", "import torch.nn\n"),
    ("the block receives attention", "moe/attend.py", "from longcat.attention import MLA\n"),
    ("serving knows a protocol", "serve/load.py", "from longcat.moe import block\n"),
]


def lint_imports(tree: Path, files: dict[str, str]) -> str:
    """Writes the files below tree/longcat and returns what import-linter says of them."""
    for name, text in files.items():
        path = tree / "longcat" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    # -S and site-packages by PYTHONPATH: so the installed longcat's .pth files are not read.
    path = os.pathsep.join([str(tree), sysconfig.get_paths()["purelib"]])
    main = "from importlinter.cli import lint_imports_command as main; main()"
    options = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", "--no-logo"]
    done = subprocess.run(
        [sys.executable, "-S", "-c", main, *options],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": path, "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{done.stdout}{done.stderr}\nexit code {done.returncode}"


def test_a_good_tree_keeps_every_contract(tmp_path: Path) -> None:
    said = lint_imports(tmp_path, GOOD_TREE)
    assert "exit code 0" in said, said
    assert "0 broken" in said, said


def test_a_tree_with_agents_keeps_every_contract(tmp_path: Path) -> None:
    said = lint_imports(tmp_path, GOOD_TREE | {"agents/__init__.py": "import longcat.chat\n"})
    assert "exit code 0" in said, said


@pytest.mark.parametrize(("contract", "name", "text"), BAD_FILES)
def test_one_bad_import_breaks_the_contract(
    contract: str, name: str, text: str, tmp_path: Path
) -> None:
    said = lint_imports(tmp_path, GOOD_TREE | {name: text})
    assert "exit code 1" in said, said
    broken = [line for line in said.splitlines() if line.endswith("BROKEN")]
    assert any(line.startswith(contract) for line in broken), said
