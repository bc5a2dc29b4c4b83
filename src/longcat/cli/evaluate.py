"""`longcat evaluate`: what a checkpoint is worth on text and on questions."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from longcat.cli.models import Device, Model, ModelArgument, find_model, one_name, open_model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from longcat.flash import FlashModel
    from longcat.flash.tokenizer import Tokenizer
    from longcat.train.corpus import Document

DEPTH = 3  # drafts per pass, where their acceptance is told by depth
_HELD_OUT = Path("data") / "held_out.jsonl"


def command(
    named: ModelArgument = None,
    model: Model = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Text to score, whole: as in longcat train.",
            show_default="the run's held-out text, else that of the standard library",
        ),
    ] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens of context per window.")] = 256,
    mtp: Annotated[bool, typer.Option("--mtp", help="Measure the draft head too.")] = False,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts that --mtp continues.")] = 64,
    choices: Annotated[
        Path | None, typer.Option(help="A .jsonl of multiple-choice questions.")
    ] = None,
    chats: Annotated[
        list[str] | None,
        typer.Option(help="Conversations whose replies to score, as for longcat train --sft."),
    ] = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Score a checkpoint: bits per byte, FFN experts by kind, drafts, questions.

    Example: longcat evaluate runs/quickstart --mtp
    """
    from longcat.train.choices import answer_questions, read_questions
    from longcat.train.classes import by_kind
    from longcat.train.evaluate import compressed_bits_per_byte, evaluate
    from longcat.train.exchange import limit_threads

    questions = None if choices is None else read_questions(choices)
    found = find_model(one_name(named, model))
    source, documents = _documents(found.directory, data)
    flash, tokenizer = open_model(found, "float32", device)
    limit_threads(1)
    held_out = evaluate(flash, tokenizer, documents, window=min(window, flash.max_position))
    document: dict[str, Any] = {
        "model": str(found.directory),
        "text": source,
        "documents": len(documents),
        "bytes": held_out.text_bytes,
        "tokens": int(held_out.is_text.sum()),
        "loss": held_out.loss,
        "bits_per_byte": held_out.bits_per_byte,
        "compressors": compressed_bits_per_byte(documents),
        "ffn_experts_target": flash.config.router.target_ffn,
        "ffn_experts_mean": held_out.ffn_mean,
        "ffn_experts_half_width": held_out.ffn_half_width,
        "ffn_experts_std": held_out.ffn_std,
        "kinds": [asdict(kind) for kind in by_kind(held_out, tokenizer)],
        "mtp": None,
        "choices": None,
        "replies": None,
    }
    if mtp:
        document["mtp"] = _draft_figures(flash, tokenizer, held_out.ids, prompts)
        if document["mtp"] is None:
            raise ValueError(f"--mtp: {found.directory} has no draft head, or too little text")
    if questions is not None:
        document["choices"] = asdict(answer_questions(flash, tokenizer, questions))
    if chats:
        document["replies"] = _replies(flash, tokenizer, chats, min(window, flash.max_position))
    if as_json:
        typer.echo(json.dumps(document, indent=2))
    else:
        _print(document)


def _replies(
    model: "FlashModel", tokenizer: "Tokenizer", chats: list[str], window: int
) -> dict[str, Any]:
    """Scores of what the assistant says in conversations."""
    from longcat.flash.chat import chat_format
    from longcat.train.sft.chats import read_chats
    from longcat.train.sft.score import reply_figures

    read = read_chats(chats, chat_format(tokenizer).name)
    return reply_figures(model, tokenizer, read, window=window)


def _documents(directory: Path, data: list[str] | None) -> tuple[str, "list[Document]"]:
    """What to score, and in words where it is from."""
    from longcat.train.corpus import Document
    from longcat.train.sources import named, read_corpus, read_documents

    if data:
        return named(data), read_documents(data)[0]
    kept = directory / _HELD_OUT
    if kept.is_file() and kept.stat().st_size:
        lines = kept.read_text(encoding="utf-8").splitlines()
        return "the run's held-out text", [Document(**json.loads(line)) for line in lines]
    corpus = read_corpus([])
    return f"held-out part of {corpus.source}", list(corpus.held_out)


