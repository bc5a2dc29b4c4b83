"""Scatter-add: three forms, the order of addition, traffic, controls."""

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.scatter_add import reference


@pytest.fixture
def triton_kernel(interpreter, poisoned):
    pytest.importorskip("triton")
    from longcat.kernels.scatter_add import triton_kernel

    return triton_kernel


def _operands(randn, rows, width, size, dtype=torch.float32):
    index = (torch.arange(rows) * 5 + torch.arange(rows) // 3) % max(size - 1, 1)
    return randn(rows, width, dtype=dtype), index, size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(11, 5, 4), (1, 1, 1), (0, 4, 3), (9, 1030, 6)])
def test_all_forms_add_what_the_definition_adds(triton_kernel, randn, check, shape, dtype):
    from longcat.kernels.proof.probe import probed

    operands = _operands(randn, *shape, dtype)
    want = reference.scatter_add(operands[0].double().numpy(), operands[1].numpy(), shape[2])
    with kernels.use_backend("triton"), probed() as probe:
        got = kernels.scatter_add(*operands)
    probe.check_written_once()
    assert probe.loaded(operands[0]) == operands[0].nbytes
    with kernels.use_backend("numpy"):
        numpy = kernels.scatter_add(*operands)
    for form in (got, numpy, kernels.scatter_add(*operands)):
        assert form.dtype == dtype
        assert check.error(form, want) <= check.bound(dtype) / 4


def test_rows_are_added_in_their_order_to_the_bit(triton_kernel, randn):
    values, index, size = _operands(randn, 60, 8, 5)
    values *= 10.0 ** torch.arange(60)[:, None].remainder(7)
    in_order = torch.zeros(size, 8)
    for row, place in zip(values, index, strict=True):
        in_order[place] += row
    assert torch.equal(triton_kernel.scatter_add(values, index, size), in_order)
    assert torch.equal(kernels.scatter_add(values, index, size), in_order)
    backwards = triton_kernel.scatter_add(values.flip(0), index.flip(0), size)
    assert not torch.equal(backwards, in_order)  # the control: the order does matter


def test_it_is_the_gradient_of_a_gather(randn):
    table = randn(6, 3).requires_grad_()
    index, pull = torch.tensor([4, 0, 4, 5]), randn(4, 3)
    table.index_select(0, index).backward(pull)
    assert torch.equal(kernels.scatter_add(pull, index, 6), table.grad)


def test_a_run_without_its_first_row_is_caught(triton_kernel, randn, check, mutate):
    broken = mutate(triton_kernel, "range(start, end)", "range(start + 1, end)")
    operands = _operands(randn, 12, 4, 5)
    want = kernels.scatter_add(*operands)
    assert check.error(triton_kernel.scatter_add(*operands), want) < 1e-6
    assert check.error(broken.scatter_add(*operands), want) > 0.1


def test_what_does_not_fit_is_refused_by_name(randn):
    values, index, size = _operands(randn, 4, 3, 5)
    with pytest.raises(ValueError, match=r"scatter_add: index must lie in 0\.\.1, got values"):
        kernels.scatter_add(values, index, 2)
    with pytest.raises(ValueError, match="scatter_add: index must be int64, got int32"):
        kernels.scatter_add(values, index.int(), size)
    assert kernels.scatter_add(values, index, size).isfinite().all()
