"""The house rules hold in this tree, and each of them rejects a tree that breaks it."""

from collections.abc import Callable
from pathlib import Path

import pytest

import check_layout

ROOT = Path(__file__).resolve().parents[2]
Rule = Callable[[Path], list[str]]

PYPROJECT = '[project]\nname = "{name}"\ndependencies = {dependencies}\n'
GOOD_TREE = {
    "pyproject.toml": PYPROJECT.format(
        name="longcat-flash",
        dependencies='["longcat-agents>=0.1.0", "longcat-serve>=0.1.0", "PyYAML", "typer>=0.15"]',
    ),
    "src/longcat/flash/__init__.py": "import yaml\nfrom longcat.serve.sampling import sample\n",
    "src/longcat/cli/main.py": "import typer\nfrom longcat.agents import world\n",
    "packages/agents/pyproject.toml": PYPROJECT.format(name="longcat-agents", dependencies="[]"),
    "packages/agents/src/longcat/agents/__init__.py": "world = 1\n",
    "packages/router/pyproject.toml": PYPROJECT.format(
        name="longcat-router",
        dependencies="""["numpy>=1.26", "torch>=2.11; sys_platform == 'linux'"]""",
    ),
    "packages/router/src/longcat/router/__init__.py": "import torch\nfrom .config import Config\n",
    "packages/router/src/longcat/router/config.py": "from dataclasses import dataclass\n",
    "packages/router/src/longcat/router/reference.py": (
        "import math\nimport numpy as np\nfrom longcat.router.config import Config\n"
    ),
    "packages/serve/pyproject.toml": PYPROJECT.format(
        name="longcat-serve", dependencies='["longcat-router>=0.1.0"]'
    )
    + '[project.optional-dependencies]\nserver = ["fastapi>=0.1"]\n',
    "packages/serve/src/longcat/serve/__init__.py": "",
    "packages/serve/src/longcat/serve/sampling.py": "from longcat.router import route\n",
    "packages/serve/src/longcat/serve/server.py": "import fastapi\n",
    "tests/router/test_router_a.py": "import numpy, pytest\nfrom longcat.router import route\n",
    "tests/serve/test_serve_a.py": "import torch\nfrom longcat.serve import sampling\n",
    "tests/serve/server/test_serve_d.py": "import fastapi, httpx\n",
}
# rule, file to write, its text, what the breach must say
BAD_FILES = [
    ("stray_files", "packages/router/src/longcat/__init__.py", "", "hides the other parts"),
    ("stray_files", "src/longcat/helpers.py", "", "hides the other parts"),
    ("stray_files", "packages/router/src/longcat/moe/__init__.py", "", "expected the one folder"),
    ("stray_files", "tests/router/__init__.py", "", "remove it"),
    ("wrong_declarations", "packages/serve/src/longcat/serve/a.py", "import numpy\n", "numpy"),
    (
        "wrong_declarations",
        "packages/serve/src/longcat/serve/a.py",
        "def f():\n    from longcat.agents import world\n",
        "longcat-agents",
    ),
    (
        "wrong_declarations",
        "packages/serve/src/longcat/serve/a.py",
        "from longcat import agents\n",
        "longcat-agents",
    ),
    (
        "wrong_declarations",
        "packages/serve/src/longcat/serve/sampling.py",
        "",
        "declares longcat-router, which none",
    ),
    (
        "wrong_declarations",
        "packages/router/src/longcat/router/__init__.py",
        "",
        "declares torch, which none",
    ),
    (
        "unavailable_in_tests",
        "tests/router/test_router_b.py",
        "from longcat.serve import sampling\n",
        "longcat.serve",
    ),
    (
        "unavailable_in_tests",
        "tests/serve/test_serve_b.py",
        "import transformers\n",
        "transformers",
    ),
    (
        "unavailable_in_tests",
        "tests/serve/test_serve_b.py",
        "import fastapi\n",
        "fastapi",
    ),
    (
        "unavailable_in_tests",
        "tests/serve/other/test_serve_c.py",
        "import fastapi\n",
        "fastapi",
    ),
    (
        "unavailable_in_tests",
        "tests/serve/server/test_serve_c.py",
        "import transformers\n",
        "transformers",
    ),
    (
        "impure_references",
        "packages/router/src/longcat/router/reference.py",
        "import torch\n",
        "imports torch",
    ),
    (
        "impure_references",
        "packages/router/src/longcat/router/reference.py",
        "from longcat.router import route\n",
        "longcat.router.reference -> longcat.router: imports torch",
    ),
    (
        "impure_references",
        "packages/router/src/longcat/router/config.py",
        "import scipy.special\n",
        "longcat.router.reference -> longcat.router.config: imports scipy",
    ),
    (
        "impure_references",
        "packages/router/src/longcat/router/op/reference.py",
        "from ..config import Config\nimport torch.nn\n",
        "longcat.router.op.reference: imports torch",
    ),
    (
        "forbidden_siblings",
        "src/longcat/flash/world.py",
        "from longcat.agents import world\n",
        "only cli",
    ),
    (
        "forbidden_siblings",
        "src/longcat/flash/server.py",
        "from longcat.serve.server import app\n",
        "needs no server",
    ),
    (
        "forbidden_siblings",
        "src/longcat/flash/server.py",
        "from longcat.serve import server\n",
        "needs no server",
    ),
    ("long_files", "src/longcat/cli/long.py", "x = 1\n" * 301, "301 lines"),
    ("long_files", "tests/router/test_router_long.py", "x = 1\n" * 301, "301 lines"),
]


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("rule", check_layout.RULES, ids=lambda rule: rule.__name__)
def test_this_tree_keeps_the_rule(rule: Rule) -> None:
    assert rule(ROOT) == []


@pytest.mark.parametrize("rule", check_layout.RULES, ids=lambda rule: rule.__name__)
def test_a_small_good_tree_keeps_the_rule(rule: Rule, tmp_path: Path) -> None:
    assert rule(write(tmp_path, GOOD_TREE)) == []


@pytest.mark.parametrize(("rule", "name", "text", "says"), BAD_FILES)
def test_one_bad_file_breaks_the_rule(
    rule: str, name: str, text: str, says: str, tmp_path: Path
) -> None:
    breaches = getattr(check_layout, rule)(write(tmp_path, GOOD_TREE | {name: text}))
    assert any(says in breach for breach in breaches), breaches


def test_every_rule_has_a_control() -> None:
    assert {rule.__name__ for rule in check_layout.RULES} == {rule for rule, *_ in BAD_FILES}


def test_a_file_of_300_lines_is_allowed(tmp_path: Path) -> None:
    write(tmp_path, GOOD_TREE | {"src/longcat/cli/long.py": "x = 1\n" * 300})
    assert check_layout.long_files(tmp_path) == []


def test_a_tree_with_a_breach_gives_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, GOOD_TREE)
    assert check_layout.main(tmp_path) == 0
    write(tmp_path, {"src/longcat/__init__.py": ""})
    assert check_layout.main(tmp_path) == 1
    assert "src/longcat/__init__.py" in capsys.readouterr().out
