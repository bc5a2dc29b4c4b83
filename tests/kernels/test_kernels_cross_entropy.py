"""Summed cross entropy: agreement, gradients, ignored rows, extreme logits, refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from longcat.kernels import cross_entropy, use_backend
from longcat.kernels.cross_entropy import eager, reference

SHAPES = [(5, 7), (1, 1), (0, 4), (eager.ROWS + 3, 11)]


def _operands(randn, shape, dtype=torch.float64, soft=False):
    logits = (4 * randn(*shape)).to(dtype)
    if soft:
        return logits, randn(*shape).softmax(dim=-1).to(dtype)
    targets = torch.arange(shape[0]) * 5 % shape[1]
    targets[1::3] = -100
    return logits, targets


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_eager_agrees_with_the_definition(randn, check, shape, dtype, soft):
    logits, targets = _operands(randn, shape, dtype, soft)
    exact = [t.double().numpy() if t.is_floating_point() else t.numpy() for t in (logits, targets)]
    want = reference.cross_entropy(*exact)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    got = cross_entropy(logits.requires_grad_(), targets)
    assert got.dtype == wide
    assert check.error(got.detach(), want) <= check.bound(wide, sum(shape) + 1)
    (3 * got).backward()
    wanted_gradient = 3 * reference.cross_entropy_gradient(*exact)
    assert check.error(logits.grad, wanted_gradient) <= check.bound(dtype)
    with use_backend("numpy"):
        assert check.error(cross_entropy(logits.detach(), targets), want) <= check.bound(dtype)


@pytest.mark.parametrize("soft", [False, True])
def test_the_definition_is_torchs_and_its_gradient_is_the_numeric_one(randn, check, soft):
    logits, targets = _operands(randn, (5, 4), soft=soft)
    want = F.cross_entropy(logits, targets, reduction="sum")
    assert check.error(cross_entropy(logits, targets), want) < 1e-12
    numeric = check.numeric_gradient(
        lambda x: reference.cross_entropy(x, targets.numpy()), logits.numpy(), np.ones(())
    )
    gradient = reference.cross_entropy_gradient(logits.numpy(), targets.numpy())
    assert np.abs(numeric - gradient).max() < 1e-7


@pytest.mark.parametrize("soft", [False, True])
def test_gradcheck_passes(randn, soft):
    logits, targets = _operands(randn, (4, 3), soft=soft)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x, targets), logits.requires_grad_())


def test_half_precision_does_not_round_the_factor_that_scales_all_gradients(randn):
    logits, targets = randn(512, 8).bfloat16(), torch.arange(512) % 8
    factor = 1.0039 / 2048  # half way between two bfloat16 numbers
    (factor * cross_entropy(logits.requires_grad_(), targets)).backward()
    exact = factor * reference.cross_entropy_gradient(
        logits.detach().double().numpy(), targets.numpy()
    )
    slope = (logits.grad.double().numpy() * exact).sum() / (exact * exact).sum()
    assert abs(slope - 1) < 1e-3
    rounded = float(torch.tensor(factor).bfloat16()) / factor
    assert abs(rounded - 1) > 2e-3  # control: what rounding the factor would do


def test_an_ignored_row_counts_nothing_and_gets_no_gradient(randn):
    logits = randn(3, 5).requires_grad_()
    whole = cross_entropy(logits, torch.tensor([1, -100, 4]))
    assert whole == cross_entropy(logits[[0, 2]], torch.tensor([1, 4]))
    whole.backward()
    assert logits.grad.abs().sum(dim=-1).gt(0).tolist() == [True, False, True]


def test_probabilities_too_small_for_float32_still_have_their_loss():
    logits = torch.tensor([[0.0, -500.0, 90.0], [-1e4, -1e4, -1e4]])
    losses = cross_entropy(logits, torch.tensor([1, 2]))
    assert losses == pytest.approx(590 + np.log(3), rel=1e-6)


def test_control_a_loss_from_the_probability_itself_overflows():
    logits = torch.tensor([[0.0, -500.0, 90.0]])
    assert logits.softmax(-1)[0, 1].log().isneginf()


@pytest.mark.parametrize("mutant", ["ignored rows pull", "target not subtracted"])
def test_control_a_wrong_gradient_is_noticed(randn, check, monkeypatch, mutant):
    rows = eager._rows

    def wrong(logits, targets, ignored, z_weight, out):
        if mutant == "ignored rows pull":
            return rows(logits, targets.where(targets != ignored, 0), ignored, z_weight, out)
        loss, gradient = rows(logits, targets, ignored, z_weight, out)
        return loss, gradient.copy_(logits.softmax(dim=-1))

    monkeypatch.setattr(eager, "_rows", wrong)
    logits, targets = _operands(randn, (5, 7))
    cross_entropy(logits.requires_grad_(), targets).backward()
    want = reference.cross_entropy_gradient(logits.detach().numpy(), targets.numpy())
    assert check.error(logits.grad, want) > 1e-2


@pytest.mark.parametrize(
    ("targets", "sentence"),
    [
        (torch.tensor([0, 5, 1]), r"targets must lie in 0\.\.4 or be -100; got 5"),
        (torch.tensor([0, -1, 1]), r"must lie in 0\.\.4 or be -100; got -1"),
        (torch.tensor([0, 1]), r"targets must have shape \[T\] with T=3"),
        (torch.rand(3, 4), r"targets must have shape \[T, V\] with T=3, V=5"),
        (torch.tensor([0, 1, 1], dtype=torch.int32), r"targets must be int64, got int32"),
    ],
)
def test_wrong_operands_are_named(targets, sentence):
    with pytest.raises(ValueError, match=sentence):
        cross_entropy(torch.zeros(3, 5), targets)
