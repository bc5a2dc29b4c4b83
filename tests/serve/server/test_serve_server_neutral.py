"""Claims about what is not honoured, at a value that asks for nothing."""

from collections.abc import Callable
from typing import Any

import pytest

Ask = Callable[..., Any]
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "ab"}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def test_null_in_a_field_that_is_not_honoured_is_as_good_as_none(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        body = CHAT | {"store": False, "audio": None, "metadata": None, "service_tier": "auto"}
        assert (await server.post("/v1/chat/completions", body)).status_code == 200
        assert (await server.post("/v1/completions", TEXT | {"suffix": None})).status_code == 200
        streamed = {"stream": True, "stream_options": {"include_obfuscation": False}}
        assert (await server.post("/v1/completions", TEXT | streamed)).status_code == 200

    ask(scenario)


NEUTRAL: dict[str, Any] = {
    "reasoning_effort": "none",
    "verbosity": "medium",
    "metadata": {},
    "top_logprobs": 0,
    "prompt_cache_key": "a session",
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_value_that_asks_for_nothing_is_no_reason_to_refuse(ask: Ask, name: str) -> None:
    async def scenario(server: Any) -> None:
        answer = await server.post("/v1/chat/completions", CHAT | {name: NEUTRAL[name]})
        assert answer.status_code == 200, answer.text
        [asked] = server.engine.requests
        server.engine.requests.clear()
        await server.post("/v1/chat/completions", CHAT)
        assert server.engine.requests[0].params == asked.params

    ask(scenario)


def test_an_empty_suffix_and_a_top_p_of_zero_are_taken_for_what_they_say(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        answer = await server.post("/v1/completions", TEXT | {"suffix": "", "top_p": 0})
        assert answer.status_code == 200, answer.text
        # The most probable of V tokens has 1/V at least: it alone is kept.
        assert 0 < server.engine.requests[0].params.top_p < 1 / 200_000

    ask(scenario)
