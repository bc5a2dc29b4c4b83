"""What `--data` takes: files, folders, globs, .jsonl with a `text` field, `-` for stdin."""

import glob
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from longcat.train.corpus import Corpus, Document, decode_text, default_corpus, files_below, split
from longcat.train.errors import DataError


def read_corpus(data: Sequence[str]) -> Corpus:
    """The corpus named by `data`; none given means the default corpus.

    Raises:
        DataError: a path does not exist, a named file is empty or no text, a folder holds no
            text, a .jsonl line is no object with a `text` string.
    """
    if not data:
        return default_corpus()
    documents, skipped = read_documents(data)
    train, held_out = split(documents)
    return Corpus(
        train=train,
        held_out=held_out,
        source=named(data),
        licence="your own text: its licence is for you to know",
        skipped=skipped,
    )


def read_documents(data: Sequence[str]) -> tuple[list[Document], int]:
    """Every document that `data` names, whole, and how many files were no text.

    Raises:
        DataError: as `read_corpus`.
    """
    documents: list[Document] = []
    skipped = 0
    for item in data:
        found, left_out = _read_item(item)
        documents += found
        skipped += left_out
    return documents, skipped


def named(data: Sequence[str]) -> str:
    """The arguments as words."""
    return ", ".join("standard input" if item == "-" else item for item in data)


def _read_item(item: str) -> tuple[list[Document], int]:
    """The documents of one `--data` argument, and how many files were no text."""
    if item == "-":
        return [Document(name="-", text=_named_text(sys.stdin.buffer.read(), "standard input"))], 0
    path = Path(item)
    if path.is_dir():
        return _read_folder(path)
    if path.exists():
        return _read_file(path, item), 0
    matches = sorted(glob.glob(item, recursive=True)) if glob.has_magic(item) else []
    if not matches:
        wanted = "files that match" if glob.has_magic(item) else "a file, a folder or a glob at"
        raise DataError(f"--data: expected {wanted} {item!r}, found nothing; check the path")
    return read_documents(matches)


def _read_folder(folder: Path) -> tuple[list[Document], int]:
    """Every text file below a folder; files that are no text are counted and left out."""
    documents: list[Document] = []
    skipped = 0
    for path in files_below(folder, without={"__pycache__", "node_modules"}):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".jsonl":
            documents += _read_file(path, name)
            continue
        text = decode_text(_bytes_of(path))
        if text:
            documents.append(Document(name=name, text=text))
        elif text is None:
            skipped += 1
    if not documents:
        raise DataError(
            f"--data: expected text in {folder}, found none ({skipped} files that are no UTF-8 "
            "text); give a folder of text files"
        )
    return documents, skipped


def _read_file(path: Path, name: str) -> list[Document]:
    text = _named_text(_bytes_of(path), str(path))
    if path.suffix != ".jsonl":
        return [Document(name=name, text=text)]
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"--data: {path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where}: expected one JSON object a line; {error.msg}") from error
        value = record.get("text") if isinstance(record, dict) else None
        if not isinstance(value, str):
            came = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise DataError(
                f"{where}: expected an object with a string field 'text'; got {came}. Rename "
                "your field to 'text'"
            )
        if not _is_unicode(value):
            raise DataError(f"{where}: 'text' has half a character (a lone surrogate); mend it")
        if value:
            documents.append(Document(name=f"{name}:{number}", text=value))
    if not documents:
        raise DataError(f"--data: {path}: expected text, every 'text' field is empty")
    return documents


def _is_unicode(text: str) -> bool:
    """JSON can spell half of a surrogate pair, which no encoding of text can hold."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"--data: {path} cannot be read: {error.strerror}") from error


def _named_text(data: bytes, name: str) -> str:
    if not data.strip():
        raise DataError(f"--data: expected text in {name}, it is empty")
    text = decode_text(data)
    if text is None:
        raise DataError(
            f"--data: expected UTF-8 text in {name}, found binary data (NUL bytes or bytes that "
            "are no UTF-8); convert it to UTF-8 text first"
        )
    return text
