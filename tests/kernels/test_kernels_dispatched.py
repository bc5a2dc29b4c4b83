"""At LongCat-Flash's sizes every kernel that is launched is one that was compiled for the table.

Nothing runs here: launches are written down, with their constants, types and divisible integers,
and looked up among the configurations that test_kernels_codegen.py compiles.
"""

import importlib
from pathlib import Path

import pytest
import torch

import longcat.kernels as kernels

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreter")

BF16, F32, F8, I64 = torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.int64
NAMES = {BF16: "bf16", F32: "fp32", F8: "fp8e4nv", I64: "i64", torch.int32: "i32", torch.bool: "i1"}
OPS = sorted(path.parent.name for path in Path(kernels.__file__).parent.glob("*/triton_kernel.py"))
D, HEADS, LATENT, ROPE, VOCABULARY = 6144, 64, 512, 64, 131072
TOKENS = (1, 8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 1000)


def _type(value):
    if isinstance(value, torch.Tensor):
        return "*" + NAMES[value.dtype]
    if hasattr(value, "block_shape"):
        return f"tensordesc<{NAMES[value.base.dtype]}[{','.join(map(str, value.block_shape))}]>"
    return None


@pytest.fixture
def launched(monkeypatch):
    """Launches, as (kernel, arguments by name); none of them runs."""
    from triton.runtime import interpreter

    seen = []

    def call(self, *arguments, **named):
        given = dict(zip(self.arg_names, arguments, strict=False)) | named
        seen.append((self.fn, given))

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", call)
    return seen


@pytest.fixture(scope="module")
def compiled():
    found = []
    for op in OPS:
        found += importlib.import_module(f"longcat.kernels.{op}.triton_kernel").configurations()
    return [one for one in found if not one.gluon]


def _differences(one, given):
    """What a configuration has otherwise than a launch of its kernel."""
    wanted = dict(one.constants) | {"num_warps": one.warps, "num_stages": one.stages}
    defaults = {"num_warps": 4, "num_stages": 3}
    for name, value in wanted.items():
        here = given.get(name, defaults.get(name))
        if here != value:
            yield f"{name}={here}, compiled {value}"
    for name, kind in one.signature().items():
        here = _type(given[name]) if name in given else None
        if here and kind != "constexpr" and here != kind:
            yield f"{name} is {here}, compiled {kind}"
    for name in one.divisible:
        if name in given and given[name] % 16:
            yield f"{name}={given[name]} is no multiple of 16"


def _unknown(launched, compiled):
    """For each launch that no configuration fits: the nearest one's differences."""
    missing = []
    for function, given in launched:
        near = [
            list(_differences(one, given))
            for one in compiled
            if (one.kernel.fn.__module__, one.kernel.fn.__name__)
            == (function.__module__, function.__name__)
        ]
        nearest = min(near, key=len, default=["never compiled"])
        if nearest:
            missing.append(f"{function.__module__}.{function.__name__}: {'; '.join(nearest)}")
    return sorted(set(missing))


def _empty(*shape, dtype=BF16, gradient=False):
    return torch.empty(*shape, dtype=dtype).requires_grad_(gradient)


def _both_ways(function, *operands):
    """The call, and its gradient where some operand wants one."""
    made = function(*operands)
    made = [made] if isinstance(made, torch.Tensor) else made
    wanted = [m for m in made if m.requires_grad]
    if wanted:
        torch.autograd.backward(wanted, [torch.empty_like(m) for m in wanted])


def _linear():
    for tokens in TOKENS:
        for shape in ((1536, D), (LATENT + ROPE, D), (D, 8192), (4 * D, D), (VOCABULARY, D)):
            kernels.linear(_empty(tokens, shape[1]), _empty(*shape))


def _experts():
    # 512 experts of narrow rows, for the weights of real ones are 38 GB; tiles follow the rows.
    weights = [_empty(512, outputs, 128, gradient=True) for outputs in (256, 128)]
    for rows in (1, 8, 9, 16, 17, 32, 33, 80, 81):
        offsets = rows * torch.arange(1, 513, dtype=torch.int32)
        for sources in (None, torch.zeros(512 * rows, dtype=I64)):
            x = _empty(512 * rows, 128, gradient=True)
            _both_ways(kernels.experts, x, *weights, offsets, sources)


def _norms():
    for width in (D, 1536, LATENT):
        weight = _empty(width, gradient=True)
        _both_ways(kernels.rmsnorm, _empty(9, width, gradient=True), weight, 1e-5)
    x, residual = _empty(9, D, gradient=True), _empty(9, D, gradient=True)
    _both_ways(kernels.add_rmsnorm, x, residual, _empty(D, gradient=True), 1e-5)


