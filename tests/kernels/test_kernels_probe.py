"""The probe sees stray lanes, forgotten and doubled writes, and counts the bytes of a launch."""

import pytest
import torch

import longcat.kernels as kernels

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

pytestmark = pytest.mark.usefixtures("interpreter")


@triton.jit
def _copy(x_ptr, out_ptr, length, STEP: tl.constexpr, MASKED: tl.constexpr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * STEP + tl.arange(0, BLOCK)
    inside = (places < length) if MASKED else (places >= 0)
    tl.store(out_ptr + places, tl.load(x_ptr + places, mask=inside), mask=inside)


@pytest.fixture
def probed():
    from longcat.kernels.proof.probe import probed

    return probed


def _launch(probed, step=16, masked=True, programs=3):
    x, out = torch.randn(40), torch.empty(40)
    with probed() as probe:
        _copy[(programs,)](x, out, 40, STEP=step, MASKED=masked, BLOCK=16)
    return x, out, probe


def test_a_right_launch_writes_every_element_once_and_moves_each_byte_once(probed):
    x, out, probe = _launch(probed)
    probe.check_written_once()
    assert probe["_copy"]["x_ptr"].loaded == x.nbytes == probe.loaded(x)
    assert probe["_copy"]["out_ptr"].stored == out.nbytes == probe.stored(out)


def test_a_dropped_mask_is_a_stray_lane_by_name_and_place(probed):
    with pytest.raises(
        Exception, match=r"_copy: 8 lanes load outside every tensor .* element 40 of"
    ):
        _launch(probed, masked=False)


def test_an_element_written_twice_and_one_never_written_are_seen(probed):
    with pytest.raises(AssertionError, match=r"out_ptr has 0 .* and \d+ written more than once"):
        _launch(probed, step=12)[2].check_written_once()
    with pytest.raises(AssertionError, match=r"out_ptr has 8 elements never written"):
        _launch(probed, programs=2)[2].check_written_once()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rmsnorm_moves_the_bytes_of_its_readme(probed, randn, dtype):
    x, weight = randn(6, 40, dtype=dtype).requires_grad_(), randn(40, dtype=dtype)
    with probed() as probe, kernels.use_backend("triton"):
        y = kernels.rmsnorm(x, weight, 1e-5)
        y.backward(torch.ones_like(y))
    probe.check_written_once()
    forward, backward = probe["_forward"], probe["_backward"]
    assert forward["x_ptr"].loaded == forward["y_ptr"].stored == x.nbytes
    assert backward["x_ptr"].loaded == backward["grad_ptr"].loaded == x.nbytes
    assert backward["grad_x_ptr"].stored == x.nbytes
    assert forward["weight_ptr"].loaded == 6 * weight.nbytes  # of each row: cached on a GPU


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swiglu_moves_each_element_once(probed, randn, dtype):
    gate, up = (randn(5, 33, dtype=dtype).requires_grad_() for _ in range(2))
    with probed() as probe, kernels.use_backend("triton"):
        y = kernels.swiglu(gate, up)
        y.backward(torch.ones_like(y))
    probe.check_written_once()
    for launch, reads, writes in (
        ("_forward", ("gate_ptr", "up_ptr"), ("out_ptr",)),
        ("_backward", ("grad_ptr", "gate_ptr", "up_ptr"), ("grad_gate_ptr", "grad_up_ptr")),
    ):
        assert all(probe[launch][name].loaded == gate.nbytes for name in reads)
        assert all(probe[launch][name].stored == gate.nbytes for name in writes)
