"""Claims about the live panel's curves."""

import math

from longcat.cli.ui.panel import layer_curve


def test_a_layer_that_came_by_growth_has_a_gap_before_it():
    rows = [[4.0, 3.0]] * 3 + [[4.0, 3.0, 5.0, 6.0]] * 2
    assert layer_curve(rows, 0) == [4.0] * 5
    grown = layer_curve(rows, 3)
    assert [math.isnan(value) for value in grown] == [True] * 3 + [False] * 2
    assert grown[3:] == [6.0, 6.0]
