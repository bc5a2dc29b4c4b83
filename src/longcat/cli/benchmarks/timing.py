"""Interleaved timing of forms that compute the same thing, and what must be said beside a number.

Two forms are compared only within one run, taking turns (ABAB...): whatever else the machine does
hits all of them alike. Medians and quartiles, never a best case. On a CPU one pinned thread works
and its own processor time is what counts, so that other programs which take the core do not; the
wall time is kept beside it. On a GPU the wall time counts, after waiting for the GPU.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

SAMPLE_SECONDS = 0.005  # a sample repeats the call until it lasts about this long


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one call: the median, and the middle half of the samples over it; wall median."""

    median: float
    spread: float
    wall: float


def interleaved(
    forms: Mapping[str, Callable[[], object]], *, rounds: int, device: str
) -> dict[str, Timing]:
    """Time every form `rounds` times, in turns.

    Raises:
        ValueError: fewer than 3 rounds, of which no spread could be told.
    """
    _check_rounds(rounds)
    calls = {name: _calls_persample(form) for name, form in forms.items()}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, form in forms.items():
            samples[name].append(sample(form, calls[name]))
    return {name: summary(taken, device) for name, taken in samples.items()}


def in_turns(
    forms: Mapping[str, Callable[[], object]], *, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """(wall, CPU) seconds of `rounds` calls of every form, in turns, after one call each.

    For forms that take long enough to be timed one call at a time.

    Raises:
        ValueError: fewer than 3 rounds, of which no spread could be told.
    """
    return turns({name: partial(sample, form) for name, form in forms.items()}, rounds=rounds)


def turns(
    samplers: Mapping[str, Callable[[], tuple[float, float]]], *, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """The same of forms that time themselves: each returns its (wall, CPU) seconds.

    Raises:
        ValueError: fewer than 3 rounds, of which no spread could be told.
    """
    _check_rounds(rounds)
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in samplers}
    for take in samplers.values():
        take()
    for _ in range(rounds):
        for name, take in samplers.items():
            samples[name].append(take())
    return samples


def summary(samples: list[tuple[float, float]], device: str) -> Timing:
    """Of (wall, CPU) seconds; what counts on a CPU is processor time."""
    wall, cpu = ([sample[i] for sample in samples] for i in (0, 1))
    low, middle, high = statistics.quantiles(cpu if device == "cpu" else wall, n=4)
    return Timing(
        median=middle,
        spread=(high - low) / max(middle, 1e-12),
        wall=statistics.median(wall),
    )


def _check_rounds(rounds: int) -> None:
    if rounds < 3:
        raise ValueError(f"bench: expected at least 3 rounds, got {rounds}; use --rounds 3 or more")


@contextmanager
def pinned_threads(count: int) -> Iterator[None]:
    """Run with this many threads, and restore what there was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _calls_persample(form: Callable[[], object]) -> int:
    sample(form, 1)  # the first call pays for compilation and for memory
    seconds, _ = sample(form, 1)
    return max(1, round(SAMPLE_SECONDS / max(seconds, 1e-7)))


def sample(form: Callable[[], object], calls: int = 1) -> tuple[float, float]:
    """(wall, CPU) seconds of one call in this process, averaged over `calls`."""
    _wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        form()
    _wait()
    return (time.perf_counter() - wall) / calls, (time.process_time() - cpu) / calls


def _wait() -> None:
    """A GPU works on after the call returns."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine(device: str, *packages: str) -> dict[str, dict[str, str | int]]:
    """Hardware and versions (of more packages if named); no name of this machine or its folders."""
    hardware: dict[str, str | int] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
    }
    if device == "cuda":
        hardware["gpu"] = torch.cuda.get_device_name()
        hardware["cuda"] = str(torch.version.cuda)
    versions: dict[str, str | int] = {"python": platform.python_version()}
    for name in ("longcat-kernels", "torch", "numpy", "triton", *packages):
        try:
            versions[name] = version(name)
        except ModuleNotFoundError:
            versions[name] = "not installed"
    return {"hardware": hardware, "versions": versions}


def today() -> str:
    """The date in UTC, as 2025-09-01."""
    return datetime.now(UTC).date().isoformat()


def load() -> float:
    """Processes that want a core, averaged over the last minute; -1 where the system cannot say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else -1.0


def clocks() -> dict[str, float]:
    """Clock rates now in MHz: the CPU's mean over its cores, and the GPU's as its driver says.

    Empty where the system cannot say.
    """
    found: dict[str, float] = {}
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    cores = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    if cores:
        found["cpu MHz"] = round(statistics.mean(cores))
    asked = {"gpu MHz": "clocks.sm", "gpu memory MHz": "clocks.mem", "of at most": "clocks.max.sm"}
    query = [
        "nvidia-smi",
        f"--query-gpu={','.join(asked.values())}",
        "--format=csv,noheader,nounits",
    ]
    if torch.cuda.is_available() and shutil.which(query[0]):
        said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False).stdout
        values = said.partition("\n")[0].split(",")
        for name, value in zip(asked, values, strict=False):
            if value.strip().isdigit():
                found[name] = float(value)
    return found


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
