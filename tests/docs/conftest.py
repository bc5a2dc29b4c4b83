"""The pages, and one run of each: what every fence printed."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from longcat.cli.pages import Fence, run_fence, split_page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def fences(page: Path) -> list[Fence]:
    """The Python fences of a page."""
    blocks = split_page(page.read_text(encoding="utf-8"))
    return [b for b in blocks if isinstance(b, Fence) and b.is_python]


def run(page: Path) -> list[tuple[Fence, str]]:
    """Run a page's fences in one namespace: each with what it printed."""
    namespace: dict[str, Any] = {}
    return [(fence, run_fence(fence, namespace, page)) for fence in fences(page)]


@pytest.fixture(autouse=True)
def _as_on_the_site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the site's builder sets, and a working directory where a stray file does no harm."""
    monkeypatch.setenv("MKDOCS_CONFIG_DIR", str(ROOT))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def run_once() -> Any:
    """`run`, but a page that two tests need runs once."""
    return cache(run)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests over `page`, `runnable` (a page with Python) and `tutorial` run once for each."""
    tutorials = sorted((DOCS / "tutorials").glob("[0-9]*.md"))
    kinds = {"page": PAGES, "runnable": [p for p in PAGES if fences(p)], "tutorial": tutorials}
    for kind, pages in kinds.items():
        if kind in metafunc.fixturenames:
            ids = [p.relative_to(ROOT).as_posix() for p in pages]
            metafunc.parametrize(kind, pages, ids=ids)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT
