"""A model as a CPU serves it fastest: `PackedModel`, for the engine of `longcat.serve`.

The readable form is `longcat.flash.FlashModel` itself, which the engine takes as well; the two
agree to rounding, and tests hold them to it. What is here differs in this alone:
- weights lie in oneDNN's own blocks (`longcat.kernels.PackedLinear`), and neighbours that read the
  same rows are one product: q_a_proj with kv_a_proj_with_mqa, gate_proj with up_proj;
- factors are folded away: alpha_q into the softmax's scale, alpha_kv into the latents' norm;
- one pass is one straight sequence of operations on rows [T,D], and what depends on positions
  alone is made once;
- few tokens get forms of fewer operations: RoPE as one product with small matrices, and slots that
  Python brings to their experts;
- Linux is asked for huge pages for all weights (`longcat.kernels.huge_pages`).

Decoding one sequence is reading weights and calling small operations; this does less of both.
"""

from longcat.flash.model import FlashModel
from longcat.flash.packed.model import PackedModel
from longcat.serve import PagedModel

__all__ = ["PackedModel", "as_served"]


def as_served(model: FlashModel, *, exact: bool = False) -> PagedModel:
    """What the engine should be given: on a CPU a PackedModel, elsewhere the model as it is, and
    for an `exact` engine too, since it alone has those forms.

    Let go of the model afterwards, or its weights are held twice.
    """
    return model if exact or model.lm_head.weight.device.type != "cpu" else PackedModel(model)
