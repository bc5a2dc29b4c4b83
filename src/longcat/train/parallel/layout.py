"""How a run's processes divide the model among themselves.

Every layout gives every process its own micro-batches; what differs is who holds which weights:

    data parallel     everybody holds everything                                 (the default)
    expert parallel   the FFN experts are split over groups of P processes
    FSDP              every tensor is split over all processes, gathered layer by layer

The processes stand in a mesh [data, expert]: neighbours in its last dimension share experts.
A layout changes where sums are made, and so the last bits, never the mathematics: a run may be
resumed with another one.
"""

from dataclasses import dataclass

from longcat.flash import FlashConfig
from longcat.train.errors import RunError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is split.

    Args:
        expert_parallel: P, processes that share one set of experts.
        fsdp: whether all other weights (and the experts, over the rest of the processes) are
            split with torch's fully_shard.
    """

    expert_parallel: int = 1
    fsdp: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether every process holds the whole model."""
        return self.expert_parallel == 1 and not self.fsdp

    def check(self, world: int, config: FlashConfig) -> None:
        """Refuse what cannot be divided.

        Raises:
            RunError: naming the numbers that do not fit.
        """
        parts, experts = self.expert_parallel, config.router.n_routed_experts
        if parts < 1 or world % parts:
            raise RunError(
                f"train: --expert-parallel {parts} must divide the number of processes, {world}"
            )
        if parts > 1 and (experts == 0 or experts % parts):
            raise RunError(
                f"train: --expert-parallel {parts} cannot share {experts} FFN experts evenly"
            )
        rest, width = world // parts, config.moe.expert_ffn_hidden_size
        if self.fsdp and experts and (config.hidden_size % rest or 2 * width % rest):
            raise RunError(
                f"train: --fsdp over {rest} processes needs a hidden size and twice an expert "
                f"width that they divide; got {config.hidden_size} and {2 * width}"
            )

    def describe(self, world: int) -> str:
        """One phrase for the preflight card."""
        parts = []
        if self.expert_parallel > 1:
            parts.append(f"experts split over {self.expert_parallel}")
        if self.fsdp:
            parts.append(f"weights sharded over {world}")
        return ", ".join(parts) or "every process holds the whole model"


WHOLE = Layout()
