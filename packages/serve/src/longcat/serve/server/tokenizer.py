"""What the server needs of a tokenizer beside what the engine does."""

from collections.abc import Sequence
from typing import Protocol

from longcat.chat import Message, Template, Tool
from longcat.serve.protocol import Tokenizer


class ServedTokenizer(Tokenizer, Protocol):
    """Text and conversations to ids, and the names of control tokens.

    `token_bytes` must be what the engine's own tokenizer says: both make text of tokens.
    """

    @property
    def bos_id(self) -> int: ...
    @property
    def pad_id(self) -> int: ...
    @property
    def markers(self) -> dict[str, int]:
        """Ids of the control tokens by their text."""
        ...

    @property
    def chat(self) -> Template | None:
        """The chat format of the model, if it has one."""
        ...

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[int]:
        """Ids that ask for a reply; ValueError for messages or tools out of form."""
        ...
