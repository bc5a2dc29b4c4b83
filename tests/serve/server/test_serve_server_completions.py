"""Claims about /v1/completions: every form of prompt, exact streams, echo, log-probabilities."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from longcat.serve.server.answers import Completion

PATH = "/v1/completions"
Ask = Callable[..., Any]


async def complete(server: Any, **fields: Any) -> Any:
    answer = await server.post(PATH, {"model": "tiny", "prompt": "ab", "max_tokens": 8} | fields)
    assert answer.status_code == 200, answer.text
    Completion.model_validate(answer.json(), strict=True)
    return answer.json()


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        ("ab", [(256, 97, 98)]),
        (["ab", "c"], [(256, 97, 98), (256, 99)]),
        ([97, 98], [(97, 98)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
def test_every_form_of_prompt_reaches_the_engine_as_its_ids(
    ask: Ask, prompt: Any, seen: Any
) -> None:
    async def scenario(server: Any) -> None:
        told = await complete(server, prompt=prompt)
        assert [request.prompt_ids for request in server.engine.requests] == seen
        assert [choice["index"] for choice in told["choices"]] == list(range(len(seen)))
        assert {choice["text"] for choice in told["choices"]} == {"hello"}
        usage = told["usage"]
        assert usage["prompt_tokens"] == sum(map(len, seen))
        assert usage["completion_tokens"] == 6 * len(seen)  # the end of sequence included
        assert usage["prompt_tokens_details"]["cached_tokens"] == 3 * len(seen)
        assert usage["completion_tokens_details"]["accepted_prediction_tokens"] == 2 * len(seen)

    ask(scenario)


def test_choices_of_one_prompt_count_it_once_and_have_noise_of_their_own(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        server.engine.reply = lambda request: b"xyz"[request.choice : request.choice + 1]
        told = await complete(server, n=3, seed=7)
        assert [choice["text"] for choice in told["choices"]] == ["x", "y", "z"]
        assert told["usage"]["prompt_tokens"] == 3
        assert told["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
        assert [request.choice for request in server.engine.requests] == [0, 1, 2]
        assert {request.params.seed for request in server.engine.requests} == {7}

    ask(scenario)


def test_a_stream_is_the_whole_in_pieces_with_one_reason_for_each_choice(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        body = {"model": "tiny", "prompt": ["ab", "c"], "max_tokens": 4, "stream": True}
        options = {"stream_options": {"include_usage": True}}
        chunks = await server.events(PATH, body | options)
        *chunks, last = chunks
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 8
        for index in (0, 1):
            pieces = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
            assert "".join(piece["text"] for piece in pieces) == "hell"
            assert [p["finish_reason"] for p in pieces] == [None] * (len(pieces) - 1) + ["length"]
            assert len(pieces) > 1
        assert all(chunk["usage"] is None for chunk in chunks)
        assert len({chunk["id"] for chunk in [*chunks, last]}) == 1
        plain = await server.events(PATH, body)
        assert not any("usage" in chunk for chunk in plain)
        body["stream_options"] = {"continuous_usage_stats": True}
        counted = await server.events(PATH, body)
        assert [c["usage"]["completion_tokens"] for c in counted] == [2, 4, 6, 8]

    ask(scenario)


def test_echo_puts_the_prompt_before_the_text_once(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        told = await complete(server, prompt=["ab", "é"], echo=True)
        assert [choice["text"] for choice in told["choices"]] == ["abhello", "éhello"]
        told = await complete(server, prompt=[97, 195, 169], echo=True)
        assert told["choices"][0]["text"] == "aéhello"
        body = {"model": "tiny", "prompt": "ab", "echo": True, "stream": True}
        chunks = await server.events(PATH, body)
        assert "".join(c["choices"][0]["text"] for c in chunks) == "abhello"

    ask(scenario)


def test_logprobs_name_every_token_and_where_it_begins(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        server.engine.reply = "é!".encode()
        told = await complete(server, logprobs=2, echo=True)
        logprobs = told["choices"][0]["logprobs"]
        names = ["<s>", "a", "b", "bytes:\\xc3", "bytes:\\xa9", "!", "</s>"]
        assert logprobs["tokens"] == names
        assert logprobs["token_logprobs"] == [None, -1.0, -1.0, *[-0.5] * 4]
        assert logprobs["text_offset"] == [0, 0, 1, 2, 2, 3, 4]
        assert logprobs["top_logprobs"][0] is None
        assert logprobs["top_logprobs"][5] == {"!": -0.5, "bytes:\\xe2": -1.5}
        told = await complete(server, logprobs=0)
        assert told["choices"][0]["logprobs"]["top_logprobs"][2] == {"!": -0.5}
        told = await complete(server)
        assert told["choices"][0]["logprobs"] is None
        assert server.engine.requests[-1].params.logprobs is None

    ask(scenario)


def test_max_tokens_zero_with_echo_gives_the_prompt_and_its_logprobs_alone(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        told = await complete(server, max_tokens=0, echo=True, logprobs=1)
        choice = told["choices"][0]
        assert choice["text"] == "ab"
        assert choice["finish_reason"] == "length"
        assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -1.0]
        assert told["usage"]["completion_tokens"] == 0

    ask(scenario)


def test_without_a_limit_there_are_sixteen_tokens_or_what_fits(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        await complete(server, max_tokens=None)
        await complete(server, max_tokens=None, prompt="a" * 190)
        assert [request.params.max_tokens for request in server.engine.requests] == [16, 9]

    ask(scenario)


def test_what_was_asked_is_what_the_engine_is_told(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        await complete(server, prompt="x")
        plain = server.engine.requests[-1].params
        assert (plain.temperature, plain.max_tokens, plain.seed) == (1.0, 8, None)
        await complete(
            server,
            temperature=0.5,
            top_p=0.9,
            top_k=5,
            min_p=0.1,
            seed=-1,
            presence_penalty=1,
            frequency_penalty=-0.5,
            repetition_penalty=1.1,
            logit_bias={"65": 3, "0": -100},
            stop=["x", "yz"],
            stop_token_ids=[10],
            min_tokens=2,
            ignore_eos=True,
            user="somebody",
            best_of=1,
        )
        params = server.engine.requests[-1].params
        assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.5, 0.9, 5, 0.1)
        assert params.seed == 2**64 - 1
        assert (params.presence_penalty, params.frequency_penalty) == (1.0, -0.5)
        assert math.isclose(params.repetition_penalty, 1.1)
        assert params.logit_bias == {65: 3.0, 0: -100.0}
        assert (params.stop, params.stop_token_ids) == (("x", "yz"), (10,))
        assert (params.min_tokens, params.ignore_eos) == (2, True)
        await complete(server, stop="one", add_special_tokens=False)
        assert server.engine.requests[-1].params.stop == ("one",)
        assert server.engine.requests[-1].prompt_ids == (97, 98)

    ask(scenario)
