"""A checkpoint made ready to be served: its engine, and its tokenizer as the server wants it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from longcat.chat import Message, Template, Tool
from longcat.cli.models import FoundModel, open_model
from longcat.flash.chat import encode_prompt, reply_bytes
from longcat.flash.llm import constraint_factory
from longcat.flash.packed import as_served
from longcat.flash.tokenizer import Tokenizer
from longcat.serve import Engine, EngineConfig
from longcat.serve.disaggregation import Disaggregated, PrefillProcess


class ServedTokenizer:
    """A checkpoint's tokenizer; the markers of tool calls are written out, that of the end is not.

    Satisfies `longcat.serve.server.ServedTokenizer` and the engine's `Tokenizer`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._table = (
            tokenizer.token_bytes() if self.chat is None else reply_bytes(tokenizer, end=False)
        )

    @property
    def bos_id(self) -> int:
        """The token before a text."""
        return self._tokenizer.bos_id

    @property
    def eos_id(self) -> int:
        """The token after a text, where the model's config names no other."""
        return self._tokenizer.eos_id

    @property
    def pad_id(self) -> int:
        """The token that stands for nothing."""
        return self._tokenizer.pad_id

    @property
    def markers(self) -> dict[str, int]:
        """Ids of the control tokens by their text."""
        return self._tokenizer.markers

    @property
    def chat(self) -> Template | None:
        """The chat format of the checkpoint, if it has one."""
        return self._tokenizer.chat

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return self._tokenizer.encode(text)

    def encode_chat(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[int]:
        """Ids that ask for a reply; ValueError for messages out of form."""
        return encode_prompt(self._tokenizer, messages, tools)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids."""
        return b"".join(self._table[i] for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> list[bytes]:
        """What each id adds to a text [V]."""
        return self._table


def build_engine(directory: Path, dtype: str, device: str | None, config: EngineConfig) -> Engine:
    """An engine for a checkpoint; called in the process that will run it."""
    model, tokenizer = open_model(FoundModel(directory=directory), dtype, device)
    constraints = constraint_factory(tokenizer, model.vocab_size, model.eos_token_id)
    served = as_served(model, exact=config.exact)
    return Engine(served, ServedTokenizer(tokenizer), config, constraints=constraints)


def build_divided(
    directory: Path, dtype: str, device: str | None, config: EngineConfig
) -> Disaggregated:
    """The same engine, whose prompts another process computes. That one drafts once: the drafts
    behind a first token are judged here, whatever this side chooses then.
    """
    engine = build_engine(directory, dtype, device, config)
    drafts = 1 if config.num_drafts is None else config.num_drafts
    prompts = replace(config, num_drafts=drafts, overlap=False, steps_per_schedule=1)
    factory = partial(build_engine, directory, dtype, device, prompts)
    # A connection ends with whoever dies; a ring in memory would stay until the front ends.
    return Disaggregated(engine, PrefillProcess(factory, "tcp"))
