"""The site needs no other host, has the terminal's colours, and builds strictly."""

import importlib
import inspect
import os
import re
import runpy
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from longcat.cli.ui.theme import ROLES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

# What a browser fetches by itself. A link that the reader clicks is not among it.
FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed|object|link|use|image)\b[^>]*?
        \b(?:src|href|srcset|data|poster)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)
    | url\(\s*["']?((?:https?:)?//[^"')\s]+) | @import\s+["']((?:https?:)?//[^"']+)
    | !\[[^\]]*\]\(((?:https?:)?//[^)\s]+)""",
    re.VERBOSE | re.IGNORECASE,
)
# Deliberate links, for the reader to click.
PARTS = ("kernels", "chat", "router", "optim", "attention", "moe", "serve", "flash", "train")
LINKS = ("https://arxiv.org/abs/", "https://github.com/guidance-ai/llguidance")


def fetched(text: str) -> list[str]:
    """Addresses on other hosts that a page or style sheet would fetch."""
    return [address for match in FETCHED.findall(text) for address in match if address]


def test_no_source_page_style_or_configuration_fetches_from_another_host() -> None:
    sources = [*DOCS.rglob("*.md"), *DOCS.rglob("*.css"), *DOCS.rglob("*.svg"), ROOT / "mkdocs.yml"]
    assert {p.name: fetched(p.read_text(encoding="utf-8")) for p in sources} == {
        p.name: [] for p in sources
    }


@pytest.mark.parametrize(
    "text",
    [
        '<script async src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        "@font-face { src: url('https://fonts.example/a.woff2') }",
        '@import "https://fonts.example/css";',
        "![badge](https://badges.example/x.svg)",
    ],
)
def test_a_page_that_fetches_is_found(text: str) -> None:
    assert len(fetched(text)) == 1
    assert fetched('<a href="https://arxiv.org/abs/2509.01322">report</a>') == []


def test_vendored_files_are_there_with_their_licences() -> None:
    for name in ("katex", "fonts/inter", "fonts/jetbrains-mono"):
        assert (DOCS / "assets" / name / "LICENSE").is_file()
    configuration = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name in re.findall(r"assets/[\w./-]+", configuration):
        assert (DOCS / name).is_file(), name
    style = DOCS / "assets/css/longcat.css"
    for name in re.findall(r'url\("([^"]+)"\)', style.read_text(encoding="utf-8")):
        assert (style.parent / name).is_file(), name


def test_the_search_shim_is_local() -> None:
    # The offline plugin adds one from another host unless a polyfill has this name.
    assert "polyfills: [assets/js/iframe-worker.js]" in (ROOT / "mkdocs.yml").read_text()


def test_the_site_has_the_five_colours_of_the_terminal() -> None:
    style = (DOCS / "assets/css/longcat.css").read_text(encoding="utf-8")
    first = style[style.index(":root") :].split("}", 1)[0]
    found = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", first))
    assert found == ROLES


def test_a_page_whose_example_failed_ends_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    hooks = runpy.run_path(str(ROOT / "tools/site.py"))
    assert os.environ["TRITON_INTERPRET"] == "1"
    page, files = site_of("tutorials/08-swapab.md")
    finish = hooks["on_page_content"]
    assert finish("<p>fine</p>", page=page, files=files) == "<p>fine</p>"
    failed = "<span>Traceback (most recent call last):</span>"
    with pytest.raises(PluginError, match=r"08-swapab\.md: an example failed"):
        finish(failed, page=page, files=files)
    assert "hooks: [tools/site.py]" in (ROOT / "mkdocs.yml").read_text()


def site_of(*sources: str) -> tuple[SimpleNamespace, Files]:
    """A site of these pages, and the first of them."""
    files = [File(source, "docs", "site", use_directory_urls=False) for source in sources]
    return SimpleNamespace(file=files[0]), Files(files)


def test_a_link_that_a_fence_prints_leads_to_a_page_or_ends_the_build() -> None:
    finish = runpy.run_path(str(ROOT / "tools/site.py"))["on_page_content"]
    page, files = site_of("theory/map.md", "theory/formulas.md", "guides/train.md")
    printed = """
        <a href="formulas.md#router">gates</a> <a href="../guides/train.md">training</a>
        <a href="https://host.example/notes.md">elsewhere</a> <a href="#here">here</a>
    """
    assert finish(printed, page=page, files=files) == printed.replace(
        "formulas.md", "formulas.html"
    ).replace("train.md", "train.html")
    with pytest.raises(PluginError, match=r"map\.md: a fence prints a link to nothing\.md"):
        finish('<a href="nothing.md">nothing</a>', page=page, files=files)


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md")} == listed


@pytest.mark.slow
def test_the_strict_build_succeeds_and_fetches_nothing(tmp_path: Path) -> None:
    site = tmp_path / "site"
    environment = dict(os.environ, NO_MKDOCS_2_WARNING="1", LONGCAT_FAST="1")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = sorted(site.rglob("*.html"))
    assert len(pages) >= len(list(DOCS.rglob("*.md")))
    for path in [*pages, *site.rglob("*.css")]:
        assert fetched(path.read_text(encoding="utf-8")) == [], path.name
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    places = {path: set(re.findall(r'\sid="([^"]+)"', text)) for path, text in texts.items()}
    for path, text in texts.items():
        for address in re.findall(r'<a\b[^>]*?\bhref="([^"]+)"', text):
            if address.startswith("http"):
                assert address.startswith(LINKS), f"{path.name}: {address}"
            elif path.name != "404.html":  # which is sent for any path, so its links are absolute
                name, _, place = unquote(unescape(address)).partition("#")
                target = (path.parent / name).resolve() if name else path
                assert target.is_file(), f"{path.name}: {address}"
                assert not place or place in places[target], f"{path.name}: {address}"
    shown = {place for path in (site / "reference").glob("*.html") for place in places[path]}
    for part in PARTS:
        module = importlib.import_module(f"longcat.{part}")
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.isroutine(thing) or inspect.isclass(thing):
                origin = f"{thing.__module__}.{thing.__qualname__}"
                assert shown & {f"longcat.{part}.{name}", origin}, f"{part}: {name} is on no page"
