"""Messages through memory that two processes share: a ring of bytes, one writer, one reader.

    written (8 bytes), read (8 bytes), ring

Both counters only grow, and each is changed by one side alone, after the bytes it speaks of; that
order is what x86 keeps, and what other processors keep in practice across a Python statement.
Nothing tells a waiting side that there is something to do: it looks every millisecond.
"""

import os
import struct
import time
from multiprocessing.shared_memory import SharedMemory

from longcat.serve.disaggregation.frames import Unframe, frame
from longcat.serve.disaggregation.messages import Message
from longcat.serve.disaggregation.transport import Broken

RING = 2**24  # bytes
_LOOK_EVERY = 0.001
_COUNTER = struct.Struct("=Q")
_WRITTEN, _READ, _START = 0, 8, 16


class _Ring:
    def __init__(self, memory: SharedMemory) -> None:
        assert memory.buf is not None
        self.memory = memory
        self.buffer = memory.buf
        self.size = memory.size - _START

    def count(self, which: int) -> int:
        value: int = _COUNTER.unpack_from(self.buffer, which)[0]
        return value

    def close(self) -> None:
        self.buffer.release()
        self.memory.close()

    def set(self, which: int, value: int) -> None:
        _COUNTER.pack_into(self.buffer, which, value)


class SharedMemorySender:
    """Writes into the ring of that name, as long as the process that made it is its parent."""

    def __init__(self, name: str) -> None:
        self._ring = _Ring(SharedMemory(name))
        self._parent = os.getppid()

    def send(self, message: Message) -> None:
        """Returns when all of it is in the ring, so it may wait for the reader."""
        ring, data = self._ring, memoryview(frame(message))
        while data:
            written = ring.count(_WRITTEN)
            room = ring.size - (written - ring.count(_READ))
            if not room:
                if os.getppid() != self._parent:
                    raise Broken("the receiver is gone")
                time.sleep(_LOOK_EVERY)
                continue
            at = written % ring.size
            piece = data[: min(room, ring.size - at)]
            ring.buffer[_START + at : _START + at + len(piece)] = piece
            ring.set(_WRITTEN, written + len(piece))
            data = data[len(piece) :]

    def close(self) -> None:
        """Leave the ring to the reader."""
        self._ring.close()


class SharedMemoryReceiver:
    """Makes a ring, reads it, and removes it at the end.

    Memory does not say whether anybody will write to it again: that is for the one who started the
    writer to watch.
    """

    def __init__(self, ring_bytes: int = RING) -> None:
        self._ring = _Ring(SharedMemory(create=True, size=_START + ring_bytes))
        self._ring.set(_WRITTEN, 0)
        self._ring.set(_READ, 0)
        self._bytes = Unframe()

    def sender(self) -> "SharedMemoryEnd":
        """What the other process needs in order to send here; can be pickled."""
        return SharedMemoryEnd(self._ring.memory.name)

    def receive(self, seconds: float = 0.0) -> Message | None:
        """The next whole message."""
        end = time.monotonic() + seconds
        while True:
            message = self._bytes.next()
            if message is not None:
                return message
            if self._read():
                continue
            left = end - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(_LOOK_EVERY, left))

    def _read(self) -> bool:
        ring = self._ring
        read = ring.count(_READ)
        there = ring.count(_WRITTEN) - read
        if not there:
            return False
        at = read % ring.size
        count = min(there, ring.size - at)
        self._bytes.feed(bytes(ring.buffer[_START + at : _START + at + count]))
        ring.set(_READ, read + count)
        return True

    def close(self) -> None:
        """Remove the ring."""
        self._ring.close()
        self._ring.memory.unlink()


class SharedMemoryEnd:
    """The name of a ring."""

    def __init__(self, name: str) -> None:
        self._name = name

    def open(self) -> SharedMemorySender:
        """Attach to it."""
        return SharedMemorySender(self._name)
