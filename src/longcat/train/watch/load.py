"""Whether a run kept what the controller and the balance loss are there for.

- no expert above 1.5 times the mean load, over the last tenth of the run
- each layer's mean FFN experts per token within 1 % of K_e, over any 100 steps after step 200
- and on held-out text

Loads and means of single batches scatter around these; the worst single step is told beside them.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from longcat.train.metrics import Record

LOAD_LIMIT = 1.5
MEAN_LIMIT = 0.01
WINDOW, SETTLED = 100, 200


class Verdict(TypedDict):
    """Figures per layer, and whether each bound is met; None where a run is too short to say.

    expert_load_max: the heaviest expert's load over the last tenth of the run, mean load = 1.
    expert_load_max_step: the same of the worst single step there. window_deviation: the largest
    |mean FFN experts / K_e - 1| over WINDOW consecutive steps after step SETTLED.
    held_out_deviation: of the held-out text.
    """

    expert_load_max: list[float]
    expert_load_max_step: list[float]
    window_deviation: list[float] | None
    held_out_deviation: list[float] | None
    load_met: bool | None
    window_met: bool | None
    held_out_met: bool | None


def verdict(
    records: Sequence[Record], target: float, held_out_mean: Sequence[float] | None
) -> Verdict:
    """Judge a run by its metrics lines and its held-out mean of FFN experts per layer.

    Args:
        target: K_e; 0 for a model without FFN experts, of which nothing can be said.
    """
    records = _of_one_size(records)
    tenth = records[-max(1, len(records) // 10) :] if records else []
    if target <= 0 or not tenth or not tenth[-1].get("expert_load"):
        return _nothing()
    loads = np.array([r["expert_load"] for r in tenth if r.get("expert_load")])
    heaviest = loads.mean(axis=0).max(axis=-1)
    used = np.array([r["ffn_experts_mean"] for r in records if r["step"] > SETTLED])
    window = _window_deviation(used, target)
    held_out = None if held_out_mean is None else [abs(m / target - 1) for m in held_out_mean]
    return Verdict(
        expert_load_max=heaviest.tolist(),
        expert_load_max_step=loads.max(axis=(0, 2)).tolist(),
        window_deviation=window,
        held_out_deviation=held_out,
        load_met=bool(heaviest.max() <= LOAD_LIMIT),
        window_met=None if window is None else max(window) <= MEAN_LIMIT,
        held_out_met=None if held_out is None else max(held_out) <= MEAN_LIMIT,
    )


def _window_deviation(used: NDArray[np.float64], target: float) -> list[float] | None:
    """used: [steps, L]. The mean of every window, by differences of running sums."""
    if len(used) < WINDOW:
        return None
    sums = np.concatenate([np.zeros((1, used.shape[1])), used.cumsum(axis=0)])
    means = (sums[WINDOW:] - sums[:-WINDOW]) / WINDOW
    deviations: list[float] = np.abs(means / target - 1).max(axis=0).tolist()
    return deviations


def _of_one_size(records: Sequence[Record]) -> Sequence[Record]:
    """The last records of as many layers as the run ended with: growth adds layers on the way."""
    if not records:
        return records
    layers = len(records[-1]["ffn_experts_mean"])
    return [r for r in records if len(r["ffn_experts_mean"]) == layers]


def _nothing() -> Verdict:
    return Verdict(
        expert_load_max=[],
        expert_load_max_step=[],
        window_deviation=None,
        held_out_deviation=None,
        load_met=None,
        window_met=None,
        held_out_met=None,
    )
