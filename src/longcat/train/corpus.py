"""Text to train on: documents, split into a training and a held-out part.

The default corpus needs no download: it is the standard library of the Python interpreter that is
running, without its tests. It is licensed under the PSF licence; nothing of it is stored in the
repository, only in the run directories of those who train on it.

Every twentieth document is held out: the documents stand folder by folder, inside a folder in the
order of a hash of their names, and the last of each twenty is taken. So the choice rests on names
alone, and every folder with twenty files or more is represented: held-out text is a mixture of the
same kinds as the training text, tables of numbers and all.
"""

import os
import platform
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from longcat.train.errors import DataError

HELD_OUT_ONE_IN = 20
MOST_HELD_OUT_BYTES = 2_000_000
_NOT_SOURCES = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text with a name that is the same wherever the corpus is read."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents to train on and documents never trained on.

    Attributes:
        source: where the text came from, for the run's card.
        licence: what is known about its licence.
        skipped: files in folders that were no text.
    """

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    source: str
    licence: str
    skipped: int = 0

    @property
    def train_bytes(self) -> int:
        """UTF-8 bytes to train on."""
        return sum(len(d.text.encode()) for d in self.train)

    @property
    def held_out_bytes(self) -> int:
        """UTF-8 bytes held out."""
        return sum(len(d.text.encode()) for d in self.held_out)


def default_corpus() -> Corpus:
    """The running interpreter's own standard library, `.py` files without tests.

    Raises:
        DataError: when the interpreter was installed without its sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    documents, skipped = [], 0
    for path in files_below(root, without=_NOT_SOURCES):
        if path.suffix != ".py":
            continue
        text = decode_text(path.read_bytes())
        if text is None:
            skipped += 1  # a few sources are in Latin-1 on purpose
        elif text:
            documents.append(Document(name=path.relative_to(root).as_posix(), text=text))
    if not documents:
        raise DataError(
            "default corpus: this Python has no standard-library sources (.py files); "
            "give your own text with --data PATH"
        )
    train, held_out = split(documents)
    return Corpus(
        train=train,
        held_out=held_out,
        source=f"the standard library of Python {platform.python_version()}, without tests",
        licence="Python Software Foundation License (PSF-2.0)",
        skipped=skipped,
    )


def split(documents: Sequence[Document]) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """(training, held-out) documents.

    Of fewer than twenty documents the last twentieth of each, from a line's beginning, is held out
    instead. A held-out document whose text also occurs among the training documents is dropped: it
    would flatter the model. Of a large corpus only the first MOST_HELD_OUT_BYTES held-out bytes are
    kept; the others are left aside.
    """
    chosen = _held_out_names(d.name for d in documents)
    train = [d for d in documents if d.name not in chosen]
    held_out = [d for d in documents if d.name in chosen]
    if not train or not held_out:
        train, held_out = [], []
        for document in documents:
            head, tail = _cut_tail(document.text)
            train.append(Document(name=document.name, text=head))
            held_out.append(Document(name=f"{document.name} (end)", text=tail))
    seen = {d.text for d in train}
    kept = (d for d in held_out if d.text and d.text not in seen)
    return tuple(d for d in train if d.text), tuple(_first_bytes(kept))


def _first_bytes(documents: Iterable[Document]) -> Iterator[Document]:
    """Documents up to MOST_HELD_OUT_BYTES: scoring more takes longer than it tells."""
    total = 0
    for document in documents:
        room = MOST_HELD_OUT_BYTES - total
        size = len(document.text.encode())
        if size > room:
            head = document.text.encode()[:room].decode(errors="ignore")
            if head:
                yield Document(name=document.name, text=head)
            return
        yield document
        total += size


def _held_out_names(names: Iterable[str]) -> set[str]:
    """The last of each twenty names, folder by folder and by hash inside a folder."""

    def place(name: str) -> tuple[str, int, str]:
        digest = zlib.crc32(name.encode("utf-8", errors="surrogateescape"))
        return name.rpartition("/")[0], digest, name

    return set(sorted(names, key=place)[HELD_OUT_ONE_IN - 1 :: HELD_OUT_ONE_IN])


def _cut_tail(text: str) -> tuple[str, str]:
    at = len(text) - len(text) // HELD_OUT_ONE_IN
    line = text.find("\n", at) + 1
    if 0 < line < len(text):
        at = line
    return text[:at], text[at:]


def files_below(root: Path, without: set[str]) -> list[Path]:
    """Regular files in sorted order, without hidden ones and what is below folders `without`."""
    found = []
    for folder, names, files in os.walk(root):
        names[:] = sorted(n for n in names if n not in without and not n.startswith("."))
        found += [Path(folder) / f for f in sorted(files) if not f.startswith(".")]
    return [path for path in found if path.is_file()]


def decode_text(data: bytes) -> str | None:
    """The text, or None for what is not text: NUL bytes, or bytes that are no UTF-8."""
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None
