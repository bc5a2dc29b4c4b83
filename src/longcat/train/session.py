"""A whole run, from its request to its report; what `longcat train` calls.

open_run  corpus, tokenizer, directory, precision, first snapshot   (or the state of --resume)
train_run processes, loop
finish    evaluation, run.json, report.html
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from longcat.flash import FlashConfig, FlashModel
from longcat.flash.checkpoint import save_checkpoint
from longcat.train.allocator import keep_freed_memory
from longcat.train.changes import changed
from longcat.train.device import CPU, name_of, own_device
from longcat.train.directory import RunDirectory
from longcat.train.distill import DistillRecord, DistillSettings, distill_mtp
from longcat.train.exchange import connected, limit_threads
from longcat.train.loop import Observer, begin, interruptible, run
from longcat.train.memory import check_memory
from longcat.train.origin import Origin, read_origin
from longcat.train.parallel.launch import Launched, launched
from longcat.train.parallel.layout import WHOLE, Layout
from longcat.train.preflight import Row, card, choose_processes, probe
from longcat.train.prepare import Prepared, model_config, prepare, reopen
from longcat.train.report import write_report
from longcat.train.settings import TrainSettings
from longcat.train.settle import settle_run
from longcat.train.sft.packing import real_ids
from longcat.train.sft.prepare import prepare_chats
from longcat.train.snapshot import read_settings
from longcat.train.sources import read_corpus
from longcat.train.summary import Summary, summarise
from longcat.train.trainer import Trainer
from longcat.train.watch.exactness import other_bits
from longcat.train.watch.keep import kept
from longcat.train.watch.rerun import Rerun, rerun
from longcat.train.workers import Workers

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Session:
    """A run that is ready to train."""

    directory: RunDirectory
    prepared: Prepared
    processes: int
    card: list[Row]
    layout: Layout = WHOLE
    device: torch.device = CPU  # of this process
    resumed_from: int | None = None
    peak: float | None = None  # operations per second of one process


def open_run(
    out: Path,
    settings: TrainSettings,
    *,
    processes: int | None = None,
    layout: Layout = WHOLE,
    device: torch.device = CPU,
    say: Say,
) -> Session:
    """A new run in `out`.

    Args:
        processes: None chooses by the cores or GPUs available. layout: how they divide the model.
        device: the kind that they compute on (`device.choose_device`).
        say: told what is being done.

    Raises:
        ValueError: unknown preset, unusable text, a directory in use, too little memory.
    """
    directory = RunDirectory(out)
    origin = None if settings.init is None else read_origin(settings)
    config = model_config(settings) if origin is None else origin.config
    count, why = choose_processes(processes, settings.micro_batches, device)
    layout.check(count, config, settings)
    device = _first(device)
    check_memory(config, settings, count, layout, device)
    directory.check_new()
    limit_threads(1)
    keep_freed_memory()
    try:
        prepared = _prepare(directory, settings, origin, config, say)
        say("measuring speed")
        speed = probe(prepared, device)
        prepared = replace(prepared, settings=replace(settings, precision=speed.precision))
        begin(directory, prepared)
    except BaseException:
        directory.abandon()
        raise
    return Session(
        directory=directory,
        prepared=prepared,
        processes=count,
        card=card(prepared, speed, count, why, str(out), layout, device),
        layout=layout,
        device=device,
        peak=speed.peak,
    )


def _first(kind: torch.device) -> torch.device:
    """What rank 0 computes on."""
    launch = launched()
    return own_device(kind, 0 if launch is None else launch.local_rank)


def _prepare(
    directory: RunDirectory,
    settings: TrainSettings,
    origin: Origin | None,
    config: FlashConfig,
    say: Say,
) -> Prepared:
    """Text or conversations, read and stored in the new directory."""
    if settings.sft:
        assert origin is not None  # TrainSettings sees to it
        say("reading and encoding the conversations")
        return prepare_chats(directory, settings, origin)
    say("reading text")
    corpus = read_corpus(settings.data)
    if origin is not None:
        say("encoding the text")
        return prepare(directory, corpus, settings, config, origin.tokenizer)
    say("learning the tokenizer and encoding the text")
    return prepare(directory, corpus, settings, config)


def resume_run(
    out: Path,
    wanted: dict[str, Any],
    *,
    processes: int | None = None,
    layout: Layout = WHOLE,
    device: torch.device = CPU,
    from_step: int | None = None,
    say: Say,
) -> Session:
    """The run in `out`, at its newest snapshot.

    Args:
        wanted: settings given explicitly; only those in CHANGEABLE may differ from the run's.
        device: the kind to go on with; it may be another one.
        from_step: go on from this kept snapshot instead; the later ones are removed.

    Raises:
        RunError: no run there, or a setting that cannot be changed on the way.
    """
    directory = RunDirectory(out)
    chosen = directory.latest() if from_step is None else directory.at(from_step)
    saved = read_settings(chosen)
    settings = changed(saved, wanted)
    count, why = choose_processes(processes, settings.micro_batches, device)
    device = _first(device)
    limit_threads(1)
    keep_freed_memory()
    say("reading the run")
    snapshot = directory.restore() if from_step is None else directory.rewind(from_step)
    prepared = replace(reopen(directory), settings=settings)
    if settings != saved:
        # Other processes read the settings from the snapshot; so does the next resume.
        directory.replace_settings(snapshot, settings.to_json())
    layout.check(count, prepared.config, settings)
    step = int(snapshot.name.rpartition("-")[2])
    speed = probe(prepared, device)
    rows = card(prepared, speed, count, why, str(out), layout, device)
    rows.insert(1, Row(label="goes on from", value=f"step {step}"))
    warning = other_bits(snapshot, count, device)
    if warning is not None:
        rows.insert(2, Row(label="exactness", value=warning))
    return Session(
        directory=directory,
        prepared=prepared,
        processes=count,
        card=rows,
        layout=layout,
        device=device,
        resumed_from=step,
        peak=speed.peak,
    )


def train_run(
    session: Session, observer: Observer, verified: Callable[[Rerun], None] | None = None
) -> tuple[Trainer, bool]:
    """Train to the end or to an interruption.

    Args:
        verified: steps are made twice first, in all processes, and this is told what came of it;
            it raises to end the run there. None does without.

    Returns:
        (the trainer at the end, whether the run was interrupted).
    """
    launch, path = launched(), session.directory.path
    how: dict[str, Any] = {"device": session.device, "verify": verified is not None}
    others = (
        Workers(path, session.processes, session.layout, **how)
        if launch is None
        else Launched(launch, path, session.layout, **how)
    )
    # torchrun passes a terminal's Ctrl-C on, so that it comes twice.
    with interruptible(patient=launch is not None) as stopping, others:
        if verified is not None:
            with connected():
                found = rerun(session.prepared, session.directory.latest(), others.exchange)
            verified(found)
        trainer = run(
            session.directory,
            session.prepared,
            others.exchange,
            observer,
            stopping,
            session.peak,
        )
    return trainer, trainer.progress < 1


def finish(session: Session, trainer: Trainer, *, say: Say) -> Summary:
    """Evaluate, write run.json and report.html; returns run.json's document."""
    training: dict[str, Any] = {
        "finished": trainer.progress >= 1,
        "steps": trainer.step,
        "tokens": trainer.tokens_seen,
        "seconds": trainer.seconds,
        "cpu_seconds": trainer.cpu_seconds,
        "processes": session.processes,
        "device": name_of(session.device),
        "snapshots": kept(session.directory),
    }
    if training["finished"]:
        say("settling the routers' biases")
        training["settled"] = settle_run(trainer, session.directory.path)
    if training["finished"] and session.prepared.settings.distill_steps:
        training["distilled"] = _distil_head(session, say)
    summary = summarise(
        session.directory, session.prepared, training, device=session.device, say=say
    )
    say("writing the report")
    write_report(session.directory.path, summary)
    return summary


