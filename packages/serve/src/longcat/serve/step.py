"""One step on the device: target, verify, draft extend, drafts. Nothing waits for the host.

    target   one pass over [last token, d_0 .. d_{g-1}] of every row, and over chunks of prompts
    verify   which drafts stand, and one token more (`longcat.serve.acceptance`)
    extend   the draft head reads the same places with the TARGET's hidden states, each paired with
             the token that followed; this is where its own latents come from
    drafts   its guess at the last accepted place, then from its own hidden state the next ones;
             their latents are provisional and written over by the next step's extension

All rows have the same shape whatever was accepted: the extension reads places behind the accepted
ones too, and what it leaves there is overwritten before anybody looks. A row without usable drafts
(a prompt's last token) takes part like any other.

Shape legend: R rows, g drafts, W = g+1 places, P pages, T tokens of the pass, V vocabulary.

Source: report section 5 (target, verification and draft as one graph).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longcat.serve.acceptance import Drafts, Rules, judge, propose
from longcat.serve.edits import Penalties
from longcat.serve.latents import Latents, Ragged, Rectangle
from longcat.serve.protocol import PagedModel
from longcat.serve.sampling import Sampler, finite_rows


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The sequences that get a token in every step.

    table      [R,P] their pages
    lengths    [R] latents stored, which is the place of `last`
    last       [R] the newest token, not fed yet
    speculate  [R] bool, whether drafts count for the row
    sampler, rules    how tokens are drawn and drafts judged
    penalties, allowed  edits of the logits, and bool [R,W,V]; None in all steps but the first
    top        how many top log-probabilities to report; None: none, nor the tokens' own
    """

    table: Tensor
    lengths: Tensor
    last: Tensor
    speculate: Tensor
    drafts: Drafts
    sampler: Sampler
    rules: Rules | None = None
    penalties: Penalties | None = None
    allowed: Tensor | None = None
    top: int | None = None


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A piece of a prompt: tokens ids [N] from place `first` on, and the ids [N] that follow each.

    table  [1,P] pages of its sequence. top: as in Rows, of the tokens that follow
    """

    table: Tensor
    first: int
    ids: Tensor
    next_ids: Tensor
    top: int | None = None


@dataclass(frozen=True, kw_only=True)
class LogProbs:
    """Log-probabilities of chosen tokens [..., 1] and of the best ones [..., k] with their ids."""

    chosen: Tensor
    best: Tensor
    best_ids: Tensor

    @classmethod
    def of(cls, logits: Tensor, tokens: Tensor, top: int) -> "LogProbs":
        """Of logits [..., V], unedited and before temperature, at tokens [...]."""
        logs = torch.log_softmax(logits.float() if logits.dtype != torch.float64 else logits, -1)
        best, ids = logs.topk(min(top, logs.shape[-1]), dim=-1)
        return cls(chosen=logs.gather(-1, tokens.unsqueeze(-1)), best=best, best_ids=ids)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a step decided, still on the device.

    tokens    [R,W], of which accepted[r] + 1 count
    accepted  [R] drafts that stood
    finite    [R] whether anything could be chosen
    drafts    for the next step
    logprobs  of `tokens`; chunk_logprobs one per chunk
    """

    tokens: Tensor
    accepted: Tensor
    finite: Tensor
    drafts: Drafts
    logprobs: LogProbs | None
    chunk_logprobs: tuple[LogProbs | None, ...]


@torch.inference_mode()
def step(
    model: PagedModel,
    latents: Latents,
    rows: Rows,
    chunks: Sequence[Chunk] = (),
    *,
    proposals: int = 0,
    extend: bool = False,
    keep: bool = False,
) -> tuple[Outcome, Rows]:
    """Advance all rows by what is accepted and feed the chunks -> (outcome, the rows after it).

    proposals  drafts to propose for the next step
    extend     write the draft head's latents even where nothing is proposed
    keep       keep the hidden states, so that its latents can be written later (`catch_up`)
    """
    width = rows.drafts.count + 1
    fed = torch.cat([rows.last.unsqueeze(1), rows.drafts.tokens], dim=1)
    places = rows.lengths.unsqueeze(1) + torch.arange(width, device=fed.device)
    ragged, positions = _lay_out(latents, rows.table, places, chunks)
    ids = torch.cat([fed.flatten(), *(chunk.ids for chunk in chunks)])
    hidden = model.forward_paged(ids, positions, latents.target(ragged))
    if keep:
        latents.keep_hidden(ragged.slots, hidden)

    raw = model.logits(hidden[: fed.numel()]).view(*fed.shape, model.vocab_size)
    logits = _edited(raw, rows)
    tokens, accepted = judge(logits, rows.drafts, rows.sampler, rows.rules, places + 1)
    last = tokens.gather(1, accepted.unsqueeze(1)).squeeze(1)
    after = replace(
        rows,
        lengths=rows.lengths + accepted + 1,
        last=last,
        drafts=_no_drafts(rows),
        penalties=None,
        allowed=None,
    )
    if proposals or extend:
        next_ids = torch.cat([tokens.flatten(), *(chunk.next_ids for chunk in chunks)])
        own = model.draft_paged(next_ids, hidden, positions, latents.draft(ragged))
        place = torch.arange(len(fed), device=fed.device)
        of_last = own[place * width + accepted]
        guesses = proposals if len(fed) else 0  # chunks alone: nobody to draft for
        if guesses:
            after = replace(after, drafts=_drafts(model, latents, after, of_last, guesses))
    outcome = Outcome(
        tokens=tokens,
        accepted=accepted,
        finite=finite_rows(logits).all(dim=1),
        drafts=after.drafts,
        logprobs=None if rows.top is None else LogProbs.of(raw, tokens, rows.top),
        chunk_logprobs=_of_chunks(model, hidden, fed.numel(), chunks),
    )
    return outcome, after


