"""How many tokens a request took, as the API tells it."""

from collections.abc import Sequence
from typing import Any

from longcat.serve.request import Delta


class Usage:
    """Counts of one request. A prompt counts once, however many choices it has.

    prompts  the length of each prompt
    choices  sequences per prompt; number i belongs to prompt i // choices
    """

    def __init__(self, prompts: Sequence[int], choices: int) -> None:
        self._prompt = sum(prompts)
        self._choices = choices
        self._cached = [0] * len(prompts)
        self._generated = self._accepted = self._refused = 0

    def add(self, number: int, delta: Delta) -> None:
        """Count a delta of sequence `number`."""
        prompt = number // self._choices
        self._cached[prompt] = max(self._cached[prompt], delta.cached_tokens)
        self._generated += len(delta.tokens)
        self._accepted += sum(token.drafted for token in delta.tokens)
        self._refused += sum(token.refused for token in delta.tokens)

    @property
    def document(self) -> dict[str, Any]:
        """The `usage` of an answer."""
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._generated,
            "total_tokens": self._prompt + self._generated,
            "prompt_tokens_details": {"cached_tokens": sum(self._cached)},
            "completion_tokens_details": {
                "accepted_prediction_tokens": self._accepted,
                "rejected_prediction_tokens": self._refused,
            },
        }
