"""Claims about huge pages: Linux gives them for weights, which keep their numbers."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longcat.kernels import huge_pages, onednn

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
on_request = pytest.mark.skipif(
    not _ENABLED.exists() or "[madvise]" not in _ENABLED.read_text(),
    reason="this system does not give huge pages on request alone",
)


def huge_bytes() -> int:
    """Bytes of this process in huge pages."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


@on_request
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_who_asks_is_given_them_and_nobody_else(packed):
    if packed and not onednn.available():
        pytest.skip("nothing is packed on this CPU")
    weight = torch.randn(2048, 2048)
    held: Tensor = onednn.pack(weight) if packed else weight.clone()
    before = huge_bytes()
    taken = huge_pages.ask_for([held])
    if not taken:
        pytest.skip("the system cannot move memory into huge pages, or has none left")
    assert taken <= 9  # 16 MB, and what lies at their ends
    assert huge_bytes() - before >= (taken - 2) * huge_pages.SIZE
    again = torch.eye(2048) if packed else held
    result = onednn.times_packed(again, held) if packed else again
    wanted = weight.T if packed else weight
    assert torch.equal(result, wanted)


def test_elsewhere_and_for_little_nothing_is_asked(monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr(huge_pages, "_advise", lambda address, advice: asked.append(advice) or True)
    assert huge_pages.ask_for([]) == 0
    assert huge_pages.ask_for([torch.zeros(16)]) == 0
    monkeypatch.setattr(sys, "platform", "darwin")
    assert huge_pages.ask_for([torch.zeros(2**20)]) == 0
    assert not asked


def test_a_refusal_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(huge_pages, "_advise", lambda address, advice: False)
    assert huge_pages.ask_for([torch.zeros(2**20)]) == 0
