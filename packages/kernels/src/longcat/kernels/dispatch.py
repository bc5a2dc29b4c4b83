"""Which form of an op runs: numpy definition, eager torch, or Triton kernel.

Every op exists up to three times under one signature. By default the tensor's device decides: on
CUDA tensors RMSNorm and SwiGLU take their Triton kernels, and everything else is eager torch; the
other kernels wait to be timed on a GPU, and run under `use_backend("triton")` alone. `use_backend`
overrides the choice; `exact` asks for the forms whose rows do not depend on their neighbours. Both
are context variables, so threads and async tasks do not disturb each other.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any, Literal, ParamSpec, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor

P = ParamSpec("P")
T = TypeVar("T")
Backend = Literal["numpy", "torch", "triton"]
Form = Literal["numpy", "torch", "triton", "exact"]

_requested: ContextVar[Backend | None] = ContextVar("longcat_kernels_backend", default=None)
_exact: ContextVar[bool] = ContextVar("longcat_kernels_exact", default=False)
_unchecked: ContextVar[bool] = ContextVar("longcat_kernels_unchecked", default=False)


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Run every op inside the block in one form: "numpy", "torch" or "triton".

    "numpy" is the float64 definition and computes no gradients. "triton" uses a kernel where the
    op has one and eager torch elsewhere; on CPU tensors it needs TRITON_INTERPRET=1.

    Raises:
        ValueError: unknown name, or "triton" where Triton is not installed.
    """
    if name not in get_args(Backend):
        raise ValueError(
            f"use_backend: expected one of {', '.join(get_args(Backend))}, got {name!r}"
        )
    if name == "triton" and not triton_installed():
        raise ValueError(
            "use_backend: 'triton' needs the triton package, which is not installed; "
            "run `pip install triton` (Linux only) or use the 'torch' backend"
        )
    with _set(_requested, name), _set(_unchecked, False):
        yield


@contextmanager
def exact() -> Iterator[None]:
    """Make forward results independent, bit for bit, of batch size, chunk size and neighbours.

    Inside the block linears run in row tiles of one fixed size, experts in fixed tiles summed in
    slot order, attention over a fixed split of the keys. Accepts float32 and float64 only; slower
    than the default forms, whose results agree to a tolerance but not to the bit.
    """
    with _set(_exact, True), _set(_unchecked, False):
        yield


@contextmanager
def unchecked() -> Iterator[None]:
    """Run every op inside the block in eager torch, without a look at its operands.

    For passes over tensors that are right by construction: beside one row of a small model the
    looking costs as much as the operations. Some forms are faster here than elsewhere, with other
    last bits: a training step that is run again must find its own. No gradients. Inside `exact()`
    or `use_backend()`, and around them, it does nothing.
    """
    with _set(_unchecked, plain_forms()):
        yield


@contextmanager
def _set(variable: ContextVar[T], value: T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def is_unchecked() -> bool:
    """Whether the caller is inside `unchecked()` and no other mode forbids it."""
    return _unchecked.get()


def plain_forms() -> bool:
    """Whether the caller is outside `exact()` and `use_backend()`, so that any form will do."""
    return _requested.get() is None and not _exact.get()


def or_unchecked(form: Callable[..., Any]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate an op with its eager form, which `unchecked` calls instead."""

    def decorate(op: Callable[P, T]) -> Callable[P, T]:
        @wraps(op)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            if _unchecked.get():
                result: T = form(*args, **kwargs)
                return result
            return op(*args, **kwargs)

        return run

    return decorate


def exact_enabled() -> bool:
    """Whether the caller is inside `exact()`."""
    return _exact.get()


@cache
def triton_installed() -> bool:
    """Whether `import triton` would find a package (without importing it)."""
    return importlib.util.find_spec("triton") is not None


def choose(
    op: str,
    *tensors: Tensor | None,
    has_kernel: bool = False,
    inference_only: bool = False,
    on_request: bool = False,
) -> Form:
    """Pick the form of `op` that runs for these operands.

    A kernel `on_request` has not been timed on a GPU yet and runs under use_backend("triton")
    alone. One that is `inference_only` is that too, and has no gradients: where one is asked for,
    eager torch runs.

    Raises:
        ValueError: the requested backend cannot serve the call; the sentence says what can.
    """
    present = [tensor for tensor in tensors if tensor is not None]
    requested = _requested.get()
    wants_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in present)
    if exact_enabled():
        if requested in ("numpy", "triton"):
            raise ValueError(
                f"{op}: exact() runs the torch forms only, got use_backend({requested!r}) as well; "
                "leave one of the two"
            )
        for tensor in present:
            if tensor.is_floating_point() and tensor.dtype not in (torch.float32, torch.float64):
                raise ValueError(
                    f"{op}: exact() computes in float32 or float64, got {name_of(tensor.dtype)}; "
                    "convert the operands with .float()"
                )
        return "exact"
    if requested == "numpy":
        if wants_gradient:
            raise ValueError(
                f"{op}: the numpy backend computes no gradients, and an operand requires one; "
                "wrap the call in torch.no_grad() or use the 'torch' backend"
            )
        return "numpy"
    has_kernel = has_kernel and not (inference_only and wants_gradient)
    if requested == "triton" and has_kernel:
        other = next((tensor.device.type for tensor in present if not tensor.is_cuda), None)
        interpreted = other == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
        if other and not interpreted:
            raise ValueError(
                f"{op}: the triton backend needs CUDA tensors, got {other} ones; move them to the "
                "GPU, use the 'torch' backend, or, for CPU tensors, set TRITON_INTERPRET=1 before "
                "Python starts"
            )
        if interpreted:
            from longcat.kernels.proof import interpreter

            interpreter.repair()  # the stock one is silently wrong in bfloat16
        return "triton"
    # float64 on a GPU is for checking, and eager is what the checks are written against.
    fast = all(tensor.is_cuda and tensor.dtype != torch.float64 for tensor in present)
    by_itself = has_kernel and not (inference_only or on_request)
    if requested is None and by_itself and fast and triton_installed():
        return "triton"
    return "torch"


def through_numpy(definition: Callable[..., Any], *operands: Any, like: Tensor) -> Any:
    """Run a numpy definition on tensors: float64 in, the dtype and device of `like` out.

    Integer results stay int64 or bool. Tuples are converted element by element.
    """
    results = definition(*(to_numpy(operand) for operand in operands))
    return _to_tensors(results, like)


def to_numpy(value: Any) -> Any:
    """A tensor as a numpy array (floating ones as float64); anything else unchanged."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().cpu()
    return (value.double() if value.is_floating_point() else value).numpy()


def _to_tensors(results: Any, like: Tensor) -> Any:
    if isinstance(results, tuple):
        return tuple(_to_tensors(result, like) for result in results)
    tensor = torch.from_numpy(np.array(results, order="C"))
    return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)


def name_of(dtype: torch.dtype) -> str:
    """`float32` rather than `torch.float32`, for messages."""
    return str(dtype).removeprefix("torch.")
