"""The text of every run: one tokenizer and one encoding, made once and shared by all arms."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longcat.flash.tokenizer import Tokenizer
from longcat.train.batches import load_tokens, save_tokens, tokenize
from longcat.train.corpus import Corpus, Document, default_corpus

HEAD_BYTES = 1_500  # of one held-out document, so that many kinds of text are among them
_TOKENS, _HELD_OUT, _CARD = "train.npy", "held_out.jsonl", "card.json"


@dataclass(frozen=True, kw_only=True)
class Text:
    """Training ids, and a fixed part of the held-out documents.

    Attributes:
        card: where the text came from, its size, and a digest of the ids.
    """

    tokenizer: Tokenizer
    tokens: NDArray[np.integer]
    held_out: tuple[Document, ...]
    card: dict[str, Any]

    @property
    def token_bytes(self) -> NDArray[np.int64]:
        """[V] bytes that each id stands for."""
        return np.array([len(b) for b in self.tokenizer.token_bytes()], dtype=np.int64)


def load_text(
    work: Path,
    *,
    vocab_size: int,
    held_out_bytes: int,
    corpus: Callable[[], Corpus] = default_corpus,
) -> Text:
    """The text from `work`, where it is put the first time.

    Args:
        held_out_bytes: how much of the held-out text to score: the heads of its documents in
            their order, until there is as much.
    """
    folder = work / f"text-python-{platform.python_version()}-{vocab_size}"
    if not (folder / _CARD).exists():
        _make(folder, corpus(), vocab_size)
    lines = (folder / _HELD_OUT).read_text(encoding="utf-8").splitlines()
    documents = [Document(**json.loads(line)) for line in lines]
    card: dict[str, Any] = json.loads((folder / _CARD).read_text(encoding="utf-8"))
    held_out = heads(documents, held_out_bytes)
    scored = sum(len(d.text.encode()) for d in held_out)
    return Text(
        tokenizer=Tokenizer.load(folder),
        tokens=load_tokens(folder / _TOKENS),
        held_out=held_out,
        card={**card, "held_out_documents": len(held_out), "held_out_bytes": scored},
    )


def heads(documents: Sequence[Document], most: int) -> tuple[Document, ...]:
    """The first HEAD_BYTES of each document, cut at a character, until `most` bytes are there."""
    chosen: list[Document] = []
    total = 0
    for document in documents:
        if total >= most:
            break
        head = document.text.encode()[: min(HEAD_BYTES, most - total)].decode(errors="ignore")
        if head:
            chosen.append(Document(name=document.name, text=head))
            total += len(head.encode())
    return tuple(chosen)


def _make(folder: Path, corpus: Corpus, vocab_size: int) -> None:
    """Train the tokenizer and encode the text; the folder is complete or is not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        tokenizer = Tokenizer.train_bpe((d.text for d in corpus.train), vocab_size)
        tokens = tokenize(corpus.train, tokenizer)
        tokenizer.save(temporary)
        save_tokens(temporary / _TOKENS, tokens, vocab_size)
        lines = [json.dumps({"name": d.name, "text": d.text}) + "\n" for d in corpus.held_out]
        (temporary / _HELD_OUT).write_text("".join(lines), encoding="utf-8")
        card = {
            "source": corpus.source,
            "licence": corpus.licence,
            "vocab_size": tokenizer.vocab_size,
            "train_tokens": len(tokens),
            "digest": hashlib.sha256(tokens.tobytes()).hexdigest()[:16],
        }
        (temporary / _CARD).write_text(json.dumps(card), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a folder without a card is no text
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
