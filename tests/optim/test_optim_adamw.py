"""Claims about AdamW at epsilon 1e-16, the monitor and the schedule."""

import numpy as np
import pytest
import torch
from torch import nn

from longcat.kernels.adamw.reference import adamw_step
from longcat.optim import (
    GradientMonitor,
    adamw,
    cosine,
    epsilon_share,
    parameter_groups,
    reference,
    warmup_stable_decay,
)


class Small(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(5, 3, generator=generator, dtype=dtype))
        self.norm = nn.Parameter(torch.ones(3, dtype=dtype))


def run(model, gradients, **options):
    optimizer = adamw(model, **options)
    for gradient in gradients:
        model.matrix.grad = gradient.clone()
        model.norm.grad = gradient.mean(0)
        optimizer.step()
    return model


def gradients(scale=1.0, steps=5):
    generator = torch.Generator().manual_seed(1)
    return [
        scale * torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(steps)
    ]


def test_torch_agrees_with_the_definition_and_spares_norms_from_decay():
    model = run(Small(), gradients(), lr=0.1, weight_decay=0.2)
    for name, decay in (("matrix", 0.2), ("norm", 0.0)):
        weight = getattr(Small(), name).detach().numpy()
        moved = weight, np.zeros_like(weight), np.zeros_like(weight)
        for step, gradient in enumerate(gradients(), 1):
            g = (gradient if name == "matrix" else gradient.mean(0)).numpy()
            moved = adamw_step(moved[0], g, *moved[1:], step, lr=0.1, weight_decay=decay)
        weight = moved[0]
        np.testing.assert_allclose(getattr(model, name).detach().numpy(), weight, rtol=1e-12)


def test_epsilon_1e_16_keeps_steps_scale_free_where_1e_8_does_not():
    def moved(scale, eps):
        model = run(Small(), gradients(scale), lr=0.01, weight_decay=0.0, eps=eps)
        return model.matrix.detach() - Small().matrix.detach()

    torch.testing.assert_close(moved(1e-9, 1e-16), moved(1.0, 1e-16), rtol=1e-5, atol=0)
    # The control: at the usual epsilon a small gradient's step has all but vanished.
    assert float(moved(1e-9, 1e-8).norm() / moved(1.0, 1e-8).norm()) < 0.25


def test_a_shared_parameter_is_stepped_once():
    model = nn.ModuleList([nn.Linear(3, 3, bias=False)])
    model.append(model[0])
    groups = parameter_groups(model.named_parameters(remove_duplicate=False), 0.1)
    assert [len(group["params"]) for group in groups] == [1]


def test_the_monitor_reads_norm_and_rms_and_warns_when_epsilon_comes_near():
    model = Small()
    gradient = gradients()[0]
    model.matrix.grad, model.norm.grad = gradient, torch.zeros(3, dtype=torch.float64)
    reading = GradientMonitor(eps=1e-16).read(model.parameters())
    flat = np.concatenate([gradient.numpy().ravel(), np.zeros(3)])
    assert reading.norm == pytest.approx(float(np.linalg.norm(flat)))
    assert reading.rms == pytest.approx(reference.root_mean_square(flat))
    # The all-zero tensor says nothing about a vanishing gradient.
    assert reading.smallest_rms == pytest.approx(reference.root_mean_square(gradient.numpy()))
    assert not reading.epsilon_meets_gradient
    assert GradientMonitor(eps=0.5).read(model.parameters()).epsilon_meets_gradient


@pytest.mark.parametrize("eps", [1e-16, 0.05, 0.1, 10.0])
def test_the_microscope_counts_coordinates_where_epsilon_reaches_the_denominator(eps):
    model, moments = Small(), (np.zeros((5, 3)), np.zeros((5, 3)))
    optimizer = adamw(model, lr=0.0, eps=eps)
    model.norm.requires_grad_(False)
    assert epsilon_share(optimizer) == 0.0  # nothing has moved yet
    for step, gradient in enumerate(gradients(), 1):
        gradient[0] = 0.0  # an expert that nobody chose
        model.matrix.grad = gradient
        optimizer.step()
        weight = model.matrix.detach().numpy()
        _, *moments = adamw_step(weight, gradient.numpy(), *moments, step, lr=0.0)
    want = reference.epsilon_share(moments[1], step, eps=eps)
    assert epsilon_share(optimizer) == pytest.approx(want)
    # Controls: the untouched row is left out, and moments without correction give another share.
    assert want == {1e-16: 0.0, 10.0: 1.0}.get(eps, want)
    raw = np.sqrt(moments[1][1:])
    if eps == 0.05:
        assert 0 < want < np.mean(9 * eps > raw)


def test_the_monitor_takes_a_model_without_gradients():
    reading = GradientMonitor().read(Small().parameters())
    assert (reading.norm, reading.rms, reading.epsilon_meets_gradient) == (0.0, 0.0, False)


def test_the_schedule_warms_up_stays_and_decays():
    def factor(p):
        return warmup_stable_decay(p, warmup=0.1, decay=0.3)

    assert [factor(p) for p in (0.0, 0.05, 0.1, 0.5, 0.7)] == pytest.approx([0, 0.5, 1, 1, 1])
    assert factor(0.85) == pytest.approx(0.5)
    assert factor(1.0) == pytest.approx(0.0)
    assert factor(2.0) == pytest.approx(0.0)
    with pytest.raises(ValueError, match="warmup \\+ decay <= 1"):
        warmup_stable_decay(0.5, warmup=0.8, decay=0.3)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_both_schedules_agree_with_their_definitions(warmup, final):
    progress = np.linspace(0, 1, 201)
    for got, want in (
        (
            [warmup_stable_decay(p, warmup=warmup, decay=0.3, final=final) for p in progress],
            reference.warmup_stable_decay(progress, warmup=warmup, decay=0.3, final=final),
        ),
        (
            [cosine(p, warmup=warmup, final=final) for p in progress],
            reference.cosine(progress, warmup=warmup, final=final),
        ),
    ):
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
        assert got[-1] == pytest.approx(final)
        assert max(got) <= 1 + 1e-12


def test_the_cosine_is_half_way_down_half_way_through_what_follows_warm_up():
    assert cosine(0.05, warmup=0.1) == pytest.approx(0.5)
    assert cosine(0.1, warmup=0.1) == 1
    assert cosine(0.55, warmup=0.1) == pytest.approx(0.5)
    assert cosine(2.0, warmup=0.1) == 0
    assert cosine(1.0, warmup=1.0) == 1
    with pytest.raises(ValueError, match=r"warmup is a fraction of the run, 0 to 1; got 1\.5"):
        cosine(0.5, warmup=1.5)
