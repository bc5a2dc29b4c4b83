"""Messages through memory that two processes share: a ring of bytes, one writer, one reader.

    written (8 bytes), read (8 bytes), ring

Both counters only grow, and each is changed by one side alone, after the bytes it speaks of; that
order is what x86 keeps, and what other processors keep in practice across a Python statement. A
counter is stored as one word: `struct.pack_into` would show the other side zeros before it.
Nothing tells a waiting side that there is something to do: it looks every millisecond.
"""

import os
import time
from multiprocessing.shared_memory import SharedMemory

from longcat.serve.disaggregation.frames import Unframe, frame
from longcat.serve.disaggregation.messages import Message
from longcat.serve.disaggregation.transport import Broken

RING = 2**24  # bytes
_LOOK_EVERY = 0.001
_START = 16


class _Ring:
    """The counters `written` and `read`, and `bytes`, the ring."""

    def __init__(self, memory: SharedMemory) -> None:
        assert memory.buf is not None
        self.memory = memory
        self._counters = memory.buf[:_START].cast("Q")
        self.bytes = memory.buf[_START:]

    @property
    def written(self) -> int:
        return self._counters[0]

    @written.setter
    def written(self, count: int) -> None:
        self._counters[0] = count

    @property
    def read(self) -> int:
        return self._counters[1]

    @read.setter
    def read(self, count: int) -> None:
        self._counters[1] = count

    def close(self) -> None:
        self._counters.release()
        self.bytes.release()
        self.memory.close()


class SharedMemorySender:
    """Writes into the ring of that name, as long as the process that made it is its parent."""

    def __init__(self, name: str) -> None:
        self._ring = _Ring(SharedMemory(name))
        self._parent = os.getppid()

    def send(self, message: Message) -> None:
        """Returns when all of it is in the ring, so it may wait for the reader."""
        ring, data = self._ring, memoryview(frame(message))
        while data:
            written, size = ring.written, len(ring.bytes)
            room = size - (written - ring.read)
            if not room:
                if os.getppid() != self._parent:
                    raise Broken("the receiver is gone")
                time.sleep(_LOOK_EVERY)
                continue
            at = written % size
            piece = data[: min(room, size - at)]
            ring.bytes[at : at + len(piece)] = piece
            ring.written = written + len(piece)
            data = data[len(piece) :]

    def close(self) -> None:
        """Leave the ring to the reader."""
        self._ring.close()


class SharedMemoryReceiver:
    """Makes a ring and reads it.

    Once the writer has it nobody else needs its name, which is removed then: whoever is killed
    leaves nothing behind.

    Memory does not say whether anybody will write to it again: that is for the one who started the
    writer to watch.
    """

    def __init__(self, ring_bytes: int = RING) -> None:
        self._ring = _Ring(SharedMemory(create=True, size=_START + ring_bytes))
        self._ring.written = self._ring.read = 0
        self._bytes = Unframe()
        self._named = True

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
        read, size = ring.read, len(ring.bytes)
        there = ring.written - read
        if not there:
            return False
        self._remove_name()
        at = read % size
        count = min(there, size - at)
        self._bytes.feed(bytes(ring.bytes[at : at + count]))
        ring.read = read + count
        return True

    def _remove_name(self) -> None:
        if self._named:
            self._named = False
            self._ring.memory.unlink()

    def close(self) -> None:
        """Give the memory up."""
        self._ring.close()
        self._remove_name()


class SharedMemoryEnd:
    """The name of a ring."""

    def __init__(self, name: str) -> None:
        self._name = name

    def open(self) -> SharedMemorySender:
        """Attach to it."""
        return SharedMemorySender(self._name)
