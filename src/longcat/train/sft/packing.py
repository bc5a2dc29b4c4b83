"""Conversations packed into windows: whole ones side by side, padding at the end, a loss mask.

A window is three rows of T numbers: ids; 1 where the assistant produced the token; and the number
of the conversation inside the window, from 1, with 0 for padding. As one integer array [W, 3, T] it
is stored like the ids of pre-training and shared by processes.

Conversations of a window do not see each other (document ids), the loss is taken on the assistant's
tokens alone, of the main model and of the MTP head, and padding is neither attended to nor counted
by the router. The order of windows is a pure function of (seed, step), as in
`longcat.train.batches`.

Shapes: W windows, T tokens, B windows of a batch.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longcat.train.batches import Batch, Windows, epoch_order, numbers_of
from longcat.train.errors import DataError
from longcat.train.settings import TrainSettings

IDS, LEARNED, CHAT = range(3)  # the rows of a window


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """One conversation: its ids, and which of them the assistant produced."""

    ids: Sequence[int]
    learned: Sequence[bool]

    def teaches_within(self, seq_len: int) -> bool:
        """Whether any of its first tokens is learned; the very first is never predicted."""
        return any(self.learned[1:seq_len])


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Windows [W, 3, T] and what became of the conversations.

    Attributes:
        cut: conversations longer than a window, kept up to its end. skipped: those among them
            whose part that fits holds nothing to learn.
    """

    windows: NDArray[np.uint32]
    cut: int
    skipped: int


def pack(chats: Sequence[Encoded], seq_len: int, pad: int) -> Packed:
    """Best fit, longest first: each conversation goes into the fullest window that has room.

    Raises:
        DataError: when nothing is left to learn.
    """
    fitting, cut, skipped = [], 0, 0
    for chat in chats:
        if not chat.teaches_within(seq_len):
            skipped += 1
            continue
        cut += len(chat.ids) > seq_len
        fitting.append(Encoded(ids=chat.ids[:seq_len], learned=chat.learned[:seq_len]))
    if not fitting:
        raise DataError(
            f"chats: no assistant turn lies within the first {seq_len} tokens of any conversation; "
            "give a longer window (--seq-len)"
        )
    contents: list[list[Encoded]] = []
    room: list[tuple[int, int]] = []  # (free places, window), sorted
    for chat in sorted(fitting, key=lambda c: -len(c.ids)):
        place = bisect_left(room, (len(chat.ids), -1))
        if place == len(room):
            free, window = seq_len, len(contents)
            contents.append([])
        else:
            free, window = room.pop(place)
        contents[window].append(chat)
        insort(room, (free - len(chat.ids), window))
    windows = np.stack([_window(chats_of, seq_len, pad) for chats_of in contents])
    return Packed(windows=windows, cut=cut, skipped=skipped)


def _window(chats: Sequence[Encoded], seq_len: int, pad: int) -> NDArray[np.uint32]:
    rows = np.zeros((3, seq_len), dtype=np.uint32)
    rows[IDS] = pad
    start = 0
    for number, chat in enumerate(chats, start=1):
        stop = start + len(chat.ids)
        rows[IDS, start:stop], rows[LEARNED, start:stop] = chat.ids, chat.learned
        rows[CHAT, start:stop] = number
        start = stop
    return rows


def as_batch(windows: NDArray[np.integer], bos: int) -> Batch:
    """The batch of windows [B, 3, T]; what is not to be learned is marked as no target.

    bos: the id that is no target anywhere, as in pre-training.
    """
    ids, learned, chat = np.asarray(windows, dtype=np.int64).transpose(1, 0, 2)
    return Batch(
        inputs=ids.copy(),
        next_ids=_ahead(ids, 1),
        learned=(_ahead(learned, 1) > 0) & (_ahead(chat, 1) == chat),
        after_next=np.where(
            (_ahead(learned, 2) > 0) & (_ahead(chat, 2) == chat), _ahead(ids, 2), bos
        ),
        document_ids=chat - 1,
    )


def _ahead(rows: NDArray[np.int64], by: int) -> NDArray[np.int64]:
    """rows [B, T] moved `by` places to the left, zeros after the end."""
    moved = np.zeros_like(rows)
    moved[:, :-by] = rows[:, by:]
    return moved


class PackedWindows:
    """Packed conversations as batches; the counterpart of `longcat.train.batches.Windows`.

    Args:
        windows: [W, 3, T], as `pack` makes them (may be memory-mapped).
        batch_size: B, windows per optimizer step over all ranks and micro-batches.
        seed: decides the order. bos: the id that is never a target.
    """

    def __init__(
        self, windows: NDArray[np.integer], *, batch_size: int, seed: int, bos: int
    ) -> None:
        self.windows = windows
        self.batch_size = batch_size
        self.seed = seed
        self.bos = bos

    def batch(self, step: int, part: int = 0, parts: int = 1) -> Batch:
        """The part-th of `parts` equal shares of the windows of optimizer step `step`.

        Raises:
            ValueError: when `parts` does not divide the batch size.
        """
        numbers = numbers_of(self.batch_size, step, part, parts)
        chosen = [self.place(number) for number in numbers]
        return as_batch(self.windows[chosen], self.bos)

    def place(self, number: int) -> int:
        """Which window has this global number."""
        epoch, place = divmod(number, len(self.windows))
        return int(epoch_order(self.seed, epoch, len(self.windows))[place])


def real_ids(windows: NDArray[np.integer]) -> NDArray[np.integer]:
    """The ids of all conversations one after another, flat, without padding."""
    ids: NDArray[np.integer] = windows[:, IDS][windows[:, CHAT] > 0]
    return ids


def windows_of(
    tokens: NDArray[np.integer], settings: TrainSettings, bos: int
) -> Windows | PackedWindows:
    """The batches of a run: of flat text, or of packed conversations."""
    if settings.sft:
        return PackedWindows(tokens, batch_size=settings.batch_size, seed=settings.seed, bos=bos)
    return Windows(
        tokens,
        seq_len=settings.seq_len,
        batch_size=settings.batch_size,
        seed=settings.seed,
        document_start=bos if settings.document_mask else None,
    )
