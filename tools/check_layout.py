"""Checks the house rules that no other linter knows. `make lint` runs it; a test pins each rule.

Each rule takes the root of a tree and returns sentences, one per breach:

- `stray_files`           nothing but the parts' folders lies directly under a src/longcat
- `wrong_declarations`    a pyproject declares exactly what its sources import
- `unavailable_in_tests`  a package's tests import nothing that the package does not bring along;
                          those in tests/<part>/<extra>/ may use that extra as well
- `impure_references`     a reference.py reaches numpy and the standard library, and nothing else
- `forbidden_siblings`    two edges that the layers would allow and the house does not
- `long_files`            no Python file is longer than 300 lines
"""

import sys
from pathlib import Path

from distributions import (
    brought_along,
    distributions,
    imported_modules,
    module_name,
    needs,
    sources,
)

MAX_LINES = 300
TEST_TOOLS = {"pytest", "hypothesis"}
EXTRA_TEST_TOOLS = {"httpx"}
# What the model may use of serving: the half that needs no server.
LIGHT_SERVE = {"__init__", "sampling", "speculation", "batch", "protocol", "llm", "structured"}


def stray_files(root: Path) -> list[str]:
    """Files directly under a src/longcat, parts in the wrong package, packages among the tests."""
    breaches = []
    for dist in distributions(root):
        for path in sorted(dist.namespace.glob("*")):
            if path.is_file():
                breaches.append(
                    f"{path.relative_to(root)}: longcat is a namespace that all parts share; "
                    "a file here hides the other parts. Move it into a part."
                )
        if dist.folder != root and dist.parts != {dist.folder.name}:
            breaches.append(
                f"{dist.namespace.relative_to(root)}: expected the one folder "
                f"{dist.folder.name}, found {', '.join(sorted(dist.parts)) or 'none'}."
            )
    breaches += [
        f"{path.relative_to(root)}: tests are collected with importmode=importlib; remove it."
        for path in sorted(root.glob("tests/**/__init__.py"))
    ]
    return breaches


def wrong_declarations(root: Path) -> list[str]:
    """Imports that a pyproject does not declare, and declarations that nothing imports."""
    breaches = []
    for dist in distributions(root):
        own = {f"longcat.{part}" for part in dist.parts}
        used = {
            name.replace("longcat.", "longcat-"): path
            for name, path in needs(sources(dist.namespace)).items()
            if name not in own
        }
        for name in sorted(used.keys() - dist.required - dist.optional):
            breaches.append(
                f"{dist.name}: {used[name].relative_to(root)} imports {name}, "
                "which its pyproject.toml does not declare."
            )
        for name in sorted((dist.required | dist.optional) - used.keys()):
            breaches.append(f"{dist.name}: declares {name}, which none of its sources import.")
    return breaches


def unavailable_in_tests(root: Path) -> list[str]:
    """Imports in tests/<part> that would fail where only longcat-<part> is installed."""
    breaches = []
    for dist in distributions(root):
        if dist.folder == root:
            continue  # the root's tests compare with other implementations, and are not run alone
        folder = root / "tests" / dist.folder.name
        for path in sources(folder):
            allowed = brought_along(root, dist.name) | TEST_TOOLS
            extra = path.relative_to(folder).parts[0]
            if extra in dist.extras:
                allowed |= dist.extras[extra] | EXTRA_TEST_TOOLS
            breaches += [
                f"{path.relative_to(root)}: imports {name}, which {dist.name} does not bring."
                for name in sorted(needs([path]))
                if name.replace("longcat.", "longcat-") not in allowed
            ]
    return breaches


def impure_references(root: Path) -> list[str]:
    """Paths by which a reference.py reaches anything but numpy and the standard library.

    Followed file by file through our own modules. The `__init__.py` of the packages on the way is
    not followed: importing `longcat.router.reference` does run that of `longcat.router`.
    """
    files = {
        module_name(path).removesuffix(".__init__"): path
        for dist in distributions(root)
        for path in sources(dist.namespace)
    }
    breaches = []
    for start in sorted(name for name in files if name.endswith(".reference")):
        seen = {start}
        waiting: list[tuple[str, ...]] = [(start,)]
        while waiting:
            trail = waiting.pop()
            for name in imported_modules(files[trail[-1]]):
                top = name.partition(".")[0]
                if top == "longcat":
                    target = name if name in files else name.rpartition(".")[0]
                    if target in files and target not in seen:
                        seen.add(target)
                        waiting.append((*trail, target))
                elif top != "numpy" and top not in sys.stdlib_module_names:
                    breaches.append(f"{' -> '.join(trail)}: imports {top}; expected numpy alone.")
    return sorted(set(breaches))


def forbidden_siblings(root: Path) -> list[str]:
    """Two edges that the order of the layers allows and the house does not.

    Only cli imports agents; flash uses no more of serve than needs no server.
    """
    serve = root / "packages/serve/src/longcat/serve"
    heavy = {f"longcat.serve.{path.stem}" for path in serve.glob("*")}
    heavy -= {f"longcat.serve.{name}" for name in LIGHT_SERVE}
    breaches = []
    for dist in distributions(root):
        for path in sources(dist.namespace):
            part = path.relative_to(dist.namespace).parts[0]
            for name in imported_modules(path):
                if name.startswith("longcat.agents") and part not in {"agents", "cli"}:
                    breaches.append(f"{path.relative_to(root)}: only cli may import {name}.")
                if part == "flash" and ".".join(name.split(".")[:3]) in heavy:
                    breaches.append(
                        f"{path.relative_to(root)}: imports {name}; the model uses only the half "
                        f"of serve that needs no server: {', '.join(sorted(LIGHT_SERVE))}."
                    )
    return breaches


def long_files(root: Path) -> list[str]:
    """Python files above the cap of 300 lines."""
    breaches = []
    for folder in ("src", "packages", "tests", "tools"):
        for path in sources(root / folder):
            lines = len(path.read_text().splitlines())
            if lines > MAX_LINES:
                breaches.append(
                    f"{path.relative_to(root)}: {lines} lines; a file is one noun and at most "
                    f"{MAX_LINES} lines. Split it."
                )
    return breaches


RULES = (
    stray_files,
    wrong_declarations,
    unavailable_in_tests,
    impure_references,
    forbidden_siblings,
    long_files,
)


def main(root: Path) -> int:
    """Prints every breach; the exit code is 1 when there is one."""
    breaches = [breach for rule in RULES for breach in rule(root)]
    print("\n".join(breaches) if breaches else f"layout: {len(RULES)} rules kept")
    return int(bool(breaches))


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent.parent))
