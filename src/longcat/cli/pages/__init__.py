"""Documentation pages as programs: split into prose and fences, run, drawn, shown in a terminal."""

from longcat.cli.pages.blocks import Block, Fence, Prose, run_fence, split_page
from longcat.cli.pages.chart import Choices, Curves
from longcat.cli.pages.find import Tutorial, list_tutorials, open_tutorial
from longcat.cli.pages.sweep import Sweep

__all__ = [
    "Block",
    "Choices",
    "Curves",
    "Fence",
    "Prose",
    "Sweep",
    "Tutorial",
    "list_tutorials",
    "open_tutorial",
    "run_fence",
    "split_page",
]
