"""Absorbed attention over pages: eager and Triton against the definition, traffic, controls."""

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.paged_mla import reference
from longcat.kernels.paged_mla.tiles import LARGE, ROWS, Tile, choose_tile, splits_for

SWAP = Tile(swap=True, queries=16, keys=16, warps=4, stages=2)
PLAIN = Tile(swap=False, queries=16, keys=16, warps=4, stages=2)
SCALE = 0.2


def _operands(randn, lengths, new=2, heads=3, width=32, rope=16, page=8, dtype=torch.bfloat16):
    n_batch, pages = len(lengths), max(-(-max(lengths) // page), 1)
    store = torch.full((n_batch * pages + 2, page, width + rope), torch.nan, dtype=dtype)
    table = torch.randperm(n_batch * pages, generator=torch.Generator().manual_seed(1)) + 1
    table = table.view(n_batch, pages)
    for b, length in enumerate(lengths):  # beyond a sequence's length there is NaN
        for s in range(length):
            store[table[b, s // page], s % page] = randn(width + rope, dtype=dtype)
    q = randn(n_batch, new, heads, width + rope, dtype=dtype)
    return q[..., :width], q[..., width:], store, table, torch.tensor(lengths), SCALE


def _want(operands):
    arrays = [t.double().numpy() if t.is_floating_point() else t.numpy() for t in operands[:-1]]
    return reference.paged_mla(*arrays, operands[-1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[5], [17, 2, 30], [1, 0]])
def test_eager_agrees_with_the_definition_and_with_numpy(randn, check, lengths, dtype):
    operands = _operands(randn, lengths, dtype=dtype)
    want = _want(operands)
    assert check.error(kernels.paged_mla(*operands), want) <= check.bound(dtype)
    with kernels.use_backend("numpy"):
        assert check.error(kernels.paged_mla(*operands), want) <= check.bound(dtype) / 8


def test_a_page_table_is_the_same_as_contiguous_latents(randn, check):
    operands = _operands(randn, [16], new=3, dtype=torch.float64)
    q_latent, q_rope, store, table, _, scale = operands
    whole = store[table[0]].view(1, 16, 48)
    plain = kernels.mla_decode(q_latent, q_rope, whole[..., :32], whole[..., 32:], scale)
    assert check.error(kernels.paged_mla(*operands), plain) < 1e-14


@pytest.fixture
def triton_kernel(interpreter, poisoned):
    pytest.importorskip("triton")
    from longcat.kernels.paged_mla import triton_kernel

    return triton_kernel


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("tile", [SWAP, PLAIN], ids=["swap", "plain"])
@pytest.mark.parametrize(
    ("lengths", "page"), [([5], 8), ([37, 2, 70], 8), ([37, 2, 70], 32), ([1, 0], 16)]
)
def test_the_kernel_agrees_with_the_definition_and_writes_once(
    triton_kernel, randn, check, lengths, page, tile, splits
):
    from longcat.kernels.proof.probe import probed

    operands = _operands(randn, lengths, heads=9, page=page)  # 18 queries are 2 blocks of 16
    with probed() as probe:
        got = triton_kernel.with_tile(*operands, tile, splits)
    assert check.norm_error(got, _want(operands)) <= 4e-3
    probe.check_written_once()
    attend, store = probe["_attend"], operands[2]
    blocks = 2
    assert attend["store_ptr"].loaded == blocks * sum(lengths) * 48 * store.element_size()
    assert (
        attend["out_ptr"].stored == probe["_merge"]["parts_ptr"].loaded == 2 * splits * got.nbytes
    )


def test_a_tile_within_one_page_looks_at_the_table_once_and_others_once_per_page(
    triton_kernel, randn
):
    from longcat.kernels.proof.probe import probed

    looked = {}
    for page in (8, 16, 48):
        operands = _operands(randn, [37, 5], new=1, page=page)
        with probed() as probe:
            triton_kernel.with_tile(*operands, SWAP, 1)
        looked[page] = probe["_attend"]["table_ptr"].loaded // 8
    # 37 tokens are 3 tiles of 16, 5 are one; of 8 tokens each, they are 5 pages and one.
    assert looked == {8: 5 + 1, 16: 3 + 1, 48: 3 + 1}


@pytest.mark.parametrize("tile", [*(t for _, t in ROWS), LARGE], ids=lambda t: f"{t.queries}")
def test_every_tile_of_the_table_attends_right(triton_kernel, randn, check, tile):
    operands = _operands(randn, [70, 130], new=1, heads=tile.queries, page=16)
    assert check.norm_error(triton_kernel.with_tile(*operands, tile, 2), _want(operands)) <= 4e-3


def test_the_backend_takes_it_for_half_precision_and_fitting_widths(randn, check, interpreter):
    pytest.importorskip("triton")
    for width in (32, 24):
        operands = _operands(randn, [20, 9], width=width)
        with kernels.use_backend("triton"):
            assert check.norm_error(kernels.paged_mla(*operands), _want(operands)) <= 8e-3


MUTANTS = {
    "drafts that see what follows them": ("s[:, None] < seen[None, :]", "s[:, None] < length"),
    "an unscaled sum after a new maximum": ("total * shrink[None, :]", "total"),
    "the next page": ("s // page_size, mask", "(s + 1) // page_size, mask"),
    "a page read from its start": ("page_size + first % page_size", "page_size"),
    "parts added without their mass": (
        "weight = tl.exp2(tl.load(lse_ptr + part) - top) / mass",
        "weight = 1.0 / n_splits",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_kernel_is_rejected_with(triton_kernel, randn, check, mutate, mutant):
    operands = _operands(randn, [44], heads=8, page=32 if "start" in mutant else 8)
    broken = mutate(triton_kernel, *MUTANTS[mutant])
    assert check.norm_error(triton_kernel.with_tile(*operands, SWAP, 2), _want(operands)) <= 4e-3
    wrong = broken.with_tile(*operands, SWAP, 2)
    assert wrong.isnan().any() or check.norm_error(wrong, _want(operands)) > 0.02


def test_a_view_of_the_cache_is_refused_and_not_copied(triton_kernel, randn):
    q_latent, q_rope, store, *rest = _operands(randn, [8])
    with (
        kernels.use_backend("triton"),
        pytest.raises(ValueError, match="paged_mla: store must be contiguous"),
    ):
        kernels.paged_mla(q_latent, q_rope, store[::2], *rest)


def test_few_queries_are_columns_and_64_are_rows():
    assert [choose_tile(q).queries for q in (8, 16, 17, 32, 64, 128)] == [16, 16, 32, 32, 64, 64]
    assert [choose_tile(q).swap for q in (16, 32, 64)] == [True, True, False]
    assert (splits_for(1, 131072), splits_for(1, 300), splits_for(512, 4096)) == (64, 1, 1)
