"""Freed memory is kept: the second use of a large array faults in no page again."""

import platform
import subprocess
import sys

import pytest

PAGES = """
import resource, sys
import numpy as np
from longcat.train.allocator import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory()
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        np.ones(2**23)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
pages()
print(pages())
"""


def _second_use(*arguments: str) -> int:
    code = [sys.executable, "-c", PAGES, *arguments]
    return int(subprocess.run(code, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_memory_that_was_freed_is_used_again_without_asking_the_system():
    assert _second_use("keep") < 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_control_without_the_setting_every_use_asks_for_its_pages():
    assert _second_use() > 400