def _distil_head(session: Session, say: Say) -> dict[str, Any]:
    """The MTP-only phase on the run's checkpoint; the snapshot keeps the head as it was trained.

    So a run that goes on, goes on exactly, and distils its head anew at its new end.
    """
    directory, prepared = session.directory, session.prepared
    steps = prepared.settings.distill_steps
    model = FlashModel.from_pretrained(directory.path).to(session.device)
    window = prepared.settings.seq_len
    settings = DistillSettings(
        steps=steps,
        window=window,
        prompt=max(1, min(DistillSettings.prompt, window // 4)),
        autocast=prepared.settings.precision == "bf16",
        seed=prepared.settings.seed,
    )
    records: list[DistillRecord] = []
    started = time.process_time()
    say("teaching the draft head the model's own choices")

    def observe(record: DistillRecord) -> None:
        records.append(record)
        if record.step % 50 == 0 or record.step == steps:
            say(
                f"draft head, step {record.step}/{steps}: agrees with the model on "
                f"{record.agreement_own:.1%} of its own text, {record.agreement_corpus:.1%} of the "
                "corpus"
            )

    ids = real_ids(prepared.tokens) if prepared.settings.sft else prepared.tokens
    distill_mtp(model, ids, settings, observe)
    save_checkpoint(model, directory.path)
    return {
        "settings": asdict(settings),
        "cpu_seconds": time.process_time() - started,
        "agreement_own": [records[0].agreement_own, records[-1].agreement_own],
        "agreement_corpus": [records[0].agreement_corpus, records[-1].agreement_corpus],
    }


def is_unfinished(out: Path) -> bool:
    """Whether `out` holds a run that was interrupted."""
    directory = RunDirectory(out)
    return bool(directory.snapshots()) and not os.path.exists(out / "run.json")
