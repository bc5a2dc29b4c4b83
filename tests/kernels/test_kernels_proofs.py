"""What holds for every op with a Triton kernel: right, written once, served when empty, bytes read.

Other files go further into single ops. Memory around the operands that holds NaN is in
test_kernels_faults.py, the instructions of the compiled kernels in test_kernels_codegen.py.
"""

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.programs import INTERPRETED

pytest.importorskip("triton")

from longcat.kernels.proof.calls import CALLS

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

KERNELS = [name for name, call in CALLS.items() if call.reads is not None]
# Rows of the cache that no token goes to, and of slots that no FFN expert computes.
PARTLY_WRITTEN = {("_latent_write", "store"), ("_invert", "rows_ptr")}


def _probed(op, operands):
    """(results, the probe) of the op's Triton kernels."""
    from longcat.kernels.proof.probe import probed

    with kernels.use_backend("triton"), probed(**operands) as probe:
        made = CALLS[op](**operands)
    assert probe.launches, "eager torch ran"
    return made, probe


def _excess(check, op, made):
    """The largest error against the definition, in what the dtypes allow."""
    with kernels.use_backend("numpy"):
        want = CALLS[op](**CALLS[op].operands())
    narrowest = max(
        (t.dtype for t in CALLS[op].operands().values() if t.is_floating_point()),
        key=lambda dtype: torch.finfo(dtype).eps,
    )
    # FP8 operands are exact; what is made of them is float32.
    allowed = check.bound(torch.float32 if narrowest.itemsize == 1 else narrowest)
    errors = [check.error(a.float(), b.float()) for a, b in zip(made, want, strict=True)]
    return max(errors) / allowed


@pytest.mark.parametrize("op", KERNELS)
def test_every_kernel_agrees_with_the_definition_on_memory_that_held_nan(check, op):
    made, _ = _probed(op, CALLS[op].operands())
    assert _excess(check, op, made) <= 1


@pytest.mark.parametrize("op", KERNELS)
def test_every_kernel_writes_each_number_once_and_no_lane_strays(op):
    _, probe = _probed(op, CALLS[op].operands())
    written = 0
    for launch in probe.launches:
        for name, traffic in launch.traffic.items():
            counts = traffic.written()
            partly = (launch.kernel, name) in PARTLY_WRITTEN
            if traffic.stored:
                assert counts.max() == 1, f"{launch.kernel}: {name} twice"
                assert partly or counts.min() == 1, f"{launch.kernel}: {name} not everywhere"
            written += traffic.stored
    assert written


@pytest.mark.parametrize("op", KERNELS)
def test_every_kernel_reads_as_many_bytes_of_each_operand_as_counted_on_paper(op):
    operands = CALLS[op].operands()
    _, probe = _probed(op, operands)
    read = {name: probe.loaded(tensor) / tensor.nbytes for name, tensor in operands.items()}
    assert read == pytest.approx(dict(CALLS[op].reads))


def _gradients(op, operands, backend):
    """Of the leaves, for a pull that is the same in every form, and the probe of the launches."""
    from longcat.kernels.proof.probe import probed

    leaves = [operands[name].requires_grad_() for name in CALLS[op].leaves]
    with kernels.use_backend(backend), probed() as probe:
        made = [m for m in CALLS[op](**operands) if m.requires_grad]
        pulls = [torch.linspace(-1, 1, m.numel()).view(m.shape).to(m.dtype) for m in made]
        return torch.autograd.grad(made, leaves, pulls), probe


@pytest.mark.parametrize("op", [name for name, call in CALLS.items() if call.leaves])
def test_every_gradient_agrees_with_float64_and_is_written_once(check, op):
    operands = CALLS[op].operands()
    dtype = next(operands[name].dtype for name in CALLS[op].leaves)
    wide = {n: t.double() if t.is_floating_point() else t for n, t in operands.items()}
    got, probe = _gradients(op, operands, "triton")
    want, _ = _gradients(op, wide, "torch")
    for mine, true in zip(got, want, strict=True):
        assert check.error(mine, true) <= check.bound(dtype)
    for launch in probe.launches:
        for name, traffic in launch.traffic.items():
            if traffic.stored and (launch.kernel, name) not in PARTLY_WRITTEN:
                assert (traffic.written() == 1).all(), f"{launch.kernel}: {name}"


# How often a gradient's kernel loads each byte of what it is given; those of the other ops are
# counted in their own files. Three programs share the rows, and each reads the weight.
BACKWARD = {
    "rmsnorm": ("_backward", {"grad": 1, "x": 1, "inverse": 1, "weight": INTERPRETED}),
    "add_rmsnorm": (
        "_backward",
        {"grad": 1, "grad_total": 1, "total": 1, "inverse": 1, "weight": INTERPRETED},
    ),
    "fused_route": (
        "_gradient",
        {"scores": 1, "indices": 1, "grad_scores": 1, "grad_gates": 1, "grad_identity": 1},
    ),
    "permute": ("_combine", {"y": 1, "rows": 8 / 12, "indices": 1, "gates": 0}),
    "swiglu": ("_backward", {"grad": 1, "gate": 1, "up": 1}),
    "hidden_z_loss": ("_backward", {"z": 1, "log_sums": 1, "factors": 1}),
}


@pytest.mark.parametrize("op", BACKWARD)
def test_a_gradient_reads_as_many_bytes_as_counted_on_paper(op):
    kernel, counted = BACKWARD[op]
    launch = _gradients(op, CALLS[op].operands(), "triton")[1][kernel]
    given = {name: launch[f"{name}_ptr"] for name in counted}
    read = {name: traffic.loaded / traffic.nbytes for name, traffic in given.items()}
    assert read == pytest.approx(counted)


@pytest.mark.parametrize("op", [name for name, call in CALLS.items() if call.rows])
def test_no_tokens_at_all_are_served(op):
    operands = CALLS[op].operands()
    for name, dim in CALLS[op].rows.items():
        operands[name] = operands[name].narrow(dim, 0, 0)
    if op == "experts":
        operands["offsets"] = torch.zeros_like(operands["offsets"])
    with kernels.use_backend("triton"):
        made = CALLS[op](**{name: tensor.clone() for name, tensor in operands.items()})
    for mine, true in zip(made, CALLS[op](**operands), strict=True):
        assert mine.shape == true.shape
        assert mine.dtype == true.dtype
        assert torch.equal(mine, true)


def test_a_launch_that_reads_or_writes_too_much_and_a_wrong_number_are_caught(check, mutate):
    from longcat.kernels.proof.probe import probed
    from longcat.kernels.swiglu import triton_kernel

    gate, up = CALLS["swiglu"].operands().values()
    doubled = mutate(triton_kernel, "return rows.shape[0],", "return 2 * rows.shape[0] - 1,")
    with probed() as probe, pytest.raises(Exception, match="outside every tensor"):
        doubled.swiglu(gate, up)
    wrong = mutate(triton_kernel, "out = gate * tl.sigmoid(gate) * up", "out = gate * up")
    assert _excess(check, "swiglu", [triton_kernel.swiglu(gate, up)]) <= 1
    assert _excess(check, "swiglu", [wrong.swiglu(gate, up)]) > 100
    assert probe.launches[0]["gate_ptr"].loaded >= gate.nbytes
