"""Gradients of the Triton kernels of training, and what happens where a kernel has none.

Attention, experts, cross entropy, z-loss, RMSNorm and SwiGLU have theirs tested in other files.
"""

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.add_rmsnorm import eager as add_eager
from longcat.kernels.permute import eager as permute_eager
from longcat.kernels.rope import eager as rope_eager
from longcat.kernels.rope import reference as rope_reference
from longcat.kernels.route import eager as route_eager

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

DTYPES = [torch.float32, torch.bfloat16]


def _gradients(function, operands, pulls):
    """Outputs, then the gradients of sum(pull * output) over the outputs that have one."""
    operands = [operand.detach().requires_grad_() for operand in operands]
    outputs = [out for out in function(*operands) if out.requires_grad]
    scalar = sum((out * pull.to(out.dtype)).sum() for out, pull in zip(outputs, pulls, strict=True))
    grads = torch.autograd.grad(scalar, operands, allow_unused=True)
    filled = (torch.zeros_like(o) if g is None else g for o, g in zip(operands, grads, strict=True))
    return [*outputs, *filled]


def _agree(check, got, want, bound):
    """Relative to the largest number, where that is above 1; what cancels keeps its own error."""
    for mine, true in zip(got, want, strict=True):
        largest = float(true.detach().abs().max()) if true.numel() else 0.0
        assert check.error(mine, true) * min(1.0, largest) <= bound


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 12), (7,), (1, 1), (0, 8), (2, 1030)])
def test_add_rmsnorm(randn, check, shape, dtype):
    operands = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype)
    pulls = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
    with kernels.use_backend("triton"):
        got = _gradients(lambda *o: kernels.add_rmsnorm(*o, 1e-5), operands, pulls)
    wide = [operand.double() for operand in operands]
    # The norm sees the rounded sum, so the truth starts from it.
    total = (operands[0] + operands[1]).double()
    want = _gradients(lambda x, r, w: add_eager.add_rmsnorm(x, r, w, 1e-5),
                      [total, torch.zeros_like(total), wide[2]], pulls)  # fmt: skip
    _agree(check, got, want, check.bound(dtype, shape[-1]))


@pytest.mark.parametrize("unused", [0, 1])
def test_add_rmsnorm_with_an_output_that_nobody_uses(randn, check, unused):
    operands, pull = (randn(4, 8).float(), randn(4, 8).float(), randn(8).float()), randn(4, 8)
    with kernels.use_backend("triton"):
        got = _gradients(lambda *o: [kernels.add_rmsnorm(*o, 1e-5)[unused]], operands, [pull])
    want = _gradients(lambda *o: [add_eager.add_rmsnorm(*o, 1e-5)[unused]], operands, [pull])
    _agree(check, got, want, 1e-5)


ROPES = [(2, 3, 5, 8), (1, 4, 1, 64), (1, 1, 19, 2), (0, 3, 2, 4)]


def _rope_operands(randn, shape, dtype):
    inv_freq, factor = kernels.rope_frequencies(shape[3], 1e4)
    positions = torch.arange(shape[0] * shape[1]).view(shape[:2]) * 37
    return randn(*shape, dtype=dtype), positions, torch.from_numpy(inv_freq), 1.3 * factor


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ROPES)
def test_rope(randn, check, shape, dtype):
    x, *rest = _rope_operands(randn, shape, dtype)
    pull = randn(*shape, dtype=dtype)
    with kernels.use_backend("triton"):
        got = _gradients(lambda x: [kernels.rope(x, *rest)], [x], [pull])
    want = rope_reference.rope(
        x.double().numpy(), rest[0].numpy(), rest[1].double().numpy(), rest[2]
    )
    # Angles up to 200 are float32 numbers: their sines are right to 200 roundings.
    bound = max(check.bound(dtype), 200 * 2.0**-23)
    assert check.error(got[0], want) <= bound
    want = _gradients(lambda x: [rope_eager.rope(x, *rest)], [x.double()], [pull])
    _agree(check, got, want, bound)


