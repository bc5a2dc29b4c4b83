"""Claims about the ring of bytes that two processes share."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from longcat.serve import Token
from longcat.serve.disaggregation import Handover
from longcat.serve.disaggregation.shared_memory import SharedMemoryReceiver

FIRST = 2**40

# Attaches without Python's resource tracker, which would remove the memory with this process.
WATCH = """
import mmap, os, sys, _posixshmem
descriptor = _posixshmem.shm_open("/" + sys.argv[1].lstrip("/"), os.O_RDWR, 0o600)
counter = memoryview(mmap.mmap(descriptor, os.fstat(descriptor).st_size))[:8].cast("Q")
print("ready", flush=True)
print(sum(counter[0] < int(sys.argv[2]) for _ in range(500_000)))
"""


@pytest.fixture
def receiver() -> Iterator[SharedMemoryReceiver]:
    receiver = SharedMemoryReceiver(1000)
    yield receiver
    receiver.close()


def message(name: str) -> Handover:
    return Handover(request_id=name, token=Token(id=1))


def test_no_other_process_sees_a_counter_half_written(receiver: SharedMemoryReceiver) -> None:
    """As `struct.pack_into` leaves it for a moment, which begins with zeros."""
    ring = receiver._ring
    ring.written = FIRST
    command = [sys.executable, "-c", WATCH, ring.memory.name, str(FIRST)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "ready\n"
        while watcher.poll() is None:
            for more in range(1000):
                ring.written = FIRST + more
        assert watcher.stdout.read() == "0\n"


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="names are seen in Linux's /dev/shm")
def test_a_ring_that_has_been_written_to_outlives_nobody(receiver: SharedMemoryReceiver) -> None:
    """It has no name any more: whoever is killed leaves nothing behind."""
    name = Path("/dev/shm") / receiver._ring.memory.name.lstrip("/")
    assert name.exists()
    sender = receiver.sender().open()
    for request_id in "ab":
        sender.send(message(request_id))
        assert receiver.receive() == message(request_id)
        assert not name.exists()
    sender.close()


def test_a_ring_may_be_closed_twice() -> None:
    receiver = SharedMemoryReceiver(100)
    receiver.close()
    receiver.close()
