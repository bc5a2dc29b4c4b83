"""How a run's processes divide the model among themselves.

Every layout but the last gives every process its own micro-batches; who holds which weights:

    data parallel     everybody holds everything                                 (the default)
    expert parallel   the FFN experts are split over groups of P processes
    FSDP              every tensor is split over all processes, gathered layer by layer
    pipeline          each process holds two stages of layers, and all micro-batches pass by

Otherwise the processes stand in a mesh [data, expert]: neighbours in its last dimension share
experts. A layout changes where sums are made, and so the last bits, never the mathematics: a run
may be resumed with another one.
"""

from dataclasses import dataclass

from longcat.flash import FlashConfig, count_parameters
from longcat.train.errors import RunError
from longcat.train.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What is split.

    Args:
        expert_parallel: P, processes that share one set of experts.
        fsdp: whether all other weights (and the experts, over the rest of the processes) are
            split with torch's fully_shard.
        pipeline: whether the model is cut by layers over all processes (`parallel.staged`).
    """

    expert_parallel: int = 1
    fsdp: bool = False
    pipeline: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether every process holds the whole model."""
        return self.expert_parallel == 1 and not self.fsdp and not self.pipeline

    def check(self, world: int, config: FlashConfig, settings: TrainSettings | None = None) -> None:
        """Refuse what cannot be divided.

        Raises:
            RunError: naming the numbers that do not fit.
        """
        if self.pipeline:
            self._check_pipeline(world, config, settings)
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

    def _check_pipeline(
        self, world: int, config: FlashConfig, settings: TrainSettings | None
    ) -> None:
        if self.fsdp or self.expert_parallel > 1:
            raise RunError(
                "train: --pipeline cuts the model by layers; leave out --fsdp and --expert-parallel"
            )
        stages = 2 * world
        if world < 2 or config.num_layers < stages:
            raise RunError(
                f"train: --pipeline over {world} process{'es' * (world > 1)} makes {stages} stages "
                f"and needs at least two processes and as many layers as stages; the model has "
                f"{config.num_layers} (longcat grow makes it deeper)"
            )
        if settings is None:
            return
        if settings.micro_batches < stages:
            raise RunError(
                f"train: --pipeline over {world} processes needs --micro-batches {stages} or more, "
                f"one for each stage; got {settings.micro_batches}"
            )
        alone = {
            "--document-mask": settings.document_mask,
            "--sft": bool(settings.sft),
            "--context-stage": bool(settings.context_stages),
            "--recompute": settings.recompute != "none",
            "--sdc-every": bool(settings.sdc_every),
        }
        asked = [name for name, is_set in alone.items() if is_set]
        if asked:
            raise RunError(f"train: --pipeline does not go with {', '.join(asked)}; leave one out")

    def share(self, world: int, config: FlashConfig) -> float:
        """About which part of the weights a process holds, 0 to 1."""
        if self.fsdp or self.pipeline:
            return 1 / world
        counts = count_parameters(config)
        router, width = config.router, config.moe.expert_ffn_hidden_size
        one = 3 * config.hidden_size * width * config.num_layers
        experts = router.n_routed_experts * one / counts.total_parameters
        return 1 - experts + experts / self.expert_parallel

    def describe(self, world: int) -> str:
        """One phrase for the preflight card."""
        parts = []
        if self.expert_parallel > 1:
            parts.append(f"experts split over {self.expert_parallel}")
        if self.fsdp:
            parts.append(f"weights sharded over {world}")
        if self.pipeline:
            parts.append(f"layers cut into {2 * world} stages")
        return ", ".join(parts) or "every process holds the whole model"


WHOLE = Layout()
