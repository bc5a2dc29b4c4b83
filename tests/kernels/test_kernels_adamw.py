"""AdamW over a list of tensors in numpy, torch and Triton."""

import numpy as np
import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.adamw import reference

BACKENDS = ["torch", "numpy", "triton"]
OPTIONS = {"lr": 0.1, "betas": (0.9, 0.95), "weight_decay": 0.2}
SHAPES = [(5, 3), (1024,), (1,), (0, 4), (2, 900), (2049,)]


@pytest.fixture
def triton_kernel(interpreter, poisoned):
    pytest.importorskip("triton")
    from longcat.kernels.adamw import triton_kernel

    return triton_kernel


class State:
    """Weights, gradients and moments of some tensors, and what a step should make of them."""

    def __init__(self, randn, shapes=SHAPES, dtype=torch.float32, scale=1.0):
        self.weights = [randn(*shape, dtype=torch.float32) for shape in shapes]
        self.gradients = [scale * randn(*shape, dtype=dtype) for shape in shapes]
        self.firsts = [scale * randn(*shape, dtype=torch.float32) for shape in shapes]
        self.seconds = [(scale * randn(*shape)).square().float() for shape in shapes]

    def lists(self):
        return self.weights, self.gradients, self.firsts, self.seconds

    def expected(self, step, **options):
        arrays = ([t.double().numpy() for t in tensors] for tensors in self.lists())
        return [reference.adamw_step(*four, step, **options) for four in zip(*arrays, strict=True)]


def _worst(check, state, expected):
    found = zip(state.weights, state.firsts, state.seconds, strict=True)
    return max(
        check.error(tensor, want)
        for tensors, wants in zip(found, expected, strict=True)
        for tensor, want in zip(tensors, wants, strict=True)
    )


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_is_the_definitions_and_copies_are_the_weights_rounded_once(
    randn, check, backend, dtype
):
    state = State(randn, dtype=dtype)
    expected = state.expected(3, **OPTIONS)
    copies = [torch.empty(shape, dtype=torch.bfloat16) for shape in SHAPES]
    with kernels.use_backend(backend):
        kernels.adamw_step(*state.lists(), 3, **OPTIONS, copies=copies)
    assert _worst(check, state, expected) < 1e-6
    for copy, weight in zip(copies, state.weights, strict=True):
        assert torch.equal(copy, weight.bfloat16())


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_epsilon_of_1e_16_decides_nothing_for_gradients_of_1e_9_and_all_for_1e_20(randn, backend):
    def moved(scale, eps=1e-16):
        state = State(randn, [(64,)], scale=0.0)
        before = state.weights[0].clone()
        state.gradients[0] = torch.full((64,), scale)
        with kernels.use_backend(backend):
            kernels.adamw_step(*state.lists(), 1, lr=1.0, weight_decay=0.0, eps=eps)
        return float((before - state.weights[0]).mean())

    assert moved(1e-9) == pytest.approx(1.0, rel=1e-5)
    # Its square is no float32: the root is lost beside epsilon, and the step is g / epsilon.
    assert moved(1e-20) == pytest.approx(1e-4, rel=2e-2)
    # The control: 1e-8 in place of 1e-16 swallows most of the step.
    assert moved(1e-9, eps=1e-8) < 0.2


def test_one_launch_reads_and_writes_each_number_once(triton_kernel, randn):
    from longcat.kernels.proof.probe import probed

    state = State(randn, dtype=torch.bfloat16)
    copies = [torch.empty(shape, dtype=torch.bfloat16) for shape in SHAPES]
    lists = {"w": state.weights, "g": state.gradients, "m": state.firsts, "v": state.seconds}
    lists["copy"] = copies
    reached = {
        f"{name}{place}": tensor
        for name, tensors in lists.items()
        for place, tensor in enumerate(tensors)
    }
    options = OPTIONS | {"eps": 1e-16}
    with probed(**reached) as probe:
        triton_kernel.adamw_step(*state.lists(), 1, **options, copies=copies)
    probe.check_written_once()
    launch = probe["_step"]
    for name, tensor in reached.items():
        assert launch[name].loaded == (0 if name.startswith("copy") else tensor.nbytes)
        assert launch[name].stored == (0 if name.startswith("g") else tensor.nbytes)


def test_the_table_is_made_once_per_set_of_addresses(triton_kernel, randn):
    state, options = State(randn, [(7,), (9,)]), OPTIONS | {"eps": 1e-16, "copies": None}
    made = triton_kernel._table.cache_info().misses
    for step in (1, 2, 3):
        triton_kernel.adamw_step(*state.lists(), step, **options)
    assert triton_kernel._table.cache_info().misses == made + 1


def test_tensors_that_do_not_begin_at_a_whole_word_are_stepped_too(triton_kernel, randn, check):
    state = State(randn, [(33,)])
    state.weights = [torch.cat([torch.zeros(1), state.weights[0]])[1:]]
    expected = state.expected(1, **OPTIONS)
    with kernels.use_backend("triton"):
        kernels.adamw_step(*state.lists(), 1, **OPTIONS)
    assert _worst(check, state, expected) < 1e-6


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tl.sqrt(second * root) + eps", "tl.sqrt(second * root + eps)"),
        ("first * correction", "first"),
        ("keep * tl.load(weights, mask=inside)", "tl.load(weights, mask=inside)"),
        ("+ 1).to(tl.int64) * BLOCK", "+ 1).to(tl.int64) * 0"),
    ],
    ids=["epsilon in the root", "no correction", "no decay", "one chunk only"],
)
def test_the_kernel_is_rejected_with(triton_kernel, randn, check, mutate, old, new):
    broken = mutate(triton_kernel, old, new)
    options = OPTIONS | {"eps": 1e-16}

    def error(module):
        state = State(randn, [(2049,)], scale=1e-9)
        expected = state.expected(2, **options)
        module.adamw_step(*state.lists(), 2, **options, copies=None)
        return _worst(check, state, expected)

    assert error(triton_kernel) < 1e-6
    assert error(broken) > 1e-3


def test_lists_that_do_not_fit_together_are_refused(randn):
    state = State(randn, [(3, 4), (5,)])
    w, g, m, v = state.lists()
    with pytest.raises(ValueError, match="step counts from 1, got 0"):
        kernels.adamw_step(w, g, m, v, 0, lr=1.0)
    with pytest.raises(ValueError, match="gradients must hold one tensor for each of the 2"):
        kernels.adamw_step(w, g[:1], m, v, 1, lr=1.0)
    with pytest.raises(ValueError, match=r"seconds\[1\] must be float32 like the others"):
        kernels.adamw_step(w, g, m, [v[0], v[1].double()], 1, lr=1.0)
    with pytest.raises(ValueError, match=r"gradients\[0\] must be contiguous .* \[3, 4\]"):
        kernels.adamw_step(w, [torch.zeros(4, 3).T, g[1]], m, v, 1, lr=1.0)
    kernels.adamw_step([], [], [], [], 1, lr=1.0)
    assert np.isfinite(w[0].numpy()).all()
