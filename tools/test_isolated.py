"""Proves that each package stands alone: installs its wheel by itself and runs its tests there.

    python tools/test_isolated.py            all packages, then the longcat command, one by one
    python tools/test_isolated.py router     one of them

A package gets a new virtual environment with its own wheel, the wheels of the siblings it declares
and what those declare, through constraints.txt, and with pytest and hypothesis: a dependency that
is used and not declared is missing there. Tests in tests/<part>/<extra>/ run after the others, when
that extra has been installed too. Each environment is deleted before the next is made.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distributions import Distribution, brought_along, distributions

ROOT = Path(__file__).resolve().parent.parent
TEST_TOOLS = ("pytest", "hypothesis")
EXTRA_TEST_TOOLS = ("httpx",)
# What the installed command must do away from the clone, where no source tree can help it.
LONGCAT_SOURCES = "lib/python3*/site-packages/longcat/*/*.py"
COMMANDS = (
    "info longcat-flash --json",
    f"train --data {LONGCAT_SOURCES} --out run --steps 3 --seq-len 64 --processes 1",
    "generate --model run --prompt import --max-tokens 8",
    "tutorial 01 --no-pause",
    "demo router --no-pause",
)


class StepFailed(Exception):
    """A command of the run came back with an exit code other than 0; the text says which."""


def run(*command: str | Path, cwd: Path = ROOT, quiet: bool = True) -> None:
    """Runs a command without the caller's Python settings; shows its output when it fails.

    Raises: StepFailed with the command line, after its output has been printed.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_"))}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stdout or "", flush=True)
        raise StepFailed(f"exit code {done.returncode} from: {' '.join(map(str, command))}")


def pip(*arguments: str | Path) -> None:
    """Runs the pip of this interpreter, with the pins of constraints.txt."""
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)


def build_wheels(folders: list[Path], wheelhouse: Path) -> None:
    """Builds one wheel per folder; hatchling is taken from this environment."""
    pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheelhouse, *folders)


def try_alone(part: str, dist: Distribution, wheelhouse: Path) -> None:
    """Makes the environment, installs, runs, and deletes it whatever came of it.

    Raises: StepFailed when installing or a test fails.
    """
    ours = {dist.name for dist in distributions(ROOT)} & brought_along(ROOT, dist.name)
    wheels = {n: next(wheelhouse.glob(f"{n.replace('-', '_')}-*.whl")) for n in sorted(ours)}
    with tempfile.TemporaryDirectory(prefix=f"longcat-{part}-") as folder:
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        python = Path(folder, "bin", "python")
        tools = () if part == "flash" else TEST_TOOLS
        install = ("--python", python, "install", "-q", "-c", ROOT / "constraints.txt")
        pip(*install, *wheels.values(), *tools)
        if part == "flash":
            for command in COMMANDS:
                run(python.with_name("longcat"), *command.split(), cwd=Path(folder))
        else:
            # -P: the clone's root is not on sys.path, so only what is installed can be imported.
            options = ("-q", "-p", "no:cacheprovider", "-m", "not slow and not gpu")
            tests = (python, "-P", "-m", "pytest", *options)
            apart = [e for e in sorted(dist.extras) if (ROOT / "tests" / part / e).is_dir()]
            ignored = [f"--ignore=tests/{part}/{extra}" for extra in apart]
            run(*tests, f"tests/{part}", *ignored, quiet=False)
            for extra in apart:
                pip(*install, f"{wheels[dist.name]}[{extra}]", *EXTRA_TEST_TOOLS)
                run(*tests, f"tests/{part}/{extra}", quiet=False)


def main() -> int:
    """Runs the chosen parts one after another; the exit code is 1 when one of them failed."""
    dists = {d.folder.name if d.folder != ROOT else "flash": d for d in distributions(ROOT)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("part", nargs="*", help=f"of {', '.join(dists)}; all when none is given")
    chosen = parser.parse_args().part or list(dists)
    if unknown := sorted(set(chosen) - dists.keys()):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(dists)}")
    failed = []
    with tempfile.TemporaryDirectory(prefix="longcat-wheels-") as folder:
        names = set().union(*(brought_along(ROOT, dists[part].name) for part in chosen))
        build_wheels([d.folder for d in dists.values() if d.name in names], Path(folder))
        for part in chosen:
            started = time.monotonic()
            print(f"== longcat-{part}: alone in a new environment", flush=True)
            try:
                try_alone(part, dists[part], Path(folder))
            except StepFailed as error:
                print(error)
                failed.append(part)
            seconds = time.monotonic() - started
            print(f"== longcat-{part}: {'FAILED' if part in failed else 'ok'}, {seconds:.0f} s")
    print(f"isolated: {len(chosen) - len(failed)} passed, {len(failed)} failed {' '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
