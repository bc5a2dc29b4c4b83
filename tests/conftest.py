"""Set before any test imports torch or triton: threads, Triton's interpreter, hypothesis."""

import os
import tempfile

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

hypothesis.settings.register_profile("ci", derandomize=True, max_examples=25, deadline=None)
hypothesis.settings.load_profile("ci")
