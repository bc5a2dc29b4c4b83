"""add_rmsnorm and latent_write: several steps in one pass, rounded where the steps round."""

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.add_rmsnorm import reference as add_reference
from longcat.kernels.latent_write import reference as write_reference

EPS = 1e-6
BACKENDS = ["torch", "triton", "numpy"]


@pytest.fixture
def backend(request):
    if request.param == "triton":
        pytest.importorskip("triton")
        request.getfixturevalue("interpreter")
        request.getfixturevalue("poisoned")
    with torch.no_grad(), kernels.use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 12), (7,), (0, 8), (2, 1030)])
def test_the_sum_is_normed_and_kept(randn, check, backend, shape, dtype):
    x, residual = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
    weight = randn(shape[-1], dtype=dtype)
    arrays = (t.double().numpy() for t in (x, residual, weight))
    for got, want in zip(kernels.add_rmsnorm(x, residual, weight, EPS),
                         add_reference.add_rmsnorm(*arrays, EPS), strict=True):  # fmt: skip
        assert got.dtype == dtype
        assert check.error(got, want) <= check.bound(dtype)


def test_gradients_reach_all_three_operands(randn):
    operands = [randn(2, 3).requires_grad_(), randn(2, 3).requires_grad_(), randn(3)]
    operands[2].requires_grad_()
    assert torch.autograd.gradcheck(lambda *o: kernels.add_rmsnorm(*o, EPS), operands)


def _tokens(randn, dtype, tokens=5, width=24, rope=8, rows=11):
    compressed = randn(tokens, width + rope + 3, dtype=dtype)[:, : width + rope]
    inv_freq, factor = kernels.rope_frequencies(rope, 1e4)
    slots = torch.randperm(rows, generator=torch.Generator().manual_seed(2))[:tokens]
    store = randn(rows, width + rope, dtype=dtype)
    positions = torch.tensor([0, 1, 77, 5000, 3])[:tokens]
    weight = randn(width, dtype=dtype)
    return compressed, weight, EPS, 3.5, positions, torch.from_numpy(inv_freq), slots, store, factor


def _written(operands):
    arrays = (
        o.double().numpy() if isinstance(o, torch.Tensor) and o.is_floating_point() else
        o.numpy() if isinstance(o, torch.Tensor) else o for o in operands
    )  # fmt: skip
    return write_reference.latent_write(*arrays)


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_are_written_to_their_slots_and_nothing_else_changes(randn, check, backend, dtype):
    operands = _tokens(randn, dtype)
    want, before = _written(operands), operands[7].clone()
    store = kernels.latent_write(*operands)
    assert store is operands[7]
    assert check.error(store, want) <= 2e-3 if dtype == torch.float32 else 2e-2
    others = [row for row in range(11) if row not in operands[6].tolist()]
    assert torch.equal(store[others], before[others])


def test_the_kernels_round_where_the_separate_steps_round(randn, interpreter):
    pytest.importorskip("triton")
    x, residual = randn(6, 40, dtype=torch.bfloat16), randn(6, 40, dtype=torch.bfloat16)
    weight = randn(40, dtype=torch.bfloat16)
    eager = kernels.add_rmsnorm(x, residual, weight, EPS)
    operands = _tokens(randn, torch.bfloat16)
    written = kernels.latent_write(*operands[:7], operands[7].clone(), 1.0)
    with kernels.use_backend("triton"):
        for mine, theirs in zip(kernels.add_rmsnorm(x, residual, weight, EPS), eager, strict=True):
            assert (mine != theirs).float().mean() < 0.02
        mine = kernels.latent_write(*operands)
    assert (mine != written).float().mean() < 0.02


def test_every_byte_is_moved_once(randn, interpreter):
    pytest.importorskip("triton")
    from longcat.kernels.proof.probe import probed

    x, residual, weight = (randn(*s, dtype=torch.bfloat16) for s in ((6, 40), (6, 40), (40,)))
    operands = _tokens(randn, torch.bfloat16)
    with probed() as probe, kernels.use_backend("triton"):
        y, total = kernels.add_rmsnorm(x, residual, weight, EPS)
        store = kernels.latent_write(*operands)
    assert probe.loaded(x) == probe.loaded(residual) == probe.stored(y) == x.nbytes
    assert probe.stored(total) == x.nbytes
    assert probe.loaded(operands[0]) == probe.stored(store) == 5 * 32 * 2
    assert probe.loaded(store) == 0
    counts = probe["_latent_write"]["store_ptr"].written()
    assert (counts[operands[6]] == 1).all()
    assert counts.sum() == 5 * 32


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a scaled rotated key", "(even * cos - odd * sin)", "alpha * (even * cos - odd * sin)"),
        ("pairs that are halves", "row + width + 2 * pair, mask", "row + width + pair, mask"),
        ("a wrong turn", "(odd * cos + even * sin)", "(odd * cos - even * sin)"),
    ],
)
def test_latent_write_is_rejected_with(randn, check, mutate, interpreter, name, old, new):
    pytest.importorskip("triton")
    from longcat.kernels.latent_write import triton_kernel

    operands = _tokens(randn, torch.float32)
    want = _written(operands)
    broken = mutate(triton_kernel, old, new)
    assert check.error(broken.latent_write(*operands), want) > 0.02
    assert check.error(triton_kernel.latent_write(*operands), want) < 2e-3


def test_a_norm_of_the_unrounded_sum_is_seen(randn, mutate, interpreter):
    pytest.importorskip("triton")
    from longcat.kernels.add_rmsnorm import triton_kernel

    broken = mutate(
        triton_kernel, "residual.to(tl.float32) + x.to", "residual.to(tl.float32) - x.to"
    )
    x, residual, weight = (randn(*s).float() for s in ((3, 16), (3, 16), (16,)))
    right = kernels.add_rmsnorm(x, residual, weight, EPS)
    assert not torch.allclose(broken.add_rmsnorm(x, residual, weight, EPS)[1], right[1])


@pytest.mark.parametrize(
    ("sentence", "change"),
    [
        (r"latent_write: store must be contiguous", {7: lambda s: s.T.contiguous().T}),
        (r"latent_write: inv_freq must have shape \[R/2\]", {5: lambda f: f[:2]}),
        (r"latent_write: slots must be int64, got int32", {6: lambda s: s.int()}),
        (r"latent_write: weight is float64 and compressed is float32", {1: lambda w: w.double()}),
    ],
)
def test_what_does_not_fit_is_refused_by_name(randn, sentence, change):
    operands = list(_tokens(randn, torch.float32))
    for place, alter in change.items():
        operands[place] = alter(operands[place])
    with pytest.raises(ValueError, match=sentence):
        kernels.latent_write(*operands)
