"""The engine: continuous batching over a paged latent cache, with drafts for every sequence.

    engine = Engine(model, tokenizer, EngineConfig())
    engine.add(Request(request_id="a", prompt_ids=(1, 5), params=SamplingParams()))
    while engine.has_work:
        for delta in engine.step(): ...

One `step`: the scheduler chooses (`longcat.serve.scheduler`), passes are launched
(`longcat.serve.step`, `longcat.serve.runner`), and what came back is read once and shown
(`longcat.serve.flight`). With `overlap` what is read belongs to the schedule before: the device
computes one while the host looks at the other.
"""

from contextlib import nullcontext
from time import perf_counter

from longcat.kernels import exact
from longcat.serve.admission import check_dtype, check_request
from longcat.serve.config import EngineConfig, EngineStats
from longcat.serve.constraint import ConstraintFactory
from longcat.serve.drafting import DraftPolicy
from longcat.serve.flight import Flight
from longcat.serve.graph import graphs_for
from longcat.serve.latents import Latents
from longcat.serve.pages import Pages
from longcat.serve.protocol import PagedModel, Tokenizer
from longcat.serve.request import Delta, Request
from longcat.serve.runner import launch, make_up
from longcat.serve.sampling import NO_CHOICE
from longcat.serve.scheduler import Scheduler
from longcat.serve.sequence import Sequence


