"""`longcat train`: a small LongCat-Flash on your text, or `--quickstart` on Python's own library.

Standard output ends with one JSON object on its last line, whatever stands before it; with
`--json` nothing else does, and the rest goes to standard error.
"""

import json

import typer

from longcat.cli import train_options as options
from longcat.cli.lr_search import ask_search, run_search
from longcat.cli.training import (
    check_schedule,
    chosen_settings,
    find_place,
    interruption,
    process_count,
    short,
    told_determinism,
    written,
)

INTERRUPTED = 130


def command(
    more: options.More = None,
    data: options.Data = None,
    init: options.Init = None,
    sft: options.Sft = None,
    template: options.Template = None,
    search_lr: options.SearchLr = None,
    transfer_from: options.TransferFrom = None,
    quickstart: options.Quickstart = False,
    preset: options.Preset = None,
    vocab_size: options.VocabSize = None,
    width: options.Width = None,
    mtp_layer: options.MtpLayer = None,
    steps: options.Steps = None,
    time_budget: options.TimeBudget = None,
    seed: options.Seed = None,
    batch_size: options.BatchSize = None,
    micro_batches: options.MicroBatches = None,
    seq_len: options.SeqLen = None,
    context_stage: options.ContextStage = None,
    document_mask: options.DocumentMask = None,
    distill_steps: options.DistillSteps = None,
    lr: options.Lr = None,
    recompute: options.Recompute = None,
    schedule: options.Schedule = None,
    warmup_steps: options.WarmupSteps = None,
    decay: options.Decay = None,
    grad_clip: options.GradClip = None,
    freeze_bias_at: options.FreezeBiasAt = None,
    precision: options.Precision = None,
    out: options.Out = None,
    save_every: options.SaveEvery = None,
    keep: options.Keep = None,
    from_step: options.FromStep = None,
    rollback: options.Rollback = None,
    resume: options.Resume = False,
    sdc_every: options.SdcEvery = None,
    verify_determinism: options.VerifyDeterminism = False,
    tensorboard: options.TensorBoard = False,
    device: options.Device = "auto",
    processes: options.Processes = "auto",
    expert_parallel: options.ExpertParallel = 1,
    fsdp: options.Fsdp = False,
    pipeline: options.Pipeline = False,
    as_json: options.AsJson = False,
) -> None:
    """Train a small LongCat-Flash: a card first, then the run, then a report.

    Ctrl-C finishes the step, saves, and says how to go on.

    Example: longcat train --quickstart

    On conversations: longcat train --sft chats.jsonl --init nano --out runs/chat

    On your own text: longcat train --data my-project notes.txt --out runs/mine --steps 500
    """
    from longcat.cli.ui.panel import Watcher, show_card, show_summary
    from longcat.cli.ui.theme import make_console
    from longcat.train import (
        Layout,
        finish,
        follow,
        is_search,
        launched,
        open_run,
        resume_run,
        train_run,
        transferred_settings,
    )
    from longcat.train.device import choose_device, gpus
    from longcat.train.events import require_tensorboard
    from longcat.train.stages import ContextStage

    given = {
        "preset": preset,
        "data": (*(data or ()), *(() if sft else more or ())) or None,
        "init": init,
        "sft": (*(sft or ()), *(more or ())) if sft else None,
        "template": template,
        "steps": steps,
        "time_budget": time_budget,
        "seed": seed,
        "save_every": save_every,
        "keep": keep,
        "rollback": rollback,
        "sdc_every": sdc_every,
        "batch_size": batch_size,
        "micro_batches": micro_batches,
        "seq_len": seq_len,
        "context_stages": tuple(map(ContextStage.parse, context_stage or ())) or None,
        "document_mask": document_mask,
        "lr": lr,
        "recompute": recompute,
        "schedule": schedule,
        "warmup_steps": warmup_steps,
        "decay": decay,
        "grad_clip": grad_clip,
        "freeze_bias_at": freeze_bias_at,
        "vocab_size": vocab_size,
        "precision": precision,
        "distill_steps": distill_steps,
        "width": width,
        "mtp_layer": mtp_layer,
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    console = make_console(stderr=as_json)

    def say(text: str) -> None:
        console.print(f"  {text} ...", style="note")

    check_schedule(wanted)
    kind = choose_device(device)
    launch = launched()
    if launch is not None and launch.rank:
        follow(launch, kind)
        return
    layout = Layout(expert_parallel=expert_parallel, fsdp=fsdp, pipeline=pipeline)
    workers = process_count(processes, launch, layout, kind, searching=search_lr is not None)
    if tensorboard:
        require_tensorboard()
    if search_lr is not None and (resume or quickstart):
        raise ValueError("train: --search-lr begins a search; leave out --resume and --quickstart")
    if transfer_from is not None and (resume or quickstart):
        raise ValueError("train: --transfer-from begins a run; leave out --resume and --quickstart")
    if init is not None and (quickstart or search_lr is not None or transfer_from is not None):
        raise ValueError(
            "train: --init starts from trained weights; leave out --quickstart, --search-lr and "
            "--transfer-from"
        )
    if from_step is not None and not resume:
        raise ValueError("train: --from-step goes with --resume --out DIR")
    if search_lr is not None or (resume and out is not None and is_search(out)):
        if from_step is not None:
            wanted["from_step"] = from_step  # the search says that it has no such choice
        if tensorboard or verify_determinism:
            option = "--tensorboard" if tensorboard else "--verify-determinism"
            raise ValueError(f"train: {option} is for one run; a search has many, leave it out")
        search = ask_search(
            out, wanted, search_lr, transfer_from, processes=workers, device=kind, say=say
        )
        raise typer.Exit(run_search(search, console, processes=workers, device=kind, say=say))
    place, resume = find_place(out, wanted, resume, quickstart, console)
    if resume:
        session = resume_run(
            place,
            wanted,
            processes=workers,
            layout=layout,
            device=kind,
            from_step=from_step,
            say=say,
        )
    else:
        expected = workers or (gpus() if kind.type == "cuda" else None)
        settings = (
            chosen_settings(wanted, quickstart, processes=expected, layout=layout)
            if transfer_from is None
            else transferred_settings(transfer_from, wanted)
        )
        session = open_run(place, settings, processes=workers, layout=layout, device=kind, say=say)
    show_card(console, session.card, session.prepared.config)
    with Watcher(console, session) as watcher, written(session, watcher, tensorboard) as observer:
        verified = told_determinism(console) if verify_determinism else None
        trainer, interrupted = train_run(session, observer, verified)
    if interrupted:
        console.print(
            f"interrupted: saved at step {trainer.step} of {place}; go on by", soft_wrap=True
        )
        console.print(f"  longcat train --resume --out {place}", style="title", soft_wrap=True)
        typer.echo(json.dumps(interruption(session, trainer.step)))
        raise typer.Exit(INTERRUPTED)
    summary = finish(session, trainer, say=say)
    show_summary(console, summary)
    typer.echo(json.dumps(short(summary), allow_nan=False))
