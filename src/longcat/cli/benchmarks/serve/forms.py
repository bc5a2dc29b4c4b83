"""Who continues the prompts: our engine, or transformers' generate, greedily and to a length."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import torch

from longcat.cli.models import load, weights
from longcat.flash import FlashConfig, FlashModel
from longcat.flash.packed import as_served
from longcat.serve import Engine, EngineConfig, PagedModel, Request, SamplingParams, complete

Prompts = Sequence[Sequence[int]]
Continue = Callable[[Prompts, Sequence[int]], list[list[int]]]

CHUNK = 2048  # tokens of prompts fed in one pass
PAGES = 512


class Ours:
    """The engine; without drafts and without a prefix cache, unless asked for."""

    def __init__(
        self, model: PagedModel, *, drafts: int | None = 0, prefix_cache: bool = False
    ) -> None:
        self.engine = Engine(
            model,
            None,
            EngineConfig(
                num_pages=PAGES, token_budget=CHUNK, num_drafts=drafts, prefix_cache=prefix_cache
            ),
        )

    def __call__(self, prompts: Prompts, counts: Sequence[int]) -> list[list[int]]:
        """counts[i] tokens after prompts[i], all of them batched as they come."""
        requests = [
            Request(
                request_id=str(row),
                prompt_ids=tuple(prompt),
                params=SamplingParams(max_tokens=count, ignore_eos=True),
            )
            for row, (prompt, count) in enumerate(zip(prompts, counts, strict=True))
        ]
        return [list(whole.token_ids) for whole in complete(self.engine, requests)]


class Theirs:
    """transformers' generate on a left-padded batch, with its own cache and fused attention."""

    def __init__(self, directory: str, dtype: torch.dtype) -> None:
        hf: Any = import_module("transformers")
        hf.utils.logging.set_verbosity_error()
        hf.utils.logging.disable_progress_bar()
        self.model = hf.LongcatFlashForCausalLM.from_pretrained(
            directory, dtype=dtype, attn_implementation="sdpa"
        ).eval()
        self.model.generation_config.eos_token_id = None  # everybody goes to the full length
        self.model.generation_config.pad_token_id = 0

    def __call__(self, prompts: Prompts, counts: Sequence[int]) -> list[list[int]]:
        """counts[i] tokens after prompts[i]; all rows run until the longest one ends."""
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + [*prompt] for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = self.model.generate(
            ids, attention_mask=mask, max_new_tokens=max(counts), do_sample=False
        )
        texts: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return [text[:count] for text, count in zip(texts, counts, strict=True)]


class FreshPrompts:
    """Random prompts, no two alike."""

    def __init__(self, vocab_size: int, seed: int = 1) -> None:
        self._vocab = vocab_size
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *lengths: int) -> list[list[int]]:
        """One prompt of each length."""
        return [
            torch.randint(4, self._vocab, (length,), generator=self._generator).tolist()
            for length in lengths
        ]


def contestants(
    config: FlashConfig, precision: str, *, compare: bool
) -> tuple[FlashModel, dict[str, Continue]]:
    """Our model as it was read, and who takes turns, with the same random weights. Weights of 8
    bits are ours alone: transformers computes in bfloat16 beside them.

    Raises:
        ValueError: they do not continue a prompt alike in float32; then they are not the same
            model.
    """
    with tempfile.TemporaryDirectory() as directory:
        FlashModel(config, seed=0).save_pretrained(directory, format="transformers5")
        dtype, _ = weights(precision)
        model = load(directory, precision)
        forms: dict[str, Continue] = {"longcat": Ours(as_served(model))}
        if compare:
            forms["transformers"] = Theirs(directory, dtype)
    if dtype == torch.float32:
        check_alike(forms, FreshPrompts(config.vocab_size)(40))
    return model, forms


def check_alike(forms: dict[str, Continue], prompts: Prompts) -> None:
    """Raise ValueError unless all forms continue the prompts with the same tokens."""
    texts = {name: form(prompts, [8] * len(prompts)) for name, form in forms.items()}
    first, *others = texts.values()
    if any(text != first for text in others):
        raise ValueError(
            "bench: the same weights must continue a prompt alike, got "
            f"{texts}; no time is measured of work that differs"
        )
