"""Claims about HTTP itself: what probes, browsers and proxies send before any field is read."""

import gzip
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

Ask = Callable[..., Any]
BODY: dict[str, Any] = {"model": "tiny", "prompt": "ab", "max_tokens": 8}
READ = ["/", "/health", "/metrics", "/stats", "/v1/models", "/v1/models/tiny", "/tokenizer_info"]


@pytest.mark.parametrize("path", [*READ, "/openapi.json"])
def test_what_can_be_read_can_be_probed(ask: Ask, path: str) -> None:
    async def scenario(server: Any) -> None:
        whole, head = await server.client.get(path), await server.client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"] == whole.headers["content-type"]
        if path != "/metrics":  # which counts these very requests
            assert head.headers["content-length"] == whole.headers["content-length"]

    ask(scenario)


def test_a_probe_is_told_no_more_and_no_less_than_a_reader(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        probe = server.client.head
        assert (await probe("/v1/models")).status_code == 401
        key = {"Authorization": "Bearer k"}
        assert (await probe("/v1/models/other", headers=key)).status_code == 404
        server.engine.state = "starting"
        down = await probe("/health")
        assert (down.status_code, down.headers["retry-after"]) == (503, "1")
        refused = await probe("/v1/completions", headers=key)
        assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
        answer = await server.client.post("/health")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")

    ask(scenario, api_keys=("k",))


def test_a_probe_is_logged_as_one_and_counted_with_its_path(
    ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(server: Any) -> None:
        await server.client.head("/health")
        [line] = [r.getMessage() for r in caplog.records if r.name == "longcat.serve.access"]
        assert line.startswith("HEAD /health 200 ")
        families = text_string_to_metric_families((await server.client.get("/metrics")).text)
        [counts] = [f for f in families if f.name == "longcat_requests"]
        assert {"path": "/health", "status": "200"} in [s.labels for s in counts.samples]

    with caplog.at_level(logging.INFO, "longcat.serve.access"):
        ask(scenario)


def test_a_path_with_line_ends_cannot_forge_a_line_of_the_log(
    ask: Ask, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(server: Any) -> None:
        await server.client.get("/x%0D%0AGET /v1/models 200")
        [line] = [r.getMessage() for r in caplog.records if r.name == "longcat.serve.access"]
        assert line.startswith("GET /x%0D%0AGET%20/v1/models%20200 404 ")

    with caplog.at_level(logging.INFO, "longcat.serve.access"):
        ask(scenario)


def test_a_model_whose_name_has_a_slash_is_found_by_it(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        told = (await server.client.get("/v1/models")).json()["data"][0]
        for path in ("/v1/models/lab/tiny", "/v1/models/lab%2Ftiny"):
            assert (await server.client.get(path)).json() == told
        answer = await server.client.get("/v1/models/lab/other")
        assert answer.json()["error"]["code"] == "model_not_found"
        listed = await server.client.get("/v1/models/", follow_redirects=True)
        assert listed.json()["data"] == [told]

    ask(scenario, model_name="lab/tiny")


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "x-unheard-of"])
def test_a_body_that_is_compressed_is_refused_by_the_name_of_its_coding(
    ask: Ask, coding: str
) -> None:
    async def scenario(server: Any) -> None:
        body, headers = gzip.compress(json.dumps(BODY).encode()), {"Content-Encoding": coding}
        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            answer = await server.client.post(path, content=body, headers=headers)
            assert answer.status_code == 415
            error = answer.json()["error"]
            assert error["message"] == (
                f"the body is encoded as {coding!r}; this server reads it only as it is: "
                "leave out Content-Encoding"
            )
        plain = await server.post("/v1/completions", BODY, headers={"Content-Encoding": "identity"})
        assert plain.status_code == 200

    ask(scenario)


def test_a_body_may_come_in_chunks_and_as_any_type(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        async def pieces() -> Any:
            for byte in json.dumps(BODY).encode():
                yield bytes([byte])

        for kind in ("application/json; charset=utf-8", "text/plain", ""):
            headers = {"Content-Type": kind, "Accept": "text/event-stream"}
            answer = await server.client.post("/v1/completions", content=pieces(), headers=headers)
            assert answer.json()["choices"][0]["text"] == "hello"

    ask(scenario)


# What OpenAI's client for JavaScript adds to each request in a browser.
ADDED = ["x-stainless-arch", "x-stainless-lang", "x-stainless-retry-count", "x-stainless-timeout"]


def test_a_page_may_send_the_headers_that_its_client_adds(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        asked = ", ".join(["authorization", "content-type", "openai-organization", *ADDED])
        preflight = {
            "Origin": "https://page.test",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": asked,
        }
        answer = await server.client.options("/v1/chat/completions", headers=preflight)
        assert answer.status_code == 200, answer.text
        assert answer.headers["access-control-allow-origin"] == "https://page.test"
        assert answer.headers["access-control-allow-headers"] == asked
        other = preflight | {"Origin": "https://elsewhere.test"}
        answer = await server.client.options("/v1/chat/completions", headers=other)
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers

    ask(scenario, cors_origins=("https://page.test",), api_keys=("k",))