class Engine:
    """Serves any number of requests with one model.

    Args:
        model: computes.
        tokenizer: needed for text and stop strings; None deals in tokens alone.
        config: sizes and policies.
        constraints: makes a Constraint of a ConstraintSpec; None refuses constrained requests.

    pages     who holds which
    latents   what they hold
    overlaps  whether a schedule is launched before the one ahead of it is read
    sentinel  None; it needs no other process (`longcat.serve.serving`)
    """

    sentinel: int | None = None

    def __init__(
        self,
        model: PagedModel,
        tokenizer: Tokenizer | None = None,
        config: EngineConfig | None = None,
        *,
        constraints: ConstraintFactory | None = None,
    ) -> None:
        self.config = config or EngineConfig()
        check_dtype(self.config, model.latent_layout.dtype)
        self.model = model
        self._constraints = constraints
        self._table = None if tokenizer is None else tokenizer.token_bytes()
        device = model.latent_layout.device
        sizes = self.config.pages_on(device.type)
        self.pages = Pages(*sizes, prefix_cache=self.config.prefix_cache)
        self.latents = Latents(model.latent_layout, *sizes)
        self._scheduler = Scheduler(self.config, self.pages)
        self._sequences: dict[str, Sequence] = {}
        self._counts = {"steps": 0, "prompt_tokens": 0, "tokens": 0, "finished": 0}
        self._policy = DraftPolicy(self.config.num_drafts, available=model.has_draft_head)
        self._flight: Flight | None = None
        overlap = self.config.overlap
        self._graphs = graphs_for(model, self.latents, self.config.graphs)
        self.overlaps = device.type != "cpu" if overlap is None else overlap

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
        if request.request_id in self._sequences:
            raise ValueError(f"request_id {request.request_id!r} is in use by another request")
        check_request(request, self.model, self.pages.room, speaks=self._table is not None)
        spec = request.params.constraint
        if spec is not None and self._constraints is None:
            raise ValueError("constraint: this engine was built without structured output")
        constraint = None if spec is None or not self._constraints else self._constraints(spec)
        sequence = Sequence(request, self.model.eos_token_id, self._table, constraint)
        self._sequences[request.request_id] = sequence
        return sequence

    def adopt(self, sequence: Sequence) -> list[Delta]:
        """Go on with an admitted sequence whose prompt was computed elsewhere: its pages hold the
        latents of all tokens but the last.
        """
        self._counts["tokens"] += len(sequence.text)
        if sequence.finish_reason == "error":
            return [self._fail(sequence)]
        sequence.commit(self.pages)
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
        """One schedule: what every request gained by it, or, where schedules overlap, by the one
        before, which is read only now that another has been launched.
        """
        drafts = self._policy.choose(len(self._scheduler.running))
        deltas = self._land() if self._must_read(drafts) else []
        with exact() if self.config.exact else nullcontext():
            launched = self._launch(drafts)
        deltas += self._land()
        self._flight = launched
        if not self.overlaps:
            deltas += self._land()
        if not self._sequences:
            self._flight = None  # all ended; what was launched for them since is nobody's
        return deltas

    def _must_read(self, drafts: int) -> bool:
        """Whether the passes under way have to be read before others can be planned: where the host
        has a say in the tokens, or the draft head is to make up for places that only they know.
        """
        flight = self._flight
        missing = flight is not None and drafts > 0 and not flight.proposals
        return self._scheduler.minded or (missing and self._policy.adaptive)

    def _launch(self, drafts: int) -> Flight | None:
        """Plan a schedule and launch its passes; None where there is nothing to do."""
        plan = self._scheduler.plan(drafts)
        if not plan.rows and not plan.chunks:
            return None
        # The draft head reads along when it is to draft. It always reads prompts where it may be to
        # draft later, for the sake of those who will find their pages.
        adaptive = self._policy.adaptive
        extend = drafts > 0 or (adaptive and bool(plan.chunks))
        fed = {id(s): s for s in [*plan.rows, *(s for s, _, _ in plan.chunks)]}.values()
        if drafts and adaptive:
            make_up(self.model, self.latents, list(fed))
        reading = [s for s in fed if s.drafted == s.computed and (extend or not adaptive)]
        began = perf_counter()
        flight = launch(
            self.model,
            self.latents,
            plan,
            drafts,
            extend=extend,
            keep=adaptive,
            before=self._flight,
            graphs=self._graphs,
        )
        flight.seconds = perf_counter() - began
        flight.reading = {id(s) for s in reading}
        self._counts["steps"] += plan.steps
        self._counts["prompt_tokens"] += sum(count for _, _, count in plan.chunks)
        for sequence, _, count in plan.chunks:
            sequence.computed += count
        for sequence in reading:
            sequence.drafted = sequence.computed
        for sequence in plan.rows:
            sequence.ahead = flight.ahead
        return flight

    def _land(self) -> list[Delta]:
        """Read the passes under way -> what every request gained by them."""
        flight, self._flight = self._flight, None
        if flight is None:
            return []
        began = perf_counter()
        flight.read()
        seconds = flight.seconds + perf_counter() - began
        rows = [s for s in flight.plan.rows if s.finish_reason is None]
        if rows and not flight.plan.chunks:
            each = seconds / flight.plan.steps
            self._policy.took(len(flight.plan.rows), flight.judged, flight.proposals, each)
        deltas = []
        for row, sequence in enumerate(flight.plan.rows):
            if sequence.ahead is flight.ahead:
                sequence.ahead = None
            if sequence.finish_reason is not None:
                continue  # it ended before; these tokens are too many
            deltas += self._give(sequence, flight, row)
            sequence.check_reserve(self.pages.page_size)
        return deltas + self._show(rows)

    def _give(self, sequence: Sequence, flight: Flight, row: int) -> list[Delta]:
        """Give a sequence its tokens -> its last delta, if it could not go on."""
        for judged in flight.of_row(row):
            if not judged.finite:
                return [self._fail(sequence)]
            fed = len(sequence.tokens)
            taken = sequence.append(list(judged.tokens))
            self._counts["tokens"] += taken
            if sequence.finish_reason == "error":
                return [self._fail(sequence)]
            self._policy.judged(min(judged.drafted, taken), judged.accepted)
            if sequence.pages:  # else they were taken back meanwhile, and it begins again
                sequence.computed = fed + min(judged.accepted, taken - 1)
            if sequence.finish_reason is not None:
                break
        else:
            if sequence.pages:
                sequence.propose(*flight.drafts_of(row))
        if sequence.pages and id(sequence) in flight.reading:
            sequence.drafted = sequence.computed
        return []

    def _show(self, rows: list[Sequence]) -> list[Delta]:
        """Let the prefix cache know of full pages, show what is new, end what has ended."""
        deltas = []
        for sequence in list(self._scheduler.running):
            sequence.commit(self.pages)
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
        """End it: its form can be kept to no longer, or nothing can be chosen."""
        sequence.finish_reason = "error"
        self._end(sequence)
        failure = None if sequence.constraint is None else sequence.constraint.failure
        return Delta(
            request_id=sequence.request.request_id,
            finish_reason="error",
            error=failure or NO_CHOICE,
            fault="model" if failure is None else "request",
        )

    def _end(self, sequence: Sequence) -> None:
        self._scheduler.drop(sequence)
        del self._sequences[sequence.request.request_id]
        self._counts["finished"] += 1

    def stats(self) -> EngineStats:
        """Counters, and what is going on now."""
        return EngineStats(
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            pages_free=self.pages.free,
            pages_cached=self.pages.cached,
            pages_used=self.pages.used,
            pages_total=self.pages.total,
            drafts=self._policy.now,
            drafted_at=tuple(self._policy.drafted_at),
            accepted_at=tuple(self._policy.accepted_at),
            preemptions=self._scheduler.preemptions,
            prefix_queries=self._scheduler.prefix_queries,
            prefix_hits=self._scheduler.prefix_hits,
            steps=self._counts["steps"],
            prompt_tokens=self._counts["prompt_tokens"],
            tokens=self._counts["tokens"],
            finished=self._counts["finished"],
        )

    def check_integrity(self) -> None:
        """Raise RuntimeError unless free + cached + used pages are all there are."""
        self.pages.check()

    def close(self) -> None:
        """Nothing was started for it."""
