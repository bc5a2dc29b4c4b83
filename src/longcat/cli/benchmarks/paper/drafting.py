"""What figure 9 does with a draft head: attach it to a model, teach it, time it."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.paper.figure import Row
from longcat.flash import FlashModel
from longcat.router import BiasController
from longcat.serve import SamplingParams, decode
from longcat.train.distill import DistillRecord, DistillSettings, distill_mtp

CONTEXT, ROUNDS, TEXTS = 96, 15, 4  # cached tokens, turns and prompts of the timings


def with_head(bare: FlashModel, kind: str, seed: int) -> FlashModel:
    """A model of the same weights with a new draft head."""
    fields = {**bare.config.to_hf(), "num_nextn_predict_layers": 1}
    model = FlashModel(
        type(bare.config).from_hf({**fields, "nextn_use_scmoe": kind == "scmoe"}), seed=seed
    )
    missing, unexpected = model.load_state_dict(bare.state_dict(), strict=False)
    assert not unexpected, unexpected
    assert all(name.startswith("model.mtp.") for name in missing), missing
    return model


def teach(model: FlashModel, tokens: NDArray[np.integer], settings: DistillSettings) -> Row:
    """Teach the head; a mixture in it is held at K_e like any other of the model's.

    Returns:
        columns step, loss and agreement (with the model, on its own text), and FFN experts per
        token of the head's mixture over the last tenth; None for a dense head.
    """
    curve: dict[str, list[float]] = {"step": [], "loss": [], "agreement": []}
    holder = HeldMixture(model)

    def observe(record: DistillRecord) -> None:
        holder.update()
        if record.step % max(1, settings.steps // 12) == 0:
            curve["step"].append(record.step)
            curve["loss"].append(record.loss)
            curve["agreement"].append(record.agreement_own)

    with holder:
        distill_mtp(model, tokens, settings, observe)
    return {**curve, "head_ffn_experts": holder.mean(last=max(1, settings.steps // 10))}


class HeldMixture:
    """The bias controller on the mixture of a ScMoE draft head; without one it does nothing.

    Inside a `with` block every pass of the head is counted; `update` ends a step.
    """

    def __init__(self, model: FlashModel) -> None:
        self._config = model.config
        head: Any = model.model.mtp
        self._mixture: Any = (
            head.layers[0].transformer_layer.mlp if model.config.mtp_layer == "scmoe" else None
        )
        self._controller = BiasController(model.config.router, 1)
        self._counts = torch.zeros(1, model.config.router.n_experts, dtype=torch.int64)
        self._means: list[float] = []

    def __enter__(self) -> HeldMixture:
        if self._mixture is not None:
            self._hook = self._mixture.register_forward_hook(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        if self._mixture is not None:
            self._hook.remove()

    def _count(self, _: Any, __: Any, output: Any) -> None:
        self._counts += output[1].routing.counts

    @torch.no_grad()
    def update(self) -> None:
        """Move the biases by the counts since the last call."""
        if self._mixture is None:
            return
        bias = self._mixture.router.e_score_correction_bias
        bias.copy_(self._controller.update(bias[None], self._counts)[0])
        router = self._config.router
        slots = self._counts[0, : router.n_routed_experts].sum() / self._counts.sum()
        self._means.append(float(slots) * router.top_k)
        self._counts.zero_()

    def mean(self, last: int) -> float | None:
        """FFN experts per token over the last steps; None without a mixture."""
        return fmean(self._means[-last:]) if self._means else None


def times(model: FlashModel, stream: NDArray[np.int64]) -> Row:
    """CPU milliseconds of one draft, of the model's passes over one and two tokens, in turns; and
    of a token of greedy text with and without drafts, the same prompts in turns.
    """
    cache = model.new_cache(1, CONTEXT + 8)
    ids = torch.from_numpy(stream[None, : CONTEXT + 2].copy())
    with torch.inference_mode():
        _, hidden = model.target(ids[:, :CONTEXT], cache)
        model.draft(ids[:, 1 : CONTEXT + 1], hidden, cache)

        def at_context(call: Any, *inputs: torch.Tensor) -> Any:
            def timed() -> None:
                with torch.inference_mode():
                    call(*inputs, cache)
                cache.truncate(CONTEXT)

            return timed

        passes = timing.interleaved(
            {
                "one": at_context(model.target, ids[:, CONTEXT : CONTEXT + 1]),
                "two": at_context(model.target, ids[:, CONTEXT : CONTEXT + 2]),
                "draft": at_context(model.draft, ids[:, :1], hidden[:, -1:]),
            },
            rounds=ROUNDS,
            device="cpu",
        )
    starts = np.linspace(0, len(stream) - CONTEXT, TEXTS).astype(int)
    prompts = [[int(i) for i in stream[s : s + CONTEXT // 2]] for s in starts]

    def texts(speculative: bool) -> Any:
        params = SamplingParams(temperature=0.0, max_tokens=CONTEXT // 2, ignore_eos=True)
        return lambda: [list(decode(model, p, params, speculative=speculative)) for p in prompts]

    whole = timing.interleaved(
        {"plain": texts(False), "drafts": texts(True)}, rounds=3, device="cpu"
    )
    return {
        **{f"ms_{name}": 1e3 * taken.median for name, taken in passes.items()},
        "speed_up": whole["plain"].median / whole["drafts"].median,
    }
