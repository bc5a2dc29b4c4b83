"""Keeping freed memory for the next step instead of handing it back to the system.

A training step frees and asks again for the same large tensors. glibc, as it comes, returns large
pieces to the system at once, and the system must find and clear every page of them anew: a fifth
of the processor time of a float32 step of `nano` went there.
"""

import ctypes

# <malloc.h>: nothing is mapped apart from the heap, and the heap's end is never cut off.
_KEEP = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}


def keep_freed_memory() -> bool:
    """From now on this process reuses what it frees, and shrinks no more.

    Its peak stays what it is; between peaks it holds more. Returns whether the C library could be
    told so: glibc can, others do as they please.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(option, value) == 1 for option, value in _KEEP.values())
