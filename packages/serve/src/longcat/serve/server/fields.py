"""How a request's body is read: strictly, and with an answer that names the field at fault.

true is no number here, 1.0 is no integer, NaN is no JSON, and an unknown field is an error. A field
of the OpenAI API that this server does not honour is declared as `NotHonoured`: null or its neutral
value pass, anything else is refused and never ignored.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longcat.serve.server.errors import ApiError


class Strict(BaseModel):
    """A body, or an object in one."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Unserved:
    """Marks a field that is known and not honoured."""


_UNSERVED = Unserved()
NotHonoured = Annotated[
    None, _UNSERVED, Field(description="Known and not honoured: null, or left out.")
]
NeverTrue = Annotated[
    Literal[False] | None, _UNSERVED, Field(description="Known and not honoured: false or null.")
]

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
        raise _refusal(model, error.errors(include_url=False)) from None


def _refusal(model: type[Strict], errors: Sequence[Any]) -> ApiError:
    """What to tell of the first fault; of a union's, the fault that lies deepest."""
    first = errors[0]
    same = [e for e in errors if e["loc"][:1] == first["loc"][:1]]
    error = max(same, key=lambda e: len(_path(e["loc"])))
    path = _path(error["loc"])
    param = ".".join(map(str, path)) or None
    if error["type"] == "json_invalid":
        return ApiError(
            400, f"the body is not JSON: {error['ctx']['error']}", code="malformed_json"
        )
    if error["type"] == "extra_forbidden":
        return ApiError(
            400, f"{param} is not a field of this request", param=param, code="unknown_parameter"
        )
    if len(path) == 1 and _is_unserved(model, str(path[0])):
        return ApiError(
            400,
            f"{param} is not supported by this server; leave it out",
            param=param,
            code="unsupported_parameter",
        )
    said = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" and not path:  # a rule over several fields names them
        return ApiError(400, said, param=said.split()[0], code="invalid_value")
    deepest = [e["msg"] for e in same if _path(e["loc"]) == path and e["type"] != "value_error"]
    expected = " or ".join(dict.fromkeys(deepest))
    what = param or "the body"
    return ApiError(
        400,
        f"{what}: {expected or said}; got {_shown(error['input'])}",
        param=param,
        code="missing_parameter" if error["type"] == "missing" else "invalid_value",
    )


def _path(loc: Sequence[int | str]) -> list[int | str]:
    """The fields on the way to a fault; a fault in a key is one of the object."""
    loc = loc[:-2] if loc[-1:] == ("[key]",) else loc
    return [
        part
        for part in loc
        if isinstance(part, int) or (part.isidentifier() and part not in _MEMBERS)
    ]


def _is_unserved(model: type[Strict], name: str) -> bool:
    field = model.model_fields.get(name)
    return field is not None and any(isinstance(m, Unserved) for m in field.metadata)


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    constants = {None: "null", True: "true", False: "false"}
    text = constants[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
