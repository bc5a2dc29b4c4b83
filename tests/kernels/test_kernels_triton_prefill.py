"""Attention with expanded heads as Triton kernels, forward and backward, in the interpreter."""

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.mla_prefill import eager, reference
from longcat.kernels.mla_prefill.tiles import Tile, spans

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

# Small blocks, so that small shapes have several of them in each direction.
SMALL = Tile(queries=16, keys=32, warps=4, stages=2)
# batch, queries, keys, heads, width of q and k, width of v
SHAPES = [(2, 21, 21, 2, 24, 16), (1, 20, 45, 1, 48, 9), (1, 1, 1, 1, 1, 1), (1, 1, 70, 2, 16, 20)]
SCALE = 0.37


@pytest.fixture
def triton_kernel(monkeypatch):
    from longcat.kernels.mla_prefill import triton_gradient, triton_kernel

    monkeypatch.setattr(triton_kernel, "FORWARD", SMALL)
    defaults = (SMALL, Tile(queries=32, keys=16, warps=4, stages=2))
    monkeypatch.setattr(triton_gradient.backward, "__defaults__", defaults)
    return triton_kernel


def _operands(randn, shape, dtype=torch.float32):
    n_batch, n_queries, n_keys, n_heads, width, values = shape
    return (
        randn(n_batch, n_queries, n_heads, width, dtype=dtype),
        randn(n_batch, n_keys, n_heads, width, dtype=dtype),
        randn(n_batch, n_keys, n_heads, values, dtype=dtype),
    )


def _mask(shape):
    """Documents, keys of no use to anyone, and a first query that sees nothing."""
    n_batch, n_queries, n_keys = shape[:3]
    place = torch.arange(n_keys)
    number = place // max(n_keys // 3, 1)
    own = number[n_keys - n_queries :]
    causal = eager.causal_mask(n_queries, n_keys, torch.device("cpu"))
    mask = (causal & (own[:, None] == number[None])).repeat(n_batch, 1, 1)
    mask[0, 0] = False
    return mask


