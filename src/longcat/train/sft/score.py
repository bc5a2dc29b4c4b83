"""Held-out conversations, scored where the assistant speaks; prompts are read, not scored.

Each conversation is scored from its beginning, with what stands before it in the conversation and
nothing else. Its text tokens give bits per byte of what the assistant said; the markers that end a
reply are in the loss of training and stand apart here, since they stand for no bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from longcat.chat import parse_reply
from longcat.flash import FlashModel
from longcat.flash.chat import chat_format, decode_reply, encode_prompt
from longcat.flash.tokenizer import Tokenizer
from longcat.serve import SamplingParams, decode
from longcat.train.device import sent
from longcat.train.errors import DataError
from longcat.train.evaluate import BATCH, HeldOut
from longcat.train.sft.chats import Chat
from longcat.train.sft.packing import CHAT, IDS, as_batch, pack
from longcat.train.sft.prepare import encode_chats

_NO_TARGET = -1
_ANSWER_TOKENS = 160


@dataclass(frozen=True, kw_only=True)
class ChatScore:
    """What the model did on held-out conversations.

    Attributes:
        held_out: all positions; `is_text` is True only for text that the assistant produced, so
            that its loss and bits per byte are those of the replies.
        end_nats: mean nats of the marker that ends a reply.
    """

    held_out: HeldOut
    end_nats: float


@torch.inference_mode()
def score_chats(
    model: FlashModel, tokenizer: Tokenizer, chats: Sequence[Chat], *, window: int
) -> ChatScore:
    """Score the assistant's part of every conversation, up to `window` tokens of each.

    Raises:
        DataError: when nothing of it lies inside the window.
    """
    windows = pack(encode_chats(tokenizer, chats), window, tokenizer.pad_id).windows
    nats = np.zeros((len(windows), window))
    learned = np.zeros((len(windows), window), dtype=np.bool_)
    ffn = np.zeros((model.config.num_layers, len(windows), window), dtype=np.int64)
    device = model.lm_head.weight.device
    for first in range(0, len(windows), BATCH):
        rows = slice(first, first + BATCH)
        batch = as_batch(windows[rows], _NO_TARGET)
        assert batch.document_ids is not None
        output = model(
            sent(batch.inputs, device),
            output_router=True,
            document_ids=sent(batch.document_ids, device),
        )
        wanted = batch.targets(_NO_TARGET)
        cost = cross_entropy(
            output.logits.flatten(0, 1).float(),
            sent(wanted, device).flatten(),
            ignore_index=_NO_TARGET,
            reduction="none",
        ).view(wanted.shape)
        nats[rows, 1:] = cost[:, :-1].double().cpu().numpy()
        learned[rows, 1:] = wanted[:, :-1] != _NO_TARGET
        assert output.router is not None
        for layer, routing in enumerate(output.router):
            ffn[layer, rows] = routing.ffn_per_token.view(wanted.shape).cpu().numpy()
    real = windows[:, CHAT] > 0
    ids = windows[:, IDS][real].astype(np.int64)
    lengths = np.array([len(b) for b in tokenizer.token_bytes()])[ids]
    is_text = learned[real] & (lengths > 0)
    if not is_text.any():
        raise DataError("chats: the held-out conversations have no text of the assistant to score")
    ends = learned[real] & (ids == tokenizer.markers[chat_format(tokenizer).end])
    held_out = HeldOut(
        ids=ids,
        nats=nats[real],
        ffn=ffn[:, real],
        text_bytes=int(lengths[is_text].sum()),
        is_text=is_text,
    )
    return ChatScore(
        held_out=held_out, end_nats=float(nats[real][ends].mean()) if ends.any() else float("nan")
    )


def reply_figures(
    model: FlashModel, tokenizer: Tokenizer, chats: Sequence[Chat], *, window: int
) -> dict[str, Any]:
    """The scores of the replies as figures of a report.

    Raises:
        DataError: as `score_chats`.
    """
    score = score_chats(model, tokenizer, chats, window=window)
    return {
        "conversations": len(chats),
        "bytes": score.held_out.text_bytes,
        "loss": score.held_out.loss,
        "bits_per_byte": score.held_out.bits_per_byte,
        "end_of_reply_loss": score.end_nats,
    }


def answer(model: FlashModel, tokenizer: Tokenizer, chat: Chat) -> dict[str, Any]:
    """The model's greedy reply where the conversation's first reply stands, beside that one."""
    first = next(i for i, m in enumerate(chat.messages) if m["role"] == "assistant")
    prompt = encode_prompt(tokenizer, chat.messages[:first], chat.tools)
    prompt = prompt[: model.max_position - _ANSWER_TOKENS]
    tokens = list(decode(model, prompt, SamplingParams(max_tokens=_ANSWER_TOKENS)))
    reply = parse_reply(
        decode_reply(tokenizer, [t.id for t in tokens]), chat_format(tokenizer).name
    )
    start, stop = chat.rendered.spans[0]
    return {
        "document": chat.name,
        "prompt": chat.rendered.text[:start],
        "text": reply.text,
        "finished": reply.finished,
        "calls": [{"name": call.name, "arguments": call.arguments} for call in reply.calls],
        "reference": chat.rendered.text[start:stop],
        "temperature": 0.0,
    }
