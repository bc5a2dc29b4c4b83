"""Growth by stacking: a trained model of n layers becomes one of r*n, the whole stack repeated.

$$L_{small} = l_1 \\circ \\dots \\circ l_n, \\qquad
  L_{target} = L_{small} \\circ \\dots \\circ L_{small}$$

so layer j of the grown model starts as layer j mod n of the small one. (Repeating each layer in
place, 0 0 1 1 2 2, is another rule; the report repeats the stack.) Everything that is not a layer
is carried over, and so is what belongs to a layer but is not a weight: its moments in the
optimizer and its row of the bias controller's history. That choice follows the report's words that
all training state is kept; the first steps then move both copies of a layer alike until their
different inputs tell them apart.

Source: report section 3.1.2, equation 9.
"""

import re
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_LAYER = re.compile(r"\bmodel\.layers\.(\d+)\.")


def source_layer(layer: int, num_layers: int) -> int:
    """The small model's layer that the grown model's `layer` starts from."""
    return layer % num_layers


def stacked_names(names: Iterable[str], num_layers: int, times: int) -> Iterator[tuple[str, str]]:
    """(name in the grown model, name it is copied from), for tensor names of the small one.

    Args:
        names: of parameters or of anything keyed by them, such as `exp_avg/model.layers.0.x`;
            the MTP head's own layers (`model.mtp.layers.`) are no part of the stack.
        num_layers: n. times: r.

    Raises:
        ValueError: when times is below 1, or a name has a layer the model does not.
    """
    if times < 1:
        raise ValueError(f"grow: times must be at least 1; got {times}")
    for name in names:
        found = _LAYER.search(name)
        if found is None:
            yield name, name
            continue
        layer = int(found[1])
        if layer >= num_layers:
            raise ValueError(f"grow: {name} is of layer {layer}, the model has {num_layers}")
        for copy in range(times):
            start, end = found.span(1)
            yield f"{name[:start]}{copy * num_layers + layer}{name[end:]}", name


def stacked_rows(rows: Tensor, times: int) -> Tensor:
    """What has one row per layer, [n, ...], for the grown model: [r*n, ...]."""
    return torch.cat([rows] * times)
