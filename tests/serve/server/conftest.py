"""A server without a model: a scripted engine and a tokenizer of bytes, asked in this process."""

import asyncio
import importlib.util
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from longcat.chat import CHATML, LONGCAT, Message, Template, Tool, render

# Where the extra is not installed there is nothing to test.
_MISSING = [name for name in ("fastapi", "httpx") if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if _MISSING else []

if not _MISSING:
    import httpx

    from longcat.serve import Delta, EngineStats, PromptToken, Request, Token
    from longcat.serve.server import Gate, Metrics, ServerConfig, Service, create_app
    from longcat.serve.server.call import Call
    from longcat.serve.server.errors import ApiError
    from longcat.serve.server.wire import EngineInfo

VOCABULARY = 300
BOS, EOS, PAD = 256, 257, 258


class ByteTokenizer:
    """One token per byte, then <s>, </s>, <pad> and the markers of a chat format."""

    bos_id, eos_id, pad_id = BOS, EOS, PAD

    def __init__(self, chat: Template | None = LONGCAT) -> None:
        self.chat = chat
        special = () if chat is None else chat.special
        names = ("<s>", "</s>", "<pad>", *special)
        self.markers = {name: 256 + i for i, name in enumerate(names)}

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.token_bytes()[i] for i in ids).decode("utf-8", "replace")

    def token_bytes(self) -> list[bytes]:
        shown = {} if self.chat is None else {m: m.encode() for m in self.chat.special}
        if self.chat is not None:
            shown[self.chat.end] = b""
        return [bytes([b]) for b in range(256)] + [shown.get(m, b"") for m in self.markers]

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[int]:
        assert self.chat is not None
        text = render(messages, self.chat.name, True, tools)
        pattern = f"({'|'.join(map(re.escape, self.chat.special))})"
        pieces = [p for p in re.split(pattern, text) if p]
        return [i for p in pieces for i in ([self.markers[p]] if p in self.markers else p.encode())]


class ScriptedEngine:
    """Answers every request with `reply`, some bytes at a time; a stand-in for EngineProcess.

    Attributes to set: reply (bytes, or by choice), stride (tokens per delta), pause (seconds per
    delta), hold (an event that deltas wait for), failure (what `open` raises), error (the
    delta that every request ends with).
    To look at: requests (all that came), aborted (ids), open_calls.
    """

    def __init__(self, window: int) -> None:
        self.state: Any = "up"
        self.info = EngineInfo(
            vocab_size=VOCABULARY,
            max_position=window,
            eos_token_id=EOS,
            max_running=2,
            pool_tokens=10_000,
            has_draft_head=True,
            speculative=True,
        )
        self.stats: EngineStats | None = None
        self.restarts = 0
        self.reply: bytes | Callable[[Request], bytes] = b"hello"
        self.stride = 2
        self.pause = 0.0
        self.hold: asyncio.Event | None = None
        self.failure: Exception | None = None
        self.dies_after: int | None = None
        self.error: Delta | None = None
        self.requests: list[Request] = []
        self.aborted: list[str] = []
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        self.state = "up"

    async def stop(self) -> None:
        self.state = "stopped"
        for task in self._tasks.values():
            task.cancel()

    def open(self, requests: Sequence[Request]) -> Call:
        if self.failure is not None:
            raise self.failure
        call = Call(requests)
        self.requests += requests
        for request in requests:
            self._tasks[request.request_id] = asyncio.create_task(self._answer(call, request))
        return call

    def close(self, call: Call) -> None:
        for request_id in call.unfinished:
            self.aborted.append(request_id)
            self._tasks[request_id].cancel()

    async def _answer(self, call: Call, request: Request) -> None:
        params = request.params
        reply = self.reply if isinstance(self.reply, bytes) else self.reply(request)
        ends = len(reply) < params.max_tokens
        ids = [*reply, EOS] if ends else list(reply[: params.max_tokens])
        prompt = None
        if params.prompt_logprobs is not None:
            told = [None, *[-1.0] * (len(request.prompt_ids) - 1)]
            prompt = tuple(
                PromptToken(id=i, logprob=value, top_logprobs=self._best(i) if value else ())
                for i, value in zip(request.prompt_ids, told, strict=True)
            )
        if self.error is not None:
            call.put(replace(self.error, request_id=request.request_id))
            return
        for number, start in enumerate(range(0, len(ids), self.stride)):
            if self.dies_after is not None and number == self.dies_after:
                call.fail(ApiError(503, "the engine died", code="engine_died", retry_after=1))
                return
            if self.hold is not None:
                await self.hold.wait()
            await asyncio.sleep(self.pause)
            some = ids[start : start + self.stride]
            last = start + self.stride >= len(ids)
            call.put(
                Delta(
                    request_id=request.request_id,
                    tokens=tuple(self._token(i, params.logprobs) for i in some),
                    text=bytes(i for i in some if i < 256).decode("utf-8", "replace"),
                    finish_reason=("stop" if ends else "length") if last else None,
                    prompt_logprobs=prompt if start == 0 else None,
                    cached_tokens=3 if start == 0 else 0,
                )
            )

    def _token(self, i: int, logprobs: int | None) -> Token:
        if logprobs is None:
            return Token(id=i, drafted=i == ord("l"))
        best = self._best(i)[:logprobs]
        return Token(id=i, logprob=-0.5, top_logprobs=best)

    def _best(self, i: int) -> tuple[tuple[int, float], ...]:
        return ((i, -0.5), (0xE2, -1.5))


class Server:
    """The application around a scripted engine, and a client for it."""

    def __init__(self, engine: ScriptedEngine, service: "Service", client: Any) -> None:
        self.engine = engine
        self.service = service
        self.client = client

    async def post(self, path: str, body: Any, **options: Any) -> Any:
        return await self.client.post(path, json=body, **options)

    async def events(self, path: str, body: Any) -> list[Any]:
        """The objects of a stream; its framing is checked on the way."""
        import json

        answer = await self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.text.endswith("data: [DONE]\n\n")
        frames = answer.text.split("\n\n")[:-2]
        assert all(frame.startswith("data: {") and "\n" not in frame for frame in frames)
        return [json.loads(frame.removeprefix("data: ")) for frame in frames]


@asynccontextmanager
async def served(
    chat: Template | None = LONGCAT, window: int = 200, **config: Any
) -> AsyncIterator[Server]:
    engine = ScriptedEngine(window)
    settings = ServerConfig(**{"model_name": "tiny", "max_queue": 6} | config)
    gate = Gate(engine.info.max_running + settings.max_queue)
    service = Service(
        config=settings,
        engine=engine,
        tokenizer=ByteTokenizer(chat),
        gate=gate,
        metrics=Metrics(engine, gate),
    )
    transport = httpx.ASGITransport(app=create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield Server(engine, service, client)


@pytest.fixture
def served_app() -> Callable[..., Any]:
    """`served`, for tests that put it on a port."""
    return served


@pytest.fixture
def ask() -> Callable[..., Any]:
    """ask(scenario, **config): run `async def scenario(server)` against a fresh server."""

    def run(scenario: Callable[[Server], Any], **config: Any) -> Any:
        async def inside() -> Any:
            async with served(**config) as server:
                return await scenario(server)

        return asyncio.run(inside())

    return run


@pytest.fixture(params=["longcat", "chatml"])
def template(request: pytest.FixtureRequest) -> Template:
    return {"longcat": LONGCAT, "chatml": CHATML}[request.param]
