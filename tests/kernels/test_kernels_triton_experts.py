"""The grouped products over a work list: numbers, traffic and writes under the interpreter."""

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.experts import reference
from longcat.kernels.experts.tiles import LARGE, ROWS, choose_tile, most_blocks
from longcat.kernels.linear.tiles import Tile

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

SWAP = Tile(swap=True, outputs=32, tokens=16, inner=32, warps=4, stages=3)
PLAIN = Tile(swap=False, outputs=32, tokens=16, inner=32, warps=4, stages=3)
COUNTS = [0, 1, 17, 16, 0, 5]


@pytest.fixture
def triton_kernel():
    from longcat.kernels.experts import triton_kernel

    return triton_kernel


@pytest.fixture
def work_list():
    from longcat.kernels.experts import work_list

    return work_list


@pytest.fixture(params=[False, True], ids=["pointers", "descriptors"])
def with_tile(request, triton_kernel):
    """The experts by a tile, their weights by either form."""

    def run(*operands, tile):
        return triton_kernel.with_tile(*operands, tile, request.param)

    return run


def _operands(randn, counts=COUNTS, width=48, inner=40, tokens=23):
    slots, experts = sum(counts), len(counts)
    x = randn(tokens, width, dtype=torch.bfloat16)
    gate_up = (randn(experts, 2 * inner, width) / width**0.5).bfloat16()
    down = (randn(experts, width, inner) / inner**0.5).bfloat16()
    rows = (torch.arange(slots) * 7) % tokens
    return x, gate_up, down, torch.tensor(counts).cumsum(0).int(), rows


def _error(check, y, x, gate_up, down, offsets, rows):
    arrays = (t.double().numpy() for t in (x, gate_up, down))
    return check.norm_error(y, reference.experts(*arrays, offsets.numpy(), rows.numpy()))


@pytest.mark.parametrize("tile", [SWAP, PLAIN], ids=["swap", "plain"])
@pytest.mark.parametrize(
    "counts", [COUNTS, [3], [0, 0, 0], [16, 32], [1] * 9], ids=lambda c: f"{len(c)}-{sum(c)}"
)
def test_experts_agree_with_the_definition_and_write_once(with_tile, randn, check, tile, counts):
    from longcat.kernels.proof.probe import probed

    operands = _operands(randn, counts)
    with probed() as probe:
        y = with_tile(*operands, tile=tile)
    probe.check_written_once()
    # Two roundings to bfloat16: of what lies between the products, and of the result.
    assert _error(check, y, *operands) <= 4e-3
    assert y.shape == (sum(counts), 48)


@pytest.mark.parametrize(
    "tile", [*(t for _, t in ROWS), LARGE], ids=lambda t: f"{t.swap}-{t.outputs}x{t.tokens}"
)
def test_every_tile_of_the_table_multiplies_right(with_tile, randn, check, tile):
    operands = _operands(randn, [2, tile.tokens + 1], width=136, inner=72)
    assert _error(check, with_tile(*operands, tile=tile), *operands) <= 4e-3


def test_rows_gathered_on_load_are_those_of_a_sorted_copy(with_tile, randn):
    x, *weights, offsets, rows = _operands(randn)
    gathered = with_tile(x, *weights, offsets, rows, tile=SWAP)
    assert torch.equal(gathered, with_tile(x[rows], *weights, offsets, None, tile=SWAP))


def test_padding_and_rows_of_no_expert_that_hold_nan_reach_nothing(with_tile, randn, check):
    operands = _operands(randn)
    wide = [
        torch.full((*t.shape[:-1], t.shape[-1] + 8), torch.nan).bfloat16() for t in operands[:3]
    ]
    for inside, tensor in zip(wide, operands, strict=False):
        inside[..., : tensor.shape[-1]] = tensor
    apart = [inside[..., : t.shape[-1]] for inside, t in zip(wide, operands, strict=False)]
    assert _error(check, with_tile(*apart, *operands[3:], tile=SWAP), *operands) <= 4e-3


