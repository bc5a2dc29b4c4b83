"""The last steps' loss and gradient norm: what a running mean and the spike detector look at.

They come from figures summed over all processes, so every process remembers the same, and they are
part of a snapshot, so a resumed run judges its next step as the uninterrupted one would have.
"""

from collections import deque
from typing import Any

LENGTH = 64  # steps
MEAN_OVER = 50  # steps of the running mean


class History:
    """Loss and gradient norm of up to LENGTH steps, oldest first."""

    def __init__(self) -> None:
        self.losses: deque[float] = deque(maxlen=LENGTH)
        self.norms: deque[float] = deque(maxlen=LENGTH)

    def add(self, loss: float, norm: float) -> None:
        """Remember one step."""
        self.losses.append(loss)
        self.norms.append(norm)

    @property
    def mean_loss(self) -> float | None:
        """Of the last MEAN_OVER steps, or of fewer; None before the first step.

        Training text is read once or a few times, so this is near a held-out loss and costs
        nothing; single batches differ too much to rank snapshots by.
        """
        recent = list(self.losses)[-MEAN_OVER:]
        return sum(recent) / len(recent) if recent else None

    def state_dict(self) -> dict[str, list[float]]:
        """Python's JSON keeps every bit of a float."""
        return {"losses": list(self.losses), "norms": list(self.norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; {} forgets everything."""
        for name in ("losses", "norms"):
            own = getattr(self, name)
            own.clear()
            own.extend(float(value) for value in state.get(name, ()))
