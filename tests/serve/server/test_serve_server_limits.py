"""Claims about limits: keys, sizes, places, time; and that whoever leaves gives his place back."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from longcat.serve import Delta
from longcat.serve.server import gate as gate_module
from longcat.serve.server.app import create_app
from longcat.serve.server.doorkeeper import check_key
from longcat.serve.server.errors import ApiError
from longcat.serve.server.gate import Gate

PATH = "/v1/completions"
BODY: dict[str, Any] = {"model": "tiny", "prompt": "ab", "max_tokens": 8}
Ask = Callable[..., Any]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


def test_only_a_known_key_opens_and_health_needs_none(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        keys = {"one": 200, "two": 200, "on": 401, "onee": 401, "": 401, "\xe9": 401}
        for key, status in keys.items():
            headers = {"Authorization": f"Bearer {key}".encode("latin-1")}
            answer = await server.post(PATH, BODY, headers=headers)
            assert answer.status_code == status, key
        answer = await server.post(PATH, BODY)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"
        for path in ("/metrics", "/v1/models", "/tokenizer_info", "/openapi.json"):
            assert (await server.client.get(path)).status_code == 401
        assert (await server.client.get("/health")).status_code == 200

    ask(scenario, api_keys=("one", "two"))


def test_a_basic_authorization_is_no_bearer_key() -> None:
    check_key(b"bearer one", ["one"])
    check_key(b"", [])
    with pytest.raises(ApiError):
        check_key(b"Basic one", ["one"])


def test_a_browser_page_may_ask_only_from_an_origin_that_was_named(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x"}
        for origin, allowed in (("http://a.example", True), ("http://b.example", False)):
            headers = {"Origin": origin} | asked
            headers["Access-Control-Request-Headers"] = "authorization"
            answer = await server.client.options(PATH, headers=headers)
            assert (answer.headers.get("access-control-allow-origin") == origin) == allowed
        answer = await server.post(PATH, BODY, headers={"Origin": "http://a.example"})
        assert answer.status_code == 401  # a refusal can be read by the page as well
        assert answer.headers["access-control-allow-origin"] == "http://a.example"

    ask(scenario, api_keys=("k",), cors_origins=("http://a.example",))


def test_a_body_over_the_limit_is_a_413_with_and_without_a_length(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        large = json.dumps(BODY | {"user": "x" * 2000}).encode()

        async def pieces() -> Any:
            for start in range(0, len(large), 100):
                yield large[start : start + 100]

        for content in (large, pieces()):
            answer = await server.client.post(PATH, content=content)
            assert answer.status_code == 413, answer.text
            assert "1000 bytes" in answer.json()["error"]["message"]
        assert (await server.post(PATH, BODY)).status_code == 200

    ask(scenario, max_body_bytes=1000)


def test_limits_of_prompt_and_tokens_are_the_servers_own(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        for fields, param in (({"prompt": "a" * 20}, "prompt"), ({"max_tokens": 11}, "max_tokens")):
            answer = await server.post(PATH, BODY | fields)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == param
        chat = {"model": "tiny", "messages": [{"role": "user", "content": ""}]}
        answer = await server.post("/v1/chat/completions", chat)
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert (await server.post(PATH, BODY | {"max_tokens": 10})).status_code == 200

    ask(scenario, max_prompt_tokens=16, max_tokens=10)


def test_beyond_running_and_queue_there_is_a_429_that_says_when(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        server.engine.hold = asyncio.Event()
        inside = [asyncio.create_task(server.post(PATH, BODY | {"n": 2})) for _ in range(4)]
        await until(lambda: server.service.gate.inside == 8)  # two run, six may wait
        for body in (BODY, BODY | {"stream": True}, BODY | {"n": 3}):
            answer = await server.post(PATH, body)
            assert answer.status_code == 429
            assert answer.json()["error"]["type"] == "rate_limit_error"
            assert int(answer.headers["retry-after"]) >= 1
        answer = await server.post(PATH, BODY | {"n": 9})  # there are no nine places at all
        assert (answer.status_code, answer.json()["error"]["param"]) == (429, None)
        server.engine.hold.set()
        assert [task.status_code for task in await asyncio.gather(*inside)] == [200] * 4
        answer = await server.post(PATH, BODY | {"n": 9})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
        assert server.service.gate.inside == 0
        assert (await server.post(PATH, BODY)).status_code == 200

    ask(scenario)


def test_retry_after_follows_the_pace_at_which_places_become_free() -> None:
    gate = Gate(4)
    gate.enter(4)
    with pytest.raises(ApiError) as full:
        gate.check(2)
    assert full.value.retry_after == 2  # a second each, while nothing is known
    gate._spacing = 7.0
    with pytest.raises(ApiError) as full:
        gate.check(2)
    assert full.value.retry_after == 14
    gate.leave(4)
    gate.check(4)


def test_a_quiet_night_does_not_make_clients_wait_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(gate_module.time, "monotonic", lambda: clock[0])
    gate = Gate(1)
    for hours in (0, 8):
        clock[0] += hours * 3600.0
        gate.enter(1)
        clock[0] += 2.0
        gate.leave(1)
    gate.enter(1)
    with pytest.raises(ApiError) as full:
        gate.check()
    assert full.value.retry_after == 2


def test_a_request_that_takes_too_long_is_given_up(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        server.engine.hold = asyncio.Event()
        answer = await server.post(PATH, BODY)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "timeout"
        assert len(server.engine.aborted) == 1
        assert server.service.gate.inside == 0

    ask(scenario, request_seconds=0.05)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_frees_its_sequences(ask: Ask, stream: bool, begun: bool) -> None:
    async def scenario(server: Any) -> None:
        server.engine.reply = b"x" * 100
        server.engine.pause = 0.005
        if not begun:
            server.engine.hold = asyncio.Event()
        leaves = asyncio.Event()
        content = json.dumps(BODY | {"n": 2, "stream": stream, "max_tokens": 100}).encode()
        messages = iter([{"type": "http.request", "body": content, "more_body": False}])

        async def receive() -> Any:
            for message in messages:
                return message
            await leaves.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        scope = {
            "type": "http",
            "method": "POST",
            "path": PATH,
            "headers": [],
            "query_string": b"",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        app = create_app(server.service)
        answering = asyncio.create_task(app(scope, receive, send))
        await until(lambda: len(server.engine.requests) == 2)
        assert server.service.gate.inside == 2
        await asyncio.sleep(0.02)
        leaves.set()
        async with asyncio.timeout(10):
            await answering
        assert len(server.engine.aborted) == 2
        assert server.service.gate.inside == 0

    ask(scenario)


def test_while_draining_what_runs_finishes_and_what_comes_is_turned_away(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        server.engine.hold = asyncio.Event()
        running = asyncio.create_task(server.post(PATH, BODY))
        await until(lambda: server.service.gate.inside == 1)
        server.service.gate.closed = True
        for answer in (await server.post(PATH, BODY), await server.client.get("/health")):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "shutting_down"
            assert "retry-after" in answer.headers
        server.engine.hold.set()
        assert (await running).status_code == 200
        await server.service.gate.emptied()

    ask(scenario)


def test_an_engine_that_dies_is_a_503_or_an_event_in_a_stream_that_has_begun(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        server.engine.dies_after = 0
        for body in (BODY, BODY | {"stream": True}):
            answer = await server.post(PATH, body)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "engine_died"
        server.engine.dies_after = 1
        events = await server.events(PATH, BODY | {"stream": True})
        assert events[0]["choices"][0]["text"] == "he"
        assert events[-1]["error"]["type"] == "service_unavailable_error"
        assert server.service.gate.inside == 0
        server.engine.state = "restarting"
        answer = await server.client.get("/health")
        assert answer.status_code == 503
        assert "restarting" in answer.json()["error"]["message"]

    ask(scenario)


FAULTS = {
    "model": (500, "server_error", "engine_error"),
    "request": (400, "invalid_request_error", "invalid_value"),
    "process": (503, "service_unavailable_error", "prefill_died"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", list(FAULTS))
def test_an_error_says_who_is_at_fault_and_whether_to_come_again(
    ask: Ask, stream: bool, fault: Any
) -> None:
    async def scenario(server: Any) -> None:
        server.engine.error = Delta(request_id="x", finish_reason="error", error="no", fault=fault)
        answer = await server.post(PATH, BODY | {"stream": stream})
        told = answer.json()["error"]
        assert (answer.status_code, told["type"], told["code"]) == FAULTS[fault]
        assert told["message"] == ("no; try again" if fault == "process" else "no")
        assert ("retry-after" in answer.headers) == (fault == "process")
        assert server.service.gate.inside == 0

    ask(scenario)


def test_a_mistake_of_ours_is_a_500_in_the_same_shape(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        server.engine.failure = RuntimeError("boom")
        with pytest.raises(RuntimeError):  # for whoever runs the application to log
            await server.post(PATH, BODY)
        server.client._transport.raise_app_exceptions = False
        answer = await server.post(PATH, BODY)
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "boom" not in answer.text
        assert server.service.gate.inside == 0

    ask(scenario)
