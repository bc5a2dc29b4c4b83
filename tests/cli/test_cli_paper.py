"""The harness of `longcat bench paper`: every run stored once, resumed, and shown as it is."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longcat.cli.benchmarks.paper import bench, figure, page, publish
from longcat.cli.benchmarks.paper.figure import Arm, Figure, Row, Scale
from longcat.cli.benchmarks.paper.results import Results
from longcat.cli.benchmarks.paper.text import Text, heads, load_text
from longcat.cli.benchmarks.paper.training import Job, follow, train_curve
from longcat.cli.benchmarks.paper.verdict import difference
from longcat.cli.main import main
from longcat.train.corpus import Corpus, Document
from longcat.train.errors import RunError

TINY = Scale(
    name="quick",
    width=16,
    steps=4,
    vocab_size=280,
    batch_size=2,
    seq_len=8,
    held_out_bytes=60,
)
ARMS = (Arm(name="Plain"), Arm(name="low rate", settings={"lr": 1e-4}))


def corpus() -> Corpus:
    """Sums of small numbers."""
    lines = [f"{a} + {b} = {a + b}\n" for a in range(30) for b in range(10)]
    return Corpus(
        train=(Document(name="t", text="".join(lines)),),
        held_out=(Document(name="h", text="".join(lines[::7])),),
        source="sums",
        licence="none",
    )


def make_figure(**changes: Any) -> Figure:
    return Figure(
        **{
            "number": 99,
            "title": "A test",
            "report": "figure 0",
            "shows": "nothing.",
            "differs": "everything.",
            "arms": lambda scale: ARMS,
            "verdicts": lambda results: [
                difference(
                    "held-out loss",
                    results.values("Plain", "loss"),
                    results.values("low rate", "loss"),
                    of=("Plain", "low rate"),
                    expected="lower",
                )
            ],
            "body": lambda results: [page.loss_plots(results, results.arms, title="Losses.")],
            **changes,
        }
    )


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    work = tmp_path_factory.mktemp("text")
    return load_text(work, vocab_size=280, held_out_bytes=60, corpus=corpus)


def make_bench(work: Path, text: Text, said: list[str], **changes: Any) -> bench.Bench:
    arguments = {"figure": make_figure(), "scale": TINY, "seeds": 2, "deadline": None} | changes
    return bench.Bench(text=text, work=work, say=said.append, **arguments)


def make_job(text: Text, **arm: Any) -> Job:
    return Job(figure=99, arm=Arm(name="a", **arm), seed=0, scale=TINY, text=text)


def without_clocks(document: Any) -> Any:
    """The document without what differs between two runs of the same thing."""
    if isinstance(document, dict):
        kept = {k: v for k, v in document.items() if k not in ("cpu_seconds", "date", "machines")}
        return {k: without_clocks(v) for k, v in kept.items()}
    return [without_clocks(v) for v in document] if isinstance(document, list) else document


def test_a_bench_makes_every_arm_with_every_seed(tmp_path: Path, text: Text) -> None:
    said: list[str] = []
    document = make_bench(tmp_path, text, said).run()
    assert [(r["arm"], r["seed"]) for r in document["runs"]] == [
        ("Plain", 0),
        ("low rate", 0),
        ("Plain", 1),
        ("low rate", 1),
    ]
    assert len(said) == 4
    assert "4 of 4 runs" in said[-1]
    run = document["runs"][0]
    assert run["held_out"]["step"][0] == 0
    assert run["held_out"]["step"][-1] == TINY.steps
    assert run["tokens"] == TINY.steps * TINY.batch_size * TINY.seq_len
    assert run["loss"] == run["held_out"]["loss"][-1]
    assert run["curve"]["flops"] == sorted(run["curve"]["flops"])


def test_an_interrupted_bench_goes_on_and_gives_what_it_would_have_given(
    tmp_path: Path, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_bench(tmp_path / "whole", text, []).run()
    interrupted = make_bench(tmp_path / "cut", text, [])
    lines: list[str] = []

    def stop_after_two(line: str) -> None:
        lines.append(line)
        if len(lines) == 2:
            raise KeyboardInterrupt

    interrupted.say = stop_after_two
    with pytest.raises(KeyboardInterrupt):
        interrupted.run()
    made: list[Job] = []
    monkeypatch.setattr(bench, "train_curve", lambda job: made.append(job) or train_curve(job))
    resumed = make_bench(tmp_path / "cut", text, []).run()
    assert [(job.arm.name, job.seed) for job in made] == [("Plain", 1), ("low rate", 1)]
    assert without_clocks(resumed) == without_clocks(whole)


def test_a_run_that_is_killed_while_it_is_stored_leaves_nothing_behind(
    tmp_path: Path, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("longcat.cli.benchmarks.document.os.replace", killed)
        with pytest.raises(SystemExit):
            make_bench(tmp_path, text, []).run()
    assert not list((tmp_path / "runs").rglob("*.json*"))
    said: list[str] = []
    make_bench(tmp_path, text, said).run()
    assert len(said) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"figure": make_figure(arms=lambda scale: (ARMS[0], Arm(name="low rate")))},
        {"scale": Scale(**{**TINY.__dict__, "steps": 3})},
    ],
    ids=["an arm's settings", "the scale"],
)
def test_a_run_made_from_other_settings_is_made_anew(
    tmp_path: Path, text: Text, changes: Row
) -> None:
    make_bench(tmp_path, text, []).run()
    unchanged: list[str] = []
    make_bench(tmp_path, text, unchanged).run()
    assert unchanged == []
    said: list[str] = []
    make_bench(tmp_path, text, said, **changes).run()
    assert len(said) in (2, 4)  # the changed arm's seeds, or everything


def test_every_step_is_shown(tmp_path: Path, text: Text) -> None:
    shown: list[str] = []
    make_bench(tmp_path, text, [], show=shown.append).run()
    assert len(shown) == 4 * TINY.steps
    assert shown[0] == "figure 99, Plain, seed 0: step 1 of 4"


def test_no_run_begins_after_the_deadline(tmp_path: Path, text: Text) -> None:
    said: list[str] = []
    with pytest.raises(bench.OutOfTime):
        make_bench(tmp_path, text, said, deadline=0.0).run()
    assert said == []


def test_a_damaged_stored_run_is_named(tmp_path: Path, text: Text) -> None:
    make_bench(tmp_path, text, []).run()
    victim = next((tmp_path / "runs").rglob("plain-seed0.json"))
    victim.write_text("{")
    with pytest.raises(ValueError, match=r"plain-seed0\.json is damaged .*remove it"):
        make_bench(tmp_path, text, []).run()


def test_a_diverged_run_is_stored_as_such(
    tmp_path: Path, text: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(text)
    trainer = job.trainer()
    step = trainer.train_step

    def fail_at_three(**_: object) -> object:
        if trainer.step == 2:
            raise RunError("the loss is not finite")
        return step()

    monkeypatch.setattr(trainer, "train_step", fail_at_three)
    row = follow(job, trainer)
    assert (row["loss"], row["diverged"]) == (None, 3)
    assert row["curve"]["step"] == [1, 2]


def test_averages_along_a_run_are_those_of_its_steps(text: Text) -> None:
    every = follow(make_job(text), make_job(text).trainer(), read=("ffn_experts_mean",), points=4)
    halves = follow(make_job(text), make_job(text).trainer(), read=("ffn_experts_mean",), points=2)
    for name in ("loss", "ffn_experts_mean"):
        steps = np.array(every["curve"][name])
        expected = [steps[:2].mean(axis=0), steps[2:].mean(axis=0)]
        np.testing.assert_allclose(halves["curve"][name], expected, rtol=1e-12)
    assert halves["curve"]["step"] == [2, 4]


def test_the_text_is_made_once_and_its_held_out_part_is_fixed(tmp_path: Path) -> None:
    first = load_text(tmp_path, vocab_size=280, held_out_bytes=60, corpus=corpus)

    def never() -> Corpus:
        raise AssertionError("the text was there already")

    again = load_text(tmp_path, vocab_size=280, held_out_bytes=60, corpus=never)
    assert again.card == first.card
    np.testing.assert_array_equal(again.tokens, first.tokens)
    assert again.card["held_out_bytes"] == 60
    cut = heads([Document(name="a", text="é" * 2000), Document(name="b", text="xyz")], 1503)
    assert [len(d.text.encode()) for d in cut] == [1500, 3]


def test_the_page_says_what_the_document_holds(tmp_path: Path, text: Text) -> None:
    document = make_bench(tmp_path, text, []).run()
    stored = json.loads(bench.to_json(document))
    assert stored == json.loads(json.dumps(document))
    shown = page.render(make_figure(), stored)
    gap = page.Results(stored)
    assert f"{gap.settings('Plain')['parameters']:,}" in shown
    assert shown.count("<svg") == 1
    assert shown.count("<circle") > 3 * 2  # three panels, two arms
    assert "t = 12.71 for 95 % coverage" in shown
    assert "`lr` 0.0001" in shown
    changed = {**stored, "runs": [{**run, "loss": 1.0} for run in stored["runs"]]}
    assert page.render(make_figure(), changed) != shown


def test_curves_stop_where_a_run_diverged() -> None:
    table = {"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0]}
    short = {"step": [1, 2], "loss": [3.0, None]}
    runs = [{"arm": "a", "seed": 0, "curve": table}, {"arm": "a", "seed": 1, "curve": short}]
    results = Results({"arms": [{"name": "a"}], "seeds": [0, 1], "runs": runs})
    assert [p.x for p in results.curve("a", "loss", x="step")] == [1]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`longcat bench paper` on the tiny scale and text, with every folder in a temporary one."""
    monkeypatch.setitem(figure.SCALES, "quick", TINY)
    monkeypatch.setattr(publish, "load_text", partial(load_text, corpus=corpus))
    monkeypatch.chdir(tmp_path)
    return lambda *options: main(["bench", "paper", *options])


def test_the_command_writes_documents_and_pages(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--figure", "1", "--seeds", "2", "--json") == 0
    out = capsys.readouterr()
    said = json.loads(out.out)["figures"][0]
    assert said["figure"] == 1
    assert {"seen", "text"} == set(said["statements"][0])
    assert "8 of 8 runs" in out.err
    shown = (tmp_path / "docs/results/figure-01.md").read_text()
    assert (tmp_path / "bench/results/paper-01.json").exists()
    assert "](figure-01.md)" in (tmp_path / "docs/results/paper.md").read_text()
    (tmp_path / "docs/results/figure-01.md").unlink()
    assert command("--pages") == 0
    assert "8 of 8" not in capsys.readouterr().err
    assert (tmp_path / "docs/results/figure-01.md").read_text() == shown


def test_the_command_stops_in_time_and_says_how_to_go_on(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--figure", "1", "--minutes", "0") == 0
    assert "the same command goes on" in capsys.readouterr().err
    assert not (tmp_path / "bench/results/paper-01.json").exists()


def test_an_unknown_figure_is_a_sentence(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--figure", "77") == 2
    assert "got [77]" in " ".join(capsys.readouterr().err.split())
