"""How a request's body is read: strictly, and with an answer that names the field at fault.

true is no number here, 1.0 is no integer, NaN is no JSON, and an unknown field is an error. A field
of the OpenAI API that this server does not honour is declared as one of the types below: null or
its neutral value pass, anything else is refused and never ignored.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longcat.serve.server.errors import ApiError


class Strict(BaseModel):
    """A body, or an object in one."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


NotHonoured = Annotated[None, Field(description="Known and not honoured: null, or left out.")]
NeverTrue = Annotated[
    Literal[False] | None, Field(description="Known and not honoured: false or null.")
]
_EMPTY = Field(description="Known and not honoured: empty or null.")
NoText = Annotated[Annotated[str, Field(max_length=0)] | None, _EMPTY]
NoList = Annotated[Annotated[list[Any], Field(max_length=0)] | None, _EMPTY]
NoObject = Annotated[Annotated[dict[str, Any], Field(max_length=0)] | None, _EMPTY]

Text = Annotated[str, Field(min_length=1)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Body = TypeVar("Body", bound=Strict)

# Parts of a pydantic location that name a member of a union rather than a field.
_MEMBERS = {"str", "int", "float", "bool", "list", "dict", "none"}


def parse(model: type[Body], body: bytes) -> Body:
    """The body as `model`.

    Raises ApiError (400) that names the field and says what was expected.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error.errors(include_url=False), body) from None


def _refusal(errors: Sequence[Any], body: bytes) -> ApiError:
    """What to tell of the first fault; of a union's, the fault that lies deepest."""
    first = errors[0]
    same = [e for e in errors if e["loc"][:1] == first["loc"][:1]]
    error = max(same, key=lambda e: len(_path(e["loc"])))
    path = _path(error["loc"])
    param = ".".join(map(str, path)) or None
    if error["type"] == "json_invalid":
        return _no_text(body) or ApiError(
            400, f"the body is not JSON: {error['ctx']['error']}", code="malformed_json"
        )
    if error["type"] == "missing":
        return ApiError(400, f"{param} is missing", param=param, code="missing_parameter")
    if error["type"] == "extra_forbidden":
        return ApiError(
            400, f"{param} is not a field of this request", param=param, code="unknown_parameter"
        )
    if _is_unserved(error):
        return ApiError(
            400,
            f"{param} is not supported by this server; leave it out",
            param=param,
            code="unsupported_parameter",
        )
    said = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and not path:  # a rule over several fields names them
        return ApiError(400, said, param=said.split()[0], code="invalid_value")
    deepest = [e for e in same if _path(e["loc"]) == path and e["type"] != "value_error"]
    # Where the type is one of those that may stand here, only what is wrong with it matters.
    deepest = [e for e in deepest if not e["type"].endswith("_type")] or deepest
    expected = " or ".join(dict.fromkeys(e["msg"] for e in deepest))
    told = f"{expected}; got {_shown(error['input'])}" if expected else said
    return ApiError(400, f"{param or 'the body'}: {told}", param=param, code="invalid_value")


def _path(loc: Sequence[int | str]) -> list[int | str]:
    """The fields on the way to a fault; a fault in a key is one of the object."""
    loc = loc[:-2] if loc[-1:] == ("[key]",) else loc
    members = _MEMBERS | {model.__name__ for model in Strict.__subclasses__()}
    return [
        part
        for part in loc
        if isinstance(part, int) or (part.isidentifier() and part not in members)
    ]


def _is_unserved(error: Any) -> bool:
    """Whether it says that something was asked for which is not honoured."""
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"]) == "False"
    return str(error["type"]) == "none_required" or error.get("ctx", {}).get("max_length") == 0


def _no_text(body: bytes) -> ApiError | None:
    """What to tell of a body whose strings are no text: bytes that are no UTF-8, or half a pair of
    surrogates; None for another one.
    """
    try:
        path = next(_surrogates(json.loads(body.decode("utf-8", "surrogateescape"))), None)
    except (ValueError, RecursionError):
        return None
    if path is None:
        return None
    param = ".".join(map(str, path)) or None
    return ApiError(
        400, f"{param or 'the body'} is no UTF-8 text", param=param, code="malformed_json"
    )


def _surrogates(said: Any) -> Iterator[tuple[int | str, ...]]:
    """Where in a document there are strings with surrogates."""
    if isinstance(said, str) and any("\ud800" <= letter <= "\udfff" for letter in said):
        yield ()
    members = enumerate(said) if isinstance(said, list) else ()
    for name, value in said.items() if isinstance(said, dict) else members:
        yield from ((name, *path) for path in _surrogates(value))


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    constants = {None: "null", True: "true", False: "false"}
    text = constants[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
