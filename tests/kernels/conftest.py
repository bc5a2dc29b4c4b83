"""What the kernel tests share: seeded tensors, errors against a definition, numeric gradients."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


class Check:
    """Comparisons with a float64 definition, with bounds that follow from the dtype."""

    @staticmethod
    def error(got: Tensor, want: Any) -> float:
        """Largest difference relative to the largest value wanted."""
        got64 = got.detach().double().cpu().numpy()
        want64 = np.asarray(want.detach().double().cpu() if isinstance(want, Tensor) else want)
        assert got64.shape == want64.shape
        if not want64.size:
            return 0.0
        # NaN must not hide in a maximum.
        assert np.isfinite(got64).all()
        return float(np.abs(got64 - want64).max() / max(float(np.abs(want64).max()), 1e-30))

    @staticmethod
    def norm_error(got: Tensor, want: Any) -> float:
        """Root of the summed squared differences, relative to that of what was wanted."""
        got64 = got.detach().double().cpu().numpy()
        want64 = np.asarray(want.detach().double().cpu() if isinstance(want, Tensor) else want)
        assert got64.shape == want64.shape
        assert np.isfinite(got64).all()
        return float(np.linalg.norm(got64 - want64) / max(float(np.linalg.norm(want64)), 1e-30))

    @staticmethod
    def bound(dtype: torch.dtype, terms: int = 1) -> float:
        """8 roundings of a sum of `terms` terms whose errors add like a random walk."""
        return 8 * torch.finfo(dtype).eps * terms**0.5

    @staticmethod
    def numeric_gradient(
        function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        """Central differences of sum(weights * function(x)), in float64."""
        gradient, step = np.zeros_like(x), 1e-6
        for place in np.ndindex(x.shape):
            moved = [x.copy(), x.copy()]
            moved[0][place] += step
            moved[1][place] -= step
            high, low = (float((weights * function(m)).sum()) for m in moved)
            gradient[place] = (high - low) / (2 * step)
        return gradient


@pytest.fixture
def check() -> Check:
    return Check()


@pytest.fixture
def randn() -> Callable[..., Tensor]:
    """Seeded normal tensors: randn(2, 3, dtype=torch.float32)."""
    generator = torch.Generator().manual_seed(20250901)

    def make(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        # Drawn in float64, so that every dtype holds the same numbers, rounded.
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return make


def interpreter_trouble() -> str | None:
    """Why Triton kernels cannot run here on CPU tensors, or None."""
    import importlib.metadata
    import os

    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "triton is not installed"
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "a GPU is present, so Triton compiles instead of interpreting"
    older = tuple(int(part) for part in version.split(".")[:2]) < (3, 7)
    if older and tuple(int(part) for part in np.__version__.split(".")[:2]) >= (2, 4):
        return f"the interpreter of triton {version} breaks on loops with numpy {np.__version__}"
    return None


@pytest.fixture
def interpreter() -> None:
    """Triton's interpreter, repaired; skip, with the reason, where it cannot run."""
    trouble = interpreter_trouble()
    if trouble:
        pytest.skip(trouble)
    from longcat.kernels.proof.interpreter import repair

    repair()


@pytest.fixture
def mutate(tmp_path: Path) -> Callable[[ModuleType, str, str], ModuleType]:
    """`mutate(module, old, new)`: the module with one piece of its source replaced.

    Triton reads a kernel's source from its file, so the mutant is written to one.
    """

    def make(module: ModuleType, old: str, new: str) -> ModuleType:
        source = Path(str(module.__file__)).read_text()
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in the source"
        path = tmp_path / f"mutant_{len(list(tmp_path.iterdir()))}.py"
        path.write_text(source.replace(old, new))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        mutant = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(mutant)
        return mutant

    return make


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel must fill holds NaN, so that an element it forgets is seen."""
    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (Tensor, "new_empty"),
    ):
        monkeypatch.setattr(owner, name, _filled_with_nan(getattr(owner, name)))


def _filled_with_nan(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def poison(*arguments: Any, **named: Any) -> Tensor:
        tensor = allocate(*arguments, **named)
        if tensor.dtype.itemsize == 1:  # FP8 has no fill
            return tensor.view(torch.uint8).fill_(0x7F).view(tensor.dtype)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.fill_(-(2**31))

    return poison


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """A backend's name, given indirectly; Triton's runs interpreted, on poisoned memory."""
    name: str = request.param
    if name == "triton":
        pytest.importorskip("triton")
        request.getfixturevalue("interpreter")
        request.getfixturevalue("poisoned")
    return name
