"""Cross entropy as a Triton kernel, and the logit z-loss in all three forms."""

import numpy as np
import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.cross_entropy import reference

BACKENDS = ["torch", "numpy", "triton"]
IGNORED = -100


@pytest.fixture
def triton_kernel(interpreter, poisoned):
    pytest.importorskip("triton")
    from longcat.kernels.cross_entropy import triton_kernel

    return triton_kernel


def _targets(randn, rows, width, soft):
    if soft:
        return randn(rows, width).softmax(-1).float()
    targets = torch.arange(rows) * 7 % max(width, 1)
    targets[1::3] = IGNORED
    return targets


def _arrays(logits, targets):
    return logits.detach().double().numpy(), (
        targets.double() if targets.is_floating_point() else targets
    ).numpy()


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("z_weight", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(5, 11), (1, 1), (3, 5000), (0, 4)])
def test_loss_and_gradient_are_the_definitions(randn, check, backend, shape, soft, z_weight):
    logits, targets = 3 * randn(*shape, dtype=torch.float32), _targets(randn, *shape, soft)
    arrays = _arrays(logits, targets)
    want = reference.cross_entropy(*arrays, IGNORED, z_weight)
    if backend != "numpy":
        logits.requires_grad_()
    with kernels.use_backend(backend):
        loss = kernels.cross_entropy(logits, targets, IGNORED, z_weight)
    assert loss.shape == ()
    assert check.error(loss, want) <= 2e-6
    if backend != "numpy":
        (0.5 * loss).backward()
        gradient = reference.cross_entropy_gradient(*arrays, IGNORED, z_weight)
        assert check.error(logits.grad, 0.5 * gradient) <= 3e-6


def test_the_definitions_gradient_with_a_z_loss_is_its_derivative(randn, check):
    logits, targets = randn(3, 5).numpy(), np.array([1, IGNORED, 4])
    function = lambda l: reference.cross_entropy(l, targets, IGNORED, 0.7)  # noqa: E731
    numeric = check.numeric_gradient(function, logits, np.ones(()))
    gradient = reference.cross_entropy_gradient(logits, targets, IGNORED, 0.7)
    assert np.abs(numeric - gradient).max() < 1e-8


def test_the_models_vocabulary_in_bfloat16(triton_kernel, randn, check):
    logits = (4 * randn(2, 131072)).bfloat16()
    logits[0, 5:90000] = -torch.inf
    targets = torch.tensor([3, 131071])
    want = reference.cross_entropy(*_arrays(logits, targets))
    got = triton_kernel.cross_entropy(logits.requires_grad_(), targets)
    got.backward()
    assert check.error(got, want) <= 2e-6
    gradient = reference.cross_entropy_gradient(*_arrays(logits, targets))
    assert check.error(logits.grad, gradient) <= 2**-8


def test_logits_are_read_once_for_the_loss_and_once_more_for_the_gradient(triton_kernel, randn):
    from longcat.kernels.proof.probe import probed

    logits, targets = randn(6, 5000).float(), _targets(randn, 6, 5000, False)
    picked = 4 * 4  # bytes of the four counted targets' logits
    for wanted in (False, True):
        with probed() as probe:
            triton_kernel.cross_entropy(logits.detach().requires_grad_(wanted), targets)
        probe.check_written_once()
        launch = probe["_rows"]
        assert launch["logits_ptr"].loaded == (1 + wanted) * logits.nbytes + picked
        assert launch["gradient_ptr"].stored == wanted * logits.nbytes


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a sum not rescaled", "mass * tl.exp(top - base)", "mass"),
        ("an ignored row that counts", "tl.where(counted == 0.0, 0.0, loss)", "loss"),
        ("a target never subtracted", "tl.where(places == target, 1.0, 0.0)", "0.0"),
        ("half a z-loss", "1.0 + 2.0 * z_weight", "1.0 + z_weight"),
    ],
)
def test_the_kernel_is_rejected_with(triton_kernel, randn, check, mutate, name, old, new):
    broken = mutate(triton_kernel, old, new)
    logits, targets = randn(4, 9000).float(), _targets(randn, 4, 9000, False)
    logits[:, 8000] = 9.0  # the largest comes late
    arrays = _arrays(logits, targets)
    want = reference.cross_entropy(*arrays, IGNORED, 0.1)
    gradient = reference.cross_entropy_gradient(*arrays, IGNORED, 0.1)

    def errors(module):
        x = logits.detach().requires_grad_()
        loss = module.cross_entropy(x, targets, IGNORED, 0.1)
        loss.backward()
        return max(check.error(loss, want), check.error(x.grad, gradient))

    assert errors(triton_kernel) <= 3e-6
    assert errors(broken) > 1e-3


def test_columns_that_are_not_adjacent_are_refused_and_not_copied(triton_kernel, randn):
    logits, targets = randn(8, 4).float().T, torch.zeros(4, dtype=torch.int64)
    with (
        kernels.use_backend("triton"),
        pytest.raises(ValueError, match="cross_entropy: logits must have adjacent columns"),
    ):
        kernels.cross_entropy(logits, targets)


@pytest.mark.parametrize("backend", ["torch", "triton"], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("soft", [False, True])
def test_in_place_the_gradient_is_the_same_and_lies_where_the_logits_were(
    randn, backend, soft, dtype
):
    hidden, targets = randn(5, 300, dtype=dtype), _targets(randn, 5, 300, soft)
    made = {}
    for in_place in (False, True):
        x = hidden.clone().requires_grad_()
        logits = x * 1
        with kernels.use_backend(backend):
            loss = kernels.cross_entropy(logits, targets, IGNORED, 0.1, in_place=in_place)
        overwritten = not torch.equal(logits.detach(), hidden)
        (0.5 * loss).backward()
        made[in_place] = loss.detach(), x.grad
        assert overwritten == in_place
        assert torch.equal(logits.detach(), x.grad) == in_place
    assert all(torch.equal(a, b) for a, b in zip(made[False], made[True], strict=True))


@pytest.mark.parametrize("backend", ["torch", "triton"], indirect=True)
def test_in_place_without_a_gradient_nothing_is_written(randn, backend):
    logits, targets = randn(4, 9).float(), _targets(randn, 4, 9, False)
    before = logits.clone()
    with kernels.use_backend(backend):
        kernels.cross_entropy(logits, targets, in_place=True)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("backend", ["torch", "triton"], indirect=True)
def test_in_place_is_refused_or_noticed_where_the_logits_are_still_needed(randn, backend):
    leaf, targets = randn(4, 9).float().requires_grad_(), _targets(randn, 4, 9, False)
    with kernels.use_backend(backend):
        with pytest.raises(ValueError, match="in_place=True overwrites the logits"):
            kernels.cross_entropy(leaf, targets, in_place=True)
        with pytest.raises(ValueError, match="rows that lie apart"):
            kernels.cross_entropy((leaf * 1)[:1].expand(4, 9), targets, in_place=True)
        kept = leaf.exp()  # its gradient needs its result
        loss = kernels.cross_entropy(kept, targets, in_place=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        loss = kernels.cross_entropy(leaf * 1, targets, in_place=True)
        loss.backward(retain_graph=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