def test_weights_come_by_descriptors_where_rows_begin_at_whole_words(triton_kernel, randn, check):
    from longcat.kernels.proof.probe import probed

    def described(operands):
        with probed() as probe:
            y = triton_kernel.experts(*operands)
        assert _error(check, y, *operands) <= 4e-3
        return [
            one["weights"].tensor.dim() == 4 for one in probe.launches if one.kernel == "_grouped"
        ]

    assert described(_operands(randn)) == [True, True]
    assert described(_operands(randn, width=47)) == [False, True]  # rows of 94 bytes
    assert described(_operands(randn, inner=33)) == [True, False]


def test_only_the_weights_of_experts_that_have_rows_are_read(with_tile, randn):
    from longcat.kernels.proof.probe import probed

    x, gate_up, down, offsets, rows = _operands(randn)
    with probed() as probe:
        y = with_tile(x, gate_up, down, offsets, rows, tile=SWAP)
    blocks = sum(-(-count // SWAP.tokens) for count in COUNTS)
    assert blocks == 5
    assert probe.loaded(gate_up) == blocks * gate_up[0].nbytes
    assert probe.loaded(down) == blocks * down[0].nbytes
    first, second = (one for one in probe.launches if one.kernel == "_grouped")
    # Every sorted row is read for each block of outputs: 40 of them are 2 blocks, 48 are 2.
    assert first["x_ptr"].loaded == 2 * y.nbytes
    assert second["x_ptr"].loaded == 2 * first["y_ptr"].stored == 2 * len(y) * 40 * 2


def test_the_work_list_holds_every_row_once_and_says_what_is_left_over(work_list):
    offsets = torch.tensor(COUNTS).cumsum(0).int()
    n_blocks = most_blocks(39, 6, SWAP)
    work = torch.empty(n_blocks, 3, dtype=torch.int32)
    work_list._list_work[(7,)](offsets, work, 6, n_blocks, BLOCK_T=16, ALL=8)
    listed = [tuple(entry) for entry in work.tolist() if entry[0] >= 0]
    assert listed == [(1, 0, 1), (2, 1, 18), (2, 17, 18), (3, 18, 34), (5, 34, 39)]
    assert (work[len(listed) :, 0] == -1).all()


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("gate's rows for up", "([expert, 1,", "([expert, 0,"),
        ("one expert for all", "([expert, 0,", "([0, 0,"),
        ("one block of outputs for all", "0, first_n, first]", "0, 0, first]"),
    ],
)
def test_a_corner_that_is_not_the_tiles_own_is_caught(
    triton_kernel, randn, check, mutate, name, old, new
):
    operands = _operands(randn)
    assert _error(check, triton_kernel.with_tile(*operands, SWAP, True), *operands) <= 4e-3
    wrong = mutate(triton_kernel, old, new)
    assert _error(check, wrong.with_tile(*operands, SWAP, True), *operands) > 0.1


def test_experts_that_read_their_neighbours_weights_are_caught(
    triton_kernel, work_list, randn, check, monkeypatch
):
    operands = _operands(randn)
    whole = work_list._list_work

    class Shifted:  # the mutant: one expert too far
        def __getitem__(self, grid):
            def launch(offsets, work, *rest, **constants):
                whole[grid](offsets, work, *rest, **constants)
                work[:, 0] = torch.where(work[:, 0] > 0, work[:, 0] - 1, work[:, 0])

            return launch

    monkeypatch.setattr(work_list, "_list_work", Shifted())
    assert _error(check, triton_kernel.with_tile(*operands, SWAP), *operands) > 0.1


def test_the_mixture_runs_in_triton_from_the_public_functions(randn, check):
    x, gate_up, down, offsets, rows = _operands(randn)
    with kernels.use_backend("triton"):
        y = kernels.experts(x, gate_up, down, offsets, rows)
        with pytest.raises(ValueError, match="experts: down must have adjacent columns"):
            kernels.experts(x, gate_up, down.mT.contiguous().mT, offsets, rows)
    with kernels.use_backend("numpy"):
        want = kernels.experts(x, gate_up, down, offsets, rows)
    assert check.norm_error(y, want.double()) <= 6e-3
    assert check.norm_error(kernels.experts(x, gate_up, down, offsets, rows), want) <= 1e-2


def test_the_tile_follows_the_rows_per_expert():
    assert [choose_tile(n * 512, 512).tokens for n in (1, 8, 9, 30, 60, 100)] == [
        8,
        8,
        16,
        32,
        64,
        128,
    ]
    assert choose_tile(512 * 100, 512) is LARGE
