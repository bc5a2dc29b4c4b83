"""Models at other depths and widths: the experiments behind `longcat demo growth`."""

import torch

from longcat.cli.demos.toy import WINDOW, text, tiny_trainer
from longcat.flash import FlashModel
from longcat.optim import stacked_names, stacked_rows
from longcat.train.growth import grow_model
from longcat.train.trainer import Trainer

MOVED = 4  # steps of the coordinate check


def grown_trainer(small: Trainer, times: int, steps: int) -> Trainer:
    """A deeper trainer that goes on where `small` stands, with all its training state.

    `longcat grow` does the same between two run directories.

    Args:
        steps: at which the new run ends, counted from the small one's beginning.
    """
    settings = {**vars(small.settings), "steps": steps}
    layers = small.config.num_layers
    grown = tiny_trainer(small.config.hidden_size, times * layers, **settings)
    grown.model.load_state_dict(grow_model(small.model, times).state_dict())
    moments = {n: small.optimizer.state[p] for n, p in small.model.named_parameters()}
    source = dict(stacked_names(moments, layers, times))
    for name, parameter in grown.model.named_parameters():
        state = moments[source[name]]
        grown.optimizer.state[parameter] = {key: value.clone() for key, value in state.items()}
    rows = small.controller.state_dict()
    errors = {key: stacked_rows(rows[key], times) for key in ("error", "previous_error")}
    grown.controller.load_state_dict({**rows, **errors})
    grown.step = small.step
    return grown


def moved(width: int, *, ratio: float, seed: int) -> float:
    """RMS by which the last layer's output moves in a few steps, on windows of the text."""
    trainer = tiny_trainer(width, steps=MOVED, seed=seed, warmup_steps=0, width_ratio=ratio)
    ids = torch.from_numpy(text(seed)[: 8 * WINDOW].reshape(8, WINDOW))
    with torch.no_grad():
        before = trainer.model(ids).last_layer
        for _ in range(MOVED):
            with torch.enable_grad():
                trainer.train_step()
        after = trainer.model(ids).last_layer
    return float((after - before).square().mean().sqrt())


def is_stacked(grown: FlashModel, small: FlashModel) -> bool:
    """Whether the grown model's layer j holds the bits of layer j mod n: equation 9."""
    layers, n = list(grown.model.layers), small.config.num_layers
    return all(
        torch.equal(tensor, small.model.layers[j % n].state_dict()[name])
        for j, layer in enumerate(layers)
        for name, tensor in layer.state_dict().items()
    )
