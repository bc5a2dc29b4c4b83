"""The SwapAB and the plain product: numbers, traffic and writes under Triton's interpreter."""

import numpy as np
import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.linear import reference
from longcat.kernels.linear.tiles import LARGE, ROWS, Tile, choose_tile, padded

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

TILES = [*(tile for _, tile in ROWS), LARGE]
# Small blocks, so that ragged shapes have several of them in each direction.
SWAP = Tile(swap=True, outputs=32, tokens=16, inner=32, warps=4, stages=3)
PLAIN = Tile(swap=False, outputs=32, tokens=16, inner=32, warps=4, stages=3)
SPLIT = Tile(swap=True, outputs=32, tokens=16, inner=32, warps=4, stages=3, splits=3)


@pytest.fixture(params=[False, True], ids=["pointers", "descriptors"])
def product(request):
    """The product by either form; by descriptors where the operands can be described at all."""
    from longcat.kernels.linear import descriptor_kernel, triton_kernel

    def run(x, weight, tile):
        described = request.param and descriptor_kernel.can_be_described(x, weight)
        return triton_kernel.product(x, weight, tile, described)

    return run


def _check(y, x, weight):
    """Within one rounding to bfloat16 of a sum whose every float32 step may round."""
    x, weight = x.double().numpy(), weight.double().numpy()
    want = reference.linear(x, weight)
    terms = np.abs(x) @ np.abs(weight).T
    allowed = 2.0**-8 * np.abs(want) + x.shape[-1] * 2.0**-24 * terms
    assert (np.abs(y.double().numpy() - want) <= allowed).all()


@pytest.mark.parametrize("tile", TILES, ids=lambda t: f"{t.swap}-{t.outputs}x{t.tokens}")
def test_every_tile_of_the_table_multiplies_right(product, randn, tile):
    x, weight = (randn(n, 150, dtype=torch.bfloat16) for n in (tile.tokens + 3, tile.outputs + 5))
    _check(product(x, weight, tile), x, weight)


@pytest.mark.parametrize("tile", [SWAP, PLAIN, SPLIT], ids=["swap", "plain", "split"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 40, 96), (33, 70, 100), (16, 32, 32), (3, 7, 0)])
def test_ragged_shapes_are_right_and_written_once(product, randn, tile, shape):
    from longcat.kernels.proof.probe import probed

    tokens, outputs, inner = shape
    x = randn(tokens, inner, dtype=torch.bfloat16)
    weight = randn(outputs, inner, dtype=torch.bfloat16)
    with probed() as probe:
        y = product(x, weight, tile)
    _check(y, x, weight)
    probe.check_written_once()


@pytest.mark.parametrize("tile", [SWAP, PLAIN, SPLIT], ids=["swap", "plain", "split"])
def test_each_block_reads_the_weight_once_per_block_of_tokens(product, randn, tile):
    from longcat.kernels.proof.probe import probed

    x, weight = randn(20, 160, dtype=torch.bfloat16), randn(70, 160, dtype=torch.bfloat16)
    with probed() as probe:
        y = product(x, weight, tile)
    assert probe.loaded(weight) == 2 * weight.nbytes  # 20 tokens are 2 blocks of 16
    assert probe.loaded(x) == 3 * x.nbytes  # 70 outputs are 3 blocks of 32
    assert probe.stored(y) == y.nbytes
    if tile.splits > 1:
        parts = probe["_add_splits"]["parts_ptr"]
        made = next(one for one in probe.launches if "_product" in one.kernel)
        assert parts.loaded == made["y_ptr"].stored == tile.splits * 2 * y.nbytes


def test_a_row_does_not_depend_on_its_neighbours_and_runs_repeat_to_the_bit(product, randn):
    x, weight = randn(14, 96, dtype=torch.bfloat16), randn(40, 96, dtype=torch.bfloat16)
    whole = product(x, weight, SPLIT)
    assert torch.equal(whole, product(x, weight, SPLIT))
    assert torch.equal(whole[5:6], product(x[5:6], weight, SPLIT))


