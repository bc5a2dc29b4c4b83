"""Claims about `longcat serve`: a real engine in its process, asked by OpenAI's own client."""

import asyncio
import json
import os
import shlex
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

from longcat.cli.main import main
from longcat.cli.models import FoundModel
from longcat.cli.serve import _service
from longcat.flash import FlashModel
from longcat.flash.chat import encode_prompt
from longcat.flash.tokenizer import Tokenizer
from longcat.serve import EngineConfig, SamplingParams, decode
from longcat.serve.server import ServerConfig, create_app
from longcat.serve.server.wire import EngineInfo
from longcat.serve.server.worker import STATS_EVERY

PROMPT = "def main("
CHAT: Any = [{"role": "user", "content": "hello"}]


class Live:
    """A server whose engine runs in a process, and whose front runs in a thread of this one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        config = ServerConfig(model_name="tiny", max_queue=30)
        engine = EngineConfig(num_pages=80, max_running=4)
        self.service = _service(config, FoundModel(directory=directory), "float32", "cpu", engine)
        self.run(self.service.engine.start())
        transport = httpx.ASGITransport(app=create_app(self.service))
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)
        self.openai, self.lenient = (
            AsyncOpenAI(
                base_url="http://test/v1",
                api_key="none",
                http_client=self.http,
                max_retries=0,
                _strict_response_validation=strict,
            )
            for strict in (True, False)
        )

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=60)

    def close(self) -> None:
        self.run(self.service.engine.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)


@pytest.fixture(scope="module")
def live(chat_checkpoint: Path) -> Iterator[Live]:
    server = Live(chat_checkpoint)
    yield server
    server.close()


def alone(directory: Path, ids: list[int], **params: Any) -> list[int]:
    """What the model continues ids with by itself, without drafts."""
    model = FlashModel.from_pretrained(directory).eval()
    told = decode(model, ids, SamplingParams(**params), speculative=False)
    return [token.id for token in told]


async def idle(service: Any) -> Any:
    """The engine's counts once it has nothing to do."""
    async with asyncio.timeout(20):
        while service.engine.stats is None or (
            service.engine.stats.running or service.engine.stats.waiting
        ):
            await asyncio.sleep(0.02)
    return service.engine.stats


def test_openais_client_gets_what_the_model_decodes_alone(live: Live) -> None:
    tokenizer = Tokenizer.load(live.directory)
    ids = [tokenizer.bos_id, *tokenizer.encode(PROMPT)]
    params = {"max_tokens": 12, "temperature": 1.0, "seed": 5}
    expected = tokenizer.decode(alone(live.directory, ids, **params))

    async def ask() -> None:
        told = await live.openai.completions.create(model="tiny", prompt=PROMPT, **params)
        assert told.choices[0].text == expected
        assert told.usage is not None
        assert told.usage.prompt_tokens == len(ids)
        text, reasons = "", []
        # The client's type demands a reason in every chunk of text; OpenAI's server sends null.
        stream = await live.lenient.completions.create(
            model="tiny", prompt=PROMPT, stream=True, logprobs=3, **params
        )
        async for chunk in stream:
            text += chunk.choices[0].text
            assert chunk.choices[0].logprobs is not None
            reasons += [chunk.choices[0].finish_reason] * bool(chunk.choices[0].finish_reason)
        assert text == expected
        assert len(reasons) == 1

    live.run(ask())