def _both_ways(function, operands, mask, pull):
    operands = tuple(operand.detach().requires_grad_() for operand in operands)
    out = function(*operands, SCALE, mask)
    return [out, *torch.autograd.grad(out, operands, pull.to(out.dtype))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_are_the_definitions(
    triton_kernel, randn, check, shape, masked, dtype
):
    operands = _operands(randn, shape, dtype)
    mask = _mask(shape) if masked else None
    pull = randn(*shape[:2], shape[3], shape[5], dtype=dtype)
    got = _both_ways(triton_kernel.mla_prefill, operands, mask, pull)
    arrays = [operand.double().numpy() for operand in operands]
    want = reference.mla_prefill(*arrays, SCALE, None if mask is None else mask.numpy())
    assert [t.dtype for t in got] == [dtype] * 4
    assert check.error(got[0], want) <= check.bound(dtype)
    exact = _both_ways(eager.mla_prefill, [t.double() for t in operands], mask, pull.double())
    for mine, true in zip(got[1:], exact[1:], strict=True):
        # One query that sees one key: its weight is 1, whatever q and k are.
        scale = min(1.0, float(true.abs().max()))
        assert check.error(mine, true) * scale <= 2 * check.bound(dtype)


def test_the_definition_of_the_gradients_is_their_difference(triton_kernel, randn, check):
    operands = _operands(randn, (1, 3, 4, 1, 2, 2))
    pull = randn(1, 3, 1, 2)
    got = _both_ways(triton_kernel.mla_prefill, operands, None, pull)
    for place in range(3):
        arrays = [operand.double().numpy() for operand in operands]

        def moved(x, place=place, arrays=arrays):
            changed = [*arrays[:place], x, *arrays[place + 1 :]]
            return reference.mla_prefill(*changed, SCALE)

        want = check.numeric_gradient(moved, arrays[place], pull.numpy())
        assert check.error(got[1 + place], want) < 1e-5


def test_each_number_is_written_once_and_keys_past_the_diagonal_are_never_read(
    triton_kernel, randn
):
    from longcat.kernels.proof.probe import probed

    shape = (1, 40, 64, 2, 24, 16)
    q, k, v = (operand.requires_grad_() for operand in _operands(randn, shape))
    with probed() as probe:
        triton_kernel.mla_prefill(q, k, v, SCALE).sum().backward()
    probe.check_written_once()
    # Queries 0..15, 16..31 and 32..39 end at keys 40, 56 and 64.
    row = 4 * 2 * 24
    for name in ("_attend", "_gradient_q"):
        assert probe[name]["k_ptr"].loaded == (40 + 56 + 64) * row
        assert probe[name]["q_ptr"].loaded == q.nbytes
    # Keys 0..15 and 16..31 are seen by all queries, 32..47 from 8 on and 48..63 from 24 on, in
    # whole blocks of 32.
    assert probe["_gradient_kv"]["q_ptr"].loaded == (40 + 40 + 40 + 40) * row
    assert probe["_gradient_kv"]["k_ptr"].loaded == k.nbytes


def test_keys_of_other_documents_are_never_read(triton_kernel, randn):
    from longcat.kernels.proof.probe import probed

    q, k, v = (operand.requires_grad_() for operand in _operands(randn, (1, 64, 64, 1, 16, 16)))
    number = torch.arange(64) // 32
    mask = ((number[:, None] == number[None]) & torch.ones(64, 64, dtype=torch.bool).tril())[None]
    with probed() as probe:
        triton_kernel.mla_prefill(q, k, v, SCALE, mask).sum().backward()
    probe.check_written_once()
    row = 4 * 16
    # Tiles of 16 queries: the second of each document sees all its 32 keys, the first 16 of them.
    for name in ("_attend", "_gradient_q"):
        assert probe[name]["k_ptr"].loaded == 2 * (16 + 32) * row
    # Tiles of 16 keys: queries come in blocks of 32.
    assert probe["_gradient_kv"]["q_ptr"].loaded == 2 * (32 + 32) * row


def test_spans_are_those_of_the_seen_columns_in_whole_blocks():
    mask = torch.zeros(1, 5, 20, dtype=torch.bool)
    mask[0, 0, 9] = mask[0, 1, 14] = mask[0, 4, 0] = True
    assert spans(mask, 2, 4).tolist() == [[[8, 15], [0, 0], [0, 1]]]
    assert spans(mask.mT, 8, 2).tolist() == [[[4, 5], [0, 2], [0, 0]]]


def test_views_are_read_by_their_strides_and_padding_of_nan_reaches_nothing(
    triton_kernel, randn, check
):
    q, k, v = _operands(randn, (1, 19, 19, 2, 24, 16))
    wide = torch.full((1, 2, 19, 60), torch.nan)  # heads first, other numbers between the rows
    wide[..., :24], wide[..., 30:46] = k.transpose(1, 2), v.transpose(1, 2)
    views = wide[..., :24].transpose(1, 2), wide[..., 30:46].transpose(1, 2)
    pull = randn(1, 19, 2, 16)
    got = _both_ways(triton_kernel.mla_prefill, (q, *views), None, pull)
    want = _both_ways(triton_kernel.mla_prefill, (q, k, v), None, pull)
    assert all(torch.equal(mine, other) for mine, other in zip(got, want, strict=True))


def test_two_runs_give_the_same_bits_and_a_head_does_not_depend_on_its_neighbours(
    triton_kernel, randn
):
    operands, pull = _operands(randn, (2, 9, 18, 2, 16, 16)), randn(2, 9, 2, 16)
    first = _both_ways(triton_kernel.mla_prefill, operands, None, pull)
    again = _both_ways(triton_kernel.mla_prefill, operands, None, pull)
    alone = [operand[1:, :, 1:] for operand in operands]
    one = _both_ways(triton_kernel.mla_prefill, alone, None, pull[1:, :, 1:])
    for a, b, c in zip(first, again, one, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[1:, :, 1:], c)


@pytest.mark.parametrize(
    ("where", "old", "new"),
    [
        ("triton_kernel", "total = total * shrink[:, None]", "total = total * 1.0"),
        ("triton_kernel", "<= t[:, None] + (n_keys - n_queries)", "<= t[:, None]"),
        ("triton_gradient", "(weights * (through - products[:, None]))", "(weights * through)"),
        ("triton_gradient", "t[None, :] + (n_keys - n_queries)", "t[None, :] + 1"),
        ("triton_gradient", "tl.load(columns + s[:, None], mask=seen, other=0) != 0", "seen"),
    ],
    ids=["sums not rescaled", "causal from the start", "no D", "keys seen too early", "no mask"],
)
def test_the_kernels_are_rejected_with(
    triton_kernel, randn, check, mutate, monkeypatch, where, old, new
):
    from longcat.kernels.mla_prefill import triton_gradient

    shape = (1, 21, 45, 1, 24, 16)
    operands, pull = _operands(randn, shape), randn(1, 21, 1, 16)
    mask = eager.causal_mask(21, 45, torch.device("cpu"))[None] if "columns" in old else None
    exact = _both_ways(eager.mla_prefill, [t.double() for t in operands], mask, pull)

    def errors():
        got = _both_ways(triton_kernel.mla_prefill, operands, mask, pull)
        return max(check.error(a, b) for a, b in zip(got, exact, strict=True))

    assert errors() < 1e-5
    module = {"triton_kernel": triton_kernel, "triton_gradient": triton_gradient}[where]
    broken = mutate(module, old, new)
    for name in ("_attend", "_gradient_q", "_gradient_kv"):
        if name in vars(broken) and name in vars(module):
            monkeypatch.setattr(module, name, vars(broken)[name])
    assert errors() > 1e-3


def test_training_takes_the_kernels_when_they_are_asked_for(randn, check):
    shape = (1, 9, 9, 2, 24, 16)
    operands, pull = _operands(randn, shape, torch.bfloat16), randn(1, 9, 2, 16)
    with kernels.use_backend("triton"):
        got = _both_ways(kernels.mla_prefill, operands, None, pull)
        wide = kernels.mla_prefill(*(t.float() for t in operands), SCALE)
    want = _both_ways(eager.mla_prefill, [t.double() for t in operands], None, pull)
    assert got[0].grad_fn.name() == "_AttentionBackward"
    assert wide.dtype == torch.float32  # by eager torch: the kernels are for half precision
    for mine, true in zip(got, want, strict=True):
        assert check.error(mine, true) <= 2 * check.bound(torch.bfloat16)
