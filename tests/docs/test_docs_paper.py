"""The pages of results are what the committed documents give, word for word."""

import json
from pathlib import Path

from longcat.cli.benchmarks.acceptance import page as acceptance
from longcat.cli.benchmarks.acceptance.runs import FILE_NAME
from longcat.cli.benchmarks.paper import page, publish
from longcat.cli.benchmarks.paper.figure import figures


def committed(root: Path) -> dict[str, str]:
    folder = root / "docs/results"
    paths = [path for path in sorted(folder.glob("*.md")) if path.name != acceptance.PAGE_NAME]
    return {path.name: path.read_text("utf-8") for path in paths}


def test_every_page_is_what_its_document_gives(root: Path) -> None:
    made = publish.pages(root / "bench/results")
    assert committed(root) == made, "run `longcat bench paper --pages` and commit what it writes"


def test_the_page_of_draft_acceptance_is_what_its_document_gives(root: Path) -> None:
    document = json.loads((root / "bench/results" / FILE_NAME).read_text("utf-8"))
    shown = (root / "docs/results" / acceptance.PAGE_NAME).read_text("utf-8")
    assert shown == acceptance.render(document), "run `longcat bench acceptance`"
    assert f"results/{acceptance.PAGE_NAME}" in (root / "mkdocs.yml").read_text("utf-8")
    document["runs"][0]["by_prompt"] = [[1, 0, 1, 0] for _ in document["runs"][0]["by_prompt"]]
    assert shown != acceptance.render(document)


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
