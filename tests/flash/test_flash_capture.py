"""A step can be captured as a graph: nothing waits for the host, and shapes are the batch's alone.

Shown on tensors that say they are on a GPU and hold nothing, so on any machine: whatever asks such
a tensor for a value, or for a shape that depends on values, raises.
"""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from longcat.flash import FlashModel
from longcat.kernels import use_backend
from longcat.serve import SamplingParams
from longcat.serve.acceptance import Drafts, Rules
from longcat.serve.edits import Penalties
from longcat.serve.latents import Latents
from longcat.serve.sampling import Sampler
from longcat.serve.step import Rows, step

aten = torch.ops.aten


class _Indexing(TorchFunctionMode):
    """Indexing and `~` by operators: their own forms ask a build without CUDA for its devices."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__getitem__:
            view, chosen = _viewed(*args)
            return aten.index(view, chosen) if chosen else view
        if func is Tensor.__setitem__:
            view, chosen = _viewed(*args[:2])
            value = args[2]
            if not isinstance(value, Tensor):
                value = aten.full([], value, dtype=view.dtype, device=view.device)
            _ = aten.index_put_(view, chosen, value) if chosen else aten.copy_(view, value)
            return None
        if func is Tensor.__invert__:
            return aten.bitwise_not(*args)
        return func(*args, **(kwargs or {}))


def _viewed(x: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """x under the views that an index asks for, and the tensors in it by dimension."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(part is Ellipsis for part in parts):
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        missing = x.ndim - sum(part is not None and part is not Ellipsis for part in parts)
        parts[at : at + 1] = [slice(None)] * missing
    chosen: list[Tensor | None] = []
    dim = 0
    for part in parts:
        if isinstance(part, int):
            x = x.select(dim, part)
            continue
        if part is None:
            x = x.unsqueeze(dim)
        elif isinstance(part, slice):
            x = aten.slice(x, dim, part.start, part.stop, part.step or 1)
        else:
            chosen += [None] * (dim - len(chosen)) + [part]
        dim += 1
    return x, chosen


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Inside, tensors may be made on "cuda"."""
    with FakeTensorMode(), _Indexing():
        yield


def moved(value: Any) -> Any:
    """A tensor, or a dataclass of tensors, as it would be on a GPU. Inside `fake_cuda`."""
    if isinstance(value, Tensor):
        return torch.empty(value.shape, dtype=value.dtype, device="cuda")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{n: moved(getattr(value, n)) for n in names})
    return value


def move_module(module: nn.Module) -> None:
    """The same for a module's parameters, buffers and other tensors, in place."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                part._parameters[name] = nn.Parameter(moved(parameter), requires_grad=False)
        for name, buffer in list(part._buffers.items()):
            part._buffers[name] = moved(buffer)
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor):
                setattr(part, name, moved(value))


VOCABULARY = 304
EVERYTHING = [
    SamplingParams(presence_penalty=1.0),
    SamplingParams(temperature=0.7, top_p=0.9, top_k=20),
    SamplingParams(temperature=1.0, min_p=0.1, acceptance="rejection"),
]


def rows_of(params: list[SamplingParams], drafts: int = 2) -> Rows:
    count, vocab = len(params), VOCABULARY
    one = torch.ones(count, 1, dtype=torch.bool)
    return Rows(
        table=torch.arange(1, 1 + 4 * count).view(count, 4),
        lengths=torch.arange(2, 2 + count),
        last=torch.arange(5, 5 + count),
        speculate=torch.ones(count, dtype=torch.bool),
        drafts=Drafts(
            tokens=torch.full((count, drafts), 7),
            usable=torch.full((count,), drafts),
            q=torch.full((count, drafts, vocab), 1 / vocab).double(),
        ),
        sampler=Sampler.of(params, list(range(count)), [0] * count),
        rules=Rules(rejecting=one, guessing=~one),
        penalties=Penalties.of(params, [[1]] * count, [[2]] * count, vocab),
        top=3,
    )


def test_a_step_on_a_gpu_asks_for_no_value_and_for_no_shape_of_values(served_config) -> None:
    model = FlashModel(served_config(VOCABULARY), device="meta", dtype=torch.bfloat16).eval()
    asked = rows_of(EVERYTHING)
    with fake_cuda(), use_backend("torch"):
        move_module(model)
        latents = Latents(model.latent_layout, 20, 4)
        rows = moved(asked)
        for _ in range(2):  # the second without penalties, of drafts that the first proposed
            outcome, rows = step(model, latents, rows, proposals=2, keep=True)
    assert outcome.tokens.device.type == "cuda"
    assert outcome.tokens.shape == (3, 3)
    assert rows.drafts.tokens.shape == (3, 2)


def test_a_step_that_looks_at_sizes_is_found_out(served_config) -> None:
    """Control: off a CPU, float32 experts are padded to the fullest, whose size is read."""
    model = FlashModel(served_config(VOCABULARY), device="meta", dtype=torch.float32).eval()
    asked = rows_of(EVERYTHING)
    with fake_cuda(), use_backend("torch"):
        move_module(model)
        latents = Latents(model.latent_layout, 20, 4)
        rows = moved(asked)
        with pytest.raises(Exception, match=r"cuda|data-dependent|DataDependent"):
            step(model, latents, rows, proposals=2)
