"""One choice of a text completion: what a delta adds to it, with echo and log-probabilities."""

from collections.abc import Sequence
from typing import Any

from longcat.serve.request import Delta, PromptToken, Token
from longcat.serve.server.vocabulary import Offsets, Vocabulary


class CompletionChoice:
    """A sequence that is being continued.

    index     its number in the answer
    echo      the prompt's text, to stand before the first piece; "" for none
    logprobs  whether log-probabilities were asked for
    """

    def __init__(self, vocabulary: Vocabulary, *, index: int, echo: str, logprobs: bool) -> None:
        self._vocabulary = vocabulary
        self._index = index
        self._echo = echo
        self._logprobs = logprobs
        self._offsets = Offsets(vocabulary)

    def opening(self) -> list[dict[str, Any]]:
        """Nothing: a stream begins with its text."""
        return []

    def chunks(self, delta: Delta) -> list[dict[str, Any]]:
        """What this delta adds, in the form of an answer's choice."""
        return [self.whole(delta)]

    def whole(self, delta: Delta) -> dict[str, Any]:
        """The same for all that was generated."""
        text, self._echo = self._echo + delta.text, ""
        told: list[PromptToken | Token] = [*(delta.prompt_logprobs or ()), *delta.tokens]
        return {
            "index": self._index,
            "text": text,
            "logprobs": self._told(told) if self._logprobs else None,
            "finish_reason": delta.finish_reason,
        }

    def _told(self, told: Sequence[PromptToken | Token]) -> dict[str, Any]:
        """Log-probabilities of tokens: the prompt's, where they came, and the new ones."""
        name = self._vocabulary.string
        return {
            "tokens": [name(token.id) for token in told],
            "token_logprobs": [token.logprob for token in told],
            "top_logprobs": [self._best(token) for token in told],
            "text_offset": self._offsets.of([token.id for token in told]),
        }

    def _best(self, token: Token | PromptToken) -> dict[str, float] | None:
        """The most probable tokens of this place, and the one that stands there."""
        if token.logprob is None:  # nothing comes before the first token of a prompt
            return None
        best = {self._vocabulary.string(i): value for i, value in token.top_logprobs}
        return best | {self._vocabulary.string(token.id): token.logprob}
