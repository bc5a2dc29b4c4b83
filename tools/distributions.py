"""Which distributions this tree holds, what each declares, and what each really imports.

Read from the pyproject.toml files and the syntax trees: nothing is imported to find out. Only
import statements are seen; `importlib.import_module("x")` goes unnoticed.
"""

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Where a distribution is not called as what it is imported by.
DISTRIBUTIONS = {
    "markdown_it": "markdown-it-py",
    "prometheus_client": "prometheus-client",
    "yaml": "pyyaml",
}


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One pyproject.toml and the sources it packs: a package, or `longcat-flash` at the root."""

    folder: Path
    name: str
    required: frozenset[str]
    extras: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @property
    def optional(self) -> frozenset[str]:
        """What any of the extras adds."""
        return frozenset().union(*self.extras.values())

    @property
    def namespace(self) -> Path:
        """The folder src/longcat, which holds one folder per part."""
        return self.folder / "src" / "longcat"

    @property
    def parts(self) -> set[str]:
        """The names that this distribution gives to `longcat.<part>`."""
        return {p.name for p in self.namespace.glob("*") if p.is_dir() and p.name != "__pycache__"}


def distributions(root: Path) -> list[Distribution]:
    """The distributions of the tree: packages/* in order of name, then the one at the root."""
    return [
        read_distribution(path.parent)
        for path in [*sorted(root.glob("packages/*/pyproject.toml")), root / "pyproject.toml"]
        if path.is_file()
    ]


def read_distribution(folder: Path) -> Distribution:
    """Reads name and dependencies (names only, normalised) from folder/pyproject.toml."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    extras = project.get("optional-dependencies", {})
    return Distribution(
        folder=folder,
        name=project["name"],
        required=frozenset(map(requirement_name, project.get("dependencies", []))),
        extras={name: frozenset(map(requirement_name, extra)) for name, extra in extras.items()},
    )


def requirement_name(requirement: str) -> str:
    """`"Triton>=3.6; sys_platform == 'linux'"` -> `"triton"`."""
    end = next((i for i, c in enumerate(requirement) if c in "<>=!~;[ @("), len(requirement))
    return requirement[:end].lower().replace("_", "-")


def imported_modules(path: Path) -> Iterator[str]:
    """Dotted names of everything a file imports, those of a `from a import b` as `a.b`.

    Relative imports are resolved against the folder names below the last `src`.
    """
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module_name(path.parent).split(".")
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    """`.../src/longcat/moe/block.py` -> `longcat.moe.block`."""
    below = path.with_suffix("").parts
    start = len(below) - below[::-1].index("src") if "src" in below else 0
    return ".".join(below[start:])


def needs(paths: Iterable[Path]) -> dict[str, Path]:
    """Distribution name -> a file that imports it; the standard library is left out."""
    found: dict[str, Path] = {}
    for path in paths:
        for name in imported_modules(path):
            top, _, rest = name.partition(".")
            if top == "longcat":
                found.setdefault(f"longcat.{rest.partition('.')[0]}", path)
            elif top not in sys.stdlib_module_names:
                found.setdefault(DISTRIBUTIONS.get(top, top).lower().replace("_", "-"), path)
    return found


def sources(folder: Path) -> list[Path]:
    """The Python files below a folder, in order of name."""
    return sorted(folder.rglob("*.py"))


def brought_along(root: Path, name: str) -> set[str]:
    """Everything that installing one of our distributions installs by its own declarations."""
    ours = {dist.name: dist for dist in distributions(root)}
    found, waiting = {name}, [name]
    while waiting:
        dist = ours.get(waiting.pop())
        new = (dist.required if dist else frozenset()) - found
        found |= new
        waiting += new
    return found
