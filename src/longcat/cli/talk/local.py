"""A model in this process answers: an engine of one sequence, which remembers the conversation.

Notable:
- the engine's prefix cache outlives a reply, so that a turn computes only what is new in it;
- an interrupt may come in the middle of a pass: the engine is then dropped and made anew.
"""

import codecs
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from longcat.chat import ReplyParser, TextDelta
from longcat.cli.talk.partner import Piece, Turn, written
from longcat.cli.talk.session import Session

if TYPE_CHECKING:
    from longcat.flash import FlashModel
    from longcat.flash.tokenizer import Tokenizer
    from longcat.serve import Engine, SamplingParams, Token

_MAX_TOKENS = 512


class LocalPartner:
    """A checkpoint that was loaded here; see `longcat.cli.talk.partner.Partner`."""

    def __init__(self, name: str, model: "FlashModel", tokenizer: "Tokenizer") -> None:
        from longcat.flash.packed import as_served

        self.name = name
        self.chats = tokenizer.chat is not None
        self.drafts = model.has_draft_head
        self.turn = Turn()
        self.finished = False
        self._model = as_served(model)
        self._tokenizer = tokenizer
        self._engine: Engine | None = None

    def reply(self, session: Session) -> Iterator[Piece]:
        """The reply, as it comes."""
        from longcat.serve import SamplingParams
        from longcat.serve.sampling import fresh_seed

        settings = session.settings
        ids = self._prompt(session)
        room = self._window - len(ids)
        if room < 1:
            raise ValueError(
                f"chat: the conversation has {len(ids)} tokens and there is room for "
                f"{room + len(ids)}; start again with /reset"
            )
        params = SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=fresh_seed() if settings.seed is None else settings.seed,
            max_tokens=min(settings.max_tokens or _MAX_TOKENS, room),
            speculative=settings.draft and self.drafts,
        )
        return self._pieces(ids, params)

    @property
    def _window(self) -> int:
        """Longest conversation, the reply included."""
        from longcat.serve.config import ROOM

        return min(self._model.max_position, ROOM)

    def _prompt(self, session: Session) -> list[int]:
        from longcat.flash.chat import encode_prompt

        if self.chats:
            return encode_prompt(self._tokenizer, session.messages, session.tools or None)
        return self._tokenizer.encode(written(session), bos=True)

    def _tokens(self, ids: list[int], params: "SamplingParams") -> "Generator[Token]":
        """What the engine gives, token by token; whoever stops early ends the request."""
        from longcat.serve import Engine, EngineConfig, Request, pages_for

        if self._engine is None:
            pages = pages_for(1, self._window, self._model.latent_layout.device.type)
            config = EngineConfig(max_running=1, num_pages=pages)
            self._engine = Engine(self._model, None, config)
        engine, whole = self._engine, False
        engine.add(Request(request_id="reply", prompt_ids=tuple(ids), params=params))
        try:
            while engine.has_work:
                self._engine = None  # until the pass is over, in whatever way
                deltas = engine.step()
                self._engine = engine
                for delta in deltas:
                    if delta.error is not None:
                        raise ValueError(f"chat: {delta.error}")
                    self.finished = delta.finish_reason == "stop"
                    yield from delta.tokens
            whole = True
        finally:
            if not whole and self._engine is not None:
                engine.abort("reply")

    def _pieces(self, ids: list[int], params: "SamplingParams") -> Iterator[Piece]:
        from longcat.flash.chat import reply_bytes

        chat, started = self._tokenizer.chat, time.monotonic()
        table = reply_bytes(self._tokenizer) if chat else self._tokenizer.token_bytes()
        parser = ReplyParser(chat.name) if chat else None
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self.turn, self.finished = Turn(), False
        count = accepted = drafted = 0
        with closing(self._tokens(ids, params)) as tokens:
            for token in tokens:
                count, accepted = count + 1, accepted + token.drafted
                drafted += token.drafted or token.refused
                self.turn = Turn(
                    tokens=count,
                    seconds=time.monotonic() - started,
                    drafted=drafted,
                    accepted=accepted,
                    seed=None if params.greedy else params.seed,
                )
                text = decode(table[token.id] if token.id < len(table) else b"")
                deltas = parser.feed(text) if parser else [TextDelta(text=text)]
                for delta in deltas:
                    yield Piece(delta=delta, drafted=token.drafted, refused=token.refused)
                if parser and parser.ended:  # a format whose end is text, not a token
                    self.finished = True
                    break
        left = decode(b"", final=True)
        for delta in [*parser.feed(left), *parser.close()] if parser else [TextDelta(text=left)]:
            yield Piece(delta=delta)