def test_rope_reads_a_view_by_its_strides_and_moves_each_number_once(randn):
    from longcat.kernels.proof.probe import probed

    x, *rest = _rope_operands(randn, (2, 3, 5, 8), torch.float32)
    wide = torch.full((2, 3, 5, 20), torch.nan)
    wide[..., 7:15] = x
    view = wide[..., 7:15].requires_grad_()
    with kernels.use_backend("triton"), probed() as probe:
        turned = kernels.rope(view, *rest)
        (back,) = torch.autograd.grad(turned.sum(), view)
    assert torch.isfinite(turned).all()
    assert torch.isfinite(back).all()
    probe.check_written_once()
    for launch in probe.launches:
        assert launch["x_ptr"].loaded == launch["out_ptr"].stored == x.nbytes


@pytest.mark.parametrize(
    ("tokens", "n_ffn", "n_zero", "top_k"), [(9, 4, 2, 3), (1, 1, 0, 1), (0, 3, 2, 2), (5, 0, 5, 5)]
)
def test_fused_route(randn, check, tokens, n_ffn, n_zero, top_k):
    logits = 2 * randn(tokens, n_ffn + n_zero, dtype=torch.float32)
    bias = 0.02 * randn(n_ffn + n_zero).float()
    pulls = randn(tokens, n_ffn + n_zero), randn(tokens, top_k), randn(tokens)
    rest = top_k, 6.0, n_ffn
    with kernels.use_backend("triton"):
        got = _gradients(lambda l: kernels.fused_route(l, bias, *rest), [logits], pulls)
        plain = _gradients(lambda l: kernels.route(l, bias, *rest[:2]), [logits], pulls[:2])
    want = _gradients(lambda l: route_eager.fused_route(l, bias.double(), *rest),
                      [logits.double()], pulls)  # fmt: skip
    _agree(check, got, want, 1e-5)
    want = _gradients(lambda l: route_eager.route(l, bias.double(), *rest[:2]),
                      [logits.double()], pulls[:2])  # fmt: skip
    _agree(check, plain, want, 1e-5)


PATHS = [(11, 5, 4, 2, 3), (1, 1, 1, 0, 1), (0, 4, 3, 2, 2), (6, 3, 0, 4, 2), (7, 1030, 2, 3, 5)]


