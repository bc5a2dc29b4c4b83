"""Checks at the public boundary: an op names the operand that is wrong and says what it expected.

A shape is written as in the docstrings, `"B T H D"`; the first operand that uses a letter fixes
it, and later ones must agree. A leading `...` matches any number of dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longcat.kernels.dispatch import name_of

Sizes = dict[str, int]


def check_shape(op: str, name: str, tensor: Tensor, shape: str, sizes: Sizes) -> None:
    """Match `tensor` against `shape`, reading and adding to the known `sizes`.

    Raises:
        ValueError: wrong number of dimensions, or a size that contradicts an earlier operand.
    """
    letters = shape.split()
    before = dict(sizes)
    got = list(tensor.shape)
    if letters[0] == "...":
        letters = letters[1:]
        fits = len(got) >= len(letters)
        got = got[len(got) - len(letters) :] if fits else got
    else:
        fits = len(got) == len(letters)
    if fits:
        for letter, size in zip(letters, got, strict=True):
            known = int(letter) if letter.isdigit() else sizes.setdefault(letter, size)
            fits = fits and known == size
    if not fits:
        known_sizes = ", ".join(f"{key}={before[key]}" for key in letters if key in before)
        where = f" with {known_sizes} from the operands before it" if known_sizes else ""
        raise ValueError(
            f"{op}: {name} must have shape [{shape.replace(' ', ', ')}]{where}, "
            f"got {list(tensor.shape)}"
        )


def check_together(op: str, **tensors: Tensor | None) -> None:
    """All given operands must be tensors on one device.

    Raises:
        TypeError: something that is not a tensor.
        ValueError: two devices.
    """
    first: tuple[str, Tensor] | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a torch tensor, got {type(tensor).__name__}")
        if first is None:
            first = (name, tensor)
        elif tensor.device != first[1].device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device} and {first[0]} on {first[1].device}; "
                "move them to one device"
            )


def as_tensor(
    op: str, name: str, values: Tensor | NDArray[np.floating[Any]], like: Tensor
) -> Tensor:
    """Values given as a numpy array, as a tensor on the device of `like`; a tensor itself.

    Raises:
        TypeError: something that is neither.
        ValueError: a tensor on another device.
    """
    if isinstance(values, Tensor):
        check_together(op, **{"the other operands": like, name: values})
        return values
    if not isinstance(values, np.ndarray):
        raise TypeError(
            f"{op}: {name} must be a torch tensor or a numpy array, got {type(values).__name__}"
        )
    return torch.as_tensor(values, device=like.device)


def check_floating(op: str, **tensors: Tensor | None) -> None:
    """Operands must hold real floating-point numbers.

    Raises:
        ValueError: an integer, boolean or complex operand.
    """
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_floating_point():
            raise ValueError(
                f"{op}: {name} must be floating point, got {name_of(tensor.dtype)}; "
                "convert it with .float()"
            )


def check_same_dtype(op: str, **tensors: Tensor | None) -> None:
    """Operands must share one dtype.

    Raises:
        ValueError: two dtypes; the sentence names both operands.
    """
    given = [(name, tensor) for name, tensor in tensors.items() if tensor is not None]
    for name, tensor in given[1:]:
        if tensor.dtype != given[0][1].dtype:
            raise ValueError(
                f"{op}: {name} is {name_of(tensor.dtype)} and {given[0][0]} is "
                f"{name_of(given[0][1].dtype)}; convert one of them"
            )


def check_dtype(op: str, name: str, tensor: Tensor, *allowed: torch.dtype) -> None:
    """An operand must have one of the `allowed` dtypes.

    Raises:
        ValueError: another dtype.
    """
    if tensor.dtype not in allowed:
        names = " or ".join(name_of(dtype) for dtype in allowed)
        raise ValueError(f"{op}: {name} must be {names}, got {name_of(tensor.dtype)}")


def check_rows(op: str, **tensors: Tensor) -> None:
    """Columns must be adjacent: a kernel reads whole rows, and would have to copy other layouts.

    Raises:
        ValueError: a last dimension with another stride than 1.
    """
    for name, tensor in tensors.items():
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(
                f"{op}: {name} must have adjacent columns (a last stride of 1) for the Triton "
                f"kernel, got strides {list(tensor.stride())}; call .contiguous() on it once"
            )


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype torch.autocast would compute in for this tensor, or None outside autocast.

    float64 is left alone, as torch.autocast leaves it.
    """
    device = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def cast_once(x: Tensor) -> Tensor:
    """x in the dtype that torch.autocast computes in; x itself outside autocast.

    For what several products read: each would cast it for itself, and its gradients would be cast
    back and added up one by one.
    """
    dtype = autocast_dtype(x)
    return x if dtype is None else x.to(dtype)