def test_openais_client_chats_with_tools_and_a_schema(live: Live) -> None:
    tokenizer = Tokenizer.load(live.directory)
    ids = encode_prompt(tokenizer, CHAT)
    parameters = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    parameters["additionalProperties"] = False
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    schema: Any = {
        "type": "json_schema",
        "json_schema": {"name": "x", "schema": parameters, "strict": True},
    }

    async def ask() -> None:
        create = live.openai.chat.completions.create
        told = await create(
            model="tiny", messages=CHAT, max_tokens=9, temperature=0, logprobs=True, top_logprobs=2
        )
        expected = alone(live.directory, ids, max_tokens=9)
        assert told.choices[0].logprobs is not None
        content = told.choices[0].logprobs.content or []
        assert len(content) == len(expected)
        for tool_choice in ("required", {"type": "function", "function": {"name": "f"}}):
            told = await create(
                model="tiny",
                messages=CHAT,
                tools=[tool],
                tool_choice=tool_choice,  # type: ignore[arg-type]
                parallel_tool_calls=False,
                seed=1,
            )
            assert told.choices[0].finish_reason == "tool_calls"
            [call] = told.choices[0].message.tool_calls or []
            assert set(json.loads(call.function.arguments)) == {"a"}  # type: ignore[union-attr]
        told = await create(model="tiny", messages=CHAT, response_format=schema, seed=2)
        assert set(json.loads(told.choices[0].message.content or "")) == {"a"}
        stream = await create(
            model="tiny",
            messages=CHAT,
            n=2,
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        assert chunks[-1].usage is not None
        ends = [c.choices[0].index for c in chunks[:-1] if c.choices[0].finish_reason]
        assert sorted(ends) == [0, 1]

    live.run(ask())


def test_echoed_logprobs_are_the_models_own(live: Live) -> None:
    import torch

    tokenizer = Tokenizer.load(live.directory)
    ids = [tokenizer.bos_id, *tokenizer.encode("hello world, def main(): return 1")]
    model = FlashModel.from_pretrained(live.directory).eval()
    with torch.inference_mode():
        scores = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    expected = [float(scores[i, token]) for i, token in enumerate(ids[1:])]

    async def ask() -> list[float]:
        body = {"model": "tiny", "prompt": ids, "echo": True, "max_tokens": 0, "logprobs": 1}
        told = (await live.http.post("/v1/completions", json=body)).json()
        return list(told["choices"][0]["logprobs"]["token_logprobs"])

    told = live.run(ask())
    assert told[0] is None
    assert told[1:] == pytest.approx(expected, abs=1e-4)


def test_many_at_once_all_end_and_no_page_is_lost(live: Live) -> None:
    async def ask() -> Any:
        bodies = [
            {"model": "tiny", "prompt": "hello " * (i % 5 + 1), "max_tokens": 4 + i, "seed": i}
            for i in range(30)
        ]
        posted = [live.http.post("/v1/completions", json=body) for body in bodies]
        return await asyncio.gather(*posted), await idle(live.service)

    answers, stats = live.run(ask())
    assert {answer.status_code for answer in answers} == {200}
    assert stats.pages_used == 0
    assert stats.pages_free + stats.pages_cached == stats.pages_total == 80
    assert sum(stats.accepted_at) <= sum(stats.drafted_at)


@pytest.mark.slow
def test_a_killed_engine_is_a_503_for_what_ran_and_nothing_for_what_comes(live: Live) -> None:
    engine: Any = live.service.engine

    async def ask() -> None:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 200, "ignore_eos": True}
        await asyncio.sleep(2 * STATS_EVERY)  # so that the first step is told, not only the last
        running = [asyncio.create_task(live.http.post("/v1/completions", json=body)) for _ in "ab"]
        async with asyncio.timeout(20):
            while engine.stats is None or not engine.stats.running:
                await asyncio.sleep(0.005)
        before, restarts = engine.pid, engine.restarts
        os.kill(engine.pid, signal.SIGKILL)
        for answer in await asyncio.gather(*running):
            assert answer.status_code == 503, answer.text
            assert answer.json()["error"]["code"] == "engine_died"
        assert (await live.http.get("/health")).status_code == 503
        # What comes now waits for the engine that is being started.
        answer = await live.http.post("/v1/completions", json=body | {"max_tokens": 2})
        assert answer.status_code == 200
        assert engine.pid != before
        assert engine.restarts == restarts + 1
        assert (await live.http.get("/health")).status_code == 200

    live.run(ask())


def test_it_says_what_it_serves_and_how_to_try_it(
    chat_checkpoint: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[Any] = []

    def run(service: Any, listener: Any, ready: Callable[[], None]) -> None:
        seen.append(service)
        service.engine.info = EngineInfo(
            vocab_size=300,
            max_position=256,
            eos_token_id=2,
            max_running=32,
            pool_tokens=1600 if len(seen) == 1 else 160,
            has_draft_head=len(seen) != 2,
            speculative=len(seen) == 1,
        )
        ready()

    monkeypatch.setattr("longcat.serve.server.run", run)
    serve = ["serve", "--port", "0", "--model"]
    assert main([*serve, str(chat_checkpoint), "--api-key", "k", "--max-queue", "7"]) == 0
    told = capsys.readouterr().out
    assert "serving tiny (" in told
    assert "speculation on: the MTP head drafts" in told
    assert "up to 256 tokens a sequence, 1600 in the latent cache" in told
    assert ": a page for a browser, /v1 for clients" in told
    assert "chat in the longcat format" in told
    assert "one key may ask" in told
    assert "/v1/chat/completions -H 'Authorization: Bearer KEY'" in told
    assert seen[0].gate.capacity == 39
    assert main([*serve, str(tiny_checkpoint), "--name", "it's other"]) == 0
    told = capsys.readouterr().out
    assert "serving it's other (" in told
    assert "up to 160 tokens a sequence, 160 in the latent cache" in told
    arguments = shlex.split(told.partition("try: ")[2])
    assert json.loads(arguments[-1])["model"] == "it's other", "it works when pasted"
    assert "speculation off: this checkpoint has no MTP head" in told
    assert "no chat template" in told
    assert '"prompt": "def read("' in told
    assert main([*serve, str(tiny_checkpoint), "--no-speculative"]) == 0
    assert "speculation off, as asked" in capsys.readouterr().out
