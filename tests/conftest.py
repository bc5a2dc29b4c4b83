"""Set before any test imports torch or triton: threads, Triton's interpreter, hypothesis."""

import multiprocessing
import os
import runpy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# One thread per process: the suite runs one process per core, and sums keep their order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_TRITON_CACHE = tempfile.TemporaryDirectory(prefix="longcat-triton-")
os.environ.setdefault("TRITON_CACHE_DIR", _TRITON_CACHE.name)
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

try:
    import torch
except ModuleNotFoundError:  # longcat-chat is tested where torch is not installed
    torch = None  # type: ignore[assignment]

# Triton reads this when a kernel is defined. Without a GPU its interpreter runs the kernels.
if torch is None or not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
if torch is not None:
    torch.set_num_threads(1)

import hypothesis  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile("ci", derandomize=True, max_examples=25, deadline=None)
hypothesis.settings.load_profile("ci")


@pytest.fixture(scope="session")
def ranks() -> Callable[..., list[Any]]:
    """`ranks(world, __file__, "function", *arguments)`: its results, one per process of a group.

    The function stands in the test's file; arguments and results are pickled.
    """
    context = multiprocessing.get_context("forkserver")
    # Loaded once; where a package is not installed its name is skipped.
    context.set_forkserver_preload(
        ["torch.distributed.fsdp", "pytest", "hypothesis", "longcat.moe", "longcat.train.loop"]
    )

    def run(world: int, file: str, function: str, *arguments: Any) -> list[Any]:
        with tempfile.TemporaryDirectory(prefix="longcat-ranks-") as folder:
            tasks = [
                {
                    "file": file,
                    "function": function,
                    "arguments": arguments,
                    "rank": rank,
                    "world": world,
                    "folder": folder,
                }
                for rank in range(world)
            ]
            script = str(Path(__file__).parent / "rank.py")
            processes = [
                context.Process(target=runpy.run_path, args=(script, {"TASK": task}))
                for task in tasks
            ]
            for process in processes:
                process.start()
            for process in processes:
                process.join()
            assert [p.exitcode for p in processes] == [0] * world, "a rank failed; see its output"
            return [torch.load(f"{folder}/result-{rank}.pt") for rank in range(world)]

    return run
