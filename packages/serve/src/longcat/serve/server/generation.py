"""Run the sequences of one request: admitted, timed, counted, and given up when nobody waits."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from longcat.serve.request import Delta, Request
from longcat.serve.server.call import Call, joined
from longcat.serve.server.errors import ApiError
from longcat.serve.server.service import Service


async def generate(
    service: Service, requests: Sequence[Request], arrived: float
) -> AsyncGenerator[list[Delta], None]:
    """What the engine gives for these requests, as it comes; at most one delta each at a time.

    arrived: time.monotonic() when the request came in.

    Closing the generator aborts what has not ended. Raises ApiError: 429 and 503 when there is no
    place, 400 when the engine refuses, 500 and 503 when it fails, 504 when time is up.
    """
    config, metrics = service.config, service.metrics
    clock = _Clock(arrived=arrived)
    service.gate.enter(len(requests))
    metrics.prompt_tokens.inc(sum(len(r.prompt_ids) for r in requests if r.choice == 0))
    try:
        call = service.engine.open(requests)
        try:
            while deltas := await _take(call, config.request_seconds, arrived):
                for delta in deltas:
                    _count(service, clock, delta)
                    if delta.finish_reason == "error":
                        raise _failure(delta)
                yield deltas
        finally:
            service.engine.close(call)
    finally:
        service.gate.leave(len(requests))
        metrics.seconds.observe(time.monotonic() - arrived)


def _failure(delta: Delta) -> ApiError:
    said = delta.error or "the engine failed"
    match delta.fault:
        case "request":
            return ApiError(400, said, code="invalid_value")
        case "process":
            return ApiError(503, f"{said}; try again", code="prefill_died", retry_after=1)
        case "model":
            return ApiError(500, said, code="engine_error")


async def whole(deltas: AsyncGenerator[list[Delta], None]) -> dict[str, Delta]:
    """Everything that each request gave, as one delta, by the request's id."""
    told: dict[str, Delta] = {}
    async for batch in deltas:
        for delta in batch:
            before = told.get(delta.request_id)
            told[delta.request_id] = delta if before is None else joined(before, delta)
    return told


async def _take(call: Call, seconds: float | None, arrived: float) -> list[Delta]:
    """What is new, waited for until the request's time is up."""
    left = None if seconds is None else max(0.0, arrived + seconds - time.monotonic())
    try:
        async with asyncio.timeout(left):
            return await call.take()
    except TimeoutError:
        raise ApiError(
            504,
            f"the request was not done within {seconds:g} s, the longest this server allows",
            code="timeout",
        ) from None


@dataclass
class _Clock:
    """When a request came, and when each of its sequences last had a token."""

    arrived: float

    def __post_init__(self) -> None:
        self.last: dict[str, float] = {}


def _count(service: Service, clock: _Clock, delta: Delta) -> None:
    metrics, count = service.metrics, len(delta.tokens)
    if count:
        now = time.monotonic()
        last = clock.last.get(delta.request_id)
        if last is None:
            metrics.first_token.observe(now - clock.arrived)
        else:
            for _ in range(count):
                metrics.between_tokens.observe((now - last) / count)
        clock.last[delta.request_id] = now
        metrics.generated_tokens.inc(count)
    metrics.cached_tokens.inc(delta.cached_tokens)
    if delta.finish_reason is not None:
        metrics.finished.labels(delta.finish_reason).inc()
