"""What happens to every request around its endpoint: key, place, size, name, log, count."""

import hmac
import logging
import time
import uuid
from collections.abc import Sequence
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longcat.serve.server.config import ServerConfig
from longcat.serve.server.errors import ApiError
from longcat.serve.server.gate import Gate
from longcat.serve.server.metrics import Metrics

log = logging.getLogger("longcat.serve.access")

# Open to everybody: whether the server lives is no secret, and a page must load before it can
# ask for a key.
OPEN = {"/", "/health"}
# Here places are limited. Under overload a refusal must cost next to nothing, so the door is looked
# at before the framework is: what passes may still find it closed when it has been read.
LIMITED = {"/v1/completions", "/v1/chat/completions"}


class Doorkeeper:
    """Wraps an ASGI app.

    Refuses a request without a known key (401), one for which there is no place (429, 503), and a
    body that is too large (413); gives every answer an `X-Request-Id`; logs and counts it. HEAD is
    answered as GET is, without the body, so that a load balancer may probe with it.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: Metrics, gate: Gate) -> None:
        self._app = app
        self._gate = gate
        self._config = config
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = uuid.uuid4().hex
        started = time.monotonic()
        method = scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}
        scope.setdefault("state", {})
        status = 0

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", name.encode())]
                message = {**message, "headers": headers}
            elif method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._admitted(scope, receive, named)
        finally:
            self._told(scope, method, name, status, time.monotonic() - started)

    async def _admitted(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        limit = self._config.max_body_bytes
        too_large = ApiError(
            413, f"the body is larger than the {limit} bytes that this server reads"
        )
        try:
            if scope["path"] not in OPEN:
                check_key(headers.get(b"authorization", b""), self._config.api_keys)
            if scope["path"] in LIMITED and scope["method"] == "POST":
                self._gate.check()
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > limit:
                raise too_large
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        read = 0

        async def measured() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > limit:
                    raise too_large
            return message

        await self._app(scope, measured, send)

    def _told(self, scope: Scope, method: str, name: str, status: int, seconds: float) -> None:
        known = scope["path"] if scope["path"] in LIMITED else "other"
        path = getattr(scope.get("route"), "path", known)
        self._metrics.requests.labels(path, str(status)).inc()
        user = scope["state"].get("user")
        log.info(
            "%s %s %d %.3fs id=%s%s",
            method,
            quote(scope["path"]),  # it comes decoded, and might begin a line of its own
            status,
            seconds,
            name,
            f" user={user!r}" if user else "",
        )


def check_key(authorization: bytes, keys: Sequence[str]) -> None:
    """Raise ApiError (401) unless the header holds one of the keys, or no key is needed.

    Every key is compared, each in a time that does not depend on where it differs.
    """
    if not keys:
        return
    scheme, _, given = authorization.partition(b" ")
    known = [hmac.compare_digest(given.strip(), key.encode()) for key in keys]
    if scheme.lower() != b"bearer" or not any(known):
        raise ApiError(
            401,
            "a key is needed: send the header `Authorization: Bearer KEY` with a known one",
            code="invalid_api_key",
        )
