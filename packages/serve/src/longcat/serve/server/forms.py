"""The form that a request wants of the text: what the engine is told, checked beforehand."""

import asyncio
import json

from longcat.serve.constraint import ConstraintSpec
from longcat.serve.server.chat_request import ResponseFormat
from longcat.serve.server.errors import ApiError
from longcat.serve.server.sampling_fields import StructuredOutputs
from longcat.serve.server.service import Service


async def constraint_of(
    service: Service,
    structured: StructuredOutputs | None,
    response_format: ResponseFormat | None = None,
) -> ConstraintSpec | None:
    """What these fields ask for, or None.

    Raises ApiError (400) for a schema or expression that cannot be honoured, or where structured
    output is not installed.
    """
    spec, param = _spec(structured, response_format)
    if spec is not None:
        await checked(service, spec, param)
    return spec


async def checked(service: Service, spec: ConstraintSpec, param: str) -> None:
    """Raise ApiError (400) unless the engine can hold a text to this form."""
    if service.constraints is None:
        raise ApiError(
            400,
            f"{param}: this server has no structured output; install longcat-serve[structured]",
            param=param,
            code="unsupported_parameter",
        )
    try:
        await asyncio.to_thread(service.constraints, spec)
    except ValueError as error:
        raise ApiError(400, f"{param}: {error}", param=param, code="invalid_value") from None


def _spec(
    structured: StructuredOutputs | None, response_format: ResponseFormat | None
) -> tuple[ConstraintSpec | None, str]:
    if structured is not None:
        if structured.json_schema is not None:
            schema = json.dumps(structured.json_schema)
            return ConstraintSpec(json_schema=schema), "structured_outputs.json"
        if structured.regex is not None:
            return ConstraintSpec(regex=structured.regex), "structured_outputs.regex"
        if structured.grammar is not None:
            return ConstraintSpec(grammar=structured.grammar), "structured_outputs.grammar"
        return ConstraintSpec(choice=tuple(structured.choice or ())), "structured_outputs.choice"
    if response_format is None or response_format.type == "text":
        return None, ""
    if response_format.json_schema is None:
        return ConstraintSpec(json_object=True), "response_format"
    schema = json.dumps(response_format.json_schema.schema_)
    return ConstraintSpec(json_schema=schema), "response_format.json_schema.schema"