def test_padding_that_holds_nan_reaches_nothing(product, randn):
    wide = torch.full((40, 200), torch.nan, dtype=torch.bfloat16)
    wide[:9, :100] = randn(9, 100, dtype=torch.bfloat16)
    weight = torch.full((50, 104), torch.nan, dtype=torch.bfloat16)
    weight[:37, :100] = randn(37, 100, dtype=torch.bfloat16)
    x, weight = wide[:9, :100], weight[:37, :100]
    for tile in (SWAP, PLAIN, SPLIT):
        _check(product(x, weight, tile), x, weight)


def test_a_split_left_out_of_the_sum_is_caught(randn, monkeypatch):
    from longcat.kernels.linear import triton_kernel

    x, weight = randn(4, 192, dtype=torch.bfloat16), randn(32, 192, dtype=torch.bfloat16)
    whole = triton_kernel._add_splits

    class Short:  # the mutant
        def __getitem__(self, grid):
            return lambda parts, y, n, splits, **rest: whole[grid](parts, y, n, splits - 1, **rest)

    monkeypatch.setattr(triton_kernel, "_add_splits", Short())
    with pytest.raises(AssertionError):
        _check(triton_kernel.product(x, weight, SPLIT), x, weight)


def test_tiles_come_by_descriptors_where_rows_begin_at_whole_words(randn):
    from longcat.kernels.linear import triton_kernel
    from longcat.kernels.proof.probe import probed

    def ran(x, weight):
        with probed() as probe:
            _check(triton_kernel.product(x, weight, SWAP), x, weight)
        return probe.launches[0].kernel

    x, weight = randn(3, 40, dtype=torch.bfloat16), randn(20, 40, dtype=torch.bfloat16)
    assert ran(x, weight) == "_described_product"
    assert ran(x[:, 1:33], weight[:, :32]) == "_product"  # begins 2 bytes behind a word
    assert ran(x[:, :35], weight[:, :35].contiguous()) == "_product"  # rows of 70 bytes
    assert ran(x[:, :35], weight[:, :35]) == "_described_product"  # zeros past the width


def test_a_corner_that_is_not_the_tiles_own_is_caught(randn, mutate, monkeypatch):
    from longcat.kernels.linear import descriptor_kernel, triton_kernel

    x, weight = randn(20, 64, dtype=torch.bfloat16), randn(70, 64, dtype=torch.bfloat16)
    _check(triton_kernel.product(x, weight, PLAIN, described=True), x, weight)
    wrong = mutate(descriptor_kernel, "([first_n,", "([0,")
    monkeypatch.setattr(triton_kernel, "descriptor_kernel", wrong)
    with pytest.raises(AssertionError):
        _check(triton_kernel.product(x, weight, PLAIN, described=True), x, weight)


def test_the_backend_takes_the_kernel_without_gradients_and_eager_with_them(randn):
    x, weight = randn(2, 3, 64, dtype=torch.bfloat16), randn(48, 64, dtype=torch.bfloat16)
    with kernels.use_backend("triton"):
        y = kernels.linear(x, weight)
        kernels.linear(x.requires_grad_(), weight).sum().backward()
    assert y.shape == (2, 3, 48)
    _check(y.view(6, 48), x.detach().view(6, 64), weight)
    assert x.grad is not None


def test_a_weight_stored_by_columns_is_refused_and_not_copied(randn):
    x, weight = randn(2, 64, dtype=torch.bfloat16), randn(64, 48, dtype=torch.bfloat16).T
    with (
        kernels.use_backend("triton"),
        pytest.raises(ValueError, match=r"linear: weight must have adjacent columns .* \[1, 48\]"),
    ):
        kernels.linear(x, weight)


def test_few_tokens_are_padded_to_eights_and_not_to_64():
    assert [padded(12, tile) for tile in (choose_tile(12, 6144, 6144), LARGE)] == [16, 128]
    assert [choose_tile(t, 6144, 6144).tokens for t in (1, 8, 9, 17, 33)] == [8, 8, 16, 32, 64]
    assert [choose_tile(t, 6144, 6144).swap for t in (64, 65, 4096)] == [True, False, False]


def test_narrow_products_are_split_until_every_processor_has_work():
    assert choose_tile(1, 1536, 6144).splits == 8  # q_a: 24 blocks of 64
    assert choose_tile(1, 6144, 8192).splits == 2  # o: 96 blocks
    assert choose_tile(1, 24576, 6144).splits == 1  # dense gate_up: 384 blocks
    assert choose_tile(1, 64, 128).splits == 1  # nothing to split
