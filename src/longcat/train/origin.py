"""What a run starts from when it does not start from random weights: `--init MODEL`.

Any checkpoint that `FlashModel.from_pretrained` reads, with the tokenizer beside it. Its sizes and
its ids are kept; for fine-tuning on conversations the format's markers get ids of their own, and
the vocabulary grows by as many rows as it lacks. Weights alone are taken over: optimizer, bias
controller's history, step counter and data order begin anew.
"""

from dataclasses import dataclass
from pathlib import Path

from longcat.chat import template_named
from longcat.flash import FlashConfig, FlashModel
from longcat.flash.checkpoint import open_checkpoint
from longcat.flash.tokenizer import Tokenizer
from longcat.flash.vocabulary import grow_vocabulary, grown_config
from longcat.train.errors import RunError
from longcat.train.settings import TrainSettings
from longcat.train.step import parameter_dtype


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A checkpoint to start from: the run's configuration and tokenizer."""

    config: FlashConfig
    tokenizer: Tokenizer


def read_origin(settings: TrainSettings) -> Origin:
    """The configuration and tokenizer of a run that starts from `settings.init`.

    Raises:
        CheckpointError: it is no checkpoint, or has no tokenizer. RunError: windows longer than its
            positions, ids that it has no rows for, or a draft head to train that is not there.
        ValueError: unknown chat format.
    """
    assert settings.init is not None
    directory = Path(settings.init)
    with open_checkpoint(directory) as checkpoint:
        config = checkpoint.config
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocab_size > config.vocab_size:
        raise RunError(
            f"train: {directory} has {config.vocab_size} ids in its model and "
            f"{tokenizer.vocab_size} in its tokenizer; they do not belong together"
        )
    if settings.sft:
        form = template_named(settings.template)
        tokenizer = tokenizer.with_markers(form)
        config = grown_config(config, tokenizer.vocab_size, tokenizer.markers[form.end])
    if settings.mtp_weight and not config.has_mtp:
        raise RunError(
            f"train: {directory} has no draft head; set mtp_weight to 0 to train without"
        )
    if settings.seq_len > config.max_position_embeddings:
        raise RunError(
            f"train: --seq-len {settings.seq_len} is longer than the checkpoint's "
            f"max_position_embeddings={config.max_position_embeddings}"
        )
    return Origin(config=config, tokenizer=tokenizer)


def initial_model(settings: TrainSettings, config: FlashConfig) -> FlashModel:
    """The checkpoint's model under the run's configuration: the weights of step 0.

    Raises:
        CheckpointError: the checkpoint cannot be read. RunError: its draft head has an embedding of
            its own, which training ties to the main one.
    """
    assert settings.init is not None
    model = FlashModel.from_pretrained(settings.init, dtype=parameter_dtype(settings))
    head = model.model.mtp
    if head is not None and head.embed_tokens is not model.model.embed_tokens:
        raise RunError(
            f"train: the draft head of {settings.init} has an embedding of its own; training keeps "
            "one for both, so it cannot start from this checkpoint"
        )
    return grow_vocabulary(model, config, seed=settings.seed)
