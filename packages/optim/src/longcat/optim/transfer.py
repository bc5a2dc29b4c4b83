"""Width transfer: learning rates and initial variances found on a narrow proxy, used at full width.

With s = target width / proxy width, under standard parameterisation ("Adam LR Full Align"):

| tensor | initial variance | learning rate |
|---|---|---|
| embedding | as the proxy's | as the proxy's |
| hidden and unembedding matrices | the proxy's / s | the proxy's / s |

Norm weights and biases are in no row of the report's table; they have one entry per feature like
an embedding's row, and are treated as one. Depth, sparsity and batch size stay equal between
proxy and target. How weight decay and epsilon transfer is not stated: both stay as they are.

Source: report section 3.1.1, table 1; Everett et al. 2024.
"""

from typing import Literal

Role = Literal["embedding", "hidden", "unembedding", "vector"]


def role_of(name: str, dimensions: int) -> Role:
    """What a parameter is, by its state-dict name and its number of dimensions."""
    if dimensions < 2:
        return "vector"
    if name.endswith("embed_tokens.weight"):
        return "embedding"
    return "unembedding" if name.endswith("lm_head.weight") else "hidden"


def width_ratio(target_width: int, proxy_width: int) -> float:
    """s of the table above.

    Raises:
        ValueError: when a width is not positive.
    """
    if target_width < 1 or proxy_width < 1:
        raise ValueError(
            f"width transfer: widths must be positive; got target {target_width}, proxy "
            f"{proxy_width}"
        )
    return target_width / proxy_width


def learning_rate_factor(role: Role, ratio: float) -> float:
    """Target learning rate over the proxy's, for s = ratio."""
    return 1.0 / ratio if role in ("hidden", "unembedding") else 1.0


def variance_factor(role: Role, ratio: float) -> float:
    """Target variance at initialisation over the proxy's, for s = ratio."""
    return 1.0 / ratio if role in ("hidden", "unembedding") else 1.0
