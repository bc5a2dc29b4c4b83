"""The example in each package's README runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READMES = sorted(ROOT.glob("packages/*/README.md"))
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_the_example_of_the_readme_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text()
    blocks = list(FENCE.finditer(text))
    assert blocks, f"{path.relative_to(ROOT)} has no python example"
    names: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        line = text.count("\n", 0, block.start(1))  # so that tracebacks carry the README's lines
        exec(compile("\n" * line + block[1], str(path), "exec"), names)
    assert capsys.readouterr().out, "an example shows something"
