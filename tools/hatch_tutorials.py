"""A build hook of hatchling: puts docs/tutorials into the wheel, where `longcat tutorial` finds it.

Why a hook and not `force-include`: that copies the pages into site-packages for an editable
install too, and the command would then show a stale copy instead of the page being written.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TutorialsHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds docs/tutorials as longcat/cli/tutorials to every wheel but an editable one."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it writes; `version` is "standard" or "editable"."""
        tutorials = Path(self.root, "docs", "tutorials")
        if version != "editable" and tutorials.is_dir():
            build_data["force_include"][str(tutorials)] = "longcat/cli/tutorials"
