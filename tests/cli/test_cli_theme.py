"""Claims about the five colours: who can tell them apart, and on what."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from longcat.cli.ui import theme

Array = NDArray[np.float64]

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]
    ),
    "deuteranopia": np.array(
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]
    ),
    "tritanopia": np.array(
        [[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]
    ),
}


def linear(color: str) -> Array:
    c = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    result: Array = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return result


def oklab(rgb: Array) -> Array:
    to_lms = [[0.4122, 0.5363, 0.0514], [0.2119, 0.6807, 0.1074], [0.0883, 0.2817, 0.6300]]
    to_lab = [[0.2105, 0.7936, -0.0041], [1.9780, -2.4286, 0.4506], [0.0259, 0.7828, -0.8087]]
    result: Array = np.array(to_lab) @ np.cbrt(np.array(to_lms) @ np.clip(rgb, 0, 1))
    return result


def nearest(colors: list[str]) -> float:
    """The smallest OKLab distance of any two colours under any deficiency."""
    return min(
        float(np.linalg.norm(oklab(m @ linear(a)) - oklab(m @ linear(b))))
        for m in DEFICIENCIES.values()
        for a, b in itertools.combinations(colors, 2)
    )


def test_the_five_roles_stay_apart_for_colour_blind_readers() -> None:
    assert list(theme.ROLES) == ["ffn", "zero", "net", "good", "bad"]
    assert nearest(list(theme.ROLES.values())) > 0.08


def test_the_colour_blindness_check_rejects_plain_green_and_red() -> None:
    assert nearest([*list(theme.ROLES.values())[:3], "#4a9a3c", "#c86432"]) < 0.08


@pytest.mark.parametrize("paper", ["#ffffff", theme.PAPER])
def test_every_role_can_be_seen_on_light_and_dark(paper: str) -> None:
    weights = np.array([0.2126, 0.7152, 0.0722])
    for color in theme.ROLES.values():
        low, high = sorted(float(weights @ linear(c)) for c in (color, paper))
        assert (high + 0.05) / (low + 0.05) > 2.7
