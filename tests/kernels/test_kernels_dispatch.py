"""The dispatcher: which form runs, what it refuses, and that its settings do not leak."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels import dispatch


def test_every_backend_name_that_is_unknown_is_refused_by_name():
    with (
        pytest.raises(ValueError, match=r"numpy, torch, triton, got 'cuda'"),
        kernels.use_backend("cuda"),
    ):
        pass


def test_cpu_tensors_take_eager_torch_by_default():
    assert dispatch.choose("op", torch.zeros(2), has_kernel=True) == "torch"


def test_a_cuda_tensor_takes_the_kernel_only_where_the_op_has_one_and_not_in_float64():
    class OnCuda:
        is_cuda = True
        dtype = torch.float32
        requires_grad = False

    class Double(OnCuda):
        dtype = torch.float64

    if not dispatch.triton_installed():
        pytest.skip("triton is not installed")
    assert dispatch.choose("op", OnCuda(), has_kernel=True) == "triton"
    assert dispatch.choose("op", OnCuda()) == "torch"
    assert dispatch.choose("op", Double(), has_kernel=True) == "torch"


def test_the_backend_is_restored_after_the_block_and_after_an_error():
    def fail():
        with kernels.use_backend("numpy"):
            assert dispatch.choose("op", torch.zeros(2)) == "numpy"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert dispatch.choose("op", torch.zeros(2)) == "torch"


def test_one_threads_backend_does_not_reach_another():
    seen = []
    with kernels.use_backend("numpy"):
        worker = threading.Thread(target=lambda: seen.append(dispatch.choose("op", torch.zeros(2))))
        worker.start()
        worker.join()
    assert seen == ["torch"]


def test_numpy_refuses_to_drop_a_gradient_silently():
    x = torch.ones(2, 4, requires_grad=True)
    weight = torch.ones(4)
    with kernels.use_backend("numpy"):
        with pytest.raises(ValueError, match=r"rmsnorm: the numpy backend computes no gradients"):
            kernels.rmsnorm(x, weight, 1e-5)
        with torch.no_grad():
            assert kernels.rmsnorm(x, weight, 1e-5).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numpy_returns_the_dtype_it_was_given(dtype):
    x = torch.ones(2, 4, dtype=dtype)
    with kernels.use_backend("numpy"):
        assert kernels.swiglu(x, x).dtype == dtype


def test_triton_falls_to_eager_where_an_op_has_no_kernel():
    if not dispatch.triton_installed():
        pytest.skip("triton is not installed")
    with kernels.use_backend("triton"):
        assert dispatch.choose("linear", torch.zeros(2)) == "torch"


def test_triton_on_cpu_tensors_names_the_interpreter(monkeypatch):
    if not dispatch.triton_installed():
        pytest.skip("triton is not installed")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    x = torch.ones(2, 4)
    with kernels.use_backend("triton"), pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        kernels.swiglu(x, x)


def test_triton_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr(dispatch, "triton_installed", lambda: False)
    with pytest.raises(ValueError, match="pip install triton"), kernels.use_backend("triton"):
        pass


def test_exact_refuses_low_precision_and_other_backends():
    half = torch.ones(2, 4, dtype=torch.bfloat16)
    with kernels.exact():
        with pytest.raises(ValueError, match=r"float32 or float64, got bfloat16"):
            kernels.linear(half, half)
        with kernels.use_backend("numpy"), pytest.raises(ValueError, match=r"exact\(\)"):
            kernels.linear(half.float(), half.float())
    assert not kernels.exact_enabled()


def test_importing_the_package_does_not_import_triton():
    # Triton's import costs time and fails on other systems; only a kernel's first use pays for it.
    code = "import sys, longcat.kernels; sys.exit('triton' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_unchecked_ops_compute_the_same_and_look_at_nothing():
    x, weight = torch.randn(3, 8), torch.randn(5, 8)
    want = kernels.linear(x, weight)
    with kernels.unchecked():
        torch.testing.assert_close(kernels.linear(x, weight), want)
        with pytest.raises(RuntimeError):  # torch's own, not the sentence that names the operand
            kernels.linear(x, weight[:, :7])
    with pytest.raises(ValueError, match="weight"):
        kernels.linear(x, weight[:, :7].clone().double())


def test_unchecked_does_nothing_inside_exact_or_a_chosen_backend_nor_around_them():
    for mode in (kernels.exact, lambda: kernels.use_backend("numpy")):
        for outer, inner in ((mode, kernels.unchecked), (kernels.unchecked, mode)):
            with outer(), inner(), pytest.raises(ValueError, match="linear"):
                kernels.linear(torch.randn(3, 8), torch.randn(5, 7))


WITHOUT_TRITON = """
import importlib.machinery, sys
found = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name.split(".")[0] == "triton" else found(name, *rest)
)
import torch
from longcat import kernels

assert not kernels.triton_installed()
x = torch.ones(2, 32, requires_grad=True)
for y in (kernels.rmsnorm(x, x[0], 1e-5), kernels.swiglu(x, x), kernels.linear(x, x)):
    y.sum().backward()
with kernels.use_backend("numpy"), torch.no_grad():
    kernels.swiglu(x, x)
try:
    with kernels.use_backend("triton"):
        pass
except ValueError as error:
    print(error)
"""


def test_where_triton_is_missing_all_but_its_backend_works_and_that_says_what_to_install():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRITON], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "'triton' needs the triton package" in done.stdout
    assert "pip install triton" in done.stdout


def test_triton_refuses_tensors_of_a_device_that_is_neither_cuda_nor_the_interpreters():
    if not dispatch.triton_installed():
        pytest.skip("triton is not installed")
    x = torch.ones(2, 4, device="meta")
    with (
        kernels.use_backend("triton"),
        pytest.raises(ValueError, match=r"swiglu: .* needs CUDA tensors, got meta ones"),
    ):
        kernels.swiglu(x, x)
