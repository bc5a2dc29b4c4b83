"""`longcat train` from outside: cards, lines, the last line, interruption, resuming, bad input."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from longcat.cli.main import main
from longcat.train.metrics import TIMED_FIELDS

SMALL = ["--batch-size", "2", "--seq-len", "32", "--vocab-size", "300", "--precision", "float32"]
STRUCTURE = "def alpha(count):\n    return count + 12\n\n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(STRUCTURE * 60)
    return tmp_path


def train(*arguments):
    return main(["train", *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run, its standard output and the folder it was made in."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "text.txt").write_text(STRUCTURE * 60)
    arguments = ["--data", "text.txt", "--out", "run", "--steps", "4", "--processes", "1", *SMALL]
    done = subprocess.run(
        [sys.executable, "-m", "longcat.cli.main", "train", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_card_comes_first_and_one_json_object_last(finished):
    folder, output = finished
    assert output.index("before it starts") < output.index("step     1/4")
    for words in ("activates", "memory", "tokens", "time", "processes", "as asked"):
        assert words in output
    last = json.loads(output.strip().splitlines()[-1])
    assert last["finished"] is True
    assert last["steps"] == 4
    assert last["bits_per_byte"] > 0
    assert last["ffn_experts_target"] == 4
    assert last["cpu_seconds"] > 0
    assert set(last["compressors"]) >= {"zlib", "bz2", "xz"}
    assert (folder / last["report"]).is_file()


def test_step_lines_carry_the_vital_signs(finished):
    lines = [line for line in finished[1].splitlines() if line.startswith("step ")]
    assert len(lines) == 2  # the first and the last: lines stand seconds apart
    pattern = (
        r"loss [\d.]+ .*grad [\d.]+ .*FFN experts [\d.]+ [\d.]+ .*heaviest [\d.]+ .*R_g [\d.]+"
    )
    assert all(re.search(pattern, line) for line in lines)


def test_the_report_on_the_terminal_is_the_short_form_of_the_page(finished):
    folder, output = finished
    for words in ("bits per byte, held out", "Python keyword", "a sample", "longcat generate"):
        assert words in output
    assert (folder / "run" / "report.html").read_text().startswith("<!doctype html>")


def test_with_json_standard_output_is_one_document(place, capsys):
    code = train("text.txt", "--out", "run", "--steps", "1", "--processes", "1", "--json", *SMALL)
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert json.loads(captured.out)["steps"] == 1
    assert "before it starts" in captured.err


def test_a_finished_run_is_opened_by_generate(finished, capsys):
    code = main(
        ["generate", "--model", str(finished[0] / "run"), "--prompt", "def", "--max-tokens", "5"]
    )
    assert code == 0
    assert capsys.readouterr().out


def test_a_run_is_never_overwritten(finished, capsys, monkeypatch):
    monkeypatch.chdir(finished[0])
    before = (finished[0] / "run" / "model.safetensors").stat().st_mtime_ns
    assert train("--data", "text.txt", "--out", "run", "--steps", "1", *SMALL) == 2
    assert "longcat train --resume --out run" in capsys.readouterr().err
    assert (finished[0] / "run" / "model.safetensors").stat().st_mtime_ns == before


def test_a_finished_run_can_be_made_longer(finished, tmp_path, capsys):
    import shutil

    shutil.copytree(finished[0] / "run", tmp_path / "run")
    assert train("--resume", "--out", str(tmp_path / "run"), "--steps", "6") == 0
    output = capsys.readouterr().out
    assert "goes on from" in output
    assert json.loads(output.strip().splitlines()[-1])["steps"] == 6
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere.txt"], "found nothing"),
        (["--data", "empty.txt"], "it is empty"),
        (["--data", "binary.txt"], "binary data"),
        (["--data", "short.txt"], "at least 34 tokens"),
        (["--preset", "huge"], "unknown preset 'huge'"),
        (["--steps", "0"], "--steps must be positive"),
        (["--steps", "5", "--time-budget", "9"], "either --steps N or --time-budget"),
        (["--seq-len", "99999"], "longer than the preset's"),
        (["--precision", "fp4"], "--precision must be"),
        (["--vocab-size", "10"], "vocab_size must be at least 260"),
        (["--processes", "7"], "cannot share"),
        (["--width", "100"], "at width 100 num_attention_heads would be"),
        (["--distill-steps", "-1"], "--distill-steps must not be negative"),
        (["--transfer-from", "nowhere", "--width", "256"], "expected a run with a saved snapshot"),
        (["--transfer-from", "nowhere", "--resume"], "leave out --resume"),
        (["--processes", "many"], "positive number or auto"),
        (["--preset", "longcat-flash"], "choose a smaller preset"),
        (["--resume", "--out", "nowhere"], "found none; start one"),
        (["--resume"], "there is no run under ./runs"),
        (["--from-step", "4"], "--from-step goes with --resume"),
        (["--keep", "0"], "--keep must be positive"),
        (["--rollback", "-1"], "--rollback must not be negative"),
        (["--sdc-every", "-1"], "--sdc-every must not be negative"),
        (["--out", "text.txt"], "text.txt is a file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence_and_leaves_nothing(place, capsys, arguments, message):
    (place / "empty.txt").write_text("")
    (place / "binary.txt").write_bytes(b"\0\1\2")
    (place / "short.txt").write_text("short")
    before = sorted(p.name for p in place.rglob("*"))
    base: list[str] = []
    for name, value in (("--out", "run"), ("--data", "text.txt"), ("--seq-len", "32")):
        if name not in arguments and "--resume" not in arguments:
            base += [name, value]
    assert train(*base, *arguments) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert sorted(p.name for p in place.rglob("*")) == before


def test_settings_cannot_change_on_the_way(finished, capsys):
    assert train("--resume", "--out", str(finished[0] / "run"), "--lr", "1e-5") == 2
    assert "begun with other settings (lr is" in " ".join(capsys.readouterr().err.split())


def test_a_full_disk_is_exit_code_1_and_one_sentence(place, capsys, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("longcat.train.directory.sync_tree", full)
    assert train("text.txt", "--out", "run", "--steps", "1", "--processes", "1", *SMALL) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not (place / "run").exists()


def test_the_quickstart_keeps_finished_runs_and_goes_on_with_interrupted_ones(place, capsys):
    from longcat.cli.training import QUICKSTART_OUT, find_place
    from longcat.cli.ui.theme import make_console

    console = make_console(width=200)
    assert find_place(None, {}, False, True, console) == (QUICKSTART_OUT, False)
    interrupted = place / QUICKSTART_OUT / "state" / "step-00000010"
    interrupted.mkdir(parents=True)
    assert find_place(None, {}, False, True, console) == (QUICKSTART_OUT, True)
    (place / QUICKSTART_OUT / "run.json").write_text("{}")
    assert find_place(None, {}, False, True, console)[0].name == "quickstart-2"
    assert "is kept as it is" in capsys.readouterr().out


def test_the_quickstart_trains_for_less_than_five_minutes():
    from longcat.cli.training import chosen_settings

    settings = chosen_settings({}, quickstart=True)
    assert settings.time_budget < 300
    assert settings.preset == "nano"
    assert settings.data == ()


def test_the_panel_is_drawn_on_a_terminal(finished):
    """Whole frames, from the records of a real run: no figure is left out, nothing overflows."""
    from rich.console import Console

    from longcat.cli.ui.panel import Watcher
    from longcat.cli.ui.theme import THEME
    from longcat.train.directory import RunDirectory
    from longcat.train.metrics import read_metrics
    from longcat.train.prepare import reopen
    from longcat.train.session import Session

    directory = RunDirectory(finished[0] / "run")
    session = Session(directory=directory, prepared=reopen(directory), processes=1, card=[])
    for width in (60, 80, 120):
        console = Console(
            width=width, height=60, force_terminal=True, color_system="truecolor", theme=THEME
        )
        with console.capture() as capture, Watcher(console, session) as watcher:
            for record in read_metrics(directory.path):
                watcher.step(record, record["step"] / 4, 7.0)
            watcher.saved(4)
        drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capture.get()).replace("\xa0", " ")
        for words in (
            "loss",
            "FFN experts per token",
            "load per expert",
            "R_g",
            "tokens/s",
            "0:07",
        ):
            assert words in drawn, (width, words)
        assert max(len(line) for line in drawn.splitlines()) <= width


@pytest.mark.slow
def test_the_quickstart_meets_its_bar(tmp_path, monkeypatch, capsys):
    """Bits per byte against the processor time that the machine gave, FFN experts within 3 %."""
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    assert train("--quickstart") == 0
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert last["bits_per_byte"] <= (1.87 if last["cpu_seconds"] >= 500 else 2.03)
    for mean in last["ffn_experts_mean"]:
        assert abs(mean / last["ffn_experts_target"] - 1) < 0.03
    assert last["seconds"] < 300
    assert time.monotonic() - started < 900


@pytest.mark.slow
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_killed_with_signal_9_resumes_to_the_bits_of_one_that_was_not(place, processes):
    """The whole command: moments, controller, weights and metrics, byte by byte."""
    shape = ["text.txt", "--steps", "16", "--save-every", "4", *SMALL]
    command = [sys.executable, "-m", "longcat.cli.main", "train", "--processes", processes]
    subprocess.run([*command, *shape, "--out", "whole"], check=True, capture_output=True)
    process = subprocess.Popen(
        [*command, *shape, "--out", "cut"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    metrics = place / "cut" / "metrics.jsonl"
    while process.poll() is None and not (
        metrics.is_file() and metrics.read_text().count("\n") >= 6
    ):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
    subprocess.run([*command, "--resume", "--out", "cut"], check=True, capture_output=True)
    for name in ("model.safetensors", "optimizer.safetensors"):
        whole, cut = (
            next((place / run / "state").glob("step-00000016")) / name for run in ("whole", "cut")
        )
        assert whole.read_bytes() == cut.read_bytes(), name

    def untimed(run):
        lines = (place / run / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(x).items() if k not in TIMED_FIELDS} for x in lines]

    assert untimed("whole") == untimed("cut")
