"""Which requests are sent, and when: so many at a time, or at a rate whoever is still waiting."""

from __future__ import annotations

import random
import string
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from longcat.cli.benchmarks.load.call import Outcome, Target, call


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """So many requests of random words.

    concurrency  most requests under way at once
    rate         arrivals per second, at random moments (Poisson); None: the next one is sent when
                 one is done
    words        of each prompt, no two prompts alike. max_tokens: of each answer

    Raises ValueError for a count below 1 or a rate that is not positive.
    """

    requests: int = 64
    concurrency: int = 8
    rate: float | None = None
    words: int = 64
    max_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("requests", "concurrency", "words", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"bench serve: {name} must be at least 1, got {getattr(self, name)}"
                )
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"bench serve: rate must be positive, got {self.rate}")

    def arrivals(self) -> list[float]:
        """When each request should be sent, in seconds from the start; zeros without a rate."""
        if self.rate is None:
            return [0.0] * self.requests
        rng = random.Random(self.seed)
        times, now = [], 0.0
        for _ in range(self.requests):
            times.append(now)
            now += rng.expovariate(self.rate)
        return times

    def body(self, index: int, model: str) -> dict[str, Any]:
        """The request number `index`."""
        rng = random.Random(self.seed * 1_000_003 + index)
        words = (
            "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 8)))
            for _ in range(self.words)
        )
        return {
            "model": model,
            "prompt": " ".join(words),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": index,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def send(
    target: Target, traffic: Traffic, done: Callable[[Outcome], None] = lambda outcome: None
) -> tuple[list[Outcome], float]:
    """Send everything -> (outcomes in the order of their ends, seconds from first to last)."""
    arrivals = traffic.arrivals()
    indices = iter(range(traffic.requests))
    lock = threading.Lock()
    outcomes: list[Outcome] = []
    start = time.perf_counter()

    def work() -> None:
        while True:
            with lock:
                index = next(indices, None)
            if index is None:
                return
            due = time.perf_counter() if traffic.rate is None else start + arrivals[index]
            time.sleep(max(0.0, due - time.perf_counter()))
            outcome = call(target, traffic.body(index, target.model), due)
            with lock:
                outcomes.append(outcome)
                done(outcome)

    workers = [
        threading.Thread(target=work, daemon=True)
        for _ in range(min(traffic.concurrency, traffic.requests))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return outcomes, time.perf_counter() - start
