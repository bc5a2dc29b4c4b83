"""Tokens as an API shows them: each with a string of its own, its bytes, its place in a text."""

import codecs
from collections.abc import Iterable, Sequence

from longcat.serve.server.tokenizer import ServedTokenizer


class Vocabulary:
    """Strings and bytes of token ids.

    The string of a control token is its marker; that of bytes which are no UTF-8 is written
    `bytes:\\\\xe2\\\\x82`, as OpenAI writes it, so that no two tokens look alike.
    """

    def __init__(self, tokenizer: ServedTokenizer) -> None:
        self._table = tokenizer.token_bytes()
        self._markers = {token: text for text, token in tokenizer.markers.items()}

    def __len__(self) -> int:
        return len(self._table)

    def raw(self, token: int) -> bytes:
        """The bytes that the token adds to a text; control tokens add none."""
        return self._table[token] if token < len(self._table) else b""

    def string(self, token: int) -> str:
        """The token's name."""
        if token in self._markers:
            return self._markers[token]
        raw = self.raw(token)
        if not raw:
            return f"<token {token}>"
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def text(self, tokens: Iterable[int]) -> str:
        """What tokens spell; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.raw, tokens)).decode("utf-8", errors="replace")


class Offsets:
    """Where each token begins in a text that grows, counted in characters."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0

    def of(self, tokens: Sequence[int]) -> list[int]:
        """The offsets of the next tokens."""
        offsets = []
        for token in tokens:
            offsets.append(self._length)
            self._length += len(self._decoder.decode(self._vocabulary.raw(token)))
        return offsets
