"""AdamW at epsilon 1e-16, hidden z-loss, gradient monitor and schedules."""

from longcat.optim.adamw import adamw, parameter_groups
from longcat.optim.monitor import GradientMonitor, GradientReading
from longcat.optim.schedules import warmup_stable_decay
from longcat.optim.z_loss import hidden_z_loss

__all__ = [
    "GradientMonitor",
    "GradientReading",
    "adamw",
    "hidden_z_loss",
    "parameter_groups",
    "warmup_stable_decay",
]
