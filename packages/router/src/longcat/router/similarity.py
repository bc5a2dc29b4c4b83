"""How alike the router's experts are: a router whose rows agree cannot tell tokens apart.

Source: report section 3.1.3.
"""

import torch
from torch import Tensor


@torch.no_grad()
def router_similarity(classifier: Tensor) -> float:
    """Mean cosine over pairs of rows; see `longcat.router.reference.router_similarity`.

    The pairs of unit rows add up to half of |sum of the rows|^2 - E, so no matrix of pairs is
    needed.

    Args:
        classifier: [E, D], one weight vector per expert; a row of zeros has cosine 0 with all.

    Returns:
        A number from -1/(E-1) to 1; NaN with fewer than two experts, which have no pair.
    """
    experts = classifier.shape[0]
    if experts < 2:
        return float("nan")
    rows = torch.nn.functional.normalize(classifier.detach().to(torch.float64), dim=-1)
    own = rows.square().sum()
    return float((rows.sum(dim=0).square().sum() - own) / (experts * (experts - 1)))
