"""AdamW at epsilon 1e-16, hidden z-loss, gradient monitor, schedules, growth, width transfer."""

from longcat.kernels import hidden_z_loss
from longcat.optim.adamw import adamw, parameter_groups, set_learning_rate
from longcat.optim.growth import source_layer, stacked_names, stacked_rows
from longcat.optim.monitor import GradientMonitor, GradientReading, epsilon_share
from longcat.optim.schedules import cosine, warmup_stable_decay
from longcat.optim.transfer import learning_rate_factor, role_of, variance_factor, width_ratio

__all__ = [
    "GradientMonitor",
    "GradientReading",
    "adamw",
    "cosine",
    "epsilon_share",
    "hidden_z_loss",
    "learning_rate_factor",
    "parameter_groups",
    "role_of",
    "set_learning_rate",
    "source_layer",
    "stacked_names",
    "stacked_rows",
    "variance_factor",
    "warmup_stable_decay",
    "width_ratio",
]