@torch.inference_mode()
def catch_up(model: PagedModel, latents: Latents, chunks: Sequence[Chunk]) -> None:
    """Write the draft head's latents of places whose hidden states were kept."""
    nothing = torch.zeros(0, 1, dtype=torch.int64, device=chunks[0].ids.device)
    ragged, positions = _lay_out(latents, chunks[0].table[:0], nothing, chunks)
    next_ids = torch.cat([chunk.next_ids for chunk in chunks])
    hidden = latents.kept_hidden(ragged.slots)
    model.draft_paged(next_ids, hidden, positions, latents.draft(ragged))


def _lay_out(
    latents: Latents, table: Tensor, places: Tensor, chunks: Sequence[Chunk]
) -> tuple[Ragged, Tensor]:
    """Where the tokens of rows at places [R,W] and of chunks go -> (ragged, positions [T])."""
    slots, positions = [latents.slots(table, places)], [places.flatten()]
    rectangles: list[Rectangle] = []
    start = places.numel()
    if start:
        rectangles.append(latents.together(0, table, places))
    for chunk in chunks:
        count = len(chunk.ids)
        at = torch.arange(chunk.first, chunk.first + count, device=places.device)
        slots.append(latents.slots(chunk.table, at.unsqueeze(0)))
        positions.append(at)
        rectangles.append(latents.alone(start, chunk.table, chunk.first, count))
        start += count
    return Ragged(torch.cat(slots), rectangles), torch.cat(positions)


def _edited(logits: Tensor, rows: Rows) -> Tensor:
    if rows.penalties is not None:
        logits = rows.penalties.apply(logits, rows.drafts.tokens)
    if rows.allowed is not None:
        logits = logits.masked_fill(~rows.allowed, -torch.inf)
    return logits


def _no_drafts(rows: Rows) -> Drafts:
    return Drafts(tokens=rows.drafts.tokens[:, :0], usable=torch.zeros_like(rows.lengths))


def _drafts(model: PagedModel, latents: Latents, rows: Rows, hidden: Tensor, count: int) -> Drafts:
    """Chains of `count` guesses that start at the head's hidden [R,D] of the last places."""
    tokens: list[Tensor] = []
    qs: list[Tensor] = []
    for depth in range(count):
        if depth:
            places = (rows.lengths + depth - 1).unsqueeze(1)
            ragged, positions = _lay_out(latents, rows.table, places, ())
            own = latents.draft(ragged)
            hidden = model.draft_paged(tokens[-1].flatten(), hidden, positions, own)
        logits = model.logits(hidden).unsqueeze(1)
        target = (rows.lengths + depth + 1).unsqueeze(1)
        guess, q = propose(logits, rows.sampler, rows.rules, target)
        tokens.append(guess)
        if q is not None:
            qs.append(q)
    return Drafts(
        tokens=torch.cat(tokens, dim=1),
        usable=rows.speculate * count,
        q=torch.cat(qs, dim=1) if qs else None,
    )


def _of_chunks(
    model: PagedModel, hidden: Tensor, start: int, chunks: Sequence[Chunk]
) -> tuple[LogProbs | None, ...]:
    """What the chunks that ask for it say of the tokens that follow."""
    found: list[LogProbs | None] = []
    for chunk in chunks:
        end = start + len(chunk.ids)
        if chunk.top is None:
            found.append(None)
        else:
            logits = model.logits(hidden[start:end])
            found.append(LogProbs.of(logits, chunk.next_ids, chunk.top))
        start = end
    return tuple(found)
