"""Claims about a server under load: nothing lost, nothing leaked, refused at once, ended well."""

import asyncio
import http.client
import json
import os
import random
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow
Serve = Callable[..., Any]
PATH = "/v1/completions"
MALFORMED = [
    b"{",
    b'{"model": "tiny", "prompt": "\xff\xfe"}',
    json.dumps({"model": "other", "prompt": "x"}).encode(),
    json.dumps({"model": "tiny", "prompt": ""}).encode(),
    json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1.0}).encode(),
    json.dumps({"model": "tiny", "prompt": [99_999]}).encode(),
    json.dumps({"model": "tiny", "prompt": "x " * 3000}).encode(),
]


async def post(port: int, body: bytes, leave_after: int | None = None) -> tuple[int, bytes]:
    """(status, what came) of one request on a connection of its own.

    leave_after: break the connection off after so many bytes; 0 before anything has come.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    await writer.drain()
    try:
        if leave_after is not None:
            if leave_after:
                await reader.read(leave_after)
            else:
                await asyncio.sleep(0.05)
            writer.transport.abort()
            return 0, b""
        got = await reader.read()
    finally:
        writer.close()
    return int(got.split(b" ", 2)[1]), got


async def get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    got = await reader.read()
    writer.close()
    return got.decode()


async def counts(port: int) -> dict[str, float]:
    """The metrics, once nothing is inside any more and the engine has said so."""
    async with asyncio.timeout(60):
        while True:
            text = await get(port, "/metrics")
            told = {k: float(v) for k, v in re.findall(r"^(longcat\S+) (\S+)$", text, re.MULTILINE)}
            busy = ("longcat_sequences_inside", "longcat_sequences_running")
            if not any(told[name] for name in (*busy, "longcat_sequences_waiting")):
                return told
            await asyncio.sleep(0.1)


def body(prompt: str, tokens: int, **more: Any) -> bytes:
    fields = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps(fields | usage | more).encode()


def complete(got: bytes, tokens: int) -> bool:
    """Whether a stream holds everything: as many tokens, one reason, its end."""
    frames = re.findall(rb"^data: (\{.*\})\r?$", got, re.MULTILINE)
    chunks = [json.loads(frame) for frame in frames]
    reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    used = [c["usage"]["completion_tokens"] for c in chunks if c.get("usage")]
    ended = reasons.count("length") == 1 and reasons[-1:] == ["length"]
    return ended and used == [tokens] and b"data: [DONE]" in got


def test_only_a_whole_stream_counts_as_whole() -> None:
    def chunk(reason: str | None) -> bytes:
        return event({"choices": [{"finish_reason": reason}]})

    def event(told: Any) -> bytes:
        return b"data: " + json.dumps(told).encode() + b"\n\n"

    usage = event({"choices": [], "usage": {"completion_tokens": 3}})
    parts = [chunk(None), chunk("length"), usage, b"data: [DONE]\n\n"]
    assert complete(b"".join(parts), 3)
    for missing in range(1, 4):
        assert not complete(b"".join(parts[:missing] + parts[missing + 1 :]), 3)
    assert not complete(b"".join([chunk("length"), *parts]), 3)
    assert not complete(b"".join(parts), 4)


def test_two_thousand_requests_with_leavers_and_malformed_ones_lose_nothing(
    serve: Serve, chat_checkpoint: Path
) -> None:
    server = serve(chat_checkpoint, "--max-queue", "1000", "--pages", "600", "--quiet")
    dice = random.Random(0)
    plan = ["leave"] * 400 + ["malformed"] * 100 + ["whole"] * 1500
    dice.shuffle(plan)
    fates: Counter[str] = Counter()
    waits: list[float] = []

    async def one(kind: str) -> None:
        tokens, words = dice.randint(1, 24), dice.randint(1, 60)
        if kind == "malformed":
            status, _ = await post(server.port, dice.choice(MALFORMED))
            fates["malformed, 4xx" if 400 <= status < 500 else f"malformed, {status}"] += 1
        elif kind == "leave":
            sent = body("hello " * words, 100)
            await post(server.port, sent, leave_after=dice.choice([0, 100, 2000]))
            fates["left"] += 1
        else:
            started = time.monotonic()
            status, got = await post(server.port, body("hello " * words, tokens))
            waits.append(time.monotonic() - started)
            whole = status == 200 and complete(got, tokens)
            fates["whole" if whole else f"lost, {status}"] += 1

    async def run() -> dict[str, float]:
        places = asyncio.Semaphore(256)

        async def placed(kind: str) -> None:
            async with places:
                await one(kind)

        await asyncio.gather(*map(placed, plan))
        return await counts(server.port)

    started = time.monotonic()
    told = asyncio.run(run())
    seconds = time.monotonic() - started
    assert fates == {"whole": 1500, "left": 400, "malformed, 4xx": 100}
    assert told['longcat_pages{state="used"}'] == 0
    kept = told['longcat_pages{state="free"}'] + told['longcat_pages{state="cached"}']
    assert kept == told['longcat_pages{state="total"}'] == 600
    assert not [name for name in told if re.search(r'longcat_requests_total.*status="5', name)]
    assert told["longcat_engine_restarts_total"] == 0
    print(f"2,000 requests in {seconds:.1f} s, a whole one in {statistics.median(waits):.2f} s")


def test_overload_is_refused_and_what_was_taken_is_finished(
    serve: Serve, chat_checkpoint: Path
) -> None:
    server = serve(chat_checkpoint, "--max-running", "16", "--max-queue", "16", "--quiet")

    async def one() -> tuple[int, bool, float]:
        started = time.monotonic()
        status, got = await post(server.port, body("hello", 100))
        seconds = time.monotonic() - started
        fine = complete(got, 100) if status == 200 else b"retry-after: " in got.lower()
        return status, fine, seconds

    async def run() -> list[tuple[int, bool, float]]:
        first = [asyncio.create_task(one()) for _ in range(32)]  # as many as there are places
        await asyncio.sleep(1.0)
        return await asyncio.gather(*first, *(one() for _ in range(96)))

    answers = asyncio.run(run())
    assert all(fine for _, fine, _ in answers)
    assert Counter(status for status, _, _ in answers[:32]) == {200: 32}
    refused = sorted(seconds for status, _, seconds in answers if status == 429)
    assert len(refused) >= 64
    p95 = refused[int(0.95 * len(refused))]
    print(f"{len(refused)} of 128 refused, p95 after {1000 * p95:.0f} ms")


def test_sigterm_under_load_lets_what_runs_finish_and_turns_the_rest_away(
    serve: Serve, chat_checkpoint: Path
) -> None:
    server = serve(chat_checkpoint, "--max-running", "8")

    async def run() -> None:
        running = [asyncio.create_task(post(server.port, body("hello", 200))) for _ in range(16)]
        while not any(task.done() for task in running):
            await asyncio.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        status, got = await post(server.port, body("late", 5))
        assert status == 503
        assert b"shutting_down" in got
        for status, got in await asyncio.gather(*running):
            assert status == 200
            assert complete(got, 200)

    asyncio.run(run())
    assert server.process.wait(timeout=60) == 0, server.log
    assert "stopped" in server.log


def test_a_connection_that_a_pool_has_kept_is_still_there_and_ends_with_the_server(
    serve: Serve, chat_checkpoint: Path
) -> None:
    # Pools keep idle connections for 5 s and longer. One that the server has closed by then fails
    # the request that goes out on it.
    server = serve(chat_checkpoint)
    kept = http.client.HTTPConnection("127.0.0.1", server.port)
    kept.connect()
    kept.auto_open = 0
    for pause in (0.0, 6.0):
        time.sleep(pause)
        kept.request("GET", "/health")
        answer = kept.getresponse()
        assert (answer.status, bool(answer.read())) == (200, True)
    server.process.send_signal(signal.SIGTERM)  # nobody waits for who is idle
    assert server.process.wait(timeout=20) == 0, server.log
    kept.close()


def test_what_does_not_finish_in_time_is_told_so_and_the_end_is_still_good(
    serve: Serve, chat_checkpoint: Path
) -> None:
    # One at a time, so that the last of them waits for longer than the drain however fast one is.
    server = serve(chat_checkpoint, "--drain", "0.5", "--max-running", "1")

    async def run() -> list[bytes]:
        running = [asyncio.create_task(post(server.port, body("hello", 900))) for _ in range(16)]
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        return [got for _, got in await asyncio.gather(*running)]

    answers = asyncio.run(run())
    told = [b"shutting_down" in got for got in answers]
    assert any(told)
    assert all(say or complete(got, 900) for say, got in zip(told, answers, strict=True))
    assert server.process.wait(timeout=60) == 0, server.log


def test_a_killed_engine_under_load_is_a_503_or_an_event_and_comes_back(
    serve: Serve, chat_checkpoint: Path
) -> None:
    server = serve(chat_checkpoint, "--max-running", "8")
    before = server.engine_pid

    async def run() -> None:
        running = [asyncio.create_task(post(server.port, body("hello", 500))) for _ in range(32)]
        await asyncio.sleep(1.0)
        os.kill(before, signal.SIGKILL)
        for status, got in await asyncio.gather(*running):
            assert status in (200, 503)
            assert b"engine_died" in got or complete(got, 500)
        status, got = await post(server.port, body("again", 7))
        assert status == 200
        assert complete(got, 7)
        told = await counts(server.port)
        assert told["longcat_engine_restarts_total"] == 1
        assert told['longcat_pages{state="used"}'] == 0
        assert "200 OK" in await get(server.port, "/health")

    asyncio.run(run())
    assert server.engine_pid != before
