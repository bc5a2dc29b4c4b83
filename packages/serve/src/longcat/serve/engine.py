"""The engine: continuous batching over a paged latent cache, with drafts for every sequence.

    engine = Engine(model, tokenizer, EngineConfig())
    engine.add(Request(request_id="a", prompt_ids=(1, 5), params=SamplingParams()))
    while engine.has_work:
        for delta in engine.step(): ...

One `step`: the scheduler chooses (`longcat.serve.scheduler`), the device computes
(`longcat.serve.step`, `longcat.serve.runner`), and what came back is read once and shown.
"""

from time import perf_counter

from longcat.serve.config import EngineConfig, EngineStats
from longcat.serve.constraint import ConstraintFactory
from longcat.serve.drafting import DraftPolicy
from longcat.serve.latents import Latents
from longcat.serve.pages import Pages
from longcat.serve.protocol import Model, Tokenizer
from longcat.serve.request import Delta, Request
from longcat.serve.runner import Result, make_up, run
from longcat.serve.sampling import NO_CHOICE
from longcat.serve.scheduler import Plan, Scheduler
from longcat.serve.sequence import Sequence
from longcat.serve.speculation import check_prompt


class Engine:
    """Serves any number of requests with one model.

    Args:
        model: computes. tokenizer: needed for text and stop strings; None deals in tokens alone.
        config: sizes and policies.
        constraints: makes a Constraint of a ConstraintSpec; None refuses constrained requests.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None = None,
        config: EngineConfig | None = None,
        *,
        constraints: ConstraintFactory | None = None,
    ) -> None:
        self.config = config or EngineConfig()
        self._model = model
        self._constraints = constraints
        self._table = None if tokenizer is None else tokenizer.token_bytes()
        self._pages = Pages(
            self.config.num_pages, self.config.page_size, prefix_cache=self.config.prefix_cache
        )
        self._latents = Latents(model.latent_layout, self.config.num_pages, self.config.page_size)
        self._scheduler = Scheduler(self.config, self._pages)
        self._sequences: dict[str, Sequence] = {}
        self._counts = {"steps": 0, "prompt_tokens": 0, "tokens": 0, "finished": 0}
        self._policy = DraftPolicy(self.config.num_drafts, available=model.has_draft_head)

    @property
    def model(self) -> Model:
        """The model that computes."""
        return self._model

    @property
    def pages(self) -> Pages:
        """Who holds which page."""
        return self._pages

    @property
    def latents(self) -> Latents:
        """What the pages hold."""
        return self._latents

    @property
    def has_work(self) -> bool:
        """Whether some request is not finished."""
        return bool(self._sequences)

    def add(self, request: Request) -> None:
        """Queue a request; raises ValueError as `admit`."""
        self._scheduler.waiting.append(self.admit(request))

    def admit(self, request: Request) -> Sequence:
        """The sequence of a request, which is under way from now on, but not in the queue.

        Raises ValueError, naming the field, for an id in use, a prompt that `decode` would refuse,
        a sequence that the latent cache cannot hold, and parameters that contradict each other.
        """
        params = request.params
        if request.request_id in self._sequences:
            raise ValueError(f"request_id {request.request_id!r} is in use by another request")
        check_prompt(self._model, request.prompt_ids, params.max_tokens)
        room = self.config.num_pages * self.config.page_size
        if len(request.prompt_ids) + params.max_tokens > room:
            raise ValueError(
                f"prompt_ids ({len(request.prompt_ids)} tokens) plus max_tokens "
                f"{params.max_tokens} exceed the {room} tokens that the latent cache can hold"
            )
        vocab = self._model.vocab_size
        for name in ("logit_bias", "stop_token_ids"):
            if any(token >= vocab for token in getattr(params, name)):
                raise ValueError(f"{name} names a token outside the vocabulary 0 .. {vocab - 1}")
        if params.stop and self._table is None:
            raise ValueError("stop needs an engine with a tokenizer")
        constraint = None
        if params.constraint is not None:
            if self._constraints is None:
                raise ValueError("constraint: this engine was built without structured output")
            if params.min_tokens:
                raise ValueError("min_tokens contradicts constraint, which decides where text ends")
            constraint = self._constraints(params.constraint)
        sequence = Sequence(request, self._model.eos_token_id, self._table, constraint)
        self._sequences[request.request_id] = sequence
        return sequence

    def adopt(self, sequence: Sequence) -> list[Delta]:
        """Go on with an admitted sequence whose prompt was computed elsewhere: its pages hold the
        latents of all tokens but the last.
        """
        self._counts["tokens"] += len(sequence.text)
        sequence.commit(self._pages)
        delta = sequence.delta()
        if sequence.finish_reason is None:
            self._scheduler.running.append(sequence)
        else:
            self._end(sequence)
        return [] if delta is None else [delta]

    def knows(self, request_id: str) -> bool:
        """Whether a request of this id is under way."""
        return request_id in self._sequences

    def sequence(self, request_id: str) -> Sequence:
        """What has become of a request that is under way; KeyError for another."""
        return self._sequences[request_id]

    def abort(self, request_id: str) -> bool:
        """End a request now; its pages are free at once. False when it is not running.

        It yields no further delta.
        """
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return False
        sequence.finish_reason = "abort"
        self._end(sequence)
        return True

    def step(self) -> list[Delta]:
        """One schedule: what every request gained by it."""
        drafts = self._policy.choose(len(self._scheduler.running))
        plan = self._scheduler.plan(drafts)
        if not plan.rows and not plan.chunks:
            return []
        # The draft head reads along when it is to draft. It always reads prompts where it may be to
        # draft later, for the sake of those who will find their pages.
        adaptive = self._policy.adaptive
        extend = drafts > 0 or (adaptive and bool(plan.chunks))
        fed = {id(s): s for s in [*plan.rows, *(s for s, _, _ in plan.chunks)]}.values()
        if drafts and adaptive:
            make_up(self._model, self._latents, list(fed))
        reading = [s for s in fed if s.drafted == s.computed and (extend or not adaptive)]
        result = self._timed(plan, drafts, extend)
        self._counts["steps"] += result.steps
        self._counts["prompt_tokens"] += sum(count for _, _, count in plan.chunks)
        for sequence, _, count in plan.chunks:
            sequence.computed += count
        deltas = self._read(plan.rows, result)
        for sequence in reading:
            sequence.drafted = sequence.computed
        return deltas + self._show(plan.rows)

    def _timed(self, plan: Plan, drafts: int, extend: bool) -> Result:
        """Carry out a plan, and let the policy know how long it took."""
        judged = max((len(sequence.drafts) for sequence in plan.rows), default=0)
        began = perf_counter()
        result = run(
            self._model, self._latents, plan, drafts, extend=extend, keep=self._policy.adaptive
        )
        if plan.rows and not plan.chunks:
            seconds = (perf_counter() - began) / plan.steps
            self._policy.took(len(plan.rows), judged, drafts, seconds)
        return result

    def _read(self, rows: tuple[Sequence, ...], result: Result) -> list[Delta]:
        """Give each sequence its tokens -> the deltas of those that could not go on."""
        failed = []
        for row, sequence in enumerate(rows):
            for judged in result.of_row(row):
                if not judged.finite:
                    failed.append(self._fail(sequence))
                    break
                fed = len(sequence.tokens)
                taken = sequence.append(list(judged.tokens))
                self._counts["tokens"] += taken
                sequence.computed = fed + min(judged.accepted, taken - 1)
                self._policy.judged(min(judged.drafted, taken), judged.accepted)
                if sequence.finish_reason is not None:
                    break
            else:
                sequence.propose(*result.drafts_of(row))
        return failed

    def _show(self, rows: tuple[Sequence, ...]) -> list[Delta]:
        """Let the prefix cache know of full pages, show what is new, end what has ended."""
        deltas = []
        for sequence in list(self._scheduler.running):
            sequence.commit(self._pages)
        for sequence in rows:
            if sequence.finish_reason == "error":
                continue
            delta = sequence.delta()
            if delta is not None:
                deltas.append(delta)
            if sequence.finish_reason is not None:
                self._end(sequence)
        return deltas

    def _fail(self, sequence: Sequence) -> Delta:
        sequence.finish_reason = "error"
        self._end(sequence)
        return Delta(request_id=sequence.request.request_id, finish_reason="error", error=NO_CHOICE)

    def _end(self, sequence: Sequence) -> None:
        self._scheduler.drop(sequence)
        del self._sequences[sequence.request.request_id]
        self._counts["finished"] += 1

    def stats(self) -> EngineStats:
        """Counters, and what is going on now."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            pages_free=self._pages.free,
            pages_cached=self._pages.cached,
            pages_used=self._pages.used,
            pages_total=self._pages.total,
            drafts=self._policy.now,
            drafted_at=tuple(self._policy.drafted_at),
            accepted_at=tuple(self._policy.accepted_at),
            preemptions=self._scheduler.preemptions,
            prefix_queries=self._scheduler.prefix_queries,
            prefix_hits=self._scheduler.prefix_hits,
            **self._counts,
        )

    def check_integrity(self) -> None:
        """Raise RuntimeError unless free + cached + used pages are all there are."""
        self._pages.check()
