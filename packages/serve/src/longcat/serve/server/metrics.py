"""What is counted, for Prometheus: the front's own histograms, and the engine's counts as they are.

Counters that belong to the engine begin anew when its process does; Prometheus expects that of
counters.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from longcat.serve.server.gate import Gate
from longcat.serve.server.supervisor import EngineClient

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)


class Metrics:
    """Everything that /metrics tells."""

    def __init__(self, engine: EngineClient, gate: Gate) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "longcat_requests",
            "Requests answered, by path and status.",
            ("path", "status"),
            registry=self._registry,
        )
        self.finished = Counter(
            "longcat_sequences_finished",
            "Sequences that ended, by reason.",
            ("reason",),
            registry=self._registry,
        )
        self.prompt_tokens = Counter(
            "longcat_prompt_tokens", "Tokens of prompts.", registry=self._registry
        )
        self.cached_tokens = Counter(
            "longcat_cached_prompt_tokens",
            "Of these, tokens found in the prefix cache.",
            registry=self._registry,
        )
        self.generated_tokens = Counter(
            "longcat_generated_tokens", "Tokens generated.", registry=self._registry
        )
        self.first_token = Histogram(
            "longcat_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_FIRST,
            registry=self._registry,
        )
        self.between_tokens = Histogram(
            "longcat_inter_token_seconds",
            "Between two tokens of a sequence; tokens that arrive together share the time.",
            buckets=_BETWEEN,
            registry=self._registry,
        )
        self.seconds = Histogram(
            "longcat_request_seconds",
            "From a request's arrival to its end.",
            buckets=_WHOLE,
            registry=self._registry,
        )
        self._registry.register(_EngineCounts(engine, gate))

    def exposition(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)


class _EngineCounts(Collector):
    """The engine's newest counts, read when somebody asks."""

    def __init__(self, engine: EngineClient, gate: Gate) -> None:
        self._engine = engine
        self._gate = gate

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        engine = self._engine
        up = float(engine.state == "up")
        yield GaugeMetricFamily("longcat_engine_up", "1 while the engine takes requests.", up)
        yield CounterMetricFamily(
            "longcat_engine_restarts", "Times that the engine was started again.", engine.restarts
        )
        yield GaugeMetricFamily(
            "longcat_sequences_inside",
            "Sequences admitted and not yet ended, as the front counts them.",
            self._gate.inside,
        )
        stats = engine.stats
        if stats is None:
            return
        yield GaugeMetricFamily(
            "longcat_sequences_running", "Sequences being computed.", stats.running
        )
        yield GaugeMetricFamily(
            "longcat_sequences_waiting", "Sequences queued in the engine.", stats.waiting
        )
        pages = GaugeMetricFamily(
            "longcat_pages", "Pages of the latent cache, by state.", labels=("state",)
        )
        for state in ("free", "cached", "used", "total"):
            pages.add_metric((state,), getattr(stats, f"pages_{state}"))
        yield pages
        yield CounterMetricFamily("longcat_engine_steps", "Passes of the target.", stats.steps)
        yield CounterMetricFamily(
            "longcat_preemptions", "Sequences whose pages were taken back.", stats.preemptions
        )
        yield GaugeMetricFamily(
            "longcat_drafts_per_step", "Drafts per step in use now.", stats.drafts
        )
        if stats.prefill_alive is not None:
            yield GaugeMetricFamily(
                "longcat_prefill_up",
                "1 while the process that computes prompts lives.",
                float(stats.prefill_alive),
            )
            yield CounterMetricFamily(
                "longcat_prefill_restarts",
                "Times that it was started again.",
                stats.prefill_restarts,
            )
        judged = CounterMetricFamily(
            "longcat_drafts_judged", "Drafts that the target judged, by depth.", labels=("depth",)
        )
        accepted = CounterMetricFamily(
            "longcat_drafts_accepted", "Of these, drafts accepted, by depth.", labels=("depth",)
        )
        for depth, (of, hits) in enumerate(
            zip(stats.drafted_at, stats.accepted_at, strict=True), start=1
        ):
            judged.add_metric((str(depth),), of)
            accepted.add_metric((str(depth),), hits)
        yield judged
        yield accepted
