"""What the wheels carry: their own parts with all data, and nothing of their siblings."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from distributions import Distribution, distributions

ROOT = Path(__file__).resolve().parents[2]


def build(dist: Distribution, folder: Path, *options: str) -> set[str]:
    """Builds a wheel with hatchling and returns the names of its files, without the metadata."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run([*command, *options], cwd=dist.folder, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    return {name for name in names if ".dist-info/" not in name}


@pytest.mark.parametrize("dist", distributions(ROOT), ids=lambda dist: dist.name)
def test_a_wheel_holds_its_own_parts_and_nothing_directly_in_the_namespace(
    dist: Distribution, tmp_path: Path
) -> None:
    names = build(dist, tmp_path)
    assert {tuple(name.split("/")[:2]) for name in names} == {("longcat", p) for p in dist.parts}
    assert all(f"longcat/{part}/py.typed" in names for part in dist.parts)
    sources = {
        f"longcat/{path.relative_to(dist.namespace).as_posix()}"
        for path in dist.namespace.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sources <= names  # weights and other data too: .gitignore hides none of them


def test_the_root_wheel_carries_the_tutorials_and_an_editable_one_does_not(tmp_path: Path) -> None:
    tutorials = {path.name for path in (ROOT / "docs" / "tutorials").glob("*.md")}
    root = distributions(ROOT)[-1]
    names = build(root, tmp_path / "standard")
    assert tutorials
    assert {f"longcat/cli/tutorials/{name}" for name in tutorials} <= names
    assert not any(
        "tutorials" in name for name in build(root, tmp_path / "e", "-t", "wheel:editable")
    )
