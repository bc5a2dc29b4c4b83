"""However a run's processes divide the model, they train what one process trains."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from longcat.train.errors import RunError
from longcat.train.exchange import Exchange
from longcat.train.parallel.layout import Layout

KIT = runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))
LAYOUTS = {
    "data parallel": Layout(),
    "FSDP": Layout(fsdp=True),
    "EP 2": Layout(expert_parallel=2),
    "EP 4": Layout(expert_parallel=4),
    "FSDP x EP 2": Layout(expert_parallel=2, fsdp=True),
}


def train(steps, precision, layout, mutant=None):
    """One process's run: losses, norms, counts, biases; and every held piece's fingerprint."""
    import torch.distributed as dist

    if mutant == "gradients are means":
        from torch.distributed.fsdp import FSDPModule

        FSDPModule.set_gradient_divide_factor = lambda self, factor: None
    if mutant == "experts summed over everybody":
        import longcat.train.parallel.split as split

        sum_ = split.Exchange.sum_
        split.Exchange.sum_ = lambda self, tensor, group=None: sum_(self, tensor)
    world = dist.get_world_size() if dist.is_initialized() else 1
    exchange = Exchange(dist.get_rank() if world > 1 else 0, world, layout)
    settings = KIT["make_settings"](
        steps=steps, precision=precision, micro_batches=4, measure_every=2, lr=1e-3
    )
    trainer = KIT["make_trainer"](settings, exchange=exchange)
    records, counts, biases = [], [], []
    for _ in range(steps):
        records.append(trainer.train_step())
        counts.append(trainer.tally.counts.clone())
        routers = [layer.mlp.router for layer in trainer.model.model.layers]
        biases.append(torch.stack([r.e_score_correction_bias.clone() for r in routers]))
    held = sum(p.numel() for _, p in trainer.pieces.named_parameters())
    return {"records": records, "counts": counts, "biases": biases, "held": held}


def train_all(names, steps, precision, mutant=None):
    """One process's runs in several layouts, so that one group of processes serves them all."""
    return {name: train(steps, precision, LAYOUTS[name], mutant) for name in names}


def compare(ranks, world, names, steps, precision, tolerance, mutant=None):
    """Each layout against one process: losses, norms, and on all ranks counts and biases."""
    alone = train(steps, precision, Layout())
    answers = ranks(world, __file__, "train_all", names, steps, precision, mutant)
    for name in names:
        results = [answer[name] for answer in answers]
        for step, want in enumerate(alone["records"]):
            for result in results:
                assert torch.equal(result["counts"][step], results[0]["counts"][step])
                assert torch.equal(result["biases"][step], results[0]["biases"][step])
                got = result["records"][step]
                assert got["loss"] == pytest.approx(want["loss"], abs=tolerance)
                if precision == "float64":
                    assert torch.equal(result["counts"][step], alone["counts"][step])
                    for key in ("grad_norm", "r_g", "balance_loss", "mtp_loss"):
                        if want[key] is not None:
                            assert got[key] == pytest.approx(want[key], rel=1e-7), key
        held = sum(result["held"] for result in results)
        if LAYOUTS[name].fsdp:
            assert held == alone["held"]  # nothing is held twice
        elif not LAYOUTS[name].is_whole:
            assert alone["held"] < held < world * alone["held"]


def test_two_processes_train_what_one_trains(ranks):
    compare(ranks, 2, ["FSDP", "EP 2", "FSDP x EP 2"], 3, "float64", 1e-9)


def test_control_a_wrong_sum_is_rejected(ranks):
    with pytest.raises(AssertionError):
        compare(ranks, 2, ["FSDP"], 3, "float64", 1e-9, "gradients are means")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize(
    ("name", "world"),
    [(n, w) for w in (2, 4) for n in LAYOUTS if (n, w) != ("EP 4", 2)],
)
def test_any_layout_trains_what_one_process_trains(ranks, name, world, precision):
    """To 1e-9 over 50 steps in float64, to 1e-5 over the first 10 in float32."""
    steps, tolerance = (50, 1e-9) if precision == "float64" else (10, 1e-5)
    compare(ranks, world, [name], steps, precision, tolerance)


@pytest.mark.slow
def test_control_experts_summed_over_everybody_are_rejected(ranks):
    with pytest.raises(AssertionError):
        compare(ranks, 4, ["EP 2"], 3, "float64", 1e-9, "experts summed over everybody")


@pytest.mark.parametrize(
    ("layout", "world", "sentence"),
    [
        (Layout(expert_parallel=3), 4, "--expert-parallel 3 must divide the number of processes"),
        (Layout(expert_parallel=3), 3, "cannot share 8 FFN experts evenly"),
        (Layout(fsdp=True), 5, "--fsdp over 5 processes needs"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(layout, world, sentence):
    with pytest.raises(RunError, match=sentence):
        layout.check(world, KIT["make_config"]())


def test_a_layout_says_what_it_does():
    assert Layout().describe(2) == "every process holds the whole model"
    both = Layout(expert_parallel=2, fsdp=True).describe(4)
    assert both == "experts split over 2, weights sharded over 4"
    assert np.array([layout.is_whole for layout in LAYOUTS.values()]).sum() == 1


def half(policy_everywhere):
    """What the router and the experts compute with under bf16 FSDP, and two losses."""
    import torch.distributed as dist

    import longcat.train.parallel.split as split

    if policy_everywhere:
        given = split.MixedPrecisionPolicy
        half_always = given(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        split.MixedPrecisionPolicy = lambda **options: half_always
    exchange = Exchange(dist.get_rank(), dist.get_world_size(), Layout(fsdp=True))
    settings = KIT["make_settings"](steps=2, precision="bf16", micro_batches=2)
    trainer = KIT["make_trainer"](settings, exchange=exchange)
    mixture = trainer.model.model.layers[0].mlp
    seen = {}
    # Before the call, but after FSDP has gathered the weights.
    mixture.router.register_forward_pre_hook(
        lambda m, i: seen.update(classifier=m.classifier.weight.dtype)
    )
    mixture.experts.register_forward_pre_hook(lambda m, i: seen.update(experts=m.down_proj.dtype))
    mixture.router.register_forward_hook(lambda m, i, o: seen.update(scores=o.scores.dtype))
    try:
        losses = [trainer.train_step()["loss"] for _ in range(2)]
    except ValueError as error:
        return str(error)
    held = {p.dtype for _, p in trainer.pieces.named_parameters()}
    return {"losses": losses, "held": held, **seen}


def test_under_bf16_the_router_stays_in_float32(ranks):
    """The policy casts what it gathers; without a unit of its own the router would go along."""
    for result in ranks(2, __file__, "half", False):
        assert result["experts"] == torch.bfloat16
        assert result["classifier"] == result["scores"] == torch.float32
        assert result["held"] == {torch.float32}
        assert result["losses"][1] < result["losses"][0]
    cast, _ = ranks(2, __file__, "half", True)
    assert "make the router a unit of its own" in cast
