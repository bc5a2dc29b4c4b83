"""Windows of a flat token array, in an order that is a pure function of (seed, step).

Documents stand one after another, each between <s> and </s>. A window is T+2 tokens: T inputs,
their next tokens, and the tokens after those for the MTP head. Windows overlap by the two tokens
they only predict, so that every token of an epoch is predicted once.

Nothing is remembered between steps. Window j of step s has the global number s*B + j; its epoch
and its place in that epoch's shuffle follow from the number, and the shuffle follows from
(seed, epoch) through a counter-based generator (Philox). So a resumed run sees exactly what the
uninterrupted one would have seen, and rank r of R takes its share of the same batch.

Unless documents are kept apart, attention runs across their borders inside a window (as in
GPT-style packing); only the prediction of <s> after </s> is left out of the loss, since the order
of documents means nothing. Kept apart, a batch carries document ids for the model's mask, and the
MTP head predicts nothing from </s> either: it would read the next document's <s>.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longcat.flash.tokenizer import Tokenizer
from longcat.train.corpus import Document
from longcat.train.errors import DataError

LOOKAHEAD = 2  # the next token, and the one after it for the MTP head
Ids = NDArray[np.int64]


def tokenize(documents: Sequence[Document], tokenizer: Tokenizer) -> NDArray[np.uint32]:
    """All documents as one array of ids: <s> text </s> <s> text </s> ..."""
    parts = [
        np.asarray([tokenizer.bos_id, *ids, tokenizer.eos_id], dtype=np.uint32)
        for ids in tokenizer.encode_batch([d.text for d in documents])
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Windows of one micro-batch.

    Attributes:
        inputs: [B, T] ids.
        next_ids: [B, T] the ids one place further: what the model predicts.
        after_next: [B, T] the ids two places further: what the MTP head predicts.
        document_ids: [B, T] which document of its window each input belongs to, when documents are
            kept apart; -1 for padding.
        learned: [B, T] False where the next id is not to be learned; None where all are.
    """

    inputs: Ids
    next_ids: Ids
    after_next: Ids
    document_ids: Ids | None = None
    learned: NDArray[np.bool_] | None = None

    def targets(self, bos: int) -> Ids:
        """[B, T] what the main model is to predict; `bos` where there is nothing."""
        return self.next_ids if self.learned is None else np.where(self.learned, self.next_ids, bos)


def numbers_of(batch_size: int, step: int, part: int, parts: int) -> range:
    """Global numbers of the windows in the part-th of `parts` equal shares of a step's batch.

    Raises:
        ValueError: when `parts` does not divide the batch size.
    """
    if batch_size % parts or not 0 <= part < parts:
        raise ValueError(
            f"batches: a batch of {batch_size} windows cannot be cut into part {part} "
            f"of {parts}; the number of parts must divide the batch size"
        )
    share = batch_size // parts
    first = step * batch_size + part * share
    return range(first, first + share)


class Windows:
    """The training text as batches of windows.

    Args:
        tokens: flat ids, as `tokenize` returns them (may be memory-mapped).
        seq_len: T, tokens per window.
        batch_size: B, windows per optimizer step over all ranks and micro-batches.
        seed: decides the order.
        document_start: the id that opens a document, to keep documents apart; None lets them meet.

    Raises:
        DataError: when there is too little text for a single window.
    """

    def __init__(
        self,
        tokens: NDArray[np.integer],
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        document_start: int | None = None,
    ) -> None:
        self.count = (len(tokens) - LOOKAHEAD) // seq_len
        if self.count < 1:
            raise DataError(
                f"data: expected at least {seq_len + LOOKAHEAD} tokens for one window of "
                f"{seq_len}, got {len(tokens)}; give more text or a shorter --seq-len"
            )
        self.tokens = tokens
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.document_start = document_start

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """The part-th of `parts` equal shares of the windows of optimizer step `step`.

        Raises:
            ValueError: when `parts` does not divide the batch size.
        """
        numbers = numbers_of(self.batch_size, step, part, parts)
        starts = np.array([self.start(number) for number in numbers])
        offsets = np.arange(self.seq_len + LOOKAHEAD)
        window = np.asarray(self.tokens[starts[:, None] + offsets], dtype=np.int64)
        batch = Batch(
            inputs=window[:, :-2].copy(),
            next_ids=window[:, 1:-1].copy(),
            after_next=window[:, 2:].copy(),
        )
        if self.document_start is None:
            return batch
        return keep_apart(batch, self.document_start)

    def of_length(self, seq_len: int) -> "Windows":
        """The same text and tokens per step in windows of another length, in an order of its own.

        Window numbers start from the step as if every step had been of this length.
        """
        return Windows(
            self.tokens,
            seq_len=seq_len,
            batch_size=self.batch_size * self.seq_len // seq_len,
            seed=self.seed,
            document_start=self.document_start,
        )

    def start(self, number: int) -> int:
        """Where in the token array the window with this global number begins."""
        epoch, place = divmod(number, self.count)
        order, shift = _shuffle(self.seed, epoch, self.count)
        # The shift moves the cuts between windows, so that epochs differ in more than order.
        slack = (len(self.tokens) - LOOKAHEAD) - self.count * self.seq_len
        return int(order[place]) * self.seq_len + int(shift % (slack + 1))


def keep_apart(batch: Batch, bos: int) -> Batch:
    """The batch with document ids; the MTP head's targets of another document become <s>.

    No <s> is ever a target, so those are in no loss. What stands before a window's first <s> is a
    document of its own.
    """
    return replace(
        batch,
        after_next=np.where(batch.next_ids == bos, bos, batch.after_next),
        document_ids=(batch.inputs == bos).cumsum(axis=-1, dtype=np.int64),
    )


def epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """[count] the order of an epoch's windows."""
    return _shuffle(seed, epoch, count)[0]


@lru_cache(maxsize=4)
def _shuffle(seed: int, epoch: int, count: int) -> tuple[NDArray[np.int64], int]:
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(count), int(generator.integers(1 << 30))


def save_tokens(path: Path, tokens: NDArray[np.uint32], vocab_size: int) -> None:
    """Write ids as .npy in 2 bytes each where the vocabulary allows it."""
    narrow = tokens.astype(np.uint16) if vocab_size <= 1 << 16 else tokens
    with path.open("wb") as file:
        np.save(file, narrow)


def load_tokens(path: Path) -> NDArray[np.integer]:
    """Memory-map what `save_tokens` wrote, so that processes share one copy."""
    array: NDArray[np.integer] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
