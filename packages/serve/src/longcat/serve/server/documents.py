"""What the published schema says of a route: its body, its answers, every status it may have."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from longcat.serve.server.errors import ErrorAnswer
from longcat.serve.server.fields import Strict

_REFERENCE = "#/components/schemas/{model}"
# Of one event, as readers of OpenAPI 3.1 take the schema of a stream.
_EVENT = {
    "type": "object",
    "description": "One event: a chunk as JSON, or [DONE] at the end.",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}
_EVENTS = {"schema": _EVENT, "example": "data: {...}\n\ndata: [DONE]\n\n"}
_WHY = {
    400: "The request is at fault; `param` names the field.",
    401: "No key, or one that is not known.",
    404: "There is no such model.",
    413: "The body is too large.",
    415: "The body is compressed.",
    429: "The server is full; Retry-After says when to come again.",
    500: "The server made a mistake.",
    503: "The engine is not running, or the server is shutting down.",
    504: "The request took too long.",
}
_OF_BODIES = (400, 401, 404, 413, 415, 500, 503)
_OF_GENERATION = (*_OF_BODIES, 429, 504)


def described(
    body: type[Strict], answer: type[BaseModel], *, stream: bool = False
) -> dict[str, Any]:
    """Arguments of `router.post` for a route that reads `body` itself."""
    content: dict[str, Any] = {}
    if stream:
        content["text/event-stream"] = _EVENTS
    responses: dict[int | str, Any] = {200: {"model": answer, "content": content}}
    for status in _OF_GENERATION if stream else _OF_BODIES:
        responses[status] = {"model": ErrorAnswer, "description": _WHY[status]}
    schema = {"$ref": _REFERENCE.format(model=body.__name__)}
    request = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"responses": responses, "openapi_extra": {"requestBody": request}}


def asked(answer: type[BaseModel], *statuses: int) -> dict[str, Any]:
    """Arguments of `router.get` for a route without a body."""
    responses: dict[int | str, Any] = {200: {"model": answer}}
    for status in (401, 500, *statuses):
        responses[status] = {"model": ErrorAnswer, "description": _WHY[status]}
    return {"responses": responses}


def publish(app: FastAPI, bodies: list[type[Strict]], *, model: str, keys: bool) -> None:
    """Make `app.openapi()` hold the bodies that routes read themselves.

    model: the only name that requests may give. keys: whether one is needed.
    """

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            _, definitions = models_json_schema(
                [(body, "validation") for body in bodies], ref_template=_REFERENCE
            )
            components = made.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            schemas.update(definitions["$defs"])
            for body in bodies:
                name = schemas[body.__name__]["properties"]["model"]
                name["enum"] = [model, None] if "anyOf" in name else [model]
            if keys:
                components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                made["security"] = [{"key": []}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]
