"""Passes that were launched and have not been read: what became of each row, once somebody asks.

The copies to the host begin when the passes are launched, so a schedule may be launched before the
one ahead of it is read.

Shape legend: R rows, g drafts, W = g+1 places.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from longcat.serve.acceptance import Drafts
from longcat.serve.request import PromptToken, Token
from longcat.serve.scheduler import Plan
from longcat.serve.sequence import Ahead, Sequence
from longcat.serve.step import LogProbs, Outcome, Rows
from longcat.serve.transfer import Fetched

_LogProb = tuple[float, tuple[tuple[int, float], ...]]  # a token's own, and the best (id, value)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one step gave one row: accepted drafts and one token more."""

    tokens: tuple[Token, ...]
    accepted: int
    drafted: int
    finite: bool


class Flight:
    """The passes of one schedule.

    Attributes:
        plan: what was launched. proposals: drafts that each pass proposed.
        judged: drafts that the first pass judged.
        after: the rows behind the last pass, on the device.
        ahead: what it may do to each row.
        seconds: that launching took. reading: ids of the sequences that the draft head reads along.
    """

    def __init__(
        self, plan: Plan, proposals: int, judged: Seq[Drafts], outcomes: Seq[Outcome], after: Rows
    ) -> None:
        self.plan = plan
        self.proposals = proposals
        self.judged = judged[0].count
        self.after = after
        self.ahead = Ahead(
            steps=plan.steps,
            entries=plan.steps * (max(d.count for d in (*judged, after.drafts)) + 1),
            drafts=after.drafts.count,
        )
        self.seconds = 0.0
        self.reading: set[int] = set()
        self._widths = [
            (drafts.count, outcome.drafts.count)
            for drafts, outcome in zip(judged, outcomes, strict=True)
        ]
        self._packed = Fetched([_packed(*each) for each in zip(outcomes, judged, strict=True)])
        self._logprobs = [_Fetched.of(outcome.logprobs) for outcome in outcomes]
        self._prompts = [_Fetched.of(logprobs) for logprobs in outcomes[0].chunk_logprobs]
        self._q = after.drafts.q
        self._rows: list[list[Judged]] = [[] for _ in plan.rows]
        self._next: list[list[int]] = []

    def read(self) -> None:
        """Wait for the passes; prompt log-probabilities go straight to their sequences."""
        for (sequence, first, _), logprobs in zip(self.plan.chunks, self._prompts, strict=True):
            if logprobs is not None:
                _note_prompt(sequence, first, logprobs.rows())
        tops = [sequence.params.logprobs for sequence in self.plan.rows]
        steps = zip(self._packed.wait(), self._widths, self._logprobs, strict=True)
        for packed, (judged, proposed), fetched in steps:
            width = judged + 1
            read = None if fetched is None else fetched.rows()
            self._next = []
            for row, numbers in enumerate(packed.tolist()):
                accepted, finite, usable, following, *rest = numbers[width:]
                told = None
                if read is not None and (top := tops[row]) is not None:
                    own_row = read[row * width : (row + 1) * width]
                    told = [(own, best[:top]) for own, best in own_row]
                tokens = _run(numbers[: accepted + 1], accepted, usable, told)
                self._rows[row].append(
                    Judged(tokens=tokens, accepted=accepted, drafted=usable, finite=bool(finite))
                )
                self._next.append(rest[:proposed][:following])

    def of_row(self, row: int) -> list[Judged]:
        """What each step gave a row."""
        return self._rows[row]

    def drafts_of(self, row: int) -> tuple[list[int], Tensor | None]:
        """What is proposed to follow, and what it was drawn from."""
        return self._next[row], None if self._q is None else self._q[row]


def _packed(outcome: Outcome, judged: Drafts) -> Tensor:
    """All that the host needs of each row, for one transfer: tokens, accepted, finite, how many
    drafts counted, how many do next, and those.
    """
    numbers = [outcome.accepted, outcome.finite, judged.usable, outcome.drafts.usable]
    return torch.cat([outcome.tokens, torch.stack(numbers, dim=1), outcome.drafts.tokens], dim=1)


class _Fetched:
    """Log-probabilities on their way: for each token its own and the best ones."""

    def __init__(self, logprobs: LogProbs) -> None:
        self._fetched = Fetched([logprobs.chosen, logprobs.best, logprobs.best_ids])

    @classmethod
    def of(cls, logprobs: LogProbs | None) -> "_Fetched | None":
        return None if logprobs is None else cls(logprobs)

    def rows(self) -> list[_LogProb]:
        chosen, best, ids = self._fetched.wait()
        own = chosen.flatten().tolist()
        shape = (len(own), -1) if own else (0, 0)
        pairs = zip(own, best.reshape(shape).tolist(), ids.reshape(shape).tolist(), strict=True)
        return [(value, tuple(zip(of, row, strict=True))) for value, row, of in pairs]


def _note_prompt(sequence: Sequence, first: int, rows: list[_LogProb]) -> None:
    """Keep the log-probabilities of the prompt's tokens behind `first`, each of them once."""
    noted, prompt = sequence.prompt_logprobs, sequence.request.prompt_ids
    for offset, (logprob, best) in enumerate(rows):
        place = first + offset + 1
        if place == len(noted) and place < len(prompt):
            noted.append(PromptToken(id=prompt[place], logprob=logprob, top_logprobs=best))


def _run(
    tokens: list[int], accepted: int, usable: int, logprobs: list[_LogProb] | None
) -> tuple[Token, ...]:
    run = []
    for i, token in enumerate(tokens):
        drafted, refused = i < accepted, i == accepted < usable
        if logprobs is None:
            run.append(Token(id=token, drafted=drafted, refused=refused))
            continue
        own, best = logprobs[i]
        run.append(
            Token(id=token, drafted=drafted, refused=refused, logprob=own, top_logprobs=best)
        )
    return tuple(run)
