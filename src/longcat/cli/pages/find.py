"""Where the tutorials lie: beside the code in an installed wheel, in docs/ in a clone."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Tutorial:
    """One tutorial: its number as two digits, its title and its file."""

    number: str
    title: str
    path: Path

    @property
    def name(self) -> str:
        """The file's name without number and suffix, e.g. zero-computation-experts."""
        return self.path.stem.partition("-")[2]


def tutorial_directory() -> Path:
    """The directory of tutorials.

    Raises:
        FileNotFoundError: when neither the wheel nor a clone has one.
    """
    package = Path(str(files("longcat.cli.pages"))).parent
    # src/longcat/cli in a clone: the root is three levels up.
    candidates = [package / "tutorials", *(p / "docs" / "tutorials" for p in package.parents[:3])]
    for candidate in candidates:
        if any(candidate.glob("[0-9][0-9]-*.md")):
            return candidate
    raise FileNotFoundError(
        "no tutorials found beside the installed package or in a docs/ folder above it; "
        "reinstall longcat-flash, or run from a clone"
    )


def list_tutorials(directory: Path | None = None) -> list[Tutorial]:
    """All tutorials, by number; `directory` defaults to `tutorial_directory()`."""
    found = []
    for path in sorted((directory or tutorial_directory()).glob("[0-9][0-9]-*.md")):
        with path.open(encoding="utf-8") as page:
            title = next((line[2:].strip() for line in page if line.startswith("# ")), path.stem)
        found.append(Tutorial(number=path.name[:2], title=title, path=path))
    return found


def open_tutorial(wanted: str, directory: Path | None = None) -> Tutorial:
    """The tutorial with this number (1 or 01) or the start of its name.

    Raises:
        ValueError: when there is none; the message lists what there is.
    """
    tutorials = list_tutorials(directory)
    number = wanted.zfill(2) if wanted.isdigit() else wanted
    for tutorial in tutorials:
        if number == tutorial.number or (wanted and tutorial.name.startswith(wanted)):
            return tutorial
    known = ", ".join(f"{t.number} ({t.name})" for t in tutorials)
    raise ValueError(f"tutorial: there is no tutorial {wanted!r}; choose one of {known}")
