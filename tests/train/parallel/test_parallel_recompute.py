"""Recomputation in a divided model: the collectives of a layer run again, and no bit changes."""

import runpy
from pathlib import Path

import pytest
import torch

from longcat.train.exchange import Exchange
from longcat.train.parallel.layout import Layout

KIT = runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))
LAYOUTS = {
    "data parallel": Layout(),
    "FSDP": Layout(fsdp=True),
    "EP 2": Layout(expert_parallel=2),
    "FSDP x EP 2": Layout(expert_parallel=2, fsdp=True),
}


def train(name, kind):
    """Two steps of one process: figures, counts, and every held piece at the end."""
    import torch.distributed as dist

    exchange = Exchange(dist.get_rank(), dist.get_world_size(), LAYOUTS[name])
    settings = KIT["make_settings"](steps=2, recompute=kind, measure_every=2, lr=1e-3)
    trainer = KIT["make_trainer"](settings, exchange=exchange)
    lines, counts = [], []
    for _ in range(2):
        record = trainer.train_step()
        lines.append([record[key] for key in ("loss", "grad_norm", "r_g", "balance_loss")])
        counts.append(trainer.tally.counts.clone())
    pieces = {n: p.detach().clone() for n, p in trainer.pieces.named_parameters()}
    return {"lines": lines, "counts": torch.stack(counts), "pieces": pieces}


def train_all(names):
    """Each layout under every kind, in one group of processes."""
    kinds = ("none", "layer", "layer-reentrant")
    return {(name, kind): train(name, kind) for name in names for kind in kinds}


@pytest.mark.parametrize(
    "names",
    [["FSDP x EP 2"], pytest.param(["data parallel", "FSDP", "EP 2"], marks=pytest.mark.slow)],
    ids=str,
)
def test_in_every_layout_recomputation_changes_no_bit(ranks, names):
    for answers in ranks(2, __file__, "train_all", names):
        for (name, kind), got in answers.items():
            plain = answers[name, "none"]
            assert got["lines"] == plain["lines"], (name, kind)
            assert torch.equal(got["counts"], plain["counts"]), (name, kind)
            for piece, tensor in plain["pieces"].items():
                assert torch.equal(got["pieces"][piece], tensor), (name, kind, piece)
