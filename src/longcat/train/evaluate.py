"""Held-out text, token by token: exact bits per byte, and FFN experts per token.

The held-out documents stand in one stream as in training, <s> text </s> <s> text </s> ... Windows
of fixed size slide over it; each position is scored in exactly one window, and there with at least
`window - stride` tokens before it (but for the first window). The sum over all tokens that stand
for text, divided by all held-out bytes, is the figure: each byte is paid for once, none is left
out. Compressors are given the same bytes.

Shapes: S stream positions, L ScMoE layers, W window.
"""

import bz2
import lzma
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from longcat.flash import FlashModel
from longcat.flash.tokenizer import Tokenizer
from longcat.train.batches import tokenize
from longcat.train.corpus import Document
from longcat.train.errors import DataError
from longcat.train.interval import ratio_interval

BATCH = 16  # windows per forward pass, always: results do not depend on how much text there is


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What the model did on every position of the held-out stream.

    Attributes:
        ids: [S] the stream. nats: [S] minus log probability of each id given those before it; 0
            for the first. ffn: [L, S] FFN experts each id used as an input.
        text_bytes: bytes the stream stands for.
    """

    ids: NDArray[np.int64]
    nats: NDArray[np.float64]
    ffn: NDArray[np.int64]
    text_bytes: int
    is_text: NDArray[np.bool_]

    @property
    def bits_per_byte(self) -> float:
        """Bits the model needs for the text, per byte of it; control tokens cost nothing."""
        return float(self.nats[self.is_text].sum()) / math.log(2) / self.text_bytes

    @property
    def loss(self) -> float:
        """Nats per text token."""
        return float(self.nats[self.is_text].mean())

    @property
    def ffn_mean(self) -> list[float]:
        """FFN experts per token, per layer."""
        return [float(x) for x in self.ffn.mean(axis=1)]

    @property
    def ffn_half_width(self) -> list[float] | None:
        """Half of the 95 % interval of `ffn_mean` over documents, per layer; None for one document.

        How many FFN experts a token gets depends on what is written.
        """
        document = np.cumsum(self.ids == self.ids[0]) - 1  # each begins with <s>, as the stream
        tokens = np.bincount(document)
        halves = [ratio_interval(np.bincount(document, used), tokens) for used in self.ffn]
        return [half for half in halves if half is not None] or None

    @property
    def correlation_with_loss(self) -> float:
        """Of the FFN experts a position uses (mean of layers) and the nats of the next token."""
        used, cost = self.ffn.mean(axis=0)[:-1], self.nats[1:]
        spread = float(used.std() * cost.std())
        covariance = float(((used - used.mean()) * (cost - cost.mean())).mean())
        return covariance / spread if spread > 0 else 0.0

    @property
    def ffn_std(self) -> list[float]:
        """Standard deviation over tokens, per layer."""
        return [float(x) for x in self.ffn.std(axis=1)]


def evaluate(
    model: FlashModel,
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    *,
    window: int,
    stride: int | None = None,
) -> HeldOut:
    """Score all text of the documents.

    Args:
        window: W, tokens per window; what the model was trained on.
        stride: positions scored per window; half the window by default.

    Raises:
        DataError: when there is no text.
    """
    ids = tokenize(documents, tokenizer).astype(np.int64)
    text_bytes = sum(len(d.text.encode()) for d in documents)
    if text_bytes == 0:
        raise DataError("evaluate: expected held-out text, there is none; give more text")
    window = min(window, len(ids))
    # A window overlaps the one before by a token at least, or its first would have no context.
    stride = max(1, min(stride or window // 2, window - 1))
    nats = np.zeros(len(ids))
    ffn = np.zeros((model.config.num_layers, len(ids)), dtype=np.int64)
    starts = window_starts(len(ids), window, stride)
    for first in range(0, len(starts), BATCH):
        chosen = starts[first : first + BATCH]
        padded = chosen + [chosen[-1]] * (BATCH - len(chosen))
        rows = np.asarray(padded)[:, None] + np.arange(window)
        window_nats, window_ffn = _score(model, torch.from_numpy(ids[rows]))
        for row, start in enumerate(chosen):
            done = 0 if start == 0 else _overlap(starts, first + row, window)
            positions = slice(start + done, start + window)
            ffn[:, positions] = window_ffn[:, row, done:]
            nats[start + max(done, 1) : start + window] = window_nats[row, max(done, 1) - 1 :]
    lengths = np.array([len(b) for b in tokenizer.token_bytes()])
    return HeldOut(ids=ids, nats=nats, ffn=ffn, text_bytes=text_bytes, is_text=lengths[ids] > 0)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First positions of windows that together cover 0..length-1; the last ends at the end."""
    last = length - window
    starts = list(range(0, last + 1, stride))
    return starts if starts[-1] == last else [*starts, last]


def _overlap(starts: list[int], index: int, window: int) -> int:
    """How many positions of this window the one before has covered."""
    return starts[index - 1] + window - starts[index]


@torch.inference_mode()
def _score(model: FlashModel, ids: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """(nats [B, W-1] of each id but the first, FFN experts [L, B, W] of each id)."""
    ids = ids.to(model.lm_head.weight.device)
    output = model(ids, output_router=True)
    assert output.router is not None
    logits = output.logits[:, :-1].flatten(0, 1).float()
    nats = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    ffn = torch.stack([routing.ffn_per_token.view(ids.shape) for routing in output.router])
    return nats.view(len(ids), -1).double().cpu().numpy(), ffn.cpu().numpy()


def compressed_bits_per_byte(
    held_out: Sequence[Document], train: bytes | None = None
) -> dict[str, float]:
    """What general compressors need for the same bytes, in bits per byte.

    Args:
        train: the training text; then "xz + training text" says what xz adds for the held-out text
            when it has seen the training text first.
    """
    data = b"".join(d.text.encode() for d in held_out)
    sizes = {
        "zlib": len(zlib.compress(data, 9)),
        "bz2": len(bz2.compress(data, 9)),
        "xz": len(_xz(data)),
    }
    if train is not None:
        sizes["xz + training text"] = len(_xz(train + data)) - len(_xz(train))
    return {name: 8 * size / len(data) for name, size in sizes.items()}


def _xz(data: bytes) -> bytes:
    """xz at its strongest, with a dictionary that holds all of the data but no more: a larger one
    changes nothing and takes ten times its size in memory.
    """
    size = 1 << max(16, (len(data) - 1).bit_length())
    options = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size}
    return lzma.compress(data, filters=[options])
