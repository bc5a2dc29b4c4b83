"""The hidden z-loss in numpy, torch and Triton."""

import math

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.hidden_z_loss import reference

BACKENDS = ["torch", "numpy", "triton"]
SHAPES = [(5, 11), (2, 3, 40), (1, 1), (7, 1025), (0, 4)]


@pytest.fixture
def triton_kernel(interpreter, poisoned):
    pytest.importorskip("triton")
    from longcat.kernels.hidden_z_loss import triton_kernel

    return triton_kernel


def _mask(shape):
    return torch.arange(math.prod(shape[:-1])).view(shape[:-1]) % 3 != 1


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradient_are_the_definitions(randn, check, backend, shape, masked, dtype):
    z, mask = 3 * randn(*shape, dtype=dtype), _mask(shape) if masked else None
    arrays = z.double().numpy(), 0.4, None if mask is None else mask.numpy()
    if backend != "numpy":
        z.requires_grad_()
    with kernels.use_backend(backend):
        loss = kernels.hidden_z_loss(z, 0.4, mask)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert check.error(loss, reference.hidden_z_loss(*arrays)) <= 2e-6
    if backend != "numpy":
        (0.5 * loss).backward()
        want = 0.5 * reference.hidden_z_loss_gradient(*arrays)
        assert check.error(z.grad, want) <= check.bound(dtype)


@pytest.mark.parametrize("masked", [False, True])
def test_the_definitions_gradient_is_its_derivative(randn, check, masked):
    z = randn(4, 5)
    mask = _mask((4, 5)).numpy() if masked else None
    numeric = check.numeric_gradient(
        lambda x: reference.hidden_z_loss(x, 0.7, mask), z.numpy(), torch.ones(()).numpy()
    )
    gradient = torch.from_numpy(reference.hidden_z_loss_gradient(z.numpy(), 0.7, mask))
    assert check.error(gradient, numeric) < 1e-8
    z.requires_grad_()
    kernels.hidden_z_loss(z, 0.7, _mask((4, 5)) if masked else None).backward()
    assert check.error(z.grad, gradient) < 1e-13


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_it_has_its_floor_and_survives_large_activations(backend):
    with kernels.use_backend(backend):
        floor = kernels.hidden_z_loss(torch.zeros(3, 16), 2.0)
        large = kernels.hidden_z_loss(torch.full((2, 4), -1e4), 1e-7)
    assert float(floor) == pytest.approx(2.0 * math.log(16) ** 2)
    assert float(large) == pytest.approx(1e-7 * (1e4 + math.log(4)) ** 2)


@pytest.mark.parametrize("backend", ["torch", "triton"], indirect=True)
def test_a_number_that_is_zero_is_not_pulled(backend):
    z = torch.tensor([[0.0, 1.0, -1.0]], requires_grad=True)
    with kernels.use_backend(backend):
        kernels.hidden_z_loss(z, 1.0).backward()
    assert z.grad[0, 0] == 0
    assert z.grad[0, 1] == -z.grad[0, 2] > 0


def test_activations_are_read_once_each_way_and_the_gradient_written_once(triton_kernel, randn):
    from longcat.kernels.proof.probe import probed

    wide = torch.full((6, 300), torch.nan)
    wide[:, :200] = randn(6, 200)  # padding behind each row reaches nothing
    z = wide[:, :200].requires_grad_()
    with probed() as probe:
        triton_kernel.hidden_z_loss(z, 1.0).backward()
    probe.check_written_once()
    assert probe["_forward"]["z_ptr"].loaded == probe["_backward"]["z_ptr"].loaded == 4 * 6 * 200
    assert probe["_backward"]["grad_ptr"].stored == 4 * 6 * 200
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('tl.where(inside, tl.abs(z), -float("inf"))', "tl.abs(z)"),
        ("tl.where(z < 0, -1.0, 0.0)", "1.0"),
        ("factors = 2 * grad", "factors = grad"),
        ("weight / max(tokens, 1)", "weight"),
    ],
    ids=["lanes past the width", "no sign", "half a gradient", "a sum for a mean"],
)
def test_the_kernels_are_rejected_with(triton_kernel, randn, check, mutate, old, new):
    z = randn(5, 11).float()
    arrays = z.double().numpy(), 0.4

    def error(module):
        x = z.clone().requires_grad_()
        loss = module.hidden_z_loss(x, 0.4)
        loss.backward()
        return max(
            check.error(loss, reference.hidden_z_loss(*arrays)),
            check.error(x.grad, reference.hidden_z_loss_gradient(*arrays)),
        )

    assert error(triton_kernel) < 3e-6
    assert error(mutate(triton_kernel, old, new)) > 1e-2


def test_wrong_operands_are_named(triton_kernel):
    z = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"token_mask must be bool, got float32"):
        kernels.hidden_z_loss(z, 1.0, torch.ones(3))
    with pytest.raises(ValueError, match=r"token_mask must have the shape .* \[3\], got \[4\]"):
        kernels.hidden_z_loss(z, 1.0, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"last_layer must have shape \[..., D\]"):
        kernels.hidden_z_loss(torch.zeros(3, 0), 1.0)
    with (
        kernels.use_backend("triton"),
        pytest.raises(ValueError, match="last_layer must have adjacent columns"),
    ):
        kernels.hidden_z_loss(z.T, 1.0)