def _path(permute, combine, x, gates, indices, n_ffn):
    """To the experts and back; the expert doubles its rows."""
    rows, plan = permute(x, indices, n_ffn)
    return [combine(2 * rows, plan, gates, indices, x, n_ffn)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width", "n_ffn", "n_zero", "top_k"), PATHS)
def test_permute_and_combine(randn, check, tokens, width, n_ffn, n_zero, top_k, dtype):
    x, gates = randn(tokens, width, dtype=dtype), randn(tokens, top_k, dtype=torch.float32)
    indices = randn(tokens, n_ffn + n_zero).argsort(dim=1)[:, :top_k].contiguous()
    pull = randn(tokens, width, dtype=dtype)
    with kernels.use_backend("triton"):
        got = _gradients(lambda x, g: _path(kernels.permute, kernels.combine, x, g, indices, n_ffn),
                         [x, gates], [pull])  # fmt: skip
    forms = permute_eager.permute, permute_eager.combine
    want = _gradients(lambda x, g: _path(*forms, x, g, indices, n_ffn),
                      [x.double(), gates.double()], [pull])  # fmt: skip
    _agree(check, got, want, check.bound(dtype, top_k * max(width, 1)))


def test_the_gradient_of_combine_reads_each_row_once_and_writes_each_number_once(randn):
    from longcat.kernels.proof.probe import probed

    x, gates = randn(5, 40).float().requires_grad_(), randn(5, 2).float().requires_grad_()
    indices = torch.tensor([[0, 1], [0, 3], [3, 4], [1, 0], [2, 1]])
    with kernels.use_backend("triton"):
        rows, plan = kernels.permute(x, indices, 3)
        out = kernels.combine(rows, plan, gates, indices, x, 3)
        with probed() as probe:
            torch.autograd.grad(out.sum(), [x, gates])
    probe.launches[:] = [one for one in probe.launches if one.kernel != "_invert"]
    probe.check_written_once()
    launch = probe["_combine_gradient"]
    assert launch["grad_ptr"].loaded == launch["x_ptr"].loaded == x.nbytes
    assert launch["y_ptr"].loaded == launch["grad_y_ptr"].stored == 7 * 160


def test_rows_that_no_expert_computes_get_a_gradient_of_zeros(randn):
    from dataclasses import replace

    x, gates = randn(2, 8).float(), randn(2, 2).float()
    indices = torch.tensor([[0, 2], [2, 0]])
    _, plan = permute_eager.permute(x, indices, 2)
    plan = replace(plan, slots=torch.tensor([0, 3, 1, 2]), tokens=torch.tensor([0, 1, 0, 1]),
                   has_every_slot=True)  # fmt: skip
    rows = randn(4, 8).float().requires_grad_()
    with kernels.use_backend("triton"):
        kernels.combine(rows, plan, gates, indices, x, 2).sum().backward()
    assert rows.grad[:2].all()
    assert not rows.grad[2:].any()


@pytest.mark.parametrize(
    ("module", "kernel", "old", "new"),
    [
        ("add_rmsnorm", "_backward", "grad_sum = grad_total + inverse", "grad_sum = inverse"),
        ("rope", "_turn", "second * cos - first * sin", "second * cos + first * sin"),
        ("route", "_gradient", "tl.where(chosen < n_ffn, 0.0, of_identity)", "of_identity"),
        ("route", "_gradient", "(grad - tl.sum(scores * grad, axis=0))", "grad"),
        ("permute", "_combine", "gate = 1.0", "gate = 2.0"),
    ],
)
def test_the_gradients_are_rejected_with(
    randn, check, mutate, monkeypatch, module, kernel, old, new
):
    import importlib

    owner = importlib.import_module(f"longcat.kernels.{module}.triton_kernel")
    logits, bias = randn(5, 6).float(), torch.zeros(6)
    x, *turn = _rope_operands(randn, (1, 3, 2, 8), torch.float32)
    indices = torch.tensor([[0, 4], [1, 2], [5, 0], [2, 1], [0, 1]])
    cases = {
        "add_rmsnorm": (lambda *o: kernels.add_rmsnorm(*o, 1e-5),
                        [randn(3, 8).float(), randn(3, 8).float(), randn(8).float()]),
        "rope": (lambda x: [kernels.rope(x, *turn)], [x]),
        "route": (lambda l: kernels.fused_route(l, bias, 2, 6.0, 4), [logits]),
        "permute": (lambda x: [kernels.permute(x, indices, 4)[0]], [logits]),
    }  # fmt: skip
    function, operands = cases[module]
    pulls = [randn(*out.shape) for out in function(*operands) if out.is_floating_point()]
    want = _gradients(function, operands, pulls)

    def worst():
        with kernels.use_backend("triton"):
            got = _gradients(function, operands, pulls)
        return max(check.error(a, b) for a, b in zip(got, want, strict=True))

    assert worst() < 1e-5
    monkeypatch.setattr(owner, kernel, vars(mutate(owner, old, new))[kernel])
    assert worst() > 1e-2


def test_every_kernel_has_a_gradient_or_gives_way_to_a_form_that_has_one(randn):
    bf16 = torch.bfloat16
    x, weight = randn(4, 32, dtype=bf16), randn(16, 32, dtype=bf16)
    places = torch.tensor([0, 2, 0, 1])
    store, table = randn(2, 4, 32, dtype=bf16), torch.tensor([[0, 1]])
    latent = randn(1, 1, 2, 16, dtype=bf16)
    paged = (store, table, torch.tensor([6]), 0.3)
    without = {
        "linear": (lambda x: kernels.linear(x, weight), x),
        "linear's weight": (lambda w: kernels.linear(x, w), weight),
        "scatter_add": (lambda x: kernels.scatter_add(x, places, 3), x),
        "paged_mla": (lambda q: kernels.paged_mla(q, latent, *paged), latent),
    }
    for name, (function, operand) in without.items():

        def call(operand, function=function):
            return [function(operand)]

        (want,) = _gradients(call, [operand], [torch.ones(1)])[1:]
        with kernels.use_backend("triton"):
            (got,) = _gradients(call, [operand], [torch.ones(1)])[1:]
        assert torch.equal(got, want), name
