"""The compiled decoding kernels on a GPU against the float64 definitions. Skipped without a GPU."""

import pytest
import torch

import longcat.kernels as kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _both(call):
    """(the compiled kernel's result, the numpy definition's)."""
    with kernels.use_backend("triton"):
        got = call()
    with kernels.use_backend("numpy"):
        return got, call()


def _half(randn, *shape):
    return (randn(*shape) / shape[-1] ** 0.5).bfloat16().cuda()


@pytest.mark.parametrize("tokens", [1, 8, 12, 32, 64, 100, 300])
@pytest.mark.parametrize(("outputs", "inner"), [(576, 6144), (1536, 1024), (200, 150)])
def test_products_of_few_and_of_many_tokens(randn, check, tokens, outputs, inner):
    x, weight = _half(randn, tokens, inner), _half(randn, outputs, inner)
    got, want = _both(lambda: kernels.linear(x, weight))
    assert check.norm_error(got, want.double()) <= 4e-3


@pytest.mark.parametrize("tokens", [3, 64, 700])
def test_a_mixture_from_the_router_to_its_sum(randn, check, tokens):
    n_ffn, identity, top_k, width, inner = 16, 8, 3, 256, 128
    logits, bias = randn(tokens, n_ffn + identity).float().cuda(), torch.zeros(24).cuda()
    x = _half(randn, tokens, width)
    gate_up, down = _half(randn, n_ffn, 2 * inner, width), _half(randn, n_ffn, width, inner)

    def mixture():
        _, indices, gates, _, counts = kernels.fused_route(logits, bias, top_k, 6.0, n_ffn)
        rows, plan = kernels.permute(x, indices, n_ffn)
        y = kernels.experts(x, gate_up, down, plan.offsets, plan.tokens)
        assert int(counts.sum()) == tokens * top_k
        assert torch.equal(rows, x[plan.tokens])
        return kernels.combine(y, plan, gates, indices, x, n_ffn)

    got, want = _both(mixture)
    assert check.norm_error(got, want.double()) <= 6e-3


@pytest.mark.parametrize("heads", [8, 32, 64])
@pytest.mark.parametrize("lengths", [[5, 300], [1, 0], [2000, 7]])
def test_attention_over_pages(randn, check, heads, lengths):
    store, table = _half(randn, 100, 64, 576), torch.arange(1, 65).view(2, 32).cuda()
    q = _half(randn, 2, 1, heads, 576)
    lengths = torch.tensor(lengths).cuda()
    got, want = _both(
        lambda: kernels.paged_mla(q[..., :512], q[..., 512:], store, table, lengths, 3.0)
    )
    assert check.norm_error(got, want.double()) <= 6e-3


@pytest.mark.parametrize("tokens", [5, 40, 200])
def test_fp8_products(randn, check, tokens):
    x, x_scales = kernels.quantise_rows(_half(randn, tokens, 1024))
    weight, weight_scales = kernels.quantise_blocks(_half(randn, 320, 1024))
    got, want = _both(lambda: kernels.fp8_linear(x, x_scales, weight, weight_scales))
    assert check.norm_error(got, want.double()) <= 1e-3  # short sums of the tensor core


@pytest.mark.parametrize("width", [1000, 131072])
def test_losses_and_sampling_over_a_vocabulary(randn, check, width):
    logits = (3 * randn(4, width)).float().cuda()
    targets = torch.tensor([0, 5, -100, width - 1]).cuda()
    got, want = _both(lambda: kernels.cross_entropy(logits, targets, -100, 1e-3))
    assert check.error(got, want.double()) <= 1e-5
    p = logits.softmax(-1)
    top_k, top_p = torch.tensor([0, 1, 50, 50]).cuda(), torch.tensor([0.9, 1, 1, 0.8]).cuda()
    got, want = _both(lambda: kernels.keep_top(p, top_k, top_p))
    assert check.norm_error(got, want.double()) <= 1e-4


def test_scatter_add_gives_the_same_bits_twice(randn):
    values, index = _half(randn, 5000, 300), torch.randint(0, 40, (5000,)).cuda()
    with kernels.use_backend("triton"):
        first, second = (kernels.scatter_add(values, index, 40) for _ in range(2))
    assert torch.equal(first, second)
