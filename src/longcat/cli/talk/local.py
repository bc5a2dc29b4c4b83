"""A model in this process answers, one token at a time."""

import codecs
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from longcat.chat import ReplyParser, TextDelta
from longcat.cli.talk.partner import Piece, Turn, written
from longcat.cli.talk.session import Session

if TYPE_CHECKING:
    from longcat.flash import FlashModel
    from longcat.flash.tokenizer import Tokenizer
    from longcat.serve import Decoding

_MAX_TOKENS = 512


class LocalPartner:
    """A checkpoint that was loaded here; see `longcat.cli.talk.partner.Partner`."""

    def __init__(self, name: str, model: "FlashModel", tokenizer: "Tokenizer") -> None:
        self.name = name
        self.chats = tokenizer.chat is not None
        self.drafts = model.has_draft_head
        self.turn = Turn()
        self.finished = False
        self._model = model
        self._tokenizer = tokenizer

    def reply(self, session: Session) -> Iterator[Piece]:
        """The reply, as it comes."""
        from longcat.serve import SamplingParams, decode

        settings = session.settings
        ids = self._prompt(session)
        room = self._model.max_position - len(ids)
        if room < 1:
            raise ValueError(
                f"chat: the conversation has {len(ids)} tokens and the model takes "
                f"{self._model.max_position}; start again with /reset"
            )
        params = SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            max_tokens=min(settings.max_tokens or _MAX_TOKENS, room),
        )
        decoding = decode(self._model, ids, params, settings.draft and self.drafts)
        return self._pieces(decoding)

    def _prompt(self, session: Session) -> list[int]:
        from longcat.flash.chat import encode_prompt

        if self.chats:
            return encode_prompt(self._tokenizer, session.messages, session.tools or None)
        return self._tokenizer.encode(written(session), bos=True)

    def _pieces(self, decoding: "Decoding") -> Iterator[Piece]:
        from longcat.flash.chat import reply_bytes

        chat, started = self._tokenizer.chat, time.monotonic()
        table = reply_bytes(self._tokenizer) if chat else self._tokenizer.token_bytes()
        parser = ReplyParser(chat.name) if chat else None
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.turn, self.finished = Turn(), False
        for token in decoding:
            text = decode(table[token.id] if token.id < len(table) else b"")
            self.turn = self._took(decoding, time.monotonic() - started)
            deltas = parser.feed(text) if parser else [TextDelta(text=text)]
            for delta in deltas:
                yield Piece(delta=delta, drafted=token.drafted, refused=token.refused)
            if parser and parser.ended:  # a format whose end is text, not a token
                break
        self.finished = decoding.finish_reason == "stop" or (parser is not None and parser.ended)
        left = decode(b"", final=True)
        for delta in [*parser.feed(left), *parser.close()] if parser else [TextDelta(text=left)]:
            yield Piece(delta=delta)

    def _took(self, decoding: "Decoding", seconds: float) -> Turn:
        stats = decoding.stats
        return Turn(
            tokens=stats.tokens,
            seconds=seconds,
            drafted=stats.drafted,
            accepted=stats.accepted,
            seed=None if decoding.greedy else decoding.seed,
        )
