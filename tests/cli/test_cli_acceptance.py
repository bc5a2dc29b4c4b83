"""Claims about `longcat bench acceptance`: fresh prompts, means with intervals, nothing typed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longcat.cli import main
from longcat.cli.benchmarks.acceptance import page, runs
from longcat.flash import FlashConfig
from longcat.flash.tokenizer import Tokenizer
from longcat.train import TrainSettings
from longcat.train.corpus import Corpus, Document
from longcat.train.directory import RunDirectory
from longcat.train.loop import begin
from longcat.train.prepare import prepare

TEXT = "".join(f"def f{i}(x):\n    return x + {i}\n" for i in range(2_000))
SUMMARY = {
    "parameters": {"total": 1_000, "mtp": 100},
    "tokens": 5_000,
    "cpu_seconds": 700.0,
    "settled": {"steps": 1, "cpu_seconds": 5.0},
    "distilled": {"cpu_seconds": 300.0},
    "held_out": {"bits_per_byte": 1.5, "ffn_experts_mean": [4.0]},
}


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    path = tmp_path_factory.mktemp("run") / "nano"
    settings = TrainSettings(steps=3, seed=7, seq_len=16, distill_steps=2, precision="float32")
    config = FlashConfig.from_hf(json.loads((tiny_checkpoint / "config.json").read_text()))
    corpus = Corpus(
        train=(Document(name="a", text=TEXT[:1_000]),),
        held_out=(Document(name="b", text=TEXT),),
        source="a text",
        licence="ours",
    )
    tokenizer = Tokenizer.load(tiny_checkpoint)
    directory = RunDirectory(path)
    begin(directory, prepare(directory, corpus, settings, config, tokenizer))
    (path / "run.json").write_text(json.dumps(SUMMARY))
    return path


def made(preset: str, seed: int, counts: Any, **changes: Any) -> dict[str, Any]:
    """A run as the file holds it, with these drafts of each prompt."""
    return {
        "preset": preset,
        "seed": seed,
        "command": f"longcat train --preset {preset} --seed {seed}",
        "date": "2026-01-02",
        "text": "a text",
        "parameters": 2_000_000,
        "draft_parameters": 200_000,
        "vocabulary": 2048,
        "tokens": 4_000_000,
        "cpu_seconds": 800.0,
        "settle_cpu_seconds": 5.0,
        "distill_cpu_seconds": 300.0,
        "bits_per_byte": 1.4,
        "ffn_experts_mean": [4.0, 4.0],
        "repeated": 0.5,
        "tokens_per_pass": 1.9,
        "bytes_per_pass": 5.5,
        "sampled": 0.6,
        "by_depth": [0.9, 0.5, 0.3],
        "prompts": {"count": len(counts), "tokens": 64, "continued_by": 96},
        "machine": {"hardware": {"cpu": "a cpu"}, "versions": {"torch": "2"}},
        "by_prompt": counts,
        **changes,
    }


def drafts(rate: float, fresh: float) -> list[list[int]]:
    """Twenty prompts around these shares."""
    wobble = [-1, 1] * 10
    return [[100, round(100 * rate) + w, 50, round(50 * fresh) + w] for w in wobble]


def test_a_run_is_measured_on_fresh_prompts_and_the_page_follows_its_file(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "pages")]
    asked = ["bench", "acceptance", str(finished_run), "--prompts", "2", *places]
    assert main.main(asked) == 0
    assert "[missed] Accepted of all drafts" in capsys.readouterr().out
    text = (tmp_path / "results" / "acceptance.json").read_text(encoding="utf-8")
    assert str(finished_run) not in text
    (run,) = json.loads(text)["runs"]
    assert run["command"] == (
        "longcat train --preset nano --steps 3 --seed 7 --distill-steps 2 --seq-len 16"
    )
    assert np.array(run["by_prompt"]).shape == (2, 4)
    assert run["distill_cpu_seconds"] == 300.0
    assert len(run["by_depth"]) == runs.DEPTH
    shown = tmp_path / "pages" / "acceptance.md"
    before = shown.read_text(encoding="utf-8")
    shown.unlink()
    assert main.main(["bench", "acceptance", *places]) == 0
    assert shown.read_text(encoding="utf-8") == before


def test_the_share_is_the_mean_of_seeds_with_an_interval_over_prompts_and_over_seeds() -> None:
    three = [made("nano", seed, drafts(0.88 + 0.01 * seed, 0.8)) for seed in range(3)]
    found = page.share(three, (0, 1))
    assert found.seeds == pytest.approx((0.88, 0.89, 0.90))
    assert found.mean == pytest.approx(0.89)
    # Three values 0.01 apart: 4.303 * 0.01 / sqrt(3).
    assert found.over_seeds == pytest.approx(0.02484, abs=1e-4)
    # Prompts are what is counted, so twice as many seeds on them leave the interval as it is.
    twice = page.share([*three, *three], (0, 1))
    assert twice.over_prompts == pytest.approx(found.over_prompts)
    assert page.share(three[:1], (0, 1)).over_seeds is None


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"by_prompt": drafts(0.87, 0.8)}, ["of all drafts"]),
        ({"by_prompt": drafts(0.89, 0.78)}, ["where no 5-gram repeats"]),
        ({"cpu_seconds": 950.0}, ["Processor time"]),
        ({"bits_per_byte": 1.9}, ["bits per byte"]),
    ],
)
def test_an_aim_is_called_reached_only_when_it_is(
    changes: dict[str, Any], missed: list[str]
) -> None:
    run = made("nano", 0, drafts(0.88, 0.8), **changes)
    lines = list(page.sentences({"runs": [run]}))
    assert [line for line in lines if "[missed]" in line] == [
        line for line in lines if any(word in line for word in missed)
    ]
    assert page.render({"runs": [run]}).count(">missed<") == len(missed)


def test_a_run_takes_its_place_and_other_prompts_are_refused() -> None:
    old = [made("nano", seed, drafts(0.88, 0.8)) for seed in (0, 2)]
    new = made("nano", 1, drafts(0.9, 0.8))
    assert [run["seed"] for run in runs.merged(old, new)] == [0, 1, 2]
    again = made("nano", 2, drafts(0.7, 0.6))
    assert runs.merged(old, again)[1] is again
    with pytest.raises(ValueError, match="measured on 20 prompts, not on 3"):
        runs.merged(old, made("nano", 1, drafts(0.9, 0.8)[:3]))


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        (None, "is not finished; go on with it"),
        ({**SUMMARY, "distilled": None}, "train with --distill-steps"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    summary: dict[str, Any] | None,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    told = finished_run / "run.json"
    kept = told.read_text(encoding="utf-8")
    try:
        told.unlink()
        if summary is not None:
            told.write_text(json.dumps(summary))
        assert main.main(["bench", "acceptance", str(finished_run)]) != 0
    finally:
        told.write_text(kept)
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "bench/results/acceptance.json").exists()


def test_without_runs_and_file_the_answer_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["bench", "acceptance"]) == 2
    assert "name finished runs" in capsys.readouterr().err
    (tmp_path / "bench/results").mkdir(parents=True)
    (tmp_path / "bench/results/acceptance.json").write_text("{")
    assert main.main(["bench", "acceptance"]) == 2
    assert "is damaged" in capsys.readouterr().err
