"""What fewer bits cost in quality: bits per byte of held-out text, by the shipped nano."""

from __future__ import annotations

from longcat.cli.benchmarks.document import Row
from longcat.cli.benchmarks.serve.shapes import SERVED
from longcat.cli.models import load, shipped_nano

BYTES = 40_000  # of held-out text


def measure() -> list[Row]:
    """One row per precision; none where no weights are shipped."""
    found = shipped_nano()
    if found is None:
        return []
    from longcat.flash.tokenizer import Tokenizer
    from longcat.train.corpus import Document
    from longcat.train.evaluate import evaluate
    from longcat.train.sources import read_corpus

    tokenizer = Tokenizer.load(found)
    documents: list[Document] = []
    room = BYTES
    for document in read_corpus([]).held_out:
        if room <= 0:
            break
        documents.append(Document(name=document.name, text=document.text[:room]))
        room -= len(documents[-1].text)
    rows: list[Row] = []
    exact = 0.0
    for precision in SERVED:
        scored = evaluate(load(found, precision), tokenizer, documents, window=256)
        exact = exact or scored.bits_per_byte
        rows.append(
            {
                "model": "nano, shipped",
                "precision": precision,
                "bytes": f"{scored.text_bytes:,}",
                "bits_per_byte": round(scored.bits_per_byte, 5),
                "more_than_float32": round(scored.bits_per_byte - exact, 5),
            }
        )
    return rows
