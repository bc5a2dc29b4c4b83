"""A wrong operand is refused by a sentence that names the op, the operand and what was expected."""

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.operands import check_shape, check_together

F = torch.zeros


def _plan():
    return kernels.permute(F(3, 4), F(3, 2).long(), 2)[1]


CASES = {
    "rmsnorm weight width": (
        lambda: kernels.rmsnorm(F(2, 4), F(3), 1e-5),
        r"rmsnorm: weight must have shape \[D\] with D=4 .* got \[3\]",
    ),
    "rmsnorm integer x": (
        lambda: kernels.rmsnorm(F(2, 4).long(), F(4), 1e-5),
        r"rmsnorm: x must be floating point, got int64",
    ),
    "swiglu shapes": (
        lambda: kernels.swiglu(F(2, 4), F(2, 5)),
        r"swiglu: up must have the shape of gate \[2, 4\], got \[2, 5\]",
    ),
    "swiglu dtypes": (
        lambda: kernels.swiglu(F(2, 4), F(2, 4).double()),
        r"swiglu: up is float64 and gate is float32",
    ),
    "linear inner width": (
        lambda: kernels.linear(F(2, 4), F(3, 5)),
        r"linear: x must have shape \[\.\.\., I\] with I=5",
    ),
    "linear bias": (
        lambda: kernels.linear(F(2, 4), F(3, 4), F(4)),
        r"linear: bias must have shape \[O\] with O=3",
    ),
    "rope dimensions": (
        lambda: kernels.rope(F(2, 4, 6), F(2, 4).long(), F(3)),
        r"rope: x must have shape \[B, T, H, R\], got \[2, 4, 6\]",
    ),
    "rope float positions": (
        lambda: kernels.rope(F(2, 4, 1, 6), F(2, 4), F(3)),
        r"rope: positions must be int64 or int32, got float32",
    ),
    "rope frequencies": (
        lambda: kernels.rope(F(2, 4, 1, 6), F(2, 4).long(), F(6)),
        r"rope: inv_freq must have shape \[R/2\] .* got \[6\] with R=6",
    ),
    "route low precision": (
        lambda: kernels.route(F(2, 4).bfloat16(), F(4), 2, 1.0),
        r"route: logits must be float32 or float64, got bfloat16",
    ),
    "route top_k": (
        lambda: kernels.route(F(2, 4), F(4), 5, 1.0),
        r"route: top_k must be between 1 and E=4, got 5",
    ),
    "route bias": (
        lambda: kernels.route(F(2, 4), F(5), 2, 1.0),
        r"route: bias must have shape \[E\] with E=4",
    ),
    "counts mask": (
        lambda: kernels.expert_counts(F(2, 3).long(), 4, F(3).bool()),
        r"expert_counts: token_mask must have shape \[T\] with T=2",
    ),
    "permute indices": (
        lambda: kernels.permute(F(3, 4), F(2, 2).long(), 2),
        r"permute: indices must have shape \[T, K\] with T=3",
    ),
    "combine with another plan": (
        lambda: kernels.combine(F(4, 4), _plan(), F(3, 2), F(3, 2).long(), F(3, 4), 2),
        r"combine: plan was made for T, K, S = \(3, 2, 6\), got .*\(3, 2, 4\)",
    ),
    "experts widths": (
        lambda: kernels.experts(F(3, 4), F(2, 5, 4), F(2, 4, 3), F(2).int()),
        r"experts: gate_up must have 2F = 6 rows per expert .* got 5",
    ),
    "experts offsets": (
        lambda: kernels.experts(F(3, 4), F(2, 6, 4), F(2, 4, 3), F(3).int()),
        r"experts: offsets must have shape \[N\] with N=2",
    ),
    "prefill heads": (
        lambda: kernels.mla_prefill(F(1, 2, 3, 4), F(1, 2, 2, 4), F(1, 2, 3, 4), 1.0),
        r"mla_prefill: k must have shape \[B, S, H, Q\] with B=1, H=3, Q=4",
    ),
    "prefill more queries than keys": (
        lambda: kernels.mla_prefill(F(1, 3, 1, 4), F(1, 2, 1, 4), F(1, 2, 1, 4), 1.0),
        r"mla_prefill: causal attention needs T <= S, got T=3 queries and S=2",
    ),
    "prefill float mask": (
        lambda: kernels.mla_prefill(*[F(1, 2, 1, 4)] * 3, 1.0, F(1, 2, 2)),
        r"mla_prefill: mask must be bool, got float32",
    ),
    "decode latent": (
        lambda: kernels.mla_decode(F(1, 1, 2, 4), F(1, 1, 2, 2), F(1, 5, 3), F(1, 5, 2), 1.0),
        r"mla_decode: latent must have shape \[B, S, C\] with B=1, C=4",
    ),
    "decode mask": (
        lambda: kernels.mla_decode(
            F(1, 1, 2, 4), F(1, 1, 2, 2), F(1, 5, 4), F(1, 5, 2), 1.0, F(1, 1, 4).bool()
        ),
        r"mla_decode: mask must have shape \[B, T, S\] with B=1, T=1, S=5",
    ),
    "module width": (
        lambda: kernels.RMSNorm(0, 1e-5),
        r"RMSNorm: dim must be at least 1, got 0",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_operand_is_named(name):
    call, message = CASES[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_two_devices_are_named():
    with pytest.raises(ValueError, match=r"swiglu: up is on meta and gate on cpu"):
        kernels.swiglu(F(2), torch.zeros(2, device="meta"))


def test_something_that_is_no_tensor_is_named():
    with pytest.raises(TypeError, match=r"op: x must be a torch tensor, got list"):
        check_together("op", x=[1.0])  # type: ignore[arg-type]


def test_shapes_are_remembered_between_operands():
    sizes: dict[str, int] = {}
    check_shape("op", "a", F(5, 2, 3), "... T D", sizes)
    assert sizes == {"T": 2, "D": 3}
    with pytest.raises(ValueError, match="with T=2"):
        check_shape("op", "b", F(3), "T", sizes)


def test_autocast_casts_once_and_leaves_float64_and_everything_outside_alone():
    x = F(2, 3)
    assert kernels.cast_once(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.cast_once(x).dtype == torch.bfloat16
        assert kernels.cast_once(x.double()).dtype == torch.float64
