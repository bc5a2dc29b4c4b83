"""One reply of a chat: what a delta adds to it, text and tool calls, streamed or whole."""

from collections.abc import Sequence
from typing import Any

from longcat.chat import (
    CallDelta,
    ReplyParser,
    TextDelta,
    new_call_id,
    to_tool_call_delta,
    to_tool_calls,
)
from longcat.serve.request import Delta, Token
from longcat.serve.server.vocabulary import Vocabulary


class ChatChoice:
    """A reply that is being generated.

    index      its number in the answer
    template   the chat format to look for tool calls in; None: everything is text
    logprobs   whether log-probabilities were asked for
    closing    what closes a call, where the engine stops there: it is no part of its text then
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        index: int,
        template: str | None,
        logprobs: bool,
        closing: str | None,
    ) -> None:
        self._vocabulary = vocabulary
        self._index = index
        self._parser = None if template is None else ReplyParser(template)
        self._logprobs = logprobs
        self._closing = closing
        self._call_ids: list[str] = []
        self._called = self._withdrawn = False

    def opening(self) -> list[dict[str, Any]]:
        """The first chunk: who speaks."""
        return [self._chunk({"role": "assistant", "content": "", "refusal": None})]

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """What this delta adds, as choices of chunks; the last of a reply has its reason."""
        reason = delta.finish_reason
        pieces = self._pieces(self._text(delta), ended=reason is not None)
        told: Any = self._told(delta.tokens) if self._logprobs and delta.tokens else None
        chunks = [self._chunk(piece) for piece in pieces] or ([self._chunk({})] if told else [])
        if chunks:
            chunks[0]["logprobs"] = told
        if reason is not None:
            chunks.append(self._chunk({}, self._reason(reason)))
        return chunks

    def whole(self, delta: Delta) -> dict[str, Any]:
        """The reply, from everything that was generated."""
        message: dict[str, Any] = {"role": "assistant", "content": delta.text, "refusal": None}
        if self._parser is not None:
            self._parser.feed(self._text(delta))
            reply = self._parser.reply
            message["content"] = reply.text or (None if reply.calls else "")
            if reply.calls:
                message["tool_calls"] = to_tool_calls(reply.calls)
            self._called = bool(reply.calls)
        return {
            "index": self._index,
            "message": message,
            "logprobs": self._told(delta.tokens) if self._logprobs else None,
            "finish_reason": self._reason(delta.finish_reason or "stop"),
        }

    def _pieces(self, text: str, *, ended: bool) -> list[dict[str, Any]]:
        """The text and the calls in what is new, each as the `delta` of a chunk."""
        if self._parser is None:
            return [{"content": text}] if text else []
        found = self._parser.feed(text) + (self._parser.close() if ended else [])
        pieces: list[dict[str, Any]] = []
        for part in found:
            if isinstance(part, TextDelta):
                # A client cannot be asked to forget: it sees from the reason that none was a call.
                self._withdrawn |= part.withdraws
                pieces.append({"content": part.text})
            else:
                self._called = True
                pieces.append({"tool_calls": [to_tool_call_delta(part, self._id(part))]})
        return pieces

    def _text(self, delta: Delta) -> str:
        closed = self._closing is not None and delta.stop_reason == self._closing
        return delta.text + (self._closing or "") if closed else delta.text

    def _id(self, part: CallDelta) -> str:
        while len(self._call_ids) <= part.index:
            self._call_ids.append(new_call_id())
        return self._call_ids[part.index]

    def _reason(self, reason: str) -> str:
        called = self._called and not self._withdrawn
        return "tool_calls" if called and reason == "stop" else reason

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": reason}

    def _told(self, tokens: Sequence[Token]) -> dict[str, Any]:
        content = []
        for token in tokens:
            best = [self._one(*pair) for pair in token.top_logprobs]
            content.append(self._one(token.id, token.logprob or 0.0) | {"top_logprobs": best})
        return {"content": content, "refusal": None}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        vocabulary = self._vocabulary
        shown = {"token": vocabulary.string(token), "logprob": logprob}
        return shown | {"bytes": list(vocabulary.raw(token))}
