"""The report opens offline, says what was measured, and shows any text safely."""

import html.parser
import json
import re

import pytest

from longcat.train.charts import bar_chart, line_chart, smoothed
from longcat.train.directory import RunDirectory
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.metrics import MetricsWriter, read_metrics
from longcat.train.prepare import prepare
from longcat.train.report import render, write_report
from longcat.train.report_words import figures, next_steps
from longcat.train.summary import summarise


@pytest.fixture(scope="module")
def finished(kit, tmp_path_factory):
    directory = RunDirectory(tmp_path_factory.mktemp("report") / "run")
    prepared = prepare(directory, kit.corpus(), kit.settings(steps=6), kit.config())
    begin(directory, prepared)
    trainer = run(directory, prepared, Exchange(), Silent())
    training = {
        "finished": True,
        "steps": trainer.step,
        "tokens": trainer.tokens_seen,
        "seconds": trainer.seconds,
        "cpu_seconds": trainer.cpu_seconds,
        "processes": 1,
    }
    summary = summarise(directory, prepared, training, prompts=3)
    page = write_report(directory.path, summary).read_text(encoding="utf-8")
    return directory, summary, page


class Outline(html.parser.HTMLParser):
    """Collects every attribute that could load something, and checks that tags close."""

    VOID = ("meta",)

    def __init__(self):
        super().__init__()
        self.loads, self.open, self.tags = [], [], set()

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "data", "action", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def external(page):
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert not outline.open
    found = outline.loads + re.findall(r"url\(|@import|https?://", page)
    return found + sorted(outline.tags & {"script", "link", "iframe", "img", "object"})


def test_the_page_loads_nothing_from_anywhere(finished):
    assert external(finished[2]) == []


@pytest.mark.parametrize(
    "mutant",
    [
        "<script>1</script>",
        "<img src='x.png'/>",
        "<style>@import 'x'</style>",
        "<style>a{background:url(x)}</style>",
    ],
)
def test_control_a_page_that_loads_something_would_be_noticed(finished, mutant):
    assert external(finished[2].replace("</main>", mutant + "</main>"))


def test_the_page_says_what_was_measured(finished):
    _, summary, page = finished
    for words in (
        f"{summary['held_out']['bits_per_byte']:.3f}",
        "Bits per byte on held-out files",
        "FFN experts per token",
        "Which tokens got fewer experts",
        "Drafts of the MTP head",
        "R_g",
        "What to try next",
        "bz2",
        "made for a test",
    ):
        assert words in page


def test_run_json_is_the_summary(finished):
    directory, summary, _ = finished
    saved = json.loads((directory.path / "run.json").read_text(encoding="utf-8"))
    assert saved["held_out"]["bits_per_byte"] == summary["held_out"]["bits_per_byte"]
    assert saved["mtp"]["acceptance"] == summary["mtp"]["acceptance"]
    assert saved["ffn_experts_target"] == 3


def test_text_with_markup_is_shown_not_obeyed(finished):
    directory, summary, _ = finished
    nasty = "<script>alert('&')</script>"
    changed = json.loads(json.dumps(summary))
    changed["sample"]["text"] = nasty
    changed["held_out"]["heat"][0]["text"] = nasty
    changed["held_out"]["tokens_fewest"] = [{"text": nasty, "tokens": 9, "ffn_experts": 1.0}]
    changed["corpus"]["source"] = nasty
    assert external(render(changed, read_metrics(directory.path))) == []


def test_a_run_without_held_out_text_head_or_records_still_has_a_page(finished):
    bare = dict(finished[1], held_out=None, mtp=None, sample=None)
    assert external(render(bare, [])) == []
    assert figures(bare)
    assert next_steps(bare)


def test_curves_keep_their_ends_and_leave_out_what_cannot_be_drawn():
    chart = line_chart({"a": [(float(i), i / 2) for i in range(5000)]}, x_label="tokens", target=9)
    points = re.search(r'points="([^"]*)"', chart)[1].split()
    assert len(points) <= 601
    assert points[-1].startswith("628")
    logarithmic = line_chart(
        {"a": [(0, 0.0), (1, float("nan")), (2, 10.0)]}, x_label="", logarithmic=True
    )
    assert len(re.search(r'points="([^"]*)"', logarithmic)[1].split()) == 1
    assert "nothing was measured" in line_chart({"a": []}, x_label="tokens")
    assert "nothing was measured" in bar_chart([])


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert smoothed([(0.0, 3.0)])[0][1] == pytest.approx(3.0)
    assert [y for _, y in smoothed([(i, 2.0) for i in range(9)])] == pytest.approx([2.0] * 9)


def test_metrics_refuse_a_record_with_a_missing_name(tmp_path):
    writer = MetricsWriter(tmp_path, restored_step=0)
    with pytest.raises(ValueError, match="must have"):
        writer.write({"step": 1})
    writer.close()
