"""What a constrained text must look like, and what the engine asks of whoever checks it.

The engine knows no grammar. It is given a factory that turns a `ConstraintSpec` into a
`Constraint`, and asks that for the tokens allowed next, also along a run of drafts.

Shape legend: g drafts, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class ConstraintSpec:
    """The form a text must have: exactly one of these.

    json_schema  a JSON schema, as JSON text
    json_object  any JSON object
    regex        a regular expression that the whole text matches
    choice       the texts of which it must be one
    grammar      a context-free grammar, in Lark's notation

    Raises ValueError unless exactly one is given, and for an empty one.
    """

    json_schema: str | None = None
    json_object: bool = False
    regex: str | None = None
    choice: tuple[str, ...] = ()
    grammar: str | None = None

    def __post_init__(self) -> None:
        texts = {"json_schema": self.json_schema, "regex": self.regex, "grammar": self.grammar}
        given = [name for name, text in texts.items() if text is not None]
        given += ["json_object"] * self.json_object + ["choice"] * bool(self.choice)
        if len(given) != 1:
            raise ValueError(
                "ConstraintSpec: give exactly one of json_schema, json_object, regex, choice and "
                f"grammar; got {', '.join(given) or 'none'}"
            )
        if texts.get(given[0]) == "" or "" in self.choice:
            raise ValueError(f"ConstraintSpec: {given[0]} must not be empty")


class Constraint(Protocol):
    """One text under way. Tokens that were handed to `advance` are part of it for good."""

    def mask(self, drafts: Sequence[int]) -> NDArray[np.bool_]:
        """Allowed tokens [g+1, V]: row i after the text so far and drafts[:i].

        Rows after a draft that is itself not allowed mean nothing. Where the text may end, the
        end-of-sequence token is allowed.
        """
        ...

    def redraft(self, drafts: Sequence[int]) -> list[int]:
        """Better drafts for the text so far: where one token alone is allowed, it stands instead.

        They end before one that is not allowed. Only for drafts that cannot change the text.
        """
        ...

    def advance(self, tokens: Sequence[int]) -> None:
        """Take these tokens, each allowed where it stands, into the text."""
        ...

    @property
    def failure(self) -> str | None:
        """Why the text can be held to its form no longer, in one sentence; None while it can."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing but its end may follow."""
        ...


# Raises ValueError, in one sentence, for a spec that cannot be honoured.
ConstraintFactory = Callable[[ConstraintSpec], Constraint]
