"""Claims about `longcat generate`: the same text by every road, plain in a pipe, refusals."""

import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from longcat.cli.generate import summary
from longcat.cli.main import main
from longcat.cli.models import FoundModel, find_model, newest_run, open_model, shipped_nano
from longcat.cli.stream import TokenPrinter
from longcat.cli.ui.theme import THEME
from longcat.flash.int8 import Int8Linear
from longcat.serve import SamplingParams

PROMPT = "def main("


def generated(
    capsys: pytest.CaptureFixture[str], model: Path, *argv: str, prompt: str = PROMPT
) -> Any:
    code = main(["generate", "--model", str(model), "--prompt", prompt, *argv, "--json"])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return json.loads(shown.out)


@pytest.mark.parametrize("sampling", [[], ["--temperature", "1.0", "--top-k", "40", "--seed", "3"]])
def test_drafts_and_backend_do_not_change_the_text(
    sampling: list[str], tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--max-tokens", "16", *sampling]
    plain = generated(capsys, tiny_checkpoint, *argv, "--no-speculative")
    assert plain["drafted"] == 0
    assert plain["acceptance"] is None
    assert plain["tokens"] == len(plain["token_ids"]) <= 16
    for road in (["--drafts", "1"], ["--drafts", "3"], ["--backend", "numpy"]):
        other = generated(capsys, tiny_checkpoint, *argv, *road)
        assert other["token_ids"] == plain["token_ids"], road
        assert other["drafted"] > 0
        assert other["accepted"] == sum(other["drafted_and_accepted"])


def test_another_seed_is_another_text_and_no_seed_is_told(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--max-tokens", "24", "--temperature", "1"]
    first = generated(capsys, tiny_checkpoint, *argv)
    again = generated(capsys, tiny_checkpoint, *argv, "--seed", str(first["seed"]))
    other = generated(capsys, tiny_checkpoint, *argv, "--seed", "1")
    assert first["token_ids"] == again["token_ids"] != other["token_ids"]


def test_a_pipe_gets_prompt_and_text_plainly_and_the_figures_go_elsewhere(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--max-tokens", "12"]
    told = generated(capsys, tiny_checkpoint, *argv)
    assert main(["generate", "--model", str(tiny_checkpoint), "--prompt", PROMPT, *argv]) == 0
    shown = capsys.readouterr()
    assert shown.out == PROMPT + told["text"] + "\n"
    assert shown.err.startswith("12 tokens in ")
    assert "tokens/s" in shown.err
    assert "drafts accepted" in shown.err
    assert "tokens per step" in shown.err


def test_a_prompt_from_standard_input_is_taken_byte_for_byte_but_its_last_newline(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    same = generated(capsys, tiny_checkpoint, "--max-tokens", "5")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(PROMPT.encode() + b"\n")))
    piped = generated(capsys, tiny_checkpoint, "--max-tokens", "5", prompt="-")
    assert piped["token_ids"] == same["token_ids"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n\n")))
    stray = generated(capsys, tiny_checkpoint, "--max-tokens", "5", prompt="-")
    assert stray["prompt_tokens"] == 4  # the beginning of text, two stray bytes, one newline


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--prompt", "x y " * 300], "tokens, but the model takes at most 256 positions"),
        (["--max-tokens", "256"], "ask for at most 255 tokens"),
        (["--temperature", "-1"], "temperature must be 0 (greedy) or a positive number"),
        (["--top-p", "0"], "top_p must be in (0, 1]"),
        (["--seed", "-5"], "seed must be in 0 .. 2**64-1"),
        (["--dtype", "int9"], "unknown dtype 'int9'"),
        (["--dtype", "int8", "--device", "meta"], "--dtype int8 is for a CPU"),
        (["--device", "abacus"], "--device abacus cannot be used here"),
        (["--device", "xla"], "; leave it out, or say cpu\n"),
        (["--model", "nowhere"], "no model 'nowhere'"),
        (["--model", str(Path(__file__).parent)], "no config.json in "),
        (["--model", "bench"], "train it with `longcat train --preset bench`"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_sentence_and_exit_code_2(
    argv: list[str],
    sentence: str,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["generate", "--model", str(tiny_checkpoint), *argv]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert len(shown.err) < 400


def test_weights_of_8_bits_continue_a_prompt(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = open_model(FoundModel(directory=tiny_checkpoint), "int8", "cpu")
    assert any(isinstance(module, Int8Linear) for module in model.modules())
    argv = ["--dtype", "int8", "--max-tokens", "5", "--prompt", PROMPT, "--json"]
    assert main(["generate", "--model", str(tiny_checkpoint), *argv]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 5


def break_tokenizer(directory: Path) -> str:
    (directory / "tokenizer.json").unlink()
    return PROMPT


def grow_vocabulary(directory: Path) -> str:
    """A tokenizer with more entries than the model has rows; returns text that needs one."""
    from longcat.flash.tokenizer import Tokenizer

    words = [f"{a}{b}{c}" for a in "abcd" for b in "efgh" for c in "ijkl"]
    tokenizer = Tokenizer.train_bpe([" ".join(words)] * 3, 340)
    tokenizer.save(directory)
    return tokenizer.decode([339])


def cut_weights(directory: Path) -> str:
    os.truncate(directory / "model.safetensors", 1000)
    return PROMPT


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (break_tokenizer, "found no such file; a checkpoint needs its tokenizer.json"),
        (grow_vocabulary, "is outside the vocabulary 0 .. 299"),
        (cut_weights, "model.safetensors is not a complete safetensors file"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence_and_exit_code_2(
    damage: Any,
    sentence: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory = tmp_path / "damaged"
    shutil.copytree(tiny_checkpoint, directory)
    prompt = damage(directory)
    assert main(["generate", "--model", str(directory), "--prompt", prompt]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert sentence in shown.err
    assert shown.err.count("\n") == 1


def test_the_default_model_is_the_newest_run_and_says_so(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for age, name in ((100, "newer"), (200, "older")):
        shutil.copytree(tiny_checkpoint, tmp_path / "runs" / name)
        weights = tmp_path / "runs" / name / "model.safetensors"
        now = weights.stat().st_mtime
        os.utime(weights, (now - age, now - age))
    # Newest of all, but nothing to generate from.
    (tmp_path / "runs" / "unfinished").mkdir()
    assert newest_run(Path("runs")) == Path("runs/newer")
    assert main(["generate", "--max-tokens", "2"]) == 0
    assert capsys.readouterr().err.startswith("runs/newer, the newest run\n")


def test_without_runs_the_shipped_weights_or_a_sentence(tmp_path: Path) -> None:
    shipped = shipped_nano()
    if shipped is not None:
        assert (
            find_model(None, tmp_path / "runs").directory == shipped == find_model("nano").directory
        )
    else:
        with pytest.raises(ValueError, match=r"no run under .* train one with `longcat train`"):
            find_model(None, tmp_path / "runs")


@pytest.mark.parametrize("command", ["generate", "export"])
def test_help_offers_the_shipped_weights_only_where_there_are_some(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    assert ("nano" in capsys.readouterr().out) == (shipped_nano() is not None)


def printed(terminal: bool, **options: Any) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, theme=THEME, **options)
    printer = TokenPrinter(console)
    printer.prompt(b"p")
    for data, drafted in ((b"a", False), ("é".encode()[:1], True), ("é".encode()[1:], True)):
        printer.token(data, drafted)
    printer.token(b"\x1b[2Jb\xff", False)
    printer.close()
    written: io.StringIO = console.file  # type: ignore[assignment]
    return written.getvalue()


def test_a_character_cut_between_tokens_is_printed_whole() -> None:
    assert printed(False) == "paé\x1b[2Jb\N{REPLACEMENT CHARACTER}\n"


def test_on_a_terminal_drafted_tokens_are_coloured_and_control_characters_are_not_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = printed(True, color_system="truecolor")
    assert "\x1b[38;2;9;131;86mé\x1b[0m" in shown
    assert "\x1b[2J" not in shown
    assert "\x1b[32mé\x1b[0m" in printed(True, color_system="standard")
    assert "\x1b[4mé\x1b[0m" in printed(True, color_system="truecolor", no_color=True)


def test_the_closing_line_reports_the_measured_counts() -> None:
    class Finished:
        tokens = (None,) * 19
        acceptance = 0.8
        tokens_per_step = 1.8
        params = SamplingParams(temperature=1.0, seed=42)

    said = summary(Finished(), 2.0)  # type: ignore[arg-type]
    assert said == (
        "19 tokens in 2.00 s, 9.5 tokens/s, 80.0% of drafts accepted, 1.80 tokens per step, seed 42"
    )