def _elementwise():
    for width in (2 * D, 2048):
        _both_ways(kernels.swiglu, *(_empty(9, width, gradient=True) for _ in "gu"))
    for heads in (HEADS, 1):
        x, at = _empty(1, 9, heads, ROPE, gradient=True), torch.zeros(1, 9, dtype=I64)
        _both_ways(kernels.rope, x, at, _empty(ROPE // 2, dtype=F32))


def _routing():
    logits, bias = _empty(9, 768, dtype=F32, gradient=True), _empty(768, dtype=F32)
    for mask in (None, torch.ones(9, dtype=torch.bool)):
        _both_ways(kernels.fused_route, logits, bias, 12, 6.0, 512, mask)
    _both_ways(kernels.route, logits, bias, 12, 6.0)


def _attention():
    store, at = _empty(4, 64, LATENT + ROPE), torch.zeros(9, dtype=I64)
    compressed, rates = _empty(9, LATENT + ROPE), _empty(ROPE // 2, dtype=F32)
    flat = store.view(-1, LATENT + ROPE)
    kernels.latent_write(compressed, _empty(LATENT), 1e-6, 3.0, at, rates, at, flat)
    for heads, new in ((HEADS, 1), (HEADS, 4), (32, 1), (16, 1), (8, 2), (8, 1)):
        for page in (64, 16):
            table = torch.zeros(2, 20, dtype=torch.int32)
            q = _empty(2, new, heads, LATENT), _empty(2, new, heads, ROPE)
            for pages in (table[:, :2], table, table.repeat(1, 80)):  # from one split to many
                cache = _empty(4, page, LATENT + ROPE)
                kernels.paged_mla(*q, cache, pages, at[:2].int(), 0.1)
    for mask in (None, torch.ones(1, 144, 144, dtype=torch.bool)):
        q, k = (_empty(1, 144, HEADS, 192, gradient=True) for _ in "qk")
        _both_ways(kernels.mla_prefill, q, k, _empty(1, 144, HEADS, 128, gradient=True), 0.1, mask)


def _fp8():
    kernels.quantise_rows(_empty(9, D))
    kernels.quantise_blocks(_empty(1536, D))
    for tokens in TOKENS:
        x, weight = _empty(tokens, D, dtype=F8), _empty(1536, D, dtype=F8)
        scales = _empty(tokens, D // 128, dtype=F32), _empty(12, D // 128, dtype=F32)
        kernels.fp8_linear(x, scales[0], weight, scales[1])


def _vocabulary():
    p = _empty(2, VOCABULARY, dtype=F32)
    kernels.keep_top(p, torch.zeros(2, dtype=I64), _empty(2, dtype=F32))
    for drafts in (1, 3):
        p, q = (_empty(2, n, VOCABULARY, dtype=F32) for n in (drafts + 1, drafts))
        kernels.verify(p, q, torch.zeros(2, drafts, dtype=I64), _empty(2, drafts, dtype=F32))
    for targets in (torch.zeros(2, dtype=I64), _empty(2, VOCABULARY, dtype=F32)):
        for gradient in (False, True):
            logits = _empty(2, VOCABULARY, gradient=gradient)
            _both_ways(kernels.cross_entropy, logits, targets)
    _both_ways(kernels.hidden_z_loss, _empty(9, D, gradient=True), 1e-7)


def _training():
    kernels.scatter_add(_empty(9, D), torch.zeros(9, dtype=I64), 4)
    state = [[_empty(D, dtype=F32)] for _ in range(3)]
    for gradient, copies in ((BF16, [_empty(D)]), (F32, None)):
        weights, *moments = state
        given = weights, [_empty(D, dtype=gradient)], *moments
        kernels.adamw_step(*given, 1, lr=0.1, copies=copies)


def _collectives():
    from longcat.kernels.multimem import SymmetricMemory, triton_kernel

    for world in (2, 4, 8):
        memory = SymmetricMemory(
            rank=0, world=world, buffer=torch.empty(2**20, dtype=torch.uint8), multicast=2**20,
            signals=torch.zeros(world, dtype=I64), epochs=torch.zeros(4, dtype=torch.int32),
        )  # fmt: skip
        for dtype in (BF16, F32):
            x = _empty(world, 8, dtype=dtype)
            for shots in (1, 2):
                triton_kernel.all_reduce(x, memory, shots)
            triton_kernel.all_gather(x, [world] * world, memory)
            triton_kernel.reduce_scatter(x, [1] * world, memory)


CALLS = (
    _linear, _experts, _norms, _elementwise, _routing, _attention, _fp8, _vocabulary, _training,
    _collectives,
)  # fmt: skip


@pytest.mark.parametrize("calls", CALLS, ids=lambda calls: calls.__name__.strip("_"))
def test_what_is_launched_at_the_models_sizes_was_compiled(launched, compiled, calls):
    with kernels.use_backend("triton"):
        calls()
    assert launched
    assert _unknown(launched, compiled) == []


def test_a_launch_with_other_warps_or_another_type_than_compiled_is_caught(
    launched, compiled, monkeypatch
):
    from longcat.kernels.fp8 import triton_kernel

    monkeypatch.setattr(triton_kernel, "_warps", lambda rows: 2)
    with kernels.use_backend("triton"):
        kernels.quantise_rows(_empty(9, D))
        kernels.swiglu(_empty(9, D, dtype=F32), _empty(9, D, dtype=F32))
    warps, types = _unknown(launched, compiled)
    assert warps == "longcat.kernels.fp8.triton_kernel._quantise: num_warps=2, compiled 4"
    assert "gate_ptr is *fp32, compiled *bf16" in types
