"""Claims about activation checkpointing: the same bits, the first choice kept, everything once."""

import math

import pytest
import torch
from torch.utils.checkpoint import CheckpointError

import longcat.router.router as router_module
from longcat.kernels import linear
from longcat.router import Router

KINDS = ["layer", "layer-reentrant"]


@pytest.fixture
def made(tiny_config, random_model):
    def make(dtype=torch.float64, **changes):
        model = random_model(tiny_config(**changes), dtype=dtype)
        model.balance.alpha = 0.5
        return model

    return make


def tokens():
    return torch.randint(4, 96, (2, 19), generator=torch.Generator().manual_seed(4))


def step(model, kind, autocast=False):
    """(gradients by name, output) of one micro-batch: both heads, z-loss-like term, balance."""
    model.recompute = kind
    model.zero_grad()
    ids = tokens()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(ids, output_router=True)
        drafted, _ = model.mtp(output.hidden[:, :-1], ids[:, 1:])
    loss = output.logits.float().square().mean() + drafted.float().square().mean()
    (loss + output.last_layer.float().square().mean()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}, output


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16 autocast"])
def test_gradients_are_those_without_recomputation_bit_for_bit(made, kind, precision):
    model = made(torch.float64 if precision == "float64" else torch.float32)
    autocast = precision == "bfloat16 autocast"
    plain, before = step(model, "none", autocast)
    got, after = step(model, kind, autocast)
    for name, gradient in plain.items():
        assert torch.equal(got[name], gradient), name
    assert torch.equal(after.logits, before.logits)
    assert torch.equal(after.counts, before.counts)
    assert torch.equal(after.balance_loss, before.balance_loss)


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_runs_twice_and_keeps_less(made, kind):
    """Control of the test above: something is recomputed, and less waits for the gradient."""
    model, begun, kept = made(), [], {}
    for layer in (*model.model.layers, model.model.mtp.layers[0]):
        layer.register_forward_pre_hook(lambda *_: begun.append(1))
    for each in ("none", kind):
        sizes = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        begun.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step(model, each)
        assert len(begun) == (3 if each == "none" else 6)
        model.recompute = each
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(tokens())
        kept[each] = sum(sizes)
        del output
    assert kept[kind] < 0.5 * kept["none"]


def routers(model):
    """The main layers', and the draft head's where its layer is a mixture."""
    return [module for module in model.modules() if isinstance(module, Router)]


def near_ties(model):
    """Scores that differ by about 1e-10 at the first pass: noise decides in the second."""
    with torch.no_grad():
        for router in routers(model):
            router.classifier.weight.mul_(1e-10)
            router.e_score_correction_bias.zero_()
    return model


def noisy_repetition(model, kind, monkeypatch):
    """Largest relative deviation of the gradient when the logits of every second run are noisy.

    Infinite where torch notices that the second run computed other shapes than the first.
    """
    plain, _ = step(model, "none")
    generator, seen = torch.Generator().manual_seed(8), []

    def noisy(x, weight):
        logits = linear(x, weight)
        seen.append(1)
        if len(seen) > len(routers(model)):
            noise = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
            logits = logits + 1e-7 * noise
        return logits

    with monkeypatch.context() as patch:
        patch.setattr(router_module, "linear", noisy)
        try:
            got, _ = step(model, kind)
        except CheckpointError:
            return math.inf
    assert len(seen) == 2 * len(routers(model))
    return max(
        float((got[n] - g).norm() / g.norm()) for n, g in plain.items() if "classifier" not in n
    )


@pytest.mark.parametrize("head", ["dense", "scmoe"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_recomputed_router_keeps_its_first_choice(made, kind, head, monkeypatch):
    model = near_ties(made(nextn_use_scmoe=head == "scmoe"))
    assert noisy_repetition(model, kind, monkeypatch) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_control_a_router_that_chooses_anew_is_rejected(made, kind, monkeypatch):
    kept = Router.forward
    monkeypatch.setattr(
        Router, "forward", lambda self, u, mask=None, choice=None: kept(self, u, mask)
    )
    assert noisy_repetition(near_ties(made()), kind, monkeypatch) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_once_where_counters_inside_the_layer_are_not(made, kind):
    """A counter in the forward counts twice; guarded by grad mode, twice under one kind of two."""
    model = made()
    once = model(tokens()).counts
    naive, guarded = torch.zeros_like(once), torch.zeros_like(once)
    for index, layer in enumerate(model.model.layers):

        def count(module, inputs, routing, index=index):
            naive[index] += routing.counts
            if torch.is_grad_enabled():
                guarded[index] += routing.counts

        layer.mlp.router.register_forward_hook(count)
    _, output = step(model, kind)
    assert torch.equal(output.counts, once)
    assert torch.equal(naive, 2 * once)
    assert torch.equal(guarded, once if kind == "layer-reentrant" else 2 * once)


def test_the_router_gradient_can_be_measured_under_the_newer_kind(made):
    gradients = {}
    for kind in ("none", "layer"):
        model = made()
        model.recompute = kind
        output = model(tokens(), output_router=True)
        scores = [routing.scores for routing in output.router]
        loss = output.logits.square().mean()
        gradients[kind] = torch.autograd.grad(loss, scores, retain_graph=True)
        loss.backward()
    for a, b in zip(*gradients.values(), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_without_a_gradient_and_with_a_cache_nothing_is_recomputed(made):
    model = made()
    model.recompute = "layer"
    runs = []
    model.model.layers[0].register_forward_hook(lambda *_: runs.append(1))
    whole = model(tokens()).logits
    with torch.enable_grad():
        cache = model.new_cache(2, 19)
        decoded = model(tokens(), cache=cache).logits
    assert cache.length == 19
    assert len(runs) == 2
    torch.testing.assert_close(decoded, whole, rtol=0, atol=1e-11)


def test_a_forward_that_is_never_differentiated_leaves_nothing_behind(made):
    """The kept choice must not tie a graph to itself: such a circle is never collected."""
    import gc
    import weakref

    model = made()
    model.recompute = "layer"
    output = model(tokens(), output_router=True)
    watched = weakref.ref(output.router[0].scores)
    del output
    gc.collect()
    assert watched() is None
