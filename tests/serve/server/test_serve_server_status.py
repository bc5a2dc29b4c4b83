"""Claims about the other endpoints: models, tokens, metrics, the published schema, the log."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from longcat.serve import EngineStats
from longcat.serve.server.answers import Detokenized, Health, ModelList, TokenizerTold, Tokens

Ask = Callable[..., Any]
BODY: dict[str, Any] = {"model": "tiny", "prompt": "ab", "max_tokens": 8}


def test_the_one_model_is_listed_with_its_longest_sequence(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        told = (await server.client.get("/v1/models")).json()
        ModelList.model_validate(told, strict=True)
        assert [model["id"] for model in told["data"]] == ["tiny"]
        assert told["data"][0]["max_model_len"] == 200
        assert (await server.client.get("/v1/models/tiny")).json() == told["data"][0]

    ask(scenario)


def test_the_longest_sequence_is_what_the_cache_can_hold(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        server.engine.info = replace(server.engine.info, pool_tokens=48)
        listed = (await server.client.get("/v1/models")).json()["data"][0]
        counted = (await server.post("/tokenize", {"prompt": "a"})).json()
        watched = (await server.client.get("/stats")).json()
        assert [told["max_model_len"] for told in (listed, counted, watched)] == [48] * 3

    ask(scenario)


def test_text_goes_to_tokens_and_back(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        answer = (await server.post("/tokenize", {"prompt": "aé"})).json()
        Tokens.model_validate(answer, strict=True)
        assert answer == {"tokens": [256, 97, 195, 169], "count": 4, "max_model_len": 200}
        body = {"prompt": "aé", "add_special_tokens": False, "model": "tiny"}
        tokens = (await server.post("/tokenize", body)).json()["tokens"]
        answer = (await server.post("/detokenize", {"tokens": [256, *tokens]})).json()
        Detokenized.model_validate(answer, strict=True)
        assert answer == {"prompt": "aé"}
        answer = await server.post("/tokenize", {"messages": [{"role": "user", "content": "x"}]})
        text = (await server.post("/detokenize", {"tokens": answer.json()["tokens"]})).json()
        assert text == {"prompt": "[Round 0] USER:x ASSISTANT:"}
        long = "word " * 2000
        tokens = (await server.post("/tokenize", {"prompt": long})).json()["tokens"]
        assert len(tokens) == 10_001
        assert (await server.post("/tokenize", {"prompt": ""})).json()["tokens"] == [256]

    ask(scenario)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/detokenize", {"tokens": [300]}, "tokens.0"),
        ("/detokenize", {"tokens": [1.0]}, "tokens.0"),
        ("/detokenize", {}, "tokens"),
    ],
)
def test_bad_requests_for_tokens_name_the_field(ask: Ask, path: str, body: Any, param: str) -> None:
    async def scenario(server: Any) -> None:
        answer = await server.post(path, body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param

    ask(scenario)


def test_the_tokenizer_tells_its_control_tokens_and_template(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        told = (await server.client.get("/tokenizer_info")).json()
        TokenizerTold.model_validate(told, strict=True)
        assert (told["bos_token"], told["eos_token"], told["pad_token"]) == ("<s>", "</s>", "<pad>")
        assert told["chat_template"] == server.service.tokenizer.chat.jinja

    ask(scenario)


def test_metrics_count_what_was_asked_and_what_the_engine_says(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        await server.post("/v1/completions", BODY | {"n": 2})
        await server.post("/v1/completions", BODY | {"n": 0})
        await server.client.get("/no/such/path")
        server.engine.stats = EngineStats(
            running=1,
            waiting=2,
            pages_free=5,
            pages_cached=3,
            pages_used=2,
            pages_total=10,
            steps=7,
            prompt_tokens=3,
            tokens=12,
            drafts=2,
            drafted_at=(4, 2, 0),
            accepted_at=(3, 1, 0),
            preemptions=1,
            prefix_queries=3,
            prefix_hits=0,
            finished=2,
        )
        answer = await server.client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        told = {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
        assert told["longcat_requests_total", "/v1/completions", "200"] == 1
        assert told["longcat_requests_total", "/v1/completions", "400"] == 1
        assert told["longcat_requests_total", "404", "other"] == 1
        assert told["longcat_prompt_tokens_total",] == 3
        assert told["longcat_generated_tokens_total",] == 12
        assert told["longcat_cached_prompt_tokens_total",] == 6
        assert told["longcat_sequences_finished_total", "stop"] == 2
        assert told["longcat_time_to_first_token_seconds_count",] == 2
        assert told["longcat_inter_token_seconds_count",] == 8  # six tokens, the first two at once
        assert told["longcat_request_seconds_count",] == 1
        assert told["longcat_sequences_waiting",] == 2
        assert [told["longcat_pages", s] for s in ("free", "cached", "used")] == [5, 3, 2]
        assert told["longcat_drafts_judged_total", "1"] == 4
        assert told["longcat_drafts_accepted_total", "2"] == 1
        assert told["longcat_preemptions_total",] == 1
        assert told["longcat_engine_up",] == 1

    ask(scenario)


def test_health_and_metrics_tell_of_the_process_that_computes_prompts(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        names = [n for n in EngineStats.__dataclass_fields__ if not n.endswith("_at")]
        counts: Any = dict.fromkeys(names, 0) | {"drafted_at": (), "accepted_at": ()}
        for alive, told in ((None, None), (True, "up"), (False, "down")):
            server.engine.stats = EngineStats(**counts | {"prefill_alive": alive})
            answer = (await server.client.get("/health")).json()
            Health.model_validate(answer, strict=True)
            assert answer.get("prefill") == told
            metrics = (await server.client.get("/metrics")).text
            assert ("longcat_prefill_up" in metrics) == (alive is not None)
        stats = (await server.client.get("/stats")).json()
        assert stats["engine"]["prefill_alive"] is False

    ask(scenario)


def test_the_schema_holds_every_body_and_status(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        key = {"Authorization": "Bearer k"}
        schema = (await server.client.get("/openapi.json", headers=key)).json()
        models = schema["components"]["schemas"]
        for path, body in (
            ("/v1/completions", "CompletionRequest"),
            ("/v1/chat/completions", "ChatRequest"),
            ("/tokenize", "TokenizeRequest"),
            ("/detokenize", "DetokenizeRequest"),
        ):
            route = schema["paths"][path]["post"]
            content = route["requestBody"]["content"]["application/json"]
            assert content["schema"]["$ref"] == f"#/components/schemas/{body}"
            assert models[body]["additionalProperties"] is False
            assert models[body]["properties"]["model"]["enum"][0] == "tiny"
            assert {"200", "400", "401", "404", "413", "503"} <= set(route["responses"])
            assert "422" not in route["responses"]
        events = schema["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"]
        assert set(events) == {"application/json", "text/event-stream"}
        assert events["text/event-stream"]["schema"]["required"] == ["data"]
        assert schema["security"] == [{"key": []}]

    ask(scenario, api_keys=("k",))


def test_the_log_has_a_line_per_request_with_its_id_and_user(
    ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(server: Any) -> None:
        answer = await server.post("/v1/completions", BODY | {"user": "some\nbody"})
        name = answer.headers["x-request-id"]
        [line] = [r.getMessage() for r in caplog.records if r.name == "longcat.serve.access"]
        assert line.startswith("POST /v1/completions 200 ")
        assert line.endswith(f"id={name} user='some\\nbody'")
        caplog.clear()
        chat = {"messages": [{"role": "user", "content": "x"}], "safety_identifier": "a1b2"}
        await server.post("/v1/chat/completions", {"model": "tiny"} | chat)
        [line] = [r.getMessage() for r in caplog.records if r.name == "longcat.serve.access"]
        assert line.endswith("user='a1b2'")

    with caplog.at_level(logging.INFO, "longcat.serve.access"):
        ask(scenario)
