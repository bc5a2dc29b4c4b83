"""Activation checkpointing: a layer keeps its input alone and runs again in the backward pass.

It costs one more forward pass of the layers and saves what they would have kept for the gradient.
Both kinds that torch offers give the same gradients, bit for bit:

    layer             torch's newer kind: the backward pass runs the layer again where it first
                      needs something of it
    layer-reentrant   the older kind: the layer runs without a graph, then a second time with one.
                      It cannot give `torch.autograd.grad`, which measuring R_g needs

Three things could go wrong in a mixture that runs twice, and do not here. The router keeps its
first choice (`longcat.router.Choice`). Counts are those of the first run, handed out with its
result and never added up inside. The balance loss is attached in whichever run builds the graph
that is used, which is one of the two.
"""

from typing import Any, Literal

from torch import nn
from torch.utils.checkpoint import checkpoint

from longcat.router import Choice

Recompute = Literal["none", "layer", "layer-reentrant"]


def run(layer: nn.Module, kind: Recompute, *arguments: Any) -> Any:
    """What `layer(*arguments)` returns; its last argument, which is added here, is a Choice."""
    if kind == "none":
        return layer(*arguments)
    return checkpoint(
        layer,
        *arguments,
        Choice(),
        use_reentrant=kind == "layer-reentrant",
        preserve_rng_state=False,  # a layer draws no random number
    )
