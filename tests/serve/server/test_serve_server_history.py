"""Claims about conversations in which tools were called before: what of them is rendered."""

from collections.abc import Callable
from typing import Any

import pytest

from longcat.chat import Template

PATH = "/v1/chat/completions"
Ask = Callable[..., Any]
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
USER = {"role": "user", "content": "hi"}
CALLS = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": name * 2, "type": "function", "function": {"name": name, "arguments": "{}"}}
        for name in ("f", "g")
    ],
}
RESULTS = [{"role": "tool", "tool_call_id": name * 2, "content": name} for name in ("f", "g")]


async def asked(server: Any, messages: list[Any], **fields: Any) -> tuple[int, ...]:
    """The prompt that the engine gets, which is also what /tokenize says."""
    body = {"model": "tiny", "messages": messages, "max_tokens": 1} | fields
    answer = await server.post(PATH, body)
    assert answer.status_code == 200, answer.text
    prompt = server.engine.requests[-1].prompt_ids
    told = await server.post("/tokenize", {"messages": messages, "tools": TOOLS})
    assert tuple(told.json()["tokens"]) == prompt
    return tuple(prompt)


def test_results_may_come_in_any_order(ask: Ask, template: Template) -> None:
    async def scenario(server: Any) -> None:
        for later in ([], [{"role": "assistant", "content": "so"}, USER]):
            prompts = [
                await asked(server, [USER, CALLS, *results, *later], tools=TOOLS)
                for results in (RESULTS, RESULTS[::-1])
            ]
            assert prompts[0] == prompts[1]

    ask(scenario, chat=template, window=4000)


def test_an_answer_goes_back_as_a_client_dumps_it_with_its_empty_fields(ask: Ask) -> None:
    empty = dict.fromkeys(("annotations", "audio", "function_call", "refusal", "name"))

    async def scenario(server: Any) -> None:
        plain = await asked(server, [USER, CALLS, *RESULTS], tools=TOOLS)
        for fields in (empty, empty | {"annotations": []}):
            assert await asked(server, [USER, CALLS | fields, *RESULTS], tools=TOOLS) == plain
        said = {"role": "assistant", "content": "so", "tool_calls": None} | empty
        await asked(server, [USER, said, USER], tools=TOOLS)
        noted = [USER, said | {"annotations": [{"type": "url_citation"}]}, USER]
        answer = await server.post(PATH, {"model": "tiny", "messages": noted})
        assert answer.json()["error"]["param"] == "messages.1.annotations"

    ask(scenario, window=4000)


@pytest.mark.parametrize("results", [RESULTS[:1], [*RESULTS, RESULTS[0]], [RESULTS[1]] * 2])
def test_results_that_are_missing_or_too_many_are_refused(ask: Ask, results: list[Any]) -> None:
    async def scenario(server: Any) -> None:
        body = {"model": "tiny", "messages": [USER, CALLS, *results, USER], "tools": TOOLS}
        answer = await server.post(PATH, body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "messages"

    ask(scenario, window=4000)


def test_tools_that_were_called_stand_in_the_prompt_even_where_none_may_be_called_now(
    ask: Ask, template: Template
) -> None:
    async def scenario(server: Any) -> None:
        history = [USER, CALLS, *RESULTS]
        free = await asked(server, history, tools=TOOLS)
        assert await asked(server, history, tools=TOOLS, tool_choice="none") == free
        body = {"model": "tiny", "messages": [USER], "tools": TOOLS, "max_tokens": 1}
        await server.post(PATH, body | {"tool_choice": "none"})
        without = server.engine.requests[-1].prompt_ids
        await server.post(PATH, {"model": "tiny", "messages": [USER], "max_tokens": 1})
        assert server.engine.requests[-1].prompt_ids == without

    ask(scenario, chat=template, window=4000)
