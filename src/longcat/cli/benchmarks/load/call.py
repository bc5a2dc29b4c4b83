"""One streamed completion: what is sent, and when what comes back. HTTP from the standard library.

The clock of a call starts when it should have been sent, so that a sender who is late does not hide
how long the server keeps people waiting.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server with the OpenAI API: where it is, the key it wants, the model to ask for.

    seconds  most to wait without a byte

    Raises ValueError for an address that is none.
    """

    url: str
    key: str | None = None
    model: str = ""
    seconds: float = 120.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")) or not urlsplit(self.url).hostname:
            raise ValueError(
                f"bench serve: --url must begin with http:// or https:// and name a host, "
                f"got {self.url!r}"
            )

    def open(self, method: str, path: str, body: dict[str, Any] | None = None) -> HTTPResponse:
        """Send a request -> the answer, its body unread."""
        parts = urlsplit(self.url)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=self.seconds)
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        base = parts.path.rstrip("/").removesuffix("/v1")
        data = None if body is None else json.dumps(body).encode()
        connection.request(method, base + path, data, headers)
        return connection.getresponse()

    def first_model(self) -> str:
        """The model that the server lists first.

        Raises ValueError when no server answers, or it answers something else.
        """
        try:
            with self.open("GET", "/v1/models") as answer:
                text = answer.read()
        except (OSError, HTTPException) as error:
            raise ValueError(f"bench serve: no server answers at {self.url}: {error}") from None
        if answer.status in (401, 403):
            raise ValueError(f"bench serve: {self.url} wants another key; give --api-key")
        try:
            models: list[str] = [one["id"] for one in json.loads(text)["data"]]
            return models[0]
        except (ValueError, KeyError, TypeError, IndexError):
            raise ValueError(
                f"bench serve: {self.url} must list a model at /v1/models, "
                f"got status {answer.status}"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one call; seconds from when it should have been sent.

    error    what went wrong, in a word or two, or None
    first    until its first text, None without any. total: until its end
    gaps     between the events that carried text
    prompt_tokens, tokens  as the server counts them; 0 where it does not say
    """

    error: str | None
    total: float
    first: float | None = None
    gaps: tuple[float, ...] = ()
    prompt_tokens: int = 0
    tokens: int = 0

    @property
    def per_token(self) -> float | None:
        """Seconds per token after the first one; None for fewer than two tokens."""
        if self.first is None or self.tokens < 2:
            return None
        return (self.total - self.first) / (self.tokens - 1)


def call(target: Target, body: dict[str, Any], due: float) -> Outcome:
    """Stream one completion; `due` is when it should have been sent (time.perf_counter)."""
    times: list[float] = []
    usage: dict[str, int] = {}
    error = None
    try:
        with target.open("POST", "/v1/completions", body) as answer:
            if answer.status != 200:
                answer.read()
                error = f"status {answer.status}"
            else:
                error = _follow(answer, due, times, usage)
    except TimeoutError:
        error = "timed out"
    except (OSError, HTTPException) as broken:
        error = f"connection: {type(broken).__name__}"
    return Outcome(
        error=error,
        total=time.perf_counter() - due,
        first=times[0] if times else None,
        gaps=tuple(after - before for before, after in itertools.pairwise(times)),
        prompt_tokens=usage.get("prompt_tokens", 0),
        tokens=usage.get("completion_tokens", 0),
    )


def _follow(
    answer: HTTPResponse, due: float, times: list[float], usage: dict[str, int]
) -> str | None:
    """Note when text comes and what the server counted -> what went wrong."""
    finished = False
    for event in _events(answer):
        if event == "[DONE]":
            return None if finished else "ended without a reason"
        try:
            document = json.loads(event)
        except ValueError:
            return "no JSON in an event"
        if "error" in document:
            return "error in the stream"
        for choice in document.get("choices", []):
            finished = finished or choice.get("finish_reason") is not None
            if choice.get("text"):
                times.append(time.perf_counter() - due)
        usage.update(document.get("usage") or {})
    return "stream broke off"


def _events(answer: HTTPResponse) -> Iterator[str]:
    while line := answer.readline():
        text = line.decode("utf-8", "replace").strip()
        if text.startswith("data:"):
            yield text.removeprefix("data:").strip()
