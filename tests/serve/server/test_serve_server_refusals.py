"""Claims about bad requests: each is refused in OpenAI's shape, with the field that is at fault."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from longcat.serve.server.errors import ErrorAnswer

Ask = Callable[..., Any]
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "ab"}
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def refused(server: Any, path: str, status: int, param: str | None, **sent: Any) -> str:
    """The message of the refusal."""
    answer = await server.client.post(path, **sent)
    assert answer.status_code == status, answer.text
    error = ErrorAnswer.model_validate(answer.json(), strict=True).error
    assert error.param == param, answer.text
    assert not server.engine.requests
    assert server.service.gate.inside == 0
    return error.message


BAD_TEXT = [
    ({"prompt": ""}, "prompt", "prompt: String should have at least 1 character; got ''"),
    ({"prompt": []}, "prompt", "at least 1 item"),
    ({"prompt": [[]]}, "prompt.0", "at least 1 item"),
    ({"prompt": ["a", ""]}, "prompt.1", "at least 1 character"),
    ({"prompt": [1, "a"]}, "prompt.0", ""),
    ({"prompt": [300]}, "prompt", "outside the vocabulary 0 .. 299"),
    ({"prompt": [[5], [5, 300]]}, "prompt.1", "outside the vocabulary"),
    ({"prompt": [-1]}, "prompt.0", "prompt.0: Input should be greater than or equal to 0; got -1"),
    ({"prompt": {"a": 1}}, "prompt", "valid string or Input should be a valid array; got an obj"),
    ({"prompt": [True]}, "prompt.0", ""),
    ({"prompt": None}, "prompt", "got null"),
    ({"prompt": "a" * 199}, "prompt", "has 200 tokens; this server takes at most 199"),
    ({"max_tokens": 198}, "max_tokens", "at most 197 can be generated"),
    ({"max_tokens": 0}, "max_tokens", "without echo"),
    ({"max_tokens": 5.0}, "max_tokens", "got 5.0"),
    ({"max_tokens": True}, "max_tokens", "got true"),
    ({"max_tokens": "5"}, "max_tokens", "got '5'"),
    ({"n": 1.0}, "n", "valid integer"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 128, "prompt": ["a", "b"]}, "n", "more than the 128 sequences"),
    ({"seed": True}, "seed", "valid integer"),
    ({"seed": 2**64}, "seed", "less than"),
    ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
    ({"temperature": True}, "temperature", "valid number"),
    ({"top_p": -0.1}, "top_p", "greater than or equal to 0"),
    ({"top_k": -1}, "top_k", ""),
    ({"min_p": 1.5}, "min_p", ""),
    ({"repetition_penalty": 5e-324}, "repetition_penalty", ""),
    ({"presence_penalty": 3}, "presence_penalty", ""),
    ({"logit_bias": {"300": 1}}, "logit_bias", "outside the vocabulary"),
    ({"logit_bias": {"x": 1}}, "logit_bias", ""),
    ({"logit_bias": {"1": 101}}, "logit_bias", ""),
    ({"stop": ""}, "stop", "at least 1 character"),
    ({"stop": ["a"] * 17}, "stop", "at most 16"),
    ({"stop_token_ids": [300]}, "stop_token_ids", "outside the vocabulary"),
    ({"min_tokens": 17}, "min_tokens", "more than max_tokens 16"),
    ({"logprobs": 21}, "logprobs", ""),
    ({"logprobs": True}, "logprobs", ""),
    ({"best_of": 2}, "best_of", "must equal n"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
    ({"stream": "yes"}, "stream", "valid boolean"),
    ({"suffix": "x"}, "suffix", "not supported by this server"),
    ({"colour": "red"}, "colour", "not a field"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not a field"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "not supported by this server",
    ),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs.regex", "no structured output"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
]


@pytest.mark.parametrize(("fields", "param", "told"), BAD_TEXT, ids=lambda v: str(v)[:40])
def test_a_bad_completion_is_a_400_that_names_the_field(
    ask: Ask, fields: Any, param: str, told: str
) -> None:
    async def scenario(server: Any) -> None:
        message = await refused(server, "/v1/completions", 400, param, json=TEXT | fields)
        assert told in message, message

    ask(scenario)


BAD_CHAT = [
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "got 'robot'"),
    ({"messages": [{"role": "user"}]}, "messages", "must have text"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "user"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages.0.content.0.type",
        "",
    ),
    ({"messages": [{"role": "user", "content": "</longcat_s>"}]}, "messages", "keeps for itself"),
    (
        {"messages": [{"role": "user", "content": "x", "name": name} for name in ("a", "b")]},
        "messages.1.name",
        "'a'",
    ),
    ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ({"logprobs": 2}, "logprobs", "valid boolean"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "contradicts"),
    ({"max_tokens": 500}, "max_tokens", "at most"),
    ({"max_completion_tokens": 500}, "max_completion_tokens", "at most"),
    ({"tool_choice": "auto"}, "tool_choice", "needs tools"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls", "needs tools"),
    ({"tools": [], "tool_choice": "required"}, "tool_choice", "needs tools"),
    ({"tools": [TOOL, TOOL]}, "tools", "a name of its own"),
    (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "x"}}}]},
        "tools.0.function.parameters",
        "tools.0.function.parameters: arguments are an object, so their type must be so too",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice",
        "not among the tools",
    ),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema goes with"),
    ({"response_format": {"type": "json_object"}}, "response_format", "no structured output"),
    ({"structured_outputs": {"regex": "a"}, "tools": [TOOL]}, "structured_outputs", "with tools"),
    ({"store": True}, "store", "not supported"),
    ({"audio": {"voice": "x"}}, "audio", "not supported"),
    ({"reasoning_effort": "high"}, "reasoning_effort", "should be 'none'; got 'high'"),
    ({"verbosity": "low"}, "verbosity", "should be 'medium'; got 'low'"),
    ({"metadata": {"a": "b"}}, "metadata", "not supported"),
    ({"functions": []}, "functions", "not supported"),
    ({"service_tier": "priority"}, "service_tier", ""),
    ({"modalities": ["audio"]}, "modalities.0", ""),
    ({"logit_bias": {"300": 1}}, "logit_bias", "outside the vocabulary"),
    ({"prompt": "x"}, "prompt", "not a field"),
]


@pytest.mark.parametrize(("fields", "param", "told"), BAD_CHAT, ids=lambda v: str(v)[:40])
def test_a_bad_chat_is_a_400_that_names_the_field(
    ask: Ask, fields: Any, param: str, told: str
) -> None:
    async def scenario(server: Any) -> None:
        message = await refused(server, "/v1/chat/completions", 400, param, json=CHAT | fields)
        assert told in message, message

    ask(scenario)


@pytest.mark.parametrize(("name", "value"), [("min_tokens", 1), ("ignore_eos", True)])
def test_what_contradicts_a_form_is_refused_by_name(ask: Ask, name: str, value: Any) -> None:
    async def scenario(server: Any) -> None:
        server.service.constraints = lambda spec: None
        body = TEXT | {"structured_outputs": {"regex": "a"}, name: value}
        told = await refused(server, "/v1/completions", 400, name, json=body)
        assert "which decides where it ends" in told
        schema = {"response_format": {"type": "json_object"}, name: value}
        await refused(server, "/v1/chat/completions", 400, name, json=CHAT | schema)

    ask(scenario)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "tiny", "prompt": "\xff"}',
        b"\xff\xfe",
        b'{"model": "tiny", "prompt": "a", "temperature": NaN}',
        b'{"model": "tiny", "prompt": "\\ud800"}',
        b"[" * 100_000,
        *(b"[" * depth + b'"\xff"' + b"]" * depth for depth in (300, 900, 980)),
        b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:30]),
)
def test_what_is_no_json_is_a_400(ask: Ask, body: bytes) -> None:
    async def scenario(server: Any) -> None:
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            answer = await server.client.post(path, content=body)
            assert answer.status_code == 400, answer.text
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    ask(scenario)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"model": "tiny", "prompt": "\xff"}', "prompt"),
        (b'{"model": "tiny", "prompt": ["a", "\xc3"], "user": "\xff"}', "prompt.1"),
        (
            b'{"model": "tiny", "prompt": "a", "structured_outputs": {"regex": "\\ud800"}}',
            "structured_outputs.regex",
        ),
        (b'"\xff"', None),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bytes_that_are_no_text_are_refused_by_the_field_that_holds_them(
    ask: Ask, body: bytes, param: str | None
) -> None:
    async def scenario(server: Any) -> None:
        message = await refused(server, "/v1/completions", 400, param, content=body)
        assert message == f"{param or 'the body'} is no UTF-8 text"

    ask(scenario)


def test_a_field_that_is_missing_is_named(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        for path, body in (("/v1/completions", {"model": "tiny"}), ("/detokenize", {})):
            name = "prompt" if path == "/v1/completions" else "tokens"
            told = await refused(server, path, 400, name, json=body)
            assert told == f"{name} is missing"

    ask(scenario)


@pytest.mark.parametrize("body", ["[]", "null", "3", '"x"'])
def test_a_body_that_is_no_object_is_a_400(ask: Ask, body: str) -> None:
    async def scenario(server: Any) -> None:
        message = await refused(server, "/v1/completions", 400, None, content=body)
        assert "the body" in message

    ask(scenario)


def test_an_unknown_model_is_a_404_and_so_is_an_unknown_path(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        for path, body in (
            ("/v1/completions", TEXT),
            ("/v1/chat/completions", CHAT),
            ("/tokenize", {"prompt": "x"}),
            ("/detokenize", {"tokens": [1]}),
        ):
            told = await refused(server, path, 404, "model", json=body | {"model": "gpt-4"})
            assert "'tiny'" in told
        assert (await server.client.get("/v1/models/gpt-4")).json()["error"]["param"] == "model"
        assert "nothing at /v1/embeddings" in await refused(
            server, "/v1/embeddings", 404, None, json={}
        )
        answer = await server.client.get("/v1/completions")
        assert answer.status_code == 405
        assert answer.headers["allow"] == "POST"
        assert "GET is not allowed" in answer.json()["error"]["message"]

    ask(scenario)


def test_a_model_without_a_template_says_so_in_chat(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        told = await refused(server, "/v1/chat/completions", 400, "messages", json=CHAT)
        assert "no chat template" in told

    ask(scenario, chat=None)


def test_the_errors_of_two_fields_name_the_first(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        body = json.dumps(TEXT | {"n": "x", "seed": "y"})
        await refused(server, "/v1/completions", 400, "n", content=body)

    ask(scenario)
