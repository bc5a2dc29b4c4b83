"""Claims about the command line as a whole: its commands, its exit codes, its one sentence."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from longcat.cli import errors, main


def test_help_lists_every_command_and_imports_none_of_them() -> None:
    code = (
        "import sys; from longcat.cli.main import main; code = main(['--help']);"
        "heavy = {'torch', 'numpy', 'longcat.flash', 'longcat.cli.info'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in ("info", "train", "generate", "export", "demo", "tutorial", "bench"):
        assert f" {name} " in done.stdout
    assert "Example: longcat info longcat-flash" in done.stdout


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_every_listed_command_exists_and_its_help_has_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Usage: longcat {name}" in shown
    assert f"longcat {name}" in shown.replace("Usage: longcat", ""), "no example"


@pytest.mark.parametrize("name", list(main.COMMANDS))
def test_the_line_in_the_list_is_how_the_commands_own_help_begins(name: str) -> None:
    assert main.load(name).help.startswith(main.COMMANDS[name].rstrip("."))


def test_the_lines_of_help_are_broken_by_the_terminal_alone() -> None:
    commands = [main.load(name) for name in main.COMMANDS]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        assert "\n" not in command.help.replace("\n\n", ""), command.name


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 0
    assert "generate" in capsys.readouterr().out


def test_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("longcat-flash 0.")


@pytest.mark.parametrize("argv", [["nonsense"], ["info"], ["info", "nano", "--nonsense"]])
def test_bad_usage_is_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err


NO_SPACE = OSError(errno.ENOSPC, "No space left on device", "/somewhere/model.safetensors")
WRAPPED = ValueError("cannot write the checkpoint")
WRAPPED.__cause__ = NO_SPACE
TWICE = ValueError("saving step 5 failed")
TWICE.__cause__ = WRAPPED


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("expected a,\n  got b"), 2, "error: expected a, got b\n"),
        (FileNotFoundError(2, "No such file", "x"), 2, "error: x: No such file\n"),
        (PermissionError(13, "Permission denied", "/locked/x"), 2, "error: /locked/x: Permission"),
        (NO_SPACE, 1, "error: /somewhere/model.safetensors: No space left on device\n"),
        (WRAPPED, 1, "error: cannot write the checkpoint\n"),
        (TWICE, 1, "error: saving step 5 failed\n"),
        (MemoryError("3 GB"), 1, "error: not enough memory: 3 GB"),
        (RuntimeError("CUDA out of memory."), 1, "error: not enough memory: CUDA out of memory."),
        (KeyError("oops"), 1, "error: this is a mistake in longcat: KeyError: 'oops'"),
        (ValueError(), 2, "error: ValueError (LONGCAT_DEBUG=1 shows where)\n"),
    ],
)
def test_an_error_is_one_line_on_standard_error_and_an_exit_code(
    error: Exception,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(name: str) -> object:
        raise error

    monkeypatch.delenv("LONGCAT_DEBUG", raising=False)
    monkeypatch.setattr(main, "load", fails)
    assert main.main(["info", "nano"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(said)
    assert shown.err.count("\n") == 1
    # The control: with LONGCAT_DEBUG the same error comes through as it is.
    monkeypatch.setenv("LONGCAT_DEBUG", "1")
    with pytest.raises(type(error)):
        main.main(["info", "nano"])


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "load", interrupted)
    assert main.main(["info", "nano"]) == 130


def test_an_interrupt_while_libraries_load_is_not_swallowed() -> None:
    # The system's signal could come at any moment; here it comes inside numpy's own import.
    code = (
        "import sys; from longcat.cli.main import main\n"
        "class Signal:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy.matrixlib':\n"
        "            sys.meta_path.remove(self)\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Signal())\n"
        "sys.exit(main(['info', 'nano']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    assert done.stdout == done.stderr.strip() == ""


def test_a_warning_is_one_line_without_a_source_path(capsys: pytest.CaptureFixture[str]) -> None:
    errors._show_warning("the head\n has its own", UserWarning, "/a/b.py", 3)
    assert capsys.readouterr().err == "warning: the head has its own\n"


def test_a_reader_that_goes_away_leaves_no_traceback(
    tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # what `| head` does once it has seen enough
    monkeypatch.setattr("sys.stdout", os.fdopen(writer, "w"))
    assert main.main(["generate", "--model", str(tiny_checkpoint), "--max-tokens", "9"]) == 1
    assert "error" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["serve", "chat", "evaluate"])
def test_a_model_is_named_by_an_argument_or_by_an_option(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for named in (["no-such"], ["--model", "no-such"], ["no-such", "--model", "no-such"]):
        assert main.main([command, *named, "--device", "none"]) == 2  # none ends it, at the latest
        assert "no model 'no-such'" in capsys.readouterr().err
    assert main.main([command, "nano", "--model", "runs/chat", "--device", "none"]) == 2
    assert "nano and --model runs/chat: name one of them" in capsys.readouterr().err
