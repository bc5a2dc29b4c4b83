"""Pins, floors and the targets of make: what a fresh clone is set up from."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from distributions import distributions, requirement_name

ROOT = Path(__file__).resolve().parents[2]
PIN = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*")
TARGETS = (
    *("setup", "quickstart", "test", "test-slow", "test-isolated", "lint", "fmt"),
    *("demo", "docs", "bench", "bench-gpu", "clean"),
)


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins() -> dict[str, str]:
    pairs = (line.split("==") for line in lines("constraints.txt"))
    return {requirement_name(name): version for name, version in pairs}


def test_every_constraint_is_a_plain_pin_without_local_version_host_or_path() -> None:
    assert [line for line in lines("constraints.txt") if not PIN.fullmatch(line)] == []


@pytest.mark.parametrize(
    "line", ["torch==2.13.0+cpu", "-e packages/router", "a @ file:///a.whl", "--find-links=/a", "a"]
)
def test_the_pattern_of_a_plain_pin_rejects(line: str) -> None:
    assert not PIN.fullmatch(line)


def test_torch_and_triton_are_pinned_to_the_pair_that_belongs_together() -> None:
    assert (pins()["torch"], pins()["triton"]) == ("2.13.0", "3.7.1")


def test_everything_that_is_installed_by_name_is_pinned() -> None:
    ours = {dist.name for dist in distributions(ROOT)}
    wanted = {requirement_name(line) for line in lines("requirements-dev.txt")}
    wanted |= {name for dist in distributions(ROOT) for name in dist.required | dist.optional}
    assert wanted - ours - pins().keys() == set()


def test_metadata_holds_floors_and_no_upper_bounds() -> None:
    for dist in distributions(ROOT):
        project = tomllib.loads((dist.folder / "pyproject.toml").read_text())["project"]
        for requirement in project["dependencies"]:
            specifier = requirement.partition(";")[0]
            assert ">=" in specifier, requirement
            assert not re.search(r"<|==|~=|@", specifier), requirement


def test_every_package_is_of_the_same_version() -> None:
    versions = {
        tomllib.loads((dist.folder / "pyproject.toml").read_text())["project"]["version"]
        for dist in distributions(ROOT)
    }
    assert len(versions) == 1


def test_every_package_ships_the_licence_its_readme_and_its_types() -> None:
    for dist in distributions(ROOT):
        assert (dist.folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
        assert (dist.folder / "README.md").is_file(), dist.name
        assert all((dist.namespace / part / "py.typed").is_file() for part in dist.parts), dist.name


def test_make_lists_its_targets() -> None:
    done = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, check=True)
    assert [t for t in TARGETS if not re.search(rf"^ *make {t} +\w", done.stdout, re.M)] == []
