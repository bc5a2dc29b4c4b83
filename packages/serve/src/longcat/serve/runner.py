"""From a plan to tensors, through `step`, and back to the host: once there, once back.

Shape legend: R rows, g drafts, W = g+1 places, P pages, V vocabulary.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch
from torch import Tensor

from longcat.serve.acceptance import Drafts, Rules
from longcat.serve.edits import Penalties
from longcat.serve.latents import Latents
from longcat.serve.protocol import Model
from longcat.serve.request import PromptToken, Token
from longcat.serve.sampling import Sampler
from longcat.serve.scheduler import Plan
from longcat.serve.sequence import Sequence
from longcat.serve.step import Chunk, LogProbs, Outcome, Rows, catch_up, step

_LogProb = tuple[float, tuple[tuple[int, float], ...]]  # a token's own, and the best (id, value)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What one step gave one row: accepted drafts and one token more."""

    tokens: tuple[Token, ...]
    accepted: int
    drafted: int
    finite: bool


class Result:
    """What the steps of one schedule gave, on the host."""

    def __init__(self, outcomes: list[Outcome], sequences: Seq[Sequence]) -> None:
        self.steps = len(outcomes)
        self._judged: list[list[Judged]] = [[] for _ in sequences]
        self._drafts = outcomes[-1].drafts
        usable = [sequence.drafts for sequence in sequences]
        tops = [sequence.params.logprobs for sequence in sequences]
        for outcome in outcomes:
            packed = _packed(outcome)
            width = outcome.tokens.shape[1]
            logprobs = None if outcome.logprobs is None else _Read(outcome.logprobs)
            for row, numbers in enumerate(packed):
                accepted, finite = numbers[width], numbers[width + 1]
                told = None
                if logprobs is not None and (top := tops[row]) is not None:
                    told = [(own, best[:top]) for own, best in logprobs.rows[row * width :][:width]]
                run = _run(numbers[: accepted + 1], accepted, usable[row], told)
                self._judged[row].append(
                    Judged(
                        tokens=run,
                        accepted=accepted,
                        drafted=len(usable[row]),
                        finite=bool(finite),
                    )
                )
            usable = [numbers[width + 2 :][: numbers[-1]] for numbers in packed]
        self._next = usable

    def of_row(self, row: int) -> list[Judged]:
        """What each step gave a row."""
        return self._judged[row]

    def drafts_of(self, row: int) -> tuple[list[int], Tensor | None]:
        """What is proposed to follow, and what it was drawn from."""
        q = self._drafts.q
        return self._next[row], None if q is None else q[row]


def run(
    model: Model,
    latents: Latents,
    plan: Plan,
    proposals: int,
    *,
    extend: bool = False,
    keep: bool = False,
) -> Result:
    """Carry out a plan; prompt log-probabilities go straight to their sequences.

    proposals, extend, keep: as in `step`.
    """
    device = model.latent_layout.device
    rows = _rows(model, plan.rows, device)
    chunks = [_chunk(*planned, device) for planned in plan.chunks]
    outcomes = []
    for _ in range(plan.steps):
        outcome, rows = step(
            model, latents, rows, chunks, proposals=proposals, extend=extend, keep=keep
        )
        outcomes.append(outcome)
        chunks = []
    for (sequence, first, _), logprobs in zip(plan.chunks, outcomes[0].chunk_logprobs, strict=True):
        if logprobs is not None:
            _note_prompt(sequence, first, _Read(logprobs))
    return Result(outcomes, plan.rows)


def make_up(model: Model, latents: Latents, sequences: Seq[Sequence]) -> None:
    """Let the draft head read what it has missed of these sequences."""
    device = model.latent_layout.device
    late = [s for s in sequences if s.drafted < s.computed]
    if late:
        missed = [_chunk(s, s.drafted, s.computed - s.drafted, device) for s in late]
        catch_up(model, latents, missed)
    for sequence in late:
        sequence.drafted = sequence.computed


def _rows(model: Model, sequences: Seq[Sequence], device: torch.device) -> Rows:
    params = [s.params for s in sequences]
    drafts = max((len(s.drafts) for s in sequences), default=0)
    tops = [p.logprobs for p in params if p.logprobs is not None]
    rules = None
    if any(p.acceptance != "coupled" for p in params):
        rules = Rules(
            rejecting=_column([p.acceptance != "coupled" for p in params], device),
            guessing=_column([p.acceptance == "target-only" for p in params], device),
        )
    return Rows(
        table=_table([s.pages for s in sequences], device),
        lengths=_words([len(s.tokens) - 1 for s in sequences], device),
        last=_words([s.tokens[-1] for s in sequences], device),
        speculate=torch.tensor([p.speculative is not False for p in params], dtype=torch.bool).to(
            device
        ),
        drafts=Drafts(
            tokens=_padded([s.drafts for s in sequences], drafts, device),
            usable=_words([len(s.drafts) for s in sequences], device),
            q=None if rules is None else _qs(sequences, drafts, model.vocab_size, device),
        ),
        sampler=Sampler.of(
            params, [s.seed for s in sequences], [s.request.choice for s in sequences], device
        ),
        rules=rules,
        penalties=Penalties.of(
            params,
            [s.request.prompt_ids for s in sequences],
            [s.text for s in sequences],
            model.vocab_size,
            device,
        ),
        allowed=_allowed(sequences, drafts + 1, model.vocab_size, device),
        top=max(tops, default=None),
    )


