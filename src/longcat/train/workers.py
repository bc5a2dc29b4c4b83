"""Local worker processes: started by rank 0, told their task on standard input, never orphaned.

A worker ignores Ctrl-C (rank 0 tells it when to stop), prints nothing, and ends when rank 0 does:
its next sum then fails, and if rank 0 was killed the worker says so in its place.
`longcat.train.worker` is a worker's entry point.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO

import torch

from longcat.train.device import CPU
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange, Store, meet, open_store, signs_of
from longcat.train.parallel.layout import Layout
from longcat.train.worker import WorkerTask

_MODULE = "longcat.train.worker"


class Workers:
    """The other processes of a run, as a context manager that ends them.

    Args:
        directory: the run; it must hold a snapshot, from which every process starts.
        processes: how many there are in all, this one included. layout: how they divide the model.
        device: what this one computes on; the others take the GPUs after the first, or the CPU too.
        verify: whether they make steps twice first.
    """

    def __init__(
        self,
        directory: Path,
        processes: int,
        layout: Layout | None = None,
        *,
        device: torch.device = CPU,
        verify: bool = False,
    ) -> None:
        self._device = device
        self._directory = directory
        self._layout = layout or Layout()
        self._verify = verify
        self._world = processes
        self._processes: list[subprocess.Popen[str]] = []
        self._logs: list[IO[str]] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._terminal: int | None = None
        self.exchange = Exchange(device=device)

    def __enter__(self) -> "Workers":
        if self._world == 1:
            return self
        self._folder = tempfile.TemporaryDirectory(prefix="longcat-train-")
        meeting = str(Path(self._folder.name) / "store")
        store = open_store(meeting, self._world)
        with contextlib.suppress(OSError):
            self._terminal = os.dup(2)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        try:
            for rank in range(1, self._world):
                task = WorkerTask(
                    directory=str(self._directory.resolve()),
                    rank=rank,
                    world=self._world,
                    store=meeting,
                    parent=os.getpid(),
                    terminal=self._terminal,
                    device=self._device.type,
                    verify=self._verify,
                    **asdict(self._layout),
                )
                self._start(task, environment)
            self._wait_for(store)
            signs = open_store(signs_of(meeting))
            self.exchange = meet(store, 0, self._world, self._layout, signs, device=self._device)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=30)
        complaint = self._complaint() if isinstance(error, RunError) else None
        self._end()
        if complaint is not None:
            raise RunError(f"{error}. It said: {complaint}") from error

    def _start(self, task: WorkerTask, environment: dict[str, str]) -> None:
        log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed in _end)
        process = subprocess.Popen(
            [sys.executable, "-m", _MODULE],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            env=environment,
            pass_fds=() if self._terminal is None else (self._terminal,),
            process_group=0,  # Ctrl-C in a terminal is rank 0's alone, from the first moment on
        )
        self._logs.append(log)
        self._processes.append(process)
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(task)))
        process.stdin.close()

    def _wait_for(self, store: Store) -> None:
        """Until every worker has arrived; a worker that dies before that is an error at once."""
        keys = [f"arrived-{rank}" for rank in range(1, self._world)]
        while not store.check(keys):
            if any(process.poll() is not None for process in self._processes):
                raise RunError(f"train: a worker could not start: {self._complaint()}")
            time.sleep(0.05)

    def _complaint(self) -> str | None:
        """The last line a dead worker wrote, if any."""
        for process, log in zip(self._processes, self._logs, strict=True):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=2)
            log.seek(0)
            lines = log.read().strip().splitlines()
            if process.poll() not in (None, 0):
                return lines[-1] if lines else f"(exit status {process.returncode})"
        return None

    def _end(self) -> None:
        self.exchange.close()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        for log in self._logs:
            log.close()
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None
        self._processes, self._logs = [], []
        if self._folder is not None:
            self._folder.cleanup()
