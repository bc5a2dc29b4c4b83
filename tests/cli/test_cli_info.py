"""Claims about `longcat info`: the published figures, and sentences for what it cannot read."""

import json
from pathlib import Path
from typing import Any

import pytest

from longcat.cli.main import main


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert main(["info", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_released_model_has_the_published_figures(capsys: pytest.CaptureFixture[str]) -> None:
    figures = told(capsys, "longcat-flash")
    assert figures["total_parameters"] == 560_664_980_480
    assert figures["activated_parameters"] == {
        "min": 18_693_794_816,
        "mean": 27_149_511_680,
        "max": 31_377_370_112,
    }
    assert figures["cache_bytes_per_token"] == 64_512
    assert figures["mtp_parameters"] == 392_593_408
    assert figures["config"]["num_layers"] == 28


def test_the_card_shows_the_same_figures_to_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "longcat-flash"]) == 0
    shown = capsys.readouterr().out
    for figure in ("560.66 B", "18.69 B / 27.15 B / 31.38 B", "64,512 bytes"):
        assert figure in shown


def test_a_checkpoint_directory_is_described_by_its_config(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = told(capsys, str(tiny_checkpoint))
    assert figures["config"] == {
        key: value
        for key, value in json.loads((tiny_checkpoint / "config.json").read_text()).items()
        if key != "torch_dtype"
    }


def test_a_preset_wins_over_a_directory_of_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bench").mkdir()
    monkeypatch.chdir(tmp_path)
    assert told(capsys, "bench")["config"]["hidden_size"] == 512


def test_a_name_that_is_nothing_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["info", "gpt"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "expected a preset (bench, longcat-flash, nano, nano-bytes) or a directory" in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "no config.json in"),
        ("{", "not readable as JSON"),
        ('{"model_type": "llama"}', "model_type must be 'longcat_flash'; got 'llama'"),
        ('{"model_type": "longcat_flash"}', "config"),
    ],
)
def test_a_directory_that_is_no_model_is_refused_in_one_sentence(
    text: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    assert main(["info", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
