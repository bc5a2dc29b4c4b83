"""A model whose weights are divided: experts over a group, everything over all (FSDP), or both.

    tensor            without --fsdp          with --fsdp
    experts           split over [expert]     split over [expert] by expert and over [data] by row
    router            everywhere              split over all, a unit of its own in float32
    everything else   everywhere              split over all, gathered layer by layer

The model itself sees ordinary tensors. What stands in torch's optimizer are the held pieces, as
plain tensors that share FSDP's memory: AdamW is elementwise, so a piece needs no neighbours, and
its fused form takes no mixture of meshes. As pieces of whole tensors (DTensors) they appear only
where that matters: in snapshots.

Notable:
- FSDP's mixed precision casts what it gathers, the router too, which must stay float32 (report
  section 2.1.1): its own unit has no policy, and `Router.forward` refuses a cast classifier;
- FSDP means gradients by default; ours are sums over a global denominator, so its divisor is 1;
- `model.mtp` is a method beside forward: without `register_fsdp_forward_method` the output head
  would be gone when the draft head's backward wants it.

Source: report section 5.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_tensor,
)

from longcat.flash import FlashModel
from longcat.moe import ExpertParallel, MoE
from longcat.train.exchange import Exchange
from longcat.train.parallel.layout import Layout
from longcat.train.parallel.pieces import flat_gradients


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a tensor's pieces are: shape of the whole, mesh, and how each dimension cuts it."""

    shape: torch.Size
    mesh: DeviceMesh
    placements: tuple[Placement, ...]

    @property
    def copies(self) -> int:
        """How many processes hold the same piece."""
        held = [
            size
            for size, placement in zip(self.mesh.shape, self.placements, strict=True)
            if isinstance(placement, Replicate)
        ]
        return int(torch.Size(held).numel())


class SplitModel:
    """See the module's text, and `Pieces` for the methods."""

    def __init__(self, model: FlashModel, exchange: Exchange, *, half: bool) -> None:
        self._model = model
        self._exchange = exchange
        layout, world = exchange.layout, exchange.world
        self._mesh = init_device_mesh(
            exchange.device.type,
            (world // layout.expert_parallel, layout.expert_parallel),
            mesh_dim_names=("data", "expert"),
        )
        trained = [n for n, p in model.named_parameters() if p.requires_grad]
        shapes = {n: p.shape for n, p in model.named_parameters()}
        if layout.expert_parallel > 1:
            parallel = ExpertParallel(self._mesh.get_group("expert"))
            for mixture in _mixtures(model):
                mixture.experts.split(parallel)
        everybody = self._mesh._flatten("all") if layout.fsdp else None
        if everybody is not None:
            _shard(model, everybody, self._mesh["data"], half=half)
        model.to(exchange.device)  # fully_shard has moved its units there one by one
        self._places = {n: _place(n, shapes[n], layout, self._mesh, everybody) for n in trained}
        self._owners = {n: p for n, p in model.named_parameters() if n in self._places}
        self._held = {n: _held(p) for n, p in self._owners.items()}
        self.sizes = torch.tensor([self._places[n].shape.numel() for n in self._held])
        self._flat: list[tuple[Tensor, Any]] = []
        if not layout.fsdp:
            experts = [p for n, p in self._held.items() if ".experts." in n]
            others = [p for n, p in self._held.items() if ".experts." not in n]
            self._flat = [
                (flat_gradients(others), None),
                (flat_gradients(experts), self._mesh.get_group("data")),
            ]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The held pieces."""
        return iter(self._held.items())

    def clear(self) -> None:
        """FSDP makes its gradients anew; the flat ones are filled with zeros."""
        for flat, _ in self._flat:
            flat.zero_()
        if self._exchange.layout.fsdp:
            for owner in self._owners.values():
                owner.grad = None

    def sum_(self) -> None:
        """All-reduces of what is replicated; FSDP has summed during the backward pass."""
        for flat, group in self._flat:
            self._exchange.sum_(flat, group)
        if self._exchange.layout.fsdp:
            for name, owner in self._owners.items():
                held = self._held[name]
                held.grad = torch.zeros_like(held) if owner.grad is None else _local(owner.grad)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Squares are summed over the pieces of each tensor, each piece once."""
        squares = torch.stack(
            [
                p.grad.double().square().sum() / self._places[n].copies
                if p.grad is not None
                else torch.zeros((), dtype=torch.float64, device=p.device)
                for n, p in self._held.items()
            ]
        )
        self._exchange.sum_(squares)
        return squares.sqrt()

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Each held gradient."""
        torch._foreach_mul_([p.grad for p in self._held.values() if p.grad is not None], factor)

    def take(self, name: str, whole: Tensor) -> Tensor:
        """Cut out of a whole tensor, without asking anybody."""
        place = self._places[name]
        cut = distribute_tensor(whole, place.mesh, place.placements, src_data_rank=None)
        return _local(cut)

    def as_saved(self, name: str, held: Tensor) -> Tensor:
        """A DTensor over the held memory."""
        place = self._places[name]
        return DTensor.from_local(
            held,
            place.mesh,
            place.placements,
            run_check=False,
            shape=place.shape,
            stride=torch.empty(place.shape, device="meta").stride(),
        )


def _mixtures(model: FlashModel) -> list[MoE]:
    """Of all layers, and of a draft head that has one."""
    return [module for module in model.modules() if isinstance(module, MoE)]


def _shard(model: FlashModel, everybody: DeviceMesh, data: DeviceMesh, *, half: bool) -> None:
    """fully_shard, innermost units first: experts, router, layer, draft head, the rest."""
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if half else None, reduce_dtype=torch.float32 if half else None
    )

    def unit(module: nn.Module, **options: Any) -> None:
        fully_shard(module, **{"mesh": everybody, "mp_policy": policy, **options})
        module.set_gradient_divide_factor(1.0)  # type: ignore[operator]
        module.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]

    for mixture in _mixtures(model):
        if model.config.router.n_routed_experts:
            # By row: the first dimension is the experts', which --expert-parallel cuts.
            unit(mixture.experts, mesh=data, shard_placement_fn=lambda parameter: Shard(1))
        unit(mixture.router, mp_policy=MixedPrecisionPolicy())
    for layer in model.model.layers:
        unit(layer)
    if model.model.mtp is not None:
        unit(model.model.mtp.layers[0])
    unit(model)
    register_fsdp_forward_method(model, "mtp")


def _place(
    name: str, shape: torch.Size, layout: Layout, mesh: DeviceMesh, everybody: DeviceMesh | None
) -> _Place:
    if ".experts." in name and shape.numel():
        rows = Shard(1) if layout.fsdp else Replicate()
        by_expert = Shard(0) if layout.expert_parallel > 1 else Replicate()
        return _Place(shape=shape, mesh=mesh, placements=(rows, by_expert))
    if everybody is not None:
        return _Place(shape=shape, mesh=everybody, placements=(Shard(0),))
    return _Place(shape=shape, mesh=mesh, placements=(Replicate(), Replicate()))


def _local(tensor: Tensor) -> Tensor:
    if not isinstance(tensor, DTensor):
        return tensor
    with torch.no_grad():
        local: Tensor = tensor.to_local()
    return local


def _held(parameter: nn.Parameter) -> nn.Parameter:
    """A plain parameter over the memory of this process's piece."""
    if not isinstance(parameter, DTensor):
        return parameter
    return nn.Parameter(_local(parameter.detach()))
