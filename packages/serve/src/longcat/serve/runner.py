"""From a plan to tensors, and through `step`; `longcat.serve.flight` is the way back.

Shape legend: R rows, g drafts, W = g+1 places, P pages, V vocabulary.
"""

from collections.abc import Sequence as Seq
from dataclasses import replace

import torch
from torch import Tensor

from longcat.serve.acceptance import Drafts, Rules
from longcat.serve.edits import Penalties
from longcat.serve.flight import Flight
from longcat.serve.graph import StepGraphs
from longcat.serve.latents import Latents
from longcat.serve.protocol import PagedModel
from longcat.serve.sampling import Sampler
from longcat.serve.scheduler import Plan
from longcat.serve.sequence import Sequence
from longcat.serve.step import Chunk, Rows, catch_up, step
from longcat.serve.transfer import send


def launch(
    model: PagedModel,
    latents: Latents,
    plan: Plan,
    proposals: int,
    *,
    extend: bool = False,
    keep: bool = False,
    before: Flight | None = None,
    graphs: StepGraphs | None = None,
) -> Flight:
    """Launch a plan's passes; nothing is waited for.

    proposals, extend, keep: as in `step`. before: the passes launched last, if they have not been
    read: rows that were in them go on from what these left on the device. graphs: where captured
    steps are replayed from.
    """
    device = model.latent_layout.device
    rows = _rows(model, plan.rows, device)
    if before is not None:
        rows = _carried(rows, plan.rows, before)
    chunks = [_chunk(*planned, device) for planned in plan.chunks]
    judged, outcomes = [], []
    for _ in range(plan.steps):
        judged.append(rows.drafts)
        if graphs is not None and graphs.takes(rows, chunks):
            outcome, rows = graphs.step(rows, proposals=proposals, extend=extend, keep=keep)
        else:
            outcome, rows = step(
                model, latents, rows, chunks, proposals=proposals, extend=extend, keep=keep
            )
        outcomes.append(outcome)
        chunks = []
    return Flight(plan, proposals, judged, outcomes, rows)


def make_up(model: PagedModel, latents: Latents, sequences: Seq[Sequence]) -> None:
    """Let the draft head read what it has missed of these sequences."""
    device = model.latent_layout.device
    late = [s for s in sequences if s.drafted < s.computed]
    if late:
        missed = [_chunk(s, s.drafted, s.computed - s.drafted, device) for s in late]
        catch_up(model, latents, missed)
    for sequence in late:
        sequence.drafted = sequence.computed


def _rows(model: PagedModel, sequences: Seq[Sequence], device: torch.device) -> Rows:
    params = [s.params for s in sequences]
    known: list[list[int]] = [s.drafts if s.ahead is None else [] for s in sequences]
    drafts = max(map(len, known), default=0)
    tops = [p.logprobs for p in params if p.logprobs is not None]
    rules = None
    if any(p.acceptance != "coupled" for p in params):
        rules = Rules(
            rejecting=_column([p.acceptance != "coupled" for p in params], device),
            guessing=_column([p.acceptance == "target-only" for p in params], device),
        )
    numbers = [
        [len(s.tokens) - 1, s.tokens[-1], len(own), s.params.speculative is not False, *own]
        for s, own in zip(sequences, known, strict=True)
    ]
    sent = _padded(numbers, drafts + 4, device)
    lengths, last, usable, speculate = sent[:, :4].unbind(1)
    return Rows(
        table=_table([s.pages for s in sequences], device),
        lengths=lengths,
        last=last,
        speculate=speculate.bool(),
        drafts=Drafts(
            tokens=sent[:, 4:],
            usable=usable,
            q=None if rules is None else _qs(sequences, drafts, model.vocab_size, device),
        ),
        sampler=Sampler.of(
            params, [s.seed for s in sequences], [s.request.choice for s in sequences], device
        ),
        rules=rules,
        penalties=Penalties.of(
            params,
            (s.request.prompt_ids for s in sequences),
            (s.text for s in sequences),
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


def _carried(rows: Rows, sequences: Seq[Sequence], before: Flight) -> Rows:
    """Rows whose lengths, last tokens and drafts are those behind the passes before, where the host
    does not know them yet.
    """
    places = {id(s): row for row, s in enumerate(before.plan.rows) if s.ahead is before.ahead}
    found = [places.get(id(s)) for s in sequences]
    if not any(place is not None for place in found):
        return rows
    device = rows.last.device
    ahead = _column([place is not None for place in found], device)
    source = _words([place or 0 for place in found], device)
    after = before.after.drafts
    width = max(after.count, rows.drafts.count)
    q = rows.drafts.q
    if q is not None:
        own = torch.zeros_like(q) if after.q is None else after.q.index_select(0, source)
        q = torch.where(ahead.unsqueeze(2), _widened(own, width), _widened(q, width))
    return replace(
        rows,
        lengths=torch.where(ahead[:, 0], before.after.lengths[source], rows.lengths),
        last=torch.where(ahead[:, 0], before.after.last[source], rows.last),
        drafts=Drafts(
            tokens=torch.where(
                ahead,
                _widened(after.tokens.index_select(0, source), width),
                _widened(rows.drafts.tokens, width),
            ),
            usable=torch.where(ahead[:, 0], after.usable[source], rows.drafts.usable),
            q=q,
        ),
    )


def _widened(drafts: Tensor, width: int) -> Tensor:
    """drafts [R,g] or [R,g,V], with zeros behind them up to `width`."""
    missing = width - drafts.shape[1]
    return torch.cat([drafts, drafts.new_zeros(len(drafts), missing, *drafts.shape[2:])], dim=1)


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
    return send(allowed, device)


def _qs(sequences: Seq[Sequence], drafts: int, vocab_size: int, device: torch.device) -> Tensor:
    """What the drafts were drawn from, [R,g,V]; zeros where there are none."""
    q = torch.zeros(len(sequences), drafts, vocab_size, dtype=torch.float64, device=device)
    for row, sequence in enumerate(sequences):
        if sequence.draft_q is not None and sequence.ahead is None:
            q[row, : len(sequence.drafts)] = sequence.draft_q[: len(sequence.drafts)]
    return q


def _words(values: Seq[int], device: torch.device) -> Tensor:
    return send(torch.tensor(values, dtype=torch.int64), device)


def _column(values: Seq[bool], device: torch.device) -> Tensor:
    return send(torch.tensor(values, dtype=torch.bool), device).unsqueeze(1)


def _padded(lists: Seq[list[int]], width: int, device: torch.device) -> Tensor:
    rows = [row + [0] * (width - len(row)) for row in lists]
    return send(torch.tensor(rows, dtype=torch.int64).view(len(lists), width), device)


def _table(pages: Seq[list[int]], device: torch.device) -> Tensor:
    return _padded(pages, max((len(row) for row in pages), default=0), device)
