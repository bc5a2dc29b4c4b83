"""Which sequences are computed in the next pass, and what each is fed.

First come, first served. Every running sequence that decodes gets its token; what is left of the
token budget goes to prompts, in chunks, those under way before those that wait. When pages run out,
the sequence that came last gives its own back and waits, to be computed again from its tokens.
"""

from collections import deque
from dataclasses import dataclass

from longcat.serve.config import EngineConfig
from longcat.serve.pages import Pages
from longcat.serve.sequence import Sequence


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One schedule.

    rows    sequences whose last token is fed, so that they get another
    chunks  (sequence, first place, tokens) of prompts fed before that
    steps   passes to launch
    """

    rows: tuple[Sequence, ...]
    chunks: tuple[tuple[Sequence, int, int], ...]
    steps: int


def entries_needed(steps: int, drafts: int) -> int:
    """Latents that `steps` passes of one sequence can write, of which its last are provisional.

    A pass stores g+1 latents of the target from the sequence's length on, and the draft head runs
    up to g-1 places ahead of those. Where passes are under way whose results are not known, what
    they may use comes on top: so a sequence has (g+1)n to (2g+1)n latents in reserve when n passes
    more are launched, and never starves (`longcat.serve.reference.reserves`).
    """
    return steps * (drafts + 1) + max(drafts - 1, 0)


class Scheduler:
    """The queue, and who is running.

    Attributes:
        running: in order of arrival. waiting: the next one first.
        preemptions: how often pages were taken back.
        prefix_queries, prefix_hits: tokens looked up in the prefix cache, and found.
    """

    def __init__(self, config: EngineConfig, pages: Pages) -> None:
        self._config = config
        self._pages = pages
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0

    def plan(self, drafts: int) -> Plan:
        """Choose what to compute, with up to `drafts` drafts for each row, and hold its pages."""
        rows: list[Sequence] = []
        chunks: list[tuple[Sequence, int, int]] = []
        steps = 1 if self.minded else self._config.steps_per_schedule
        # All rows are as wide as the one with the most drafts, new or still to be judged.
        width = max([drafts, *(s.unjudged for s in self.running)])
        decoding = sum(sequence.uncomputed == 1 for sequence in self.running)
        budget = max(self._config.token_budget - decoding * (drafts + 1), 1)
        for sequence in list(self.running):
            if sequence not in self.running:
                continue  # its pages went to an earlier one
            budget -= self._feed(sequence, budget, steps, width, rows, chunks)
        while self.waiting and len(self.running) < self._config.max_running and budget > 0:
            sequence = self.waiting[0]
            if sequence.ahead is not None:
                break  # its pages were taken back before its last tokens were read
            sequence.begin(self._pages)
            count = min(sequence.uncomputed, budget)
            # One page to spare for each that runs, or the newcomer would soon be sent away again.
            wanted = self._pages.needed(sequence.computed + count) - len(sequence.pages)
            if wanted + len(self.running) > self._pages.free + self._pages.cached and self.running:
                sequence.let_go(self._pages)
                break
            self.running.append(self.waiting.popleft())
            self.prefix_queries += len(sequence.tokens)
            self.prefix_hits += sequence.computed
            budget -= self._feed(sequence, budget, steps, width, rows, chunks)
            if sequence not in self.running:
                break
        kept = set(map(id, self.running))
        chunks = [chunk for chunk in chunks if id(chunk[0]) in kept]
        rows = [row for row in rows if id(row) in kept]
        prompts_left = any(id(chunk[0]) not in set(map(id, rows)) for chunk in chunks)
        return Plan(rows=tuple(rows), chunks=tuple(chunks), steps=1 if prompts_left else steps)

    @property
    def minded(self) -> bool:
        """Whether the host has a say in some sequence's tokens, and so has to read every one before
        the next: penalties, biases, a form, a least number of tokens.
        """
        return any(
            s.params.edits_logits or s.constraint is not None or s.params.min_tokens
            for s in [*self.running, *self.waiting]
        )

    def _feed(
        self,
        sequence: Sequence,
        budget: int,
        steps: int,
        width: int,
        rows: list[Sequence],
        chunks: list[tuple[Sequence, int, int]],
    ) -> int:
        """Plan what one sequence is fed -> tokens of its prompt among it."""
        if sequence.sure_to_end:
            return 0
        count = min(sequence.uncomputed - 1, max(budget, 0))
        ends = count == sequence.uncomputed - 1  # its last token goes along, as a row
        upto = sequence.computed + count
        if ends:
            ahead = sequence.ahead
            upto += entries_needed(steps, width)
            upto = min(upto + (0 if ahead is None else ahead.entries), sequence.limit)
        elif not count:
            return 0
        if not self._hold(sequence, upto):
            return 0
        if count:
            chunks.append((sequence, sequence.computed, count))
        if ends:
            rows.append(sequence)
        return count

    def _hold(self, sequence: Sequence, tokens: int) -> bool:
        """Make sure of the pages for so many tokens, if need be by preempting the youngest."""
        while True:
            missing = self._pages.needed(tokens) - len(sequence.pages)
            taken = self._pages.take(max(missing, 0))
            if taken is not None:
                sequence.pages += taken
                return True
            if self.preempt() is sequence:
                return False

    def preempt(self) -> Sequence:
        """Take back the pages of the sequence that came last; it waits, to be computed again."""
        youngest = self.running.pop()
        youngest.let_go(self._pages)
        self.waiting.appendleft(youngest)
        self.preemptions += 1
        return youngest

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence, and have its pages back."""
        sequence.let_go(self._pages)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
