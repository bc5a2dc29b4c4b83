"""What went wrong, in the shape that clients of the OpenAI API expect.

    {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

`param` names the field at fault. Every answer of the server that is no success has this shape,
those of the framework included: an unknown path, a method that is not allowed, a mistake of ours.
"""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

LONGEST_RETRY = 60  # seconds

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "method_not_allowed_error",
    413: "request_too_large_error",
    415: "unsupported_media_type_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ErrorDetail(BaseModel):
    """What a failed request is told."""

    model_config = ConfigDict(extra="forbid")

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """The body of every answer that is no success."""

    model_config = ConfigDict(extra="forbid")

    error: ErrorDetail


class ApiError(Exception):
    """A request that cannot be served.

    status       the HTTP status
    message      one sentence: what was expected, what came, what to do
    param        the field of the request at fault, `messages.0.content` for a nested one
    code         a word for programs
    retry_after  seconds after which trying again makes sense
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def document(self) -> dict[str, Any]:
        """The body of the answer, and the data of an event in a stream that has begun."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        detail = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": detail}

    @property
    def headers(self) -> dict[str, str]:
        """Retry-After where it makes sense, and how to authenticate with a 401."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.document, self.status, self.headers)


def shutting_down(message: str) -> ApiError:
    """What is told while the server stops, and afterwards."""
    return ApiError(503, message, code="shutting_down", retry_after=LONGEST_RETRY)


def install(app: FastAPI) -> None:
    """Give every failure of `app` the shape of this module."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> JSONResponse:
        what = {404: "there is nothing at", 405: f"{request.method} is not allowed at"}
        told = what.get(error.status_code)
        message = f"{told} {request.url.path}; see /openapi.json" if told else str(error.detail)
        answer = ApiError(error.status_code, message).response()
        answer.headers.update(error.headers or {})
        if answer.headers.get("Allow") == "GET":
            answer.headers["Allow"] = "GET, HEAD"
        return answer

    @app.exception_handler(Exception)
    async def mistake(_: Request, error: Exception) -> JSONResponse:
        # The traceback is logged by whoever runs the application: starlette raises it again.
        return ApiError(500, "the server made a mistake; its log says which").response()
