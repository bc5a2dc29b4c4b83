"""What prefill tells decode, and the bytes that say it: a JSON header, then numbers as they are."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from longcat.serve.request import Fault, PromptToken, Token


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Latents [T, C+R] of places first .. first+T-1 of a prompt, as one attention stored them."""

    request_id: str
    attention: int
    first: int
    latents: Tensor


@dataclass(frozen=True, kw_only=True)
class Handover:
    """All latents are sent; this is what follows.

    token     the first one of the text
    drafts    what the head proposes to follow it, and draft_q [g,V] what it was drawn from; they
              stand for the prompt's last hidden state, which the head has read on that side
    prompt_logprobs  where they were asked for
    """

    request_id: str
    token: Token
    drafts: tuple[int, ...] = ()
    draft_q: Tensor | None = None
    prompt_logprobs: tuple[PromptToken, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Failed:
    """Nothing more will come of this request; one sentence says why, and `fault` is `Delta`'s."""

    request_id: str
    error: str
    fault: Fault


Message = Piece | Handover | Failed

_KINDS: dict[str, type[Piece] | type[Handover] | type[Failed]] = {
    "piece": Piece,
    "handover": Handover,
    "failed": Failed,
}


def encode(message: Message) -> tuple[bytes, bytes]:
    """(header, numbers) of a message."""
    fields: dict[str, Any] = dict(vars(message))
    numbers = b""
    for name in ("latents", "draft_q"):
        tensor: Tensor | None = fields.pop(name, None)
        if tensor is not None:
            fields[name] = {"dtype": str(tensor.dtype), "shape": list(tensor.shape)}
            numbers = _bytes(tensor)
    if isinstance(message, Handover):
        fields["token"] = asdict(message.token)
        fields["prompt_logprobs"] = [asdict(token) for token in message.prompt_logprobs]
    kind = next(name for name, of in _KINDS.items() if isinstance(message, of))
    return json.dumps({"kind": kind, **fields}).encode(), numbers


def decode(header: bytes, numbers: bytes | bytearray) -> Message:
    """The message of which `encode` made these bytes.

    Raises ValueError for bytes of which it made none.
    """
    try:
        fields: dict[str, Any] = json.loads(header)
        kind = _KINDS[fields.pop("kind")]
        for name in ("latents", "draft_q"):
            if fields.get(name) is not None:
                fields[name] = _tensor(fields[name], numbers)
        if kind is Handover:
            fields["token"] = Token(**_tuples(fields["token"]))
            fields["drafts"] = tuple(fields["drafts"])
            fields["prompt_logprobs"] = tuple(
                PromptToken(**_tuples(token)) for token in fields["prompt_logprobs"]
            )
        return kind(**fields)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"disaggregation: a message that prefill never sends: {error}") from None


def _tuples(token: dict[str, Any]) -> dict[str, Any]:
    best = tuple((int(index), float(value)) for index, value in token["top_logprobs"])
    return {**token, "top_logprobs": best}


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _tensor(layout: dict[str, Any], numbers: bytes | bytearray) -> Tensor:
    dtype = getattr(torch, layout["dtype"].removeprefix("torch."))
    shape: list[int] = layout["shape"]
    if math.prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(f"{len(numbers)} bytes are no {shape} of {dtype}")
    if not numbers:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(numbers), dtype=dtype).view(shape)
