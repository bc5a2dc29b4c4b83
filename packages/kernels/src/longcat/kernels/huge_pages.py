"""Weights in huge pages: what is read from end to end is read faster where a page holds 2 MB.

A decoding step reads every weight once, and with pages of 4 KB a CPU looks up an address and starts
its prefetching anew every 64 cache lines. Linux gives huge pages to who asks for them
(`/sys/kernel/mm/transparent_hugepage/enabled` says `madvise` on most machines). What has been
written is moved into them at once from Linux 6.1 on, and before that by and by.

Elsewhere, and where they are refused, nothing happens: all of this is advice.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor

SIZE = 2**21  # bytes of a huge page
LEAST = 2**16  # bytes of a tensor that is worth asking for
_GIVE, _MOVE = 14, 25  # MADV_HUGEPAGE and MADV_COLLAPSE of <sys/mman.h>


def ask_for(tensors: Iterable[Tensor]) -> int:
    """Ask for huge pages for the memory of CPU tensors, packed ones (`onednn.pack`) included.

    Neighbours of a tensor that share its last pages go along. Returns the number of huge pages that
    hold these tensors now, as far as the system says so.
    """
    if sys.platform != "linux":
        return 0
    pages = set()
    for tensor in tensors:
        address, size = _place(tensor)
        if size >= LEAST:
            pages |= set(range(address // SIZE, -(-(address + size) // SIZE)))
    # First for all: the system moves only what it has been asked to move.
    for advice in (_GIVE, _MOVE):
        taken = sum(_advise(page * SIZE, advice) for page in sorted(pages))
    return taken


def _place(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes."""
    if tensor.is_mkldnn:
        of_packed = torch.ops.mkldnn
        return int(of_packed.data_ptr(tensor)), int(of_packed._nbytes(tensor))
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    span = 1 + sum((count - 1) * step for count, step in steps) if tensor.numel() else 0
    return tensor.data_ptr(), span * tensor.element_size()


def _advise(address: int, advice: int) -> bool:
    """Whether the system takes advice about the huge page at an address."""
    refused: int = _library().madvise(ctypes.c_void_p(address), ctypes.c_size_t(SIZE), advice)
    return refused == 0


@cache
def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
