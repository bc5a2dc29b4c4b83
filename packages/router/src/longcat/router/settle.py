"""The biases that finished weights need.

While a model trains, its gain must stay large enough to follow the weights, and so the biases also
follow the noise of every batch: the mean number of FFN experts on other text scatters around K_e.
Once the weights stand still nothing has to be followed any more, and the gain can fall to 0.

The report lets mu decay for stability; doing so after training, with frozen weights, is this
project's.
"""

from collections.abc import Callable

from torch import Tensor

from longcat.router.config import RouterConfig
from longcat.router.controller import BiasController, ControllerConfig


def settle(
    router: RouterConfig,
    bias: Tensor,
    count: Callable[[Tensor], Tensor],
    *,
    mu: float,
    steps: int,
) -> Tensor:
    """The bias [L, E] after `steps` more updates with frozen weights and a gain that falls to 0.

    $$b_{t+1} = b_t + \\mu \\left(1 - \\frac{t}{S}\\right) e(b_t), \\qquad t = 0 \\ldots S-1$$

    Args:
        bias: [L, E] to start from. count: biases -> counts [L, E] of a fresh batch under them.
        mu: the gain to begin with, that of the training's end. steps: S.

    Raises:
        ValueError: for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"settle: expected at least one step, got {steps}")
    falling = ControllerConfig(mu=mu, mu_final=0.0, decay_steps=steps)
    controller = BiasController(router, len(bias), falling)
    for _ in range(steps):
        bias = controller.update(bias, count(bias))
    return bias
