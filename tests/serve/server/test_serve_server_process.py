"""Claims about the watched engine: what dies with it, what waits for the next, what is passed on.

The process is played by a thread, so that its deaths are cheap; real ones are killed in tests/cli.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from longcat.serve import Delta, EngineConfig, EngineStats, Request, SamplingParams, Token
from longcat.serve.pages import Pages
from longcat.serve.server import EngineProcess, supervisor
from longcat.serve.server.call import Call
from longcat.serve.server.errors import ApiError
from longcat.serve.server.worker import answer


class ThreadProcess:
    """What the supervisor asks of a process, from a thread."""

    exitcode = 1

    def __init__(self, target: Any, args: tuple[Any, socket.socket], **_: Any) -> None:
        factory, channel = args
        self._channel = channel.dup()  # as a real process has its own
        self._thread = threading.Thread(target=answer, args=(factory, self._channel), daemon=True)
        self.pid: int | None = None

    def start(self) -> None:
        self._thread.start()
        self.pid = 1

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def kill(self) -> None:
        self._channel.close()


class ToyEngine:
    """One token per step and sequence. The token 13 in a prompt is poison: the step dies of it."""

    sentinel = None

    def __init__(self) -> None:
        self.config = EngineConfig()
        self.pages = Pages(10, 4)
        self.model = SimpleNamespace(
            vocab_size=50, max_position=99, eos_token_id=2, has_draft_head=False
        )
        self.running: dict[str, tuple[Request, int]] = {}
        self.aborted: list[str] = []

    @property
    def has_work(self) -> bool:
        return bool(self.running)

    def add(self, request: Request) -> None:
        if 7 in request.prompt_ids:
            raise ValueError("the engine does not like 7")
        self.running[request.request_id] = (request, 0)

    def abort(self, request_id: str) -> bool:
        self.aborted.append(request_id)
        return self.running.pop(request_id, None) is not None

    def step(self) -> list[Delta]:
        time.sleep(0.002)
        deltas = []
        for name, (request, done) in list(self.running.items()):
            if 13 in request.prompt_ids:
                raise RuntimeError("poison")
            last = done + 1 == request.params.max_tokens
            reason = "length" if last else None
            token = Token(id=done)
            deltas.append(
                Delta(request_id=name, tokens=(token,), text=str(done), finish_reason=reason)
            )
            self.running[name] = (request, done + 1)
            if last:
                del self.running[name]
        return deltas

    def stats(self) -> EngineStats:
        names = [n for n in EngineStats.__dataclass_fields__ if not n.endswith("_at")]
        counts: Any = dict.fromkeys(names, 0) | {"running": len(self.running)}
        return EngineStats(**counts, drafted_at=(), accepted_at=())

    def check_integrity(self) -> None:
        pass

    def close(self) -> None:
        pass


def request(name: str, *prompt: int, tokens: int = 3) -> Request:
    params = SamplingParams(max_tokens=tokens)
    return Request(request_id=name, prompt_ids=prompt or (1,), params=params)


async def told(call: Call) -> str:
    text = ""
    while deltas := await call.take():
        text += "".join(delta.text for delta in deltas)
    return text


@pytest.fixture
def watched(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Callable[..., Any]:
    """watched(scenario): run `async def scenario(process, engines)` with a started engine."""
    context = SimpleNamespace(Process=ThreadProcess)
    monkeypatch.setattr(supervisor.multiprocessing, "get_context", lambda _: context)
    monkeypatch.setattr(supervisor, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)

    def run(scenario: Callable[..., Any], build: Callable[[], Any] = ToyEngine) -> None:
        engines: list[Any] = []

        def factory() -> Any:
            engines.append(build())
            return engines[-1]

        async def inside() -> None:
            process = EngineProcess(factory)
            await process.start()
            try:
                async with asyncio.timeout(10):
                    await scenario(process, engines)
            finally:
                await process.stop()

        asyncio.run(inside())

    return run


def test_requests_are_answered_and_counted(watched: Callable[..., Any]) -> None:
    async def scenario(process: EngineProcess, engines: list[ToyEngine]) -> None:
        assert process.state == "up"
        assert process.info.vocab_size == 50
        assert process.info.pool_tokens == 40
        assert not process.info.speculative
        texts = await asyncio.gather(*(told(process.open([request(n)])) for n in "abc"))
        assert texts == ["012"] * 3
        while process.stats is None or process.stats.running:
            await asyncio.sleep(0.005)

    watched(scenario)


def test_one_refusal_fails_its_call_alone(watched: Callable[..., Any]) -> None:
    async def scenario(process: EngineProcess, engines: list[ToyEngine]) -> None:
        fine = process.open([request("a", tokens=20)])
        bad = process.open([request("b", 7), request("c", tokens=50)])
        with pytest.raises(ApiError, match="does not like 7") as refused:
            await told(bad)
        assert refused.value.status == 400
        process.close(bad)
        assert (await told(fine)).startswith("0123")
        assert engines[0].aborted == ["c"]

    watched(scenario)


def test_a_death_takes_what_ran_and_the_next_engine_serves_what_comes(
    watched: Callable[..., Any],
) -> None:
    async def scenario(process: EngineProcess, engines: list[ToyEngine]) -> None:
        running = process.open([request("a", tokens=90)])
        await running.take()
        poisoned = process.open([request("p", 13)])
        for call in (running, poisoned):
            with pytest.raises(ApiError) as died:
                await told(call)
            assert (died.value.status, died.value.code) == (503, "engine_died")
            process.close(call)
        assert process.state == "restarting"
        waiting = process.open([request("w")])  # nobody to send it to yet
        assert await told(waiting) == "012"
        assert (process.state, process.restarts, len(engines)) == ("up", 1, 2)

    watched(scenario)


def test_after_deaths_in_a_row_requests_are_turned_away_until_it_lives(
    watched: Callable[..., Any],
) -> None:
    lives = [True, False, False, False, True]

    def build() -> ToyEngine:
        if not lives.pop(0):
            raise ValueError("no memory")
        return ToyEngine()

    async def scenario(process: EngineProcess, engines: list[ToyEngine]) -> None:
        with pytest.raises(ApiError):
            await told(process.open([request("p", 13)]))
        waiting = process.open([request("w")])
        while process.state != "up":
            if len(lives) == 1:  # three deaths: the first, and two that were never born
                with pytest.raises(ApiError) as away:
                    process.open([request("x")])
                assert (away.value.status, away.value.code) == (503, "engine_down")
                assert (away.value.retry_after or 0) >= 1
            await asyncio.sleep(0.005)
        assert await told(waiting) == "012"
        assert await told(process.open([request("y")])) == "012"
        process._deaths = 10_000
        assert process._wait() == supervisor.LONGEST_WAIT

    watched(scenario, build)


def test_an_engine_that_cannot_be_built_says_why(
    watched: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def build() -> ToyEngine:
        raise ValueError("the checkpoint is\n damaged")

    with pytest.raises(ValueError, match=r"^the checkpoint is damaged$"):
        watched(None, build)
    with pytest.raises(ValueError, match="ended while it was being built"):
        watched(None, lambda: 1 // 0)

    def start(process: ThreadProcess) -> None:
        raise BlockingIOError(11, "no more processes")

    monkeypatch.setattr(ThreadProcess, "start", start)
    with pytest.raises(ValueError, match=r"cannot be started: .*no more processes"):
        watched(None)


def test_a_stopped_engine_tells_who_waits(watched: Callable[..., Any]) -> None:
    async def scenario(process: EngineProcess, engines: list[ToyEngine]) -> None:
        running = process.open([request("a", tokens=90)])
        await running.take()
        await process.stop()
        with pytest.raises(ApiError) as stopped:
            await told(running)
        assert stopped.value.code == "shutting_down"
        assert (stopped.value.retry_after or 0) >= 1
        with pytest.raises(ApiError):
            process.open([request("b")])

    watched(scenario)


def test_what_keeps_a_process_from_starting_is_tried_again(
    watched: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals, pair = [OSError(24, "Too many open files")] * 2, socket.socketpair

    def refused() -> tuple[socket.socket, socket.socket]:
        if refusals:
            raise refusals.pop()
        return pair()

    async def scenario(process: EngineProcess, engines: list[ToyEngine]) -> None:
        monkeypatch.setattr(supervisor.socket, "socketpair", refused)
        with pytest.raises(ApiError):
            await told(process.open([request("p", 13)]))
        assert await told(process.open([request("w")])) == "012"
        assert not refusals

    watched(scenario)


def test_who_stops_while_another_engine_is_started_leaves_none_behind(
    watched: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go, start = threading.Event(), threading.Event(), ThreadProcess.start

    def slowly(process: ThreadProcess) -> None:
        begun.set()
        go.wait(10)
        start(process)

    async def scenario(process: EngineProcess, engines: list[ToyEngine]) -> None:
        monkeypatch.setattr(ThreadProcess, "start", slowly)
        process.open([request("p", 13)])
        await asyncio.to_thread(begun.wait, 10)
        stopping = asyncio.create_task(process.stop())
        await asyncio.sleep(0.05)
        assert not stopping.done()
        go.set()
        await stopping
        assert not process._process.is_alive()

    watched(scenario)