def _chunk(sequence: Sequence, first: int, count: int, device: torch.device) -> Chunk:
    asked = len(sequence.prompt_logprobs) < sequence.prompt_length
    return Chunk(
        table=_table([sequence.pages], device),
        first=first,
        ids=_words(sequence.tokens[first : first + count], device),
        next_ids=_words(sequence.tokens[first + 1 : first + count + 1], device),
        top=sequence.params.prompt_logprobs if asked else None,
    )


def _note_prompt(sequence: Sequence, first: int, read: "_Read") -> None:
    """Keep the log-probabilities of the prompt's tokens behind `first`, each of them once."""
    noted, prompt = sequence.prompt_logprobs, sequence.request.prompt_ids
    if not noted:
        noted.append(PromptToken(id=prompt[0], logprob=None))
    for offset, (logprob, best) in enumerate(read.rows):
        place = first + offset + 1
        if place == len(noted) and place < len(prompt):
            noted.append(PromptToken(id=prompt[place], logprob=logprob, top_logprobs=best))


class _Read:
    """Log-probabilities on the host: for each token its own and the best ones."""

    def __init__(self, logprobs: LogProbs) -> None:
        chosen = logprobs.chosen.flatten().tolist()
        shape = (len(chosen), -1) if chosen else (0, 0)
        best = logprobs.best.reshape(shape).tolist()
        ids = logprobs.best_ids.reshape(shape).tolist()
        self.rows: list[_LogProb] = [
            (value, tuple(zip(row_ids, row, strict=True)))
            for value, row, row_ids in zip(chosen, best, ids, strict=True)
        ]


def _run(
    tokens: list[int], accepted: int, drafts: list[int], logprobs: list[_LogProb] | None
) -> tuple[Token, ...]:
    run = []
    for i, token in enumerate(tokens):
        drafted, refused = i < accepted, i == accepted < len(drafts)
        if logprobs is None:
            run.append(Token(id=token, drafted=drafted, refused=refused))
            continue
        own, best = logprobs[i]
        run.append(
            Token(id=token, drafted=drafted, refused=refused, logprob=own, top_logprobs=best)
        )
    return tuple(run)


def _packed(outcome: Outcome) -> list[list[int]]:
    """Everything the host needs of each row, in one transfer: tokens, accepted, finite, drafts,
    how many of these are usable.
    """
    numbers: list[list[int]] = torch.cat(
        [
            outcome.tokens,
            outcome.accepted.unsqueeze(1),
            outcome.finite.long().unsqueeze(1),
            outcome.drafts.tokens,
            outcome.drafts.usable.unsqueeze(1),
        ],
        dim=1,
    ).tolist()
    return numbers


def _allowed(
    sequences: Seq[Sequence], places: int, vocab_size: int, device: torch.device
) -> Tensor | None:
    """bool [R,W,V] of what constraints and min_tokens allow; None where everything is."""
    if not any(s.constraint is not None or s.params.min_tokens for s in sequences):
        return None
    allowed = torch.ones(len(sequences), places, vocab_size, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        if sequence.constraint is not None:
            mask = torch.from_numpy(sequence.constraint.mask(sequence.drafts))
            allowed[row, : len(mask)] = mask
        too_few = max(sequence.params.min_tokens - len(sequence.text), 0)
        if too_few:
            allowed[row, :too_few, list(sequence.enders)] = False
    return allowed.to(device)


def _qs(sequences: Seq[Sequence], drafts: int, vocab_size: int, device: torch.device) -> Tensor:
    """What the drafts were drawn from, [R,g,V]; zeros where there are none."""
    q = torch.zeros(len(sequences), drafts, vocab_size, dtype=torch.float64, device=device)
    for row, sequence in enumerate(sequences):
        if sequence.draft_q is not None:
            q[row, : len(sequence.drafts)] = sequence.draft_q[: len(sequence.drafts)]
    return q


def _words(values: Seq[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).to(device)


def _column(values: Seq[bool], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.bool).to(device).unsqueeze(1)


def _padded(lists: Seq[list[int]], width: int, device: torch.device) -> Tensor:
    rows = [row + [0] * (width - len(row)) for row in lists]
    return torch.tensor(rows, dtype=torch.int64).view(len(lists), width).to(device)


def _table(pages: Seq[list[int]], device: torch.device) -> Tensor:
    return _padded(pages, max((len(row) for row in pages), default=0), device)
