"""Which tensors a checkpoint holds: the map between our `state_dict` and the two forms on disk.

In memory the N experts of a layer are stacked (`experts.gate_up_proj` [N, 2F, D] with the gate rows
first, `experts.down_proj` [N, D, F]); on disk every expert has three matrices of its own:

    hub             experts.{e}.{gate,up}_proj.weight [F, D], .down_proj.weight [D, F], e < N
    transformers5   the same, and zeros for gate and up of e = N .. N+Z-1 (the identity experts),
                    because transformers 5.x allocates N+Z rows of gate_up_proj and never uses
                    the last Z

All other names are equal on disk and in memory. Both forms carry `model.mtp.*`, with a copy of the
embedding; transformers ignores them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch.overrides import TorchFunctionMode

from longcat.flash.config import FlashConfig
from longcat.flash.model import FlashModel

Format = Literal["hub", "transformers5"]
FORMATS: tuple[Format, ...] = get_args(Format)
PARAMETER_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

MTP_PREFIX = "model.mtp."
MAIN_EMBEDDING = "model.embed_tokens.weight"
MTP_EMBEDDING = "model.mtp.embed_tokens.weight"

_STACKED = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<kind>gate_up|down)_proj")
_UNUSED_ROW = re.compile(
    r".*\.mlp\.experts\.(?P<expert>\d+)\.(?:gate|up)_proj\.weight(?:_scale_inv)?"
)
_ROUTER = (".router.classifier.weight", ".router.e_score_correction_bias")


@dataclass(frozen=True, kw_only=True)
class DiskTensor:
    """One tensor of a checkpoint file and where its values live in memory.

    Attributes:
        name: its name on disk.
        shape: its shape on disk.
        dtype: the type that it is written in.
        source: the `state_dict` entry that holds it; None for the zeros of an identity expert.
        part: `state[source][part]` is the tensor.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str | None
    part: tuple[int | slice, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def stored_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    """The type of tensor `name` in a checkpoint of `dtype`: a router's is float32 or wider."""
    if name.endswith(_ROUTER):
        return torch.promote_types(dtype, torch.float32)
    return dtype


def disk_tensors(
    state: Mapping[str, torch.Tensor],
    *,
    zero_experts: int,
    format: Format,
    dtype: torch.dtype | None = None,
) -> Iterator[DiskTensor]:
    """Yield every tensor that `format` writes for a `state_dict`, in the order of the model.

    Only shapes and types of `state` are read, so it may lie on the meta device.

    Args:
        state: `FlashModel.state_dict()`.
        zero_experts: Z, the number of identity experts.
        format: "hub" or "transformers5".
        dtype: the type to write; None keeps that of each tensor.
    """
    check_format(format)
    for source, tensor in state.items():
        wanted = stored_dtype(source, dtype or tensor.dtype)
        stacked = _STACKED.fullmatch(source)
        if stacked is None:
            yield DiskTensor(name=source, shape=tuple(tensor.shape), dtype=wanted, source=source)
            continue
        experts, n_ffn = stacked["experts"], tensor.shape[0]
        if stacked["kind"] == "down":
            for e in range(n_ffn):
                yield DiskTensor(
                    name=f"{experts}.{e}.down_proj.weight",
                    shape=tuple(tensor.shape[1:]),
                    dtype=wanted,
                    source=source,
                    part=(e,),
                )
            continue
        half = tensor.shape[1] // 2
        rows = n_ffn + zero_experts if format == "transformers5" and n_ffn else n_ffn
        for e in range(rows):
            for index, name in enumerate(("gate", "up")):
                yield DiskTensor(
                    name=f"{experts}.{e}.{name}_proj.weight",
                    shape=(half, tensor.shape[2]),
                    dtype=wanted,
                    source=source if e < n_ffn else None,
                    part=(e, slice(index * half, (index + 1) * half)) if e < n_ffn else (),
                )


def checkpoint_tensors(
    config: FlashConfig, format: Format = "hub", dtype: torch.dtype = torch.bfloat16
) -> Iterator[DiskTensor]:
    """Yield name, shape and type of every tensor of a checkpoint; none is allocated."""
    state = empty_model(config, dtype).state_dict()
    return disk_tensors(state, zero_experts=config.router.zero_expert_num, format=format)


class _NoRandomValues(TorchFunctionMode):
    """Skips `normal_`: on the meta device it does nothing but import a second's worth of torch."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.nn.init.normal_, torch.Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def empty_model(config: FlashConfig, dtype: torch.dtype = torch.float32) -> FlashModel:
    """The model on the meta device: names, shapes and types, no values."""
    with _NoRandomValues():
        return FlashModel(config, device="meta", dtype=dtype)


def is_known_unused(name: str, config: FlashConfig) -> bool:
    """Whether a tensor may be left unread: of an identity expert, or RoPE's frequencies."""
    if name.endswith("rotary_emb.inv_freq"):
        return True
    row = _UNUSED_ROW.fullmatch(name)
    router = config.router
    return row is not None and router.n_routed_experts <= int(row["expert"]) < router.n_experts


def check_dtype(dtype: torch.dtype) -> None:
    """Refuse a type that parameters cannot have."""
    if dtype not in PARAMETER_DTYPES:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in PARAMETER_DTYPES)
        raise ValueError(f"checkpoint: dtype must be one of {allowed}, but {dtype} was given")


def check_format(format: str) -> None:
    """Refuse a format that is not known."""
    if format not in FORMATS:
        raise ValueError(
            f"checkpoint: format must be one of {', '.join(FORMATS)}, but {format!r} was given"
        )
