"""A server with the OpenAI API answers: ours, or another. HTTP from the standard library."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from typing import Any

from longcat.chat import CallDelta, TextDelta
from longcat.cli.talk.partner import Piece, Turn, written
from longcat.cli.talk.session import Session

_SECONDS = 60.0  # without a byte


class RemotePartner:
    """A model behind a server; see `longcat.cli.talk.partner.Partner`.

    Raises ValueError when no server answers at `url`, or it wants another key.
    """

    drafts = False

    def __init__(self, url: str, key: str | None = None, model: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"chat: --url must begin with http:// or https://, got {url!r}")
        self._base = url.rstrip("/").removesuffix("/v1")
        self._key = key
        with self._open("/v1/models") as answer:
            models = [one["id"] for one in _json(answer).get("data", [])]
        if model is not None and model not in models:
            raise ValueError(f"chat: {url} has no model {model!r}; it has {', '.join(models)}")
        if not models:
            raise ValueError(f"chat: {url} serves no model")
        self.name = model or models[0]
        self.chats = True  # until the server says otherwise
        self.turn = Turn()
        self.finished = False

    def reply(self, session: Session) -> Iterator[Piece]:
        """The reply, as it comes."""
        try:
            answer = self._ask(session)
        except _NoChat:
            self.chats = False
            answer = self._ask(session)
        return self._pieces(answer)

    def _ask(self, session: Session) -> HTTPResponse:
        settings = session.settings
        body: dict[str, Any] = {
            "model": self.name,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if settings.seed is not None:
            body["seed"] = settings.seed
        if settings.max_tokens is not None:
            body["max_tokens"] = settings.max_tokens
        if not self.chats:
            return self._open("/v1/completions", body | {"prompt": written(session)})
        body["messages"] = session.messages
        if session.tools:
            body["tools"] = session.tools
        return self._open("/v1/chat/completions", body)

    def _pieces(self, answer: HTTPResponse) -> Iterator[Piece]:
        started = time.monotonic()
        self.turn, self.finished = Turn(), False
        usage: dict[str, Any] = {}
        try:
            with answer:
                for chunk in _events(answer):
                    if "error" in chunk:
                        said = chunk["error"].get("message")
                        raise ValueError(f"chat: the server broke off: {said}")
                    usage = chunk.get("usage") or usage
                    for choice in chunk.get("choices", []):
                        self.finished |= choice.get("finish_reason") in ("stop", "tool_calls")
                        yield from _of_choice(choice)
        finally:  # a reply that is stopped has taken its time as well
            self.turn = _took(usage, time.monotonic() - started)

    def _open(self, path: str, body: dict[str, Any] | None = None) -> HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._base + path, data, headers)
        try:
            answer: HTTPResponse = urllib.request.urlopen(request, timeout=_SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(error) from None
        except urllib.error.URLError as error:
            raise ValueError(f"chat: no server answers at {self._base}: {error.reason}") from None
        except (HTTPException, OSError) as error:
            raise ValueError(f"chat: no server answers at {self._base}: {error}") from None
        return answer


class _NoChat(ValueError):
    """The model has no chat format."""


def _refusal(error: urllib.error.HTTPError) -> ValueError:
    try:
        told = json.loads(error.read())["error"]
        message, code = str(told["message"]), told.get("code")
    except (ValueError, KeyError, TypeError):
        message, code = error.reason, None
    kind = _NoChat if code == "no_chat_template" else ValueError
    return kind(f"chat: the server refuses ({error.code}): {message}")


def _json(answer: HTTPResponse) -> dict[str, Any]:
    try:
        document = json.load(answer)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ValueError("chat: this server does not speak the OpenAI API") from None
    return document


def _events(answer: HTTPResponse) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events, which has an end of its own.

    That the connection was lost is no error to http.client where it reads by lines.
    """
    ended = False
    try:
        for line in answer:
            if line.startswith(b"data:"):
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                chunk = json.loads(data)
                ended |= any(one.get("finish_reason") for one in chunk.get("choices", []))
                yield chunk
    except (HTTPException, OSError, ValueError) as error:
        raise ValueError(f"chat: the stream broke off: {error}") from None
    if not ended:
        raise ValueError("chat: the stream broke off: the server closed it before its end")


def _took(usage: dict[str, Any], seconds: float) -> Turn:
    details = usage.get("completion_tokens_details") or {}
    accepted = details.get("accepted_prediction_tokens")
    refused = details.get("rejected_prediction_tokens")
    drafted = None if accepted is None or refused is None else accepted + refused
    tokens = usage.get("completion_tokens")
    return Turn(tokens=tokens, seconds=seconds, drafted=drafted, accepted=accepted)


def _of_choice(choice: dict[str, Any]) -> Iterator[Piece]:
    delta = choice.get("delta") or {"content": choice.get("text")}
    if delta.get("content"):
        yield Piece(delta=TextDelta(text=delta["content"]))
    for call in delta.get("tool_calls") or []:
        function = call.get("function") or {}
        yield Piece(
            delta=CallDelta(
                index=call["index"],
                name=function.get("name"),
                arguments=function.get("arguments") or "",
            )
        )
