"""From `--data` to a run that can start: corpus, tokenizer, ids, first snapshot.

What a run trains on is copied into its own DIR/data/, as ids and as held-out text. Resuming reads
only that, so a run goes on exactly even when the sources changed or came from standard input.
"""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longcat.flash import FlashConfig
from longcat.flash.tokenizer import Tokenizer
from longcat.train.batches import LOOKAHEAD, load_tokens, save_tokens, tokenize
from longcat.train.corpus import Corpus, Document
from longcat.train.directory import RunDirectory, write_text
from longcat.train.errors import DataError, RunError
from longcat.train.settings import TrainSettings
from longcat.train.snapshot import read_settings

TOKENS, HELD_OUT, CARD = "train.npy", "held_out.jsonl", "corpus.json"


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """All that processes of a run share.

    Attributes:
        tokens: training ids, memory-mapped: flat, or packed conversations [W, 3, T]
            (`longcat.train.sft.packing`). card: where the text came from, its size and licence.
    """

    config: FlashConfig
    settings: TrainSettings
    tokenizer: Tokenizer
    tokens: NDArray[np.integer]
    held_out: tuple[Document, ...]
    card: dict[str, Any]

    @property
    def token_bytes(self) -> NDArray[np.int64]:
        """[V] bytes that each id stands for."""
        lengths = [len(b) for b in self.tokenizer.token_bytes()]
        unused = max(0, self.config.vocab_size - len(lengths))
        return np.array(lengths + [0] * unused, dtype=np.int64)


def model_config(settings: TrainSettings) -> FlashConfig:
    """The preset, with the run's vocabulary and with a draft head only if one is trained.

    Raises:
        ConfigError: unknown preset. RunError: windows longer than the model's positions.
    """
    preset = FlashConfig.preset(settings.preset)
    heads = preset.num_nextn_predict_layers if settings.mtp_weight else 0
    draft = {"nextn_use_scmoe": True} if heads and settings.mtp_layer == "scmoe" else {}
    config = FlashConfig.preset(
        settings.preset, vocab_size=settings.vocab_size, num_nextn_predict_layers=heads, **draft
    )
    if settings.width is not None and settings.width != config.hidden_size:
        config = config.widened(settings.width)
    if settings.seq_len > config.max_position_embeddings:
        raise RunError(
            f"train: --seq-len {settings.seq_len} is longer than the preset's "
            f"max_position_embeddings={config.max_position_embeddings}"
        )
    for stage in settings.context_stages:
        if stage.theta < config.attention.rope_theta:
            raise RunError(
                f"train: --context-stage {stage} has a theta below the preset's "
                f"{config.attention.rope_theta:g}; extension raises it"
            )
    return config


def prepare(
    directory: RunDirectory,
    corpus: Corpus,
    settings: TrainSettings,
    config: FlashConfig | None = None,
    tokenizer: Tokenizer | None = None,
) -> Prepared:
    """Train the tokenizer, encode the text and store both in a new run directory.

    Nothing is created when the text cannot be used.

    Args:
        tokenizer: the one to use instead of training one.

    Raises:
        DataError: too little text. RunError: the directory exists or cannot be written.
    """
    config = config or model_config(settings)
    if tokenizer is None:
        tokenizer = Tokenizer.train_bpe((d.text for d in corpus.train), config.vocab_size)
        if tokenizer.vocab_size < config.vocab_size:  # short text has few pairs to merge
            config = replace(config, vocab_size=tokenizer.vocab_size)
    tokens = tokenize(corpus.train, tokenizer)
    longest = settings.longest_window
    if len(tokens) < longest + LOOKAHEAD:
        raise DataError(
            f"data: expected at least {longest + LOOKAHEAD} tokens for one window, got "
            f"{len(tokens)} ({corpus.train_bytes} bytes); give more text or a shorter --seq-len"
        )
    card = {
        "source": corpus.source,
        "licence": corpus.licence,
        "train_documents": len(corpus.train),
        "train_bytes": corpus.train_bytes,
        "train_tokens": len(tokens),
        "held_out_documents": len(corpus.held_out),
        "held_out_bytes": corpus.held_out_bytes,
        "skipped_files": corpus.skipped,
    }
    directory.create()
    try:
        save_tokens(directory.data / TOKENS, tokens, config.vocab_size)
        lines = [json.dumps({"name": d.name, "text": d.text}) + "\n" for d in corpus.held_out]
        write_text(directory.data / HELD_OUT, "".join(lines))
        write_text(directory.data / CARD, json.dumps(card, indent=1) + "\n")
        tokenizer.save(directory.path)
    except OSError as error:
        raise RunError(
            f"train: {directory.path} cannot be written: {error.strerror or error}"
        ) from error
    return Prepared(
        config=config,
        settings=settings,
        tokenizer=tokenizer,
        tokens=load_tokens(directory.data / TOKENS),
        held_out=corpus.held_out,
        card=card,
    )


def reopen(directory: RunDirectory) -> Prepared:
    """What `prepare` stored, with the settings and sizes of the newest snapshot.

    Raises:
        RunError: when it is no run, or a part of it is missing or damaged.
    """
    snapshot = directory.latest()
    try:
        settings = read_settings(snapshot)
        fields = json.loads((snapshot / "config.json").read_text(encoding="utf-8"))
        lines = (directory.data / HELD_OUT).read_text(encoding="utf-8").splitlines()
        return Prepared(
            config=FlashConfig.from_hf(fields),
            settings=settings,
            tokenizer=Tokenizer.load(snapshot),
            tokens=load_tokens(directory.data / TOKENS),
            held_out=tuple(Document(**json.loads(line)) for line in lines),
            card=json.loads((directory.data / CARD).read_text(encoding="utf-8")),
        )
    except (OSError, ValueError) as error:
        raise RunError(f"resume: the run in {directory.path} is damaged: {error}") from error
