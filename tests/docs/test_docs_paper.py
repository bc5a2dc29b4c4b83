"""The pages of the report's figures are what the committed documents give, word for word."""

import json
from pathlib import Path

from longcat.cli.benchmarks.paper import page, publish
from longcat.cli.benchmarks.paper.figure import figures


def committed(root: Path) -> dict[str, str]:
    folder = root / "docs/results"
    return {path.name: path.read_text("utf-8") for path in sorted(folder.glob("*.md"))}


def test_every_page_is_what_its_document_gives(root: Path) -> None:
    made = publish.pages(root / "bench/results")
    assert committed(root) == made, "run `longcat bench paper --pages` and commit what it writes"


def test_every_document_is_of_a_figure_and_in_the_nav(root: Path) -> None:
    nav = (root / "mkdocs.yml").read_text("utf-8")
    names = {page.file_name(figure): figure for figure in figures().values()}
    documents = sorted((root / "bench/results").glob("paper-*.json"))
    assert documents
    for path in documents:
        assert path.name in names
        assert f"results/{page.page_name(names[path.name])}" in nav


def test_a_page_follows_its_document(root: Path, tmp_path: Path) -> None:
    source = root / "bench/results/paper-01.json"
    document = json.loads(source.read_text("utf-8"))
    for run in document["runs"]:
        run["curve"]["ffn_experts_mean"] = [
            [2 * value for value in layers] for layers in run["curve"]["ffn_experts_mean"]
        ]
    (tmp_path / source.name).write_text(json.dumps(document), encoding="utf-8")
    assert publish.pages(tmp_path)["figure-01.md"] != committed(root)["figure-01.md"]
