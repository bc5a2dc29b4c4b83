"""A mixture whose experts are split over processes computes what the unsplit one computes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from longcat.kernels import exact
from longcat.kernels.permute import eager as permuting
from longcat.moe import ExpertParallel, MoE, MoEConfig, reference
from longcat.router import BalanceLoss, RouterConfig

WIDTH = 12


def config(n=8, z=8, k=4):
    router = RouterConfig(
        hidden_size=WIDTH, n_routed_experts=n, zero_expert_num=z, top_k=k, routed_scaling_factor=2.5
    )
    return MoEConfig(router=router, expert_ffn_hidden_size=6)


def made(sizes, seed=0):
    moe = MoE(config(*sizes), dtype=torch.float64, balance=BalanceLoss(alpha=0.05))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*moe.parameters(), *moe.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * 0.4)
    return moe


def tokens(rank, count):
    generator = torch.Generator().manual_seed(100 + rank)
    return torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)


def answer(moe, u):
    """Outputs and all gradients of a loss that weighs every output differently."""
    u = u.clone().requires_grad_()
    with exact():
        y, record = moe(u)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)
    (y * weights).sum().backward(retain_graph=True)
    first = {n: p.grad.clone() for n, p in moe.named_parameters()}
    (y * weights).sum().backward()  # a graph may be used twice; R_g is measured so
    twice = [torch.equal(p.grad, 2 * first[n]) for n, p in moe.named_parameters()]
    return {
        "y": y.detach(),
        "u": u.grad / 2,
        "counts": record.routing.counts,
        "twice": all(twice),
        **first,
    }


def on_a_rank(cases, mutant=None, every_slot=False):
    """One process's part of each case; runs in a process of a group."""
    import longcat.moe.expert_parallel as module

    if mutant == "rows left in the order they came":
        module._by_expert = lambda received: torch.arange(int(received.sum()))
    if mutant == "the gradient stays where it is":
        module._AllToAll.backward = staticmethod(lambda ctx, grad: (grad, None, None, None))
    if every_slot:  # as off the CPU
        plan_of = permuting.plan_of
        permuting.plan_of = lambda *slots, **_: plan_of(*slots, every_slot=True)
    parallel = ExpertParallel()
    answers = []
    for sizes, counts in cases:
        moe = made(sizes)
        moe.experts.split(parallel)
        answers.append(answer(moe, tokens(parallel.rank, counts[parallel.rank])))
    return answers


def differences(got, sizes, counts):
    """Largest difference of outputs and of gradients, over all ranks."""
    world = len(got)
    total = {}
    y, u, grads = 0.0, 0.0, 0.0
    for rank in range(world):
        moe = made(sizes)
        want = answer(moe, tokens(rank, counts[rank]))
        y = max(y, float((got[rank]["y"] - want["y"]).abs().amax() if counts[rank] else 0))
        u = max(u, float((got[rank]["u"] - want["u"]).abs().amax() if counts[rank] else 0))
        assert torch.equal(got[rank]["counts"], want["counts"])
        for name in ("experts.gate_up_proj", "experts.down_proj", "router.classifier.weight"):
            total[name] = total.get(name, 0) + want[name]
    for name in ("experts.gate_up_proj", "experts.down_proj"):
        split = torch.cat([g[name] for g in got])
        grads = max(grads, float((split - total[name]).abs().max()))
    router = sum(g["router.classifier.weight"] for g in got) - total["router.classifier.weight"]
    return SimpleNamespace(y=y, u=u, experts=grads, router=float(router.abs().max()))


CASES = {
    2: [((8, 8, 4), (19, 7)), ((2, 6, 3), (5, 5)), ((4, 0, 2), (0, 9)), ((4, 12, 1), (1, 1))],
    4: [((8, 8, 4), (19, 7, 0, 11))],
}


@pytest.mark.parametrize("world", [2, 4])
def test_split_experts_give_the_results_and_gradients_of_unsplit_ones(ranks, world):
    """Uneven parts, a process without tokens; in exact mode the forward to the bit."""
    answers = ranks(world, __file__, "on_a_rank", CASES[world])
    for case, (sizes, counts) in enumerate(CASES[world]):
        got = [answers[rank][case] for rank in range(world)]
        off = differences(got, sizes, counts)
        assert off.y == 0, (sizes, counts)
        assert max(off.u, off.experts, off.router) < 1e-12, (sizes, counts)
        assert all(g["twice"] for g in got)


def test_identity_slots_behind_the_others_do_not_travel(ranks):
    sizes, counts = (8, 8, 4), (19, 7)
    answers = ranks(2, __file__, "on_a_rank", [(sizes, counts)], None, True)
    off = differences([a[0] for a in answers], sizes, counts)
    assert max(off.y, off.u, off.experts, off.router) < 1e-12


@pytest.mark.parametrize(
    "mutant", ["rows left in the order they came", "the gradient stays where it is"]
)
def test_control_a_wrong_exchange_is_rejected(ranks, mutant):
    sizes, counts = (8, 8, 4), (16, 16)
    try:
        answers = ranks(2, __file__, "on_a_rank", [(sizes, counts)], mutant)
    except AssertionError:
        return  # uneven pieces do not even fit
    off = differences([a[0] for a in answers], sizes, counts)
    assert max(off.y, off.u, off.experts) > 1e-3


def test_the_definition_of_the_split_is_the_definition_of_the_whole():
    moe = made((8, 8, 4))
    parts, want = [], []
    for rank in range(4):
        u = tokens(rank, 6 + rank)
        with torch.no_grad():
            routing = moe.router(u)
        part = (u.numpy(), routing.indices.numpy(), routing.gates.numpy())
        parts.append(part)
        up, down = (p.detach().numpy() for p in moe.experts.parameters())
        want.append(reference.mixture(*part, up, down))
    got, sent = reference.split_mixture(parts, up, down)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-13)
    ffn_slots = [int((indices < 8).sum()) for _, indices, _ in parts]
    assert sent.sum(axis=1).tolist() == ffn_slots  # identity slots stay at home
    assert sum(ffn_slots) < sum(indices.size for _, indices, _ in parts)


def test_experts_that_cannot_be_shared_evenly_are_refused(monkeypatch):
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda group: 3)
    with pytest.raises(ValueError, match=r"8 FFN experts cannot be split evenly over 3 processes"):
        made((8, 8, 4)).experts.split(ExpertParallel())
