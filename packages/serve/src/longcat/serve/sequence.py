"""One request under way: its tokens, its pages, and how far it has been computed."""

from dataclasses import dataclass, replace

from torch import Tensor

from longcat.serve.constraint import Constraint
from longcat.serve.pages import ROOT, Pages
from longcat.serve.params import SamplingParams
from longcat.serve.request import Delta, PromptToken, Request, Token
from longcat.serve.sampling import fresh_seed
from longcat.serve.text import TextStream


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """What passes that were launched, but not read, may do to a sequence.

    steps    passes; each gives at least one token
    entries  most latents that they use
    drafts   proposed by the last of them, for the next pass to judge
    """

    steps: int
    entries: int
    drafts: int


class Sequence:
    """Two numbers say everything about its progress: `computed` latents are stored, of the tokens
    there are. One token uncomputed: it decodes; more: its prompt is being fed, or, after its pages
    were taken back, everything again.

    Attributes:
        tokens: prompt and text.
        computed: tokens whose latents are in the pages.
        drafted: places that the draft head has read with the right token after them.
        drafts: what was proposed to follow, and draft_q [g,V] what it was drawn from.
        pages: of the latent cache, in order.
        ahead: of all this, which is what the host has read; None when nothing is under way.
        finish_reason, stop_reason: as in Delta; None while it runs.
    """

    def __init__(
        self,
        request: Request,
        eos_token_id: int | None,
        table: list[bytes] | None,
        constraint: Constraint | None,
    ) -> None:
        self.request = request
        self.tokens = list(request.prompt_ids)
        self.computed = 0
        self.drafted = 0
        self.cached = 0
        self.drafts: list[int] = []
        self.draft_q: Tensor | None = None
        self.pages: list[int] = []
        self.ahead: Ahead | None = None
        self.seed = fresh_seed() if self.params.seed is None else self.params.seed
        self.constraint = constraint
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        # Of the first token nothing is known, and no pass says anything.
        first = PromptToken(id=request.prompt_ids[0], logprob=None)
        self.prompt_logprobs = [] if self.params.prompt_logprobs is None else [first]
        self._eos = None if self.params.ignore_eos else eos_token_id
        self._stream = None if table is None else TextStream(table, self.params.stop)
        self._fresh: list[Token] = []
        self._began = False
        self._committed: list[bytes] = []

    @property
    def params(self) -> SamplingParams:
        """What was asked for."""
        return self.request.params

    @property
    def prompt_length(self) -> int:
        """Tokens of the prompt."""
        return len(self.request.prompt_ids)

    @property
    def text(self) -> list[int]:
        """Tokens generated so far."""
        return self.tokens[self.prompt_length :]

    @property
    def uncomputed(self) -> int:
        """Tokens not fed yet; at least one."""
        return len(self.tokens) - self.computed

    @property
    def limit(self) -> int:
        """Most tokens that it may ever have."""
        return self.prompt_length + self.params.max_tokens

    @property
    def enders(self) -> set[int]:
        """Tokens that end it."""
        eos = set() if self._eos is None else {self._eos}
        return eos | set(self.params.stop_token_ids)

    @property
    def unjudged(self) -> int:
        """Drafts that its next pass will judge, at most."""
        return len(self.drafts) if self.ahead is None else self.ahead.drafts

    @property
    def sure_to_end(self) -> bool:
        """Whether what is under way will take it to its limit, whatever is accepted."""
        return self.ahead is not None and len(self.tokens) + self.ahead.steps >= self.limit

    def propose(self, drafts: list[int], q: Tensor | None) -> None:
        """Take the drafts to be judged next; a constraint betters them where no text can change."""
        if self.constraint is not None and self.params.acceptance == "coupled":
            drafts = self.constraint.redraft(drafts)
        self.drafts, self.draft_q = drafts, q

    def append(self, run: list[Token]) -> int:
        """Take a run of tokens up to whatever ends the sequence -> how many were taken."""
        for count, token in enumerate(run, start=1):
            self.tokens.append(token.id)
            if self.constraint is not None:
                if token.id != self._eos:
                    self.constraint.advance([token.id])
                if self.constraint.failure is not None:
                    self.finish_reason = "error"
                    return count
            long_enough = len(self.tokens) - self.prompt_length > self.params.min_tokens
            stopped = self._show(token, long_enough)
            if stopped or (
                self._eos is None and self.constraint is not None and self.constraint.finished
            ):
                self.finish_reason = "stop"
            elif token.id in self.enders:
                self.finish_reason = "stop"
                self.stop_reason = None if token.id == self._eos else token.id
            elif len(self.tokens) >= self.limit:
                self.finish_reason = "length"
            if self.finish_reason is not None:
                return count
        return len(run)

    def _show(self, token: Token, may_stop: bool) -> bool:
        if self._stream is None:
            self._fresh.append(token)
            return False
        if self._stream.add(token, may_stop=may_stop):
            self.stop_reason = self._stream.stopped_by
            return True
        return False

    def delta(self) -> Delta | None:
        """What has become fit to be shown since the last time; None when nothing has."""
        final = self.finish_reason is not None
        if self._stream is None:
            tokens, text = tuple(self._fresh), ""
            self._fresh = []
        else:
            tokens, text = self._stream.take(final=final)
        if not tokens and not text and not final:
            return None
        delta = Delta(
            request_id=self.request.request_id,
            tokens=tokens,
            text=text,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )
        if not self._began:
            self._began = True
            asked = self.params.prompt_logprobs is not None
            logprobs = tuple(self.prompt_logprobs) if asked else None
            delta = replace(delta, cached_tokens=self.cached, prompt_logprobs=logprobs)
        return delta

    def begin(self, pages: Pages) -> None:
        """Take what the prefix cache holds of it."""
        if self.params.prompt_logprobs is not None and not self._began:
            return  # they have to be computed
        self.pages, key = pages.find(self.tokens)
        self.computed = self.drafted = len(self.pages) * pages.page_size
        self._committed = [key] * len(self.pages)
        if not self._began:
            self.cached = self.computed

    def commit(self, pages: Pages) -> None:
        """Make the pages that have become full, for the draft head too, known by what they hold."""
        size = pages.page_size
        for index in range(len(self._committed), min(self.computed, self.drafted) // size):
            parent = self._committed[-1] if self._committed else ROOT
            content = self.tokens[index * size : (index + 1) * size]
            self._committed.append(pages.commit(self.pages[index], parent, content))

    def check_reserve(self, page_size: int) -> None:
        """Raise RuntimeError unless the pages hold all that passes under way may still write."""
        if self.ahead is None or not self.pages:
            return
        stored = len(self.tokens) - 1
        most = min(stored + self.ahead.entries, self.limit)
        if len(self.pages) * page_size < most:
            raise RuntimeError(
                f"latent cache: {len(self.pages)} pages of {page_size} tokens were held where a "
                f"schedule under way may write up to place {most}"
            )

    def let_go(self, pages: Pages) -> None:
        """Give all pages back; it can begin again."""
        pages.give_back(self.pages)
        self.pages, self._committed = [], []
        self.computed = self.drafted = 0
        self.drafts, self.draft_q = [], None
