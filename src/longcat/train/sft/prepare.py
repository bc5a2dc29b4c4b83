"""From `--sft` to a run that can start: conversations, ids with their mask, windows.

As in pre-training, what the run trains on is copied into its own DIR/data/: the windows, and the
held-out conversations as they were read.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from longcat.flash.chat import chat_format, encode_conversation
from longcat.flash.tokenizer import Tokenizer
from longcat.train.batches import load_tokens, save_tokens
from longcat.train.directory import RunDirectory, write_text
from longcat.train.errors import DataError, RunError
from longcat.train.origin import Origin
from longcat.train.prepare import CARD, HELD_OUT, TOKENS, Prepared
from longcat.train.settings import TrainSettings
from longcat.train.sft.chats import Chat, parse_chats, read_chats, split_chats
from longcat.train.sft.packing import CHAT, LEARNED, Encoded, pack
from longcat.train.sources import named

HELD_OUT_CHATS = "held_out_chats.jsonl"


def prepare_chats(directory: RunDirectory, settings: TrainSettings, origin: Origin) -> Prepared:
    """Read, encode and pack the conversations, and store them in a new run directory.

    Nothing is created when they cannot be used.

    Raises:
        DataError: a conversation out of form, or nothing to learn or to score. RunError: the
            directory exists or cannot be written.
    """
    train, held_out = split_chats(read_chats(settings.sft, settings.template))
    tokenizer = origin.tokenizer
    packed = pack(encode_chats(tokenizer, train), settings.seq_len, tokenizer.pad_id)
    if held_out and not any(
        chat.teaches_within(settings.seq_len) for chat in encode_chats(tokenizer, held_out)
    ):
        raise DataError(
            f"chats: no assistant turn lies within the first {settings.seq_len} tokens of the "
            f"{len(held_out)} held out to score the run by; give a longer window (--seq-len) or "
            "more conversations"
        )
    windows = packed.windows
    lengths = [len(c.rendered.text.encode()) for c in train]
    card = {
        "source": named(settings.sft),
        "licence": "your own conversations: their licence is for you to know",
        "train_documents": len(train),
        "train_bytes": sum(lengths),
        "train_tokens": int((windows[:, CHAT] > 0).sum()),
        "held_out_documents": len(held_out),
        "held_out_bytes": sum(len(c.rendered.text.encode()) for c in held_out),
        "skipped_files": 0,
        "chats": {
            "template": settings.template,
            "windows": len(windows),
            "learned_tokens": int(windows[:, LEARNED].sum()),
            "filled": float((windows[:, CHAT] > 0).mean()),
            "cut": packed.cut,
            "skipped": packed.skipped,
        },
    }
    directory.create()
    try:
        save_tokens(directory.data / TOKENS, windows, origin.config.vocab_size)
        lines = [chat.to_json() + "\n" for chat in held_out]
        write_text(directory.data / HELD_OUT_CHATS, "".join(lines))
        write_text(directory.data / HELD_OUT, "")
        write_text(directory.data / CARD, json.dumps(card, indent=1) + "\n")
        tokenizer.save(directory.path)
    except OSError as error:
        raise RunError(
            f"train: {directory.path} cannot be written: {error.strerror or error}"
        ) from error
    return Prepared(
        config=origin.config,
        settings=settings,
        tokenizer=tokenizer,
        tokens=load_tokens(directory.data / TOKENS),
        held_out=(),
        card=card,
    )


def encode_chats(tokenizer: Tokenizer, chats: Sequence[Chat]) -> list[Encoded]:
    """Ids and masks of conversations in the tokenizer's chat format."""
    form = chat_format(tokenizer)
    pairs = (encode_conversation(tokenizer, chat.rendered, form) for chat in chats)
    return [Encoded(ids=ids, learned=learned) for ids, learned in pairs]


def held_out_chats(run: Path, template: str) -> list[Chat]:
    """The conversations that a run never trained on.

    Raises:
        RunError: the file is missing. DataError: it is damaged.
    """
    path = run / "data" / HELD_OUT_CHATS
    try:
        text = path.read_text(encoding="utf-8")
        chats = parse_chats(text, str(path), template)
        names = [
            json.loads(line)["name"] for line in text.split("\n") if line
        ]  # where they came from
        return [replace(chat, name=name) for chat, name in zip(chats, names, strict=True)]
    except OSError as error:
        raise RunError(f"train: {path} cannot be read: {error.strerror}") from error
