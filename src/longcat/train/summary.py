"""What a finished run has to say, as one JSON document: DIR/run.json.

The report and the terminal show this document and metrics.jsonl; neither computes anything new.
"""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from longcat.flash import FlashModel, count_parameters
from longcat.flash.tokenizer import Tokenizer
from longcat.train.acceptance import Acceptance, measure_acceptance, sample
from longcat.train.classes import by_kind, by_token
from longcat.train.corpus import Document
from longcat.train.device import CPU
from longcat.train.directory import RunDirectory, write_text
from longcat.train.evaluate import HeldOut, compressed_bits_per_byte, evaluate
from longcat.train.metrics import read_metrics
from longcat.train.origin import initial_model
from longcat.train.peak import usual
from longcat.train.prepare import Prepared
from longcat.train.sft.prepare import held_out_chats
from longcat.train.sft.score import answer, score_chats
from longcat.train.watch.alarm import counted
from longcat.train.watch.load import verdict

FILE_NAME = "run.json"
HEAT_TOKENS = 600
_SAMPLE_TOKENS = 160
_PROMPT_TOKENS = 40
# Above this much text xz is not asked to read the training part too: it would take minutes.
_XZ_TRAINING_BYTES = 64_000_000

Summary = dict[str, Any]


def summarise(
    directory: RunDirectory,
    prepared: Prepared,
    training: dict[str, Any],
    *,
    prompts: int = 32,
    device: torch.device = CPU,
    say: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Evaluate the run's checkpoint and write DIR/run.json.

    Args:
        training: steps, tokens, seconds, cpu_seconds, processes and `finished` of the run.
        prompts: held-out prompts that acceptance is measured on. device: to compute on.
        say: told what is being done.

    Returns:
        The document. `held_out` is null when no text was held out.
    """
    document = _document(directory, prepared, training, prompts, device, say)
    write_text(directory.path / FILE_NAME, json.dumps(document, indent=1) + "\n")
    return document


def _document(
    directory: RunDirectory,
    prepared: Prepared,
    training: dict[str, Any],
    prompts: int,
    device: torch.device,
    say: Callable[[str], None],
) -> Summary:
    model, tokenizer = FlashModel.from_pretrained(directory.path), prepared.tokenizer
    model.to(device).eval()
    counts = count_parameters(prepared.config)
    records = read_metrics(directory.path)
    last = records[-1] if records else {}
    document: Summary = {
        "directory": str(directory.path),
        **training,
        "loss": last.get("loss"),
        "memory_peak": last.get("memory_peak"),
        "mfu": usual(records),
        "parameters": {
            "total": counts.total_parameters,
            "activated_min": counts.activated_min,
            "activated_mean": counts.activated_mean,
            "activated_max": counts.activated_max,
            "mtp": counts.mtp_parameters,
        },
        "ffn_experts_target": prepared.config.router.target_ffn,
        "balance": verdict(records, prepared.config.router.target_ffn, None),
        "alarms": counted(records),
        "corpus": prepared.card,
        "settings": json.loads(prepared.settings.to_json()),
        "held_out": None,
        "mtp": None,
        "sample": None,
    }
    if prepared.settings.sft:
        _add_chats(document, directory, prepared, model, prompts, say)
        return document
    if not prepared.held_out:
        return document
    with ThreadPoolExecutor(1) as beside:  # compressors leave the interpreter free
        compressing = beside.submit(_compress, prepared)
        say("scoring all held-out text")
        window = prepared.settings.longest_window
        held_out = evaluate(model, tokenizer, prepared.held_out, window=window)
        say("drafting with the MTP head on held-out prompts")
        acceptance = measure_acceptance(
            model, held_out.ids, prompts=prompts, token_bytes=prepared.token_bytes
        )
        say("writing a sample")
        document["sample"] = _sample(model, tokenizer, prepared.held_out)
        document["held_out"] = _held_out(held_out, tokenizer, compressing.result())
        document["balance"] = verdict(records, document["ffn_experts_target"], held_out.ffn_mean)
    document["mtp"] = _drafts(acceptance)
    return document


def _add_chats(
    document: Summary,
    directory: RunDirectory,
    prepared: Prepared,
    model: FlashModel,
    prompts: int,
    say: Callable[[str], None],
) -> None:
    """The figures of a run on conversations: of what the assistant says in those held out."""
    settings, tokenizer = prepared.settings, prepared.tokenizer
    chats = held_out_chats(directory.path, settings.template)
    if not chats:
        return
    say("scoring what the assistant says in held-out conversations")
    score = score_chats(model, tokenizer, chats, window=settings.seq_len)
    held_out = score.held_out
    replies = tokenizer.decode(held_out.ids[held_out.is_text].tolist())
    compressors = compressed_bits_per_byte([Document(name="replies", text=replies)])
    document["held_out"] = {
        **_held_out(held_out, tokenizer, compressors),
        "of": "replies",
        "conversations": len(chats),
        "end_of_reply_loss": score.end_nats,
        "bits_per_byte_before": None,
    }
    say("scoring the same with the weights it started from")
    try:
        before = score_chats(
            initial_model(settings, prepared.config).to(model.lm_head.weight.device),
            tokenizer,
            chats,
            window=settings.seq_len,
        )
        document["held_out"]["bits_per_byte_before"] = before.held_out.bits_per_byte
    except ValueError:
        say(f"{settings.init} is no longer there: left out")
    say("drafting with the MTP head on held-out prompts")
    document["mtp"] = _drafts(
        measure_acceptance(model, held_out.ids, prompts=prompts, token_bytes=prepared.token_bytes)
    )
    say("answering a held-out question")
    document["sample"] = answer(model, tokenizer, chats[0])


def _drafts(acceptance: Acceptance | None) -> Summary | None:
    return None if acceptance is None else acceptance.to_dict()


def _compress(prepared: Prepared) -> dict[str, float]:
    train = None
    if prepared.card["train_bytes"] <= _XZ_TRAINING_BYTES:
        # The ids are the text: decoding them gives its bytes back without control tokens.
        table = prepared.tokenizer.token_bytes()
        train = b"".join(table[i] for i in prepared.tokens.tolist())
    return compressed_bits_per_byte(prepared.held_out, train)


def _held_out(held_out: HeldOut, tokenizer: Tokenizer, compressors: dict[str, float]) -> Summary:
    often = by_token(held_out, tokenizer, at_least=max(30, len(held_out.ids) // 1500))
    table = tokenizer.token_bytes()
    middle = max(0, len(held_out.ids) // 2 - HEAT_TOKENS // 2)
    shown = range(middle, min(len(held_out.ids), middle + HEAT_TOKENS))
    return {
        "bits_per_byte": held_out.bits_per_byte,
        "loss": held_out.loss,
        "bytes": held_out.text_bytes,
        "tokens": int(held_out.is_text.sum()),
        "compressors": compressors,
        "ffn_experts_mean": held_out.ffn_mean,
        "ffn_experts_half_width": held_out.ffn_half_width,
        "ffn_experts_std": held_out.ffn_std,
        "correlation_with_loss": held_out.correlation_with_loss,
        "kinds": [asdict(figure) for figure in by_kind(held_out, tokenizer)],
        "tokens_fewest": [asdict(figure) for figure in often[:8]],
        "tokens_most": [asdict(figure) for figure in reversed(often[-8:])],
        "heat": [
            {
                "text": table[held_out.ids[i]].decode("utf-8", errors="replace"),
                "ffn": held_out.ffn[:, i].tolist(),
            }
            for i in shown
        ],
    }


def _sample(
    model: FlashModel, tokenizer: Tokenizer, held_out: tuple[Document, ...]
) -> dict[str, Any]:
    """A continuation of lines from the middle of the longest held-out document."""
    document = max(held_out, key=lambda d: len(d.text))
    middle = document.text.find("\n", len(document.text) // 2) + 1
    ids = tokenizer.encode(document.text[middle : middle + 8 * _PROMPT_TOKENS])
    prompt = tokenizer.decode(ids[:_PROMPT_TOKENS])
    cut = prompt.rfind("\n") + 1
    if cut > len(prompt) // 2:
        prompt = prompt[:cut]  # whole lines, when that leaves enough of them
    text = sample(model, tokenizer, prompt, tokens=_SAMPLE_TOKENS)
    return {"document": document.name, "prompt": prompt, "text": text, "temperature": 0.7}