def _print(document: dict[str, Any]) -> None:
    """The same figures as lines."""
    from rich.table import Table

    from longcat.cli.ui.theme import make_console

    console = make_console()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    compressors = ", ".join(f"{name} {bits:.3f}" for name, bits in document["compressors"].items())
    halves = document["ffn_experts_half_width"] or [None] * len(document["ffn_experts_mean"])
    means = ", ".join(
        f"{mean:.2f}" + ("" if half is None else f" ± {half:.2f}")
        for mean, half in zip(document["ffn_experts_mean"], halves, strict=True)
    )
    table.add_row("model", document["model"])
    table.add_row(
        "text",
        f"{document['text']}: {document['bytes']:,} bytes in {document['documents']} documents",
    )
    table.add_row("bits per byte", f"{document['bits_per_byte']:.3f} ({compressors})")
    table.add_row("loss", f"{document['loss']:.3f} nats per token")
    table.add_row(
        "FFN experts",
        f"{means} per token, layer by layer; target {document['ffn_experts_target']:g}",
    )
    kinds = ", ".join(f"{k['kind']} {k['ffn_experts']:.2f}" for k in document["kinds"])
    table.add_row("by kind", kinds)
    if document["mtp"]:
        for label, figures in _draft_rows(document["mtp"]):
            table.add_row(label, figures)
    if document["replies"]:
        replies = document["replies"]
        table.add_row(
            "replies",
            f"{replies['bits_per_byte']:.3f} bits per byte, {replies['loss']:.3f} nats per token: "
            f"{replies['bytes']:,} bytes in {replies['conversations']} conversations",
        )
    if document["choices"]:
        scored = document["choices"]
        table.add_row(
            "questions",
            f"{scored['accuracy']:.1%} right of {scored['questions']}, "
            f"{scored['accuracy_per_byte']:.1%} per byte; chance {scored['chance']:.1%}",
        )
    console.print(table)


def _draft_figures(
    model: "FlashModel", tokenizer: "Tokenizer", stream: "NDArray[np.int64]", prompts: int
) -> dict[str, Any] | None:
    """Greedy acceptance, and beside it sampled text and several drafts per pass."""
    import numpy as np

    from longcat.train.acceptance import measure_acceptance

    lengths = [len(piece) for piece in tokenizer.token_bytes()]
    table = np.array(lengths + [0] * max(0, model.vocab_size - len(lengths)))
    wanted: dict[str, Any] = {"prompts": prompts, "token_bytes": table}
    greedy = measure_acceptance(model, stream, **wanted)
    sampled = measure_acceptance(model, stream, temperature=1.0, **wanted)
    deep = measure_acceptance(model, stream, num_drafts=DEPTH, **wanted)
    if greedy is None or sampled is None or deep is None:
        return None
    return {**greedy.to_dict(), "sampled": sampled.to_dict(), "deep": deep.to_dict()}


def _draft_rows(mtp: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The draft head's figures, greedy and sampled, both rates side by side, then by depth."""

    def percent(rate: float | None) -> str:
        return "none" if rate is None else f"{rate:.1%}"

    def rates(figures: dict[str, Any]) -> str:
        spread = "" if figures["interval"] is None else f" (+-{figures['interval']:.1%})"
        return (
            f"{percent(figures['acceptance'])}{spread}, and "
            f"{percent(figures['acceptance_without_repeats'])} where no 5-gram repeats; "
            f"{figures['tokens_per_step']:.2f} tokens or {figures['bytes_per_step']:.1f} bytes "
            f"per pass, {figures['prompts']} prompts"
        )

    deep = mtp["deep"]
    by_depth = ", ".join(
        percent(taken / tried if tried else None)
        for taken, tried in zip(deep["accepted_at"], deep["drafted_at"], strict=True)
    )
    yield "drafts accepted", f"greedy: {rates(mtp)}"
    yield "", f"sampled at temperature 1: {rates(mtp['sampled'])}"
    yield "", f"{DEPTH} a pass, by depth: {by_depth}; {deep['tokens_per_step']:.2f} tokens per pass"
