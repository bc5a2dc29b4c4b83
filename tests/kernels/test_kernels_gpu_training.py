"""The compiled kernels of training on a GPU, both ways, against eager torch in float64.

Skipped without a GPU; on a CPU the same kernels run in the interpreter (test_kernels_triton_*.py).
"""

import pytest
import torch

import longcat.kernels as kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

BF16 = torch.bfloat16


def _both_ways(function, operands):
    operands = [operand.detach().requires_grad_() for operand in operands]
    made = function(*operands)
    outputs = [made] if isinstance(made, torch.Tensor) else [o for o in made if o.requires_grad]
    return [*outputs, *torch.autograd.grad([out.sum() for out in outputs], operands)]


def _agree(check, function, operands, bound, dtype=BF16):
    """Triton in dtype against eager torch in float64, from the same rounded numbers."""
    given = [operand.to(dtype) for operand in operands]
    with kernels.use_backend("triton"):
        got = _both_ways(function, given)
        again = _both_ways(function, given)
    want = _both_ways(function, [operand.double() for operand in given])
    for mine, true, repeated in zip(got, want, again, strict=True):
        assert torch.equal(mine, repeated)  # no atomics: the same bits in every run
        assert check.norm_error(mine, true) <= bound


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(2, 300, 300, 3), (1, 130, 517, 2), (1, 1, 70, 4)])
def test_mla_prefill(randn, check, shape, masked):
    n_batch, n_queries, n_keys, heads = shape
    q = randn(n_batch, n_queries, heads, 192).cuda()
    k, v = randn(n_batch, n_keys, heads, 192).cuda(), randn(n_batch, n_keys, heads, 128).cuda()
    mask = None
    if masked:
        place = torch.arange(n_keys, device="cuda")
        own = place[n_keys - n_queries :]
        mask = (own[:, None] >= place) & (own[:, None] // 100 == place // 100)
        mask = mask.repeat(n_batch, 1, 1)
    _agree(check, lambda *o: kernels.mla_prefill(*o, 192**-0.5, mask), (q, k, v), 1.5e-2)


@pytest.mark.parametrize("counts", [[0, 1, 130, 16, 0, 500], [3]])
def test_experts(randn, check, counts):
    x = randn(211, 192).cuda()
    gate_up, down = (
        randn(len(counts), 256, 192).cuda() / 14,
        randn(len(counts), 192, 128).cuda() / 11,
    )
    offsets = torch.tensor(counts, device="cuda").cumsum(0).int()
    rows = torch.arange(sum(counts), device="cuda") * 7 % 211
    _agree(check, lambda *o: kernels.experts(*o, offsets, rows), (x, gate_up, down), 1.5e-2)


def test_permute_and_combine(randn, check):
    indices = randn(97, 24).argsort(dim=1)[:, :12].contiguous().cuda()

    def path(x, gates):
        rows, plan = kernels.permute(x, indices, 16)
        return kernels.combine(2 * rows, plan, gates, indices, x, 16)

    _agree(check, path, (randn(97, 1536).cuda(), randn(97, 12).cuda()), 1.5e-2)


def test_fused_route(randn, check):
    bias = 0.02 * randn(768).float().cuda()
    function = lambda l: kernels.fused_route(l, bias.to(l.dtype), 12, 6.0, 512)  # noqa: E731
    _agree(check, function, [2 * randn(65, 768).cuda()], 1e-5, torch.float32)


def test_rope_and_add_rmsnorm_and_the_losses(randn, check):
    inv_freq, factor = kernels.rope_frequencies(64, 1e7)
    positions = torch.arange(50, device="cuda")[None] * 900
    frequencies = torch.from_numpy(inv_freq).cuda()
    function = lambda x: kernels.rope(x, positions, frequencies, factor)  # noqa: E731
    _agree(check, function, [randn(1, 50, 19, 64).cuda()], 1.5e-2)
    operands = randn(65, 6144).cuda(), randn(65, 6144).cuda(), randn(6144).cuda()
    _agree(check, lambda *o: kernels.add_rmsnorm(*o, 1e-5), operands, 1.5e-2)
    _agree(check, lambda z: kernels.hidden_z_loss(z, 0.3), [randn(65, 6144).cuda()], 1.5e-2)
    targets = torch.arange(33, device="cuda") * 7
    for in_place in (False, True):
        function = lambda l: kernels.cross_entropy(  # noqa: E731
            l * 1,
            targets,
            -100,
            0.1,
            in_place=in_place,  # noqa: B023
        )
        _agree(check, function, [4 * randn(33, 131072).cuda()], 1.5e-2)


def test_adamw_steps_every_tensor_of_the_list(randn, check):
    shapes = [(4097,), (3, 5), (2048, 6), (1,)]
    lists = [[randn(*shape).float().cuda() for shape in shapes] for _ in range(4)]
    lists[3] = [tensor.square() for tensor in lists[3]]
    wide = [[tensor.double() for tensor in tensors] for tensors in lists]
    copies = [torch.empty(shape, dtype=BF16, device="cuda") for shape in shapes]
    with kernels.use_backend("triton"):
        kernels.adamw_step(*lists, 3, lr=0.1, copies=copies)
    kernels.adamw_step(*wide, 3, lr=0.1)
    for mine, true, copy in zip(lists[0], wide[0], copies, strict=True):
        assert check.error(mine, true) < 1e-6
        assert torch.equal(copy, mine.bfloat16())
