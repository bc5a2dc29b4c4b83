"""Claims about huge pages: Linux gives them for weights, which keep their numbers."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longcat.kernels import huge_pages, onednn

_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
on_request = pytest.mark.skipif(
    not _ENABLED.exists() or "[madvise]" not in _ENABLED.read_text(),
    reason="this system does not give huge pages on request alone",
)


# Run in a process of its own: memory that a process has once been given in huge pages and has freed
# comes back in huge pages, so what an earlier test asked for would count as there before.
_ASK = """
import subprocess
import sys
from pathlib import Path

import torch

from longcat.kernels import huge_pages, onednn


def huge_bytes():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))


packed = sys.argv[1] == "packed"
weight = torch.randn(2048, 2048)
held = onednn.pack(weight) if packed else weight.clone()
before = huge_bytes()
taken = huge_pages.ask_for([held])
print(taken, before, huge_bytes())
result = onednn.times_packed(torch.eye(2048), held) if packed else held
assert torch.equal(result, weight.T if packed else weight), "the numbers have changed"
"""


@on_request
@pytest.mark.parametrize("form", ["plain", "packed"])
def test_who_asks_is_given_them_and_nobody_else(form):
    if form == "packed" and not onednn.available():
        pytest.skip("nothing is packed on this CPU")
    done = subprocess.run([sys.executable, "-c", _ASK, form], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    taken, before, after = map(int, done.stdout.split())
    if not taken:
        pytest.skip("the system cannot move memory into huge pages, or has none left")
    assert taken <= 9  # 16 MB, and what lies at their ends
    assert (taken - 2) * huge_pages.SIZE <= after - before <= taken * huge_pages.SIZE


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
