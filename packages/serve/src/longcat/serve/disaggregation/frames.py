"""Messages as a stream of bytes: lengths, header, numbers, one after another.

! header length (4 bytes), numbers' length (8 bytes), header, numbers
"""

import struct

from longcat.serve.disaggregation.messages import Message, decode, encode
from longcat.serve.disaggregation.transport import Broken

_LENGTHS = struct.Struct("!IQ")
# A prompt of 131,072 tokens with the 20 best beside each has a header of nearly 100 MB.
MOST_HEADER, MOST_NUMBERS = 2**30, 2**34


def frame(message: Message) -> bytes:
    """A message as it goes out."""
    header, numbers = encode(message)
    return _LENGTHS.pack(len(header), len(numbers)) + header + numbers


class Unframe:
    """Takes bytes as they come, and gives messages when they are whole."""

    def __init__(self) -> None:
        self._read = bytearray()

    def feed(self, data: bytes) -> None:
        """Bytes that have come."""
        self._read += data

    def next(self) -> Message | None:
        """The next whole message; raises Broken for bytes that are none."""
        if len(self._read) < _LENGTHS.size:
            return None
        of_header, of_numbers = _LENGTHS.unpack_from(self._read)
        if of_header > MOST_HEADER or of_numbers > MOST_NUMBERS:
            raise Broken(f"a message of {of_header} + {of_numbers} bytes is none of ours")
        body, end = _LENGTHS.size + of_header, _LENGTHS.size + of_header + of_numbers
        if len(self._read) < end:
            return None
        header, numbers = bytes(self._read[_LENGTHS.size : body]), bytes(self._read[body:end])
        del self._read[:end]
        try:
            return decode(header, numbers)
        except ValueError as error:
            raise Broken(str(error)) from None
