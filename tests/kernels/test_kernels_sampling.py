"""Top-k, top-p and the verification of drafts: three forms, ties, distributions, controls."""

import numpy as np
import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.sampling import reference

BACKENDS = ["torch", "numpy", "triton"]


@pytest.fixture
def backend(request):
    if request.param == "triton":
        pytest.importorskip("triton")
        request.getfixturevalue("interpreter")
        request.getfixturevalue("poisoned")
    with kernels.use_backend(request.param):
        yield request.param


@pytest.fixture
def triton_kernel(interpreter, poisoned):
    pytest.importorskip("triton")
    from longcat.kernels.sampling import triton_kernel

    return triton_kernel


def _rows(randn, width, sharpness=2.0):
    p = (sharpness * randn(6, width)).softmax(-1).float()
    top_k = torch.tensor([0, 1, 3, width, 0, 5])
    top_p = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.9, 0.7])
    return p, top_k, top_p


def _want(p, top_k, top_p):
    return reference.keep_top(p.double().numpy(), top_k.numpy(), top_p.double().numpy())


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("width", [5, 33, 2500])
def test_what_is_kept_is_the_definitions(randn, check, backend, width):
    operands = _rows(randn, width)
    want = _want(*operands)
    got = kernels.keep_top(*operands)
    assert np.array_equal(got.numpy() > 0, want > 0)
    assert check.error(got, want) <= 2e-6


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_of_equals_the_lowest_token_is_kept(backend):
    p = torch.tensor([[0.2] * 5, [0.1, 0.3, 0.3, 0.3, 0.0], [0.25, 0.25, 0.25, 0.25, 0.0]])
    kept = kernels.keep_top(p, torch.tensor([2, 2, 3]), torch.tensor([1.0, 1.0, 0.5])) > 0
    assert kept.nonzero().tolist() == [[0, 0], [0, 1], [1, 1], [1, 2], [2, 0], [2, 1]]


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_a_small_top_p_keeps_one_token_and_zeros_are_never_kept(backend):
    p = torch.tensor([[0.1, 0.6, 0.3, 0.0], [0.0, 0.0, 1.0, 0.0]])
    kept = kernels.keep_top(p, torch.tensor([0, 3]), torch.tensor([1e-6, 0.9]))
    assert torch.equal(kept, torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0]]))


def _drafted(randn, rows=20, drafts=2, width=40):
    p = (2 * randn(rows, drafts + 1, width)).softmax(-1).float()
    q = (p[:, :-1].log() + randn(rows, drafts, width)).softmax(-1).float()
    q[0] = p[0, :-1]  # a row whose drafts all stand
    tokens = torch.arange(rows * drafts).view(rows, drafts) * 5 % width
    chance = torch.linspace(0, 0.999, rows * drafts).view(rows, drafts).flip(0)
    return p, q, tokens, chance


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("drafts", [1, 3])
def test_drafts_are_verified_as_the_definition_does(randn, check, backend, drafts):
    operands = _drafted(randn, drafts=drafts)
    p, q, tokens, chance = operands
    want, rest = reference.verify(*(t.double().numpy() for t in (p, q)), tokens.numpy(),
                                  chance.double().numpy())  # fmt: skip
    accepted, got = kernels.verify(*operands)
    assert accepted.dtype == torch.int64
    assert np.array_equal(accepted, want)
    assert len(set(accepted.tolist())) > 1
    assert check.error(got, rest) <= 2e-6


def test_what_is_drawn_after_verification_is_distributed_as_the_target(randn):
    generator = torch.Generator().manual_seed(3)
    p, q = randn(2, 1, 6).softmax(-1).float()
    rows = 60000
    tokens = torch.multinomial(q[0], rows, replacement=True, generator=generator)[:, None]
    chance = torch.rand(rows, 1, generator=generator)
    both = torch.stack([p[0], p[0]]).expand(rows, 2, 6)
    accepted, rest = kernels.verify(both, q.expand(rows, 1, 6), tokens, chance)
    drawn = torch.multinomial(rest, 1, generator=generator)
    first = torch.where(accepted[:, None] == 1, tokens, drawn).flatten()
    seen = torch.bincount(first, minlength=6) / rows
    assert (seen - p[0]).abs().max() < 0.01
    drafts_alone = torch.bincount(tokens.flatten(), minlength=6) / rows
    assert (drafts_alone - p[0]).abs().max() > 0.05  # the control


def test_every_probability_is_written_once_and_the_search_walks_eight_times(triton_kernel, randn):
    from longcat.kernels.proof.probe import probed

    p, _, _ = _rows(randn, 2500)
    everything = torch.zeros(6, dtype=torch.int64)
    for top_p, walks in ((1.0, 11), (0.9, 20)):
        with probed() as probe:
            triton_kernel.keep_top(p, everything, torch.full((6,), top_p))
        probe.check_written_once()
        assert probe.loaded(p) == walks * p.nbytes  # 8 and 8 of the search, the rest to weigh


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("a tie too many", "same & (rank <= equals)", "same & (rank <= equals + 1)"),
        ("a search one digit short", "tl.static_range(8)", "tl.static_range(7)"),
        ("top_p of everything", "target = top_p * whole", "target = top_p"),
        ("the highest of equals", "seen + tl.cumsum(same.to(tl.int32), axis=0)",
         "tl.sum(same.to(tl.int32), axis=0) - tl.cumsum(same.to(tl.int32), axis=0)"),
    ],
)  # fmt: skip
def test_keep_top_is_rejected_with(triton_kernel, randn, mutate, name, old, new):
    broken = mutate(triton_kernel, old, new)
    p, top_k, top_p = _rows(randn, 300)
    p[2, 7:12] = p[2].max()  # ties where the third of them is the last
    p[2] /= p[2].sum()
    p[5] /= 2  # not normalised: top_p is of what there is
    want = _want(p, top_k, top_p) > 0
    assert np.array_equal(triton_kernel.keep_top(p, top_k, top_p).numpy() > 0, want)
    assert not np.array_equal(broken.keep_top(p, top_k, top_p).numpy() > 0, want)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("drafts after a refused one", "standing & (chance", "(chance"),
        ("p in place of the residual", "tl.where(plain, p, tl.maximum(p - q, 0.0))", "p"),
    ],
)
def test_verify_is_rejected_with(triton_kernel, randn, mutate, name, old, new):
    operands = _drafted(randn, drafts=3)
    want = triton_kernel.verify(*operands)
    broken = mutate(triton_kernel, old, new)
    got = broken.verify(*operands)
    assert not all(torch.allclose(a.float(), b.float()) for a, b in zip(got, want, strict=True))


def test_what_does_not_fit_is_refused_by_name(randn):
    p, q, tokens, chance = _drafted(randn)
    with pytest.raises(ValueError, match=r"verify: p must hold g\+1 = 3 places .* got 2"):
        kernels.verify(p[:, :2], q, tokens, chance)
    with pytest.raises(ValueError, match="keep_top: p must be float32 or float64, got bfloat16"):
        kernels.keep_top(p[:, 0].bfloat16(), tokens[:, 0], chance[:, 0])
    with pytest.raises(ValueError, match="keep_top: top_k must be int64, got float32"):
        kernels.keep_top(p[:, 0], chance[:, 0], chance[:, 0])
