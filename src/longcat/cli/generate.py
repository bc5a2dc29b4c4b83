"""`longcat generate`: continue a prompt, token by token, with the MTP head as the draft."""

import json
import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longcat.cli.models import (
    DTYPE_HELP,
    Device,
    FoundModel,
    Model,
    find_model,
    open_model,
)
from longcat.cli.stream import TokenPrinter

if TYPE_CHECKING:
    from longcat.cli.continuation import Continuation
    from longcat.flash.tokenizer import Tokenizer

DEFAULT_MAX_TOKENS = 200


class Backend(StrEnum):
    """Which form of every operation to run."""

    numpy = "numpy"
    torch = "torch"
    triton = "triton"


def command(
    model: Model = None,
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads standard input.")] = "",
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a user's message; print the reply.")
    ] = False,
    system: Annotated[
        str | None, typer.Option(help="With --chat: the system message.", show_default="none")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens to generate.",
            show_default=f"{DEFAULT_MAX_TOKENS}, or what fits",
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy; 0.8 is lively.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k most probable; 0 from all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the most probable mass.")] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same text.", show_default="a fresh one")
    ] = None,
    speculative: Annotated[
        bool | None,
        typer.Option(
            "--speculative/--no-speculative",
            help="Draft with the MTP head; the text is the same.",
            show_default="if the model has one",
        ),
    ] = None,
    drafts: Annotated[int, typer.Option(min=1, max=3, help="Drafts per step.")] = 1,
    backend: Annotated[
        Backend | None,
        typer.Option(help="Which form of every operation.", show_default="by device"),
    ] = None,
    dtype: Annotated[str, typer.Option(help=DTYPE_HELP)] = "float32",
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Continue a prompt, drafting with the MTP head.

    On a terminal, tokens that were drafted and accepted are coloured.

    Example: longcat generate --prompt "def main(" --max-tokens 60

    With a model fine-tuned on chats: longcat generate --chat --prompt "What does len do?"

    From a pipe: echo "import os" | longcat generate --prompt - --temperature 1
    """
    from longcat.cli.continuation import Continuation
    from longcat.flash.packed import as_served
    from longcat.serve import SamplingParams

    # Checked before anything is loaded: the limit itself is known only with the model.
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, max_tokens=max_tokens or 1
    )
    data = sys.stdin.buffer.read().removesuffix(b"\n") if prompt == "-" else os.fsencode(prompt)
    found = find_model(model)
    flash, tokenizer = open_model(found, dtype, device)
    if system is not None and not chat:
        raise ValueError("generate: --system goes with --chat")
    if chat:
        prompt_ids = chat_prompt(tokenizer, data.decode("utf-8", "replace"), system)
    else:
        prompt_ids = [tokenizer.bos_id, *tokenizer.encode_bytes(data)]
    if max_tokens is None:
        room = max(1, flash.max_position - len(prompt_ids))
        params = SamplingParams(**{**vars(params), "max_tokens": min(DEFAULT_MAX_TOKENS, room)})
    if speculative and not flash.has_draft_head:
        typer.echo(f"{found.directory} has no MTP head: decoding without drafts", err=True)
    served = flash if backend else as_served(flash)  # the readable form has every backend
    del flash
    text = Continuation(served, prompt_ids, params, 0 if speculative is False else drafts)
    with _using(backend):
        if as_json:
            started = time.perf_counter()
            for _ in text:
                pass
            document = _document(found, data, text, time.perf_counter() - started, tokenizer)
            if chat:
                document["reply"] = _reply(tokenizer, [token.id for token in text.tokens])
            typer.echo(json.dumps(document, indent=2))
            return
        if chat:
            from longcat.flash.chat import reply_bytes

            _stream(found, b"", text, reply_bytes(tokenizer, end=False))
        else:
            _stream(found, data, text, tokenizer.token_bytes())


def chat_prompt(tokenizer: "Tokenizer", text: str, system: str | None) -> list[int]:
    """The ids that ask for a reply to one message of a user."""
    from longcat.chat import Message
    from longcat.flash.chat import encode_prompt

    messages: list[Message] = [{"role": "user", "content": text}]
    if system is not None:
        said = os.fsencode(system).decode("utf-8", "replace")
        messages.insert(0, {"role": "system", "content": said})
    return encode_prompt(tokenizer, messages)


def _reply(tokenizer: "Tokenizer", ids: list[int]) -> dict[str, Any]:
    """What was generated, as a message: text, tool calls, and whether it ended by itself."""
    from longcat.chat import parse_reply
    from longcat.flash.chat import chat_format, decode_reply

    return asdict(parse_reply(decode_reply(tokenizer, ids), chat_format(tokenizer).name))


def _using(backend: Backend | None) -> Any:
    if backend is None:
        return nullcontext()
    from longcat.kernels import use_backend

    return use_backend(backend.value)


def _stream(found: FoundModel, prompt: bytes, text: "Continuation", table: list[bytes]) -> None:
    from longcat.cli.ui.theme import make_console

    notes = make_console(stderr=True)
    if found.reason:
        notes.print(f"{found.directory}, {found.reason}", style="note", soft_wrap=True)
    printer = TokenPrinter(make_console())
    printer.prompt(prompt)
    started = time.perf_counter()
    try:
        for token in text:
            printer.token(table[token.id] if token.id < len(table) else b"", token.drafted)
    finally:
        printer.close()
        if text.tokens:  # interrupted or not
            seconds = time.perf_counter() - started
            notes.print(summary(text, seconds), style="note", soft_wrap=True)


def summary(text: "Continuation", seconds: float) -> str:
    """The closing line: tokens/s, acceptance, tokens per step, and the seed of a random text."""
    count = len(text.tokens)
    parts = [
        f"{count} tokens in {seconds:.2f} s",
        f"{count / seconds if seconds else 0.0:.1f} tokens/s",
    ]
    if text.acceptance is not None:
        parts += [
            f"{text.acceptance:.1%} of drafts accepted",
            f"{text.tokens_per_step:.2f} tokens per step",
        ]
    else:
        parts.append("no drafts")
    if not text.params.greedy:
        parts.append(f"seed {text.params.seed}")
    return ", ".join(parts)


def _document(
    found: FoundModel, prompt: bytes, text: "Continuation", seconds: float, tokenizer: "Tokenizer"
) -> dict[str, Any]:
    table, count = tokenizer.token_bytes(), len(text.tokens)
    data = b"".join(table[token.id] if token.id < len(table) else b"" for token in text.tokens)
    return {
        "model": str(found.directory),
        "prompt": prompt.decode("utf-8", "replace"),
        "text": data.decode("utf-8", "replace"),
        "finish_reason": text.finish_reason,
        "token_ids": [token.id for token in text.tokens],
        "drafted_and_accepted": [token.drafted for token in text.tokens],
        "prompt_tokens": len(text.prompt_ids),
        "tokens": count,
        "steps": text.steps,
        "drafted": text.drafted,
        "accepted": text.accepted,
        "acceptance": text.acceptance,
        "tokens_per_step": text.tokens_per_step,
        "seconds": seconds,
        "tokens_per_s": count / seconds if seconds else 0.0,
        "seed": None if text.params.greedy else text.params.seed,
    }
