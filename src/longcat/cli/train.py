"""`longcat train`: a small LongCat-Flash on your text, or `--quickstart` on Python's own library.

Standard output ends with one JSON object on its last line, whatever stands before it; with
`--json` nothing else does, and the rest goes to standard error.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from longcat.cli.lr_search import ask_search, run_search
from longcat.cli.training import (
    DEFAULT_STEPS,
    check_schedule,
    chosen_settings,
    find_place,
    interruption,
    process_count,
    short,
)

INTERRUPTED = 130


def command(
    more: Annotated[
        list[str] | None, typer.Argument(metavar="PATH", help="More paths for --data or --sft.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="The model's size: nano or bench.", show_default="nano")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH",
            help="Text: files, folders, globs, .jsonl with a field text, - for standard input.",
            show_default="Python's standard library",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Start from this checkpoint and its tokenizer; nano is the shipped one.",
            show_default="random weights",
        ),
    ] = None,
    sft: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHATS",
            help="With --init: fine-tune on conversations, .jsonl in OpenAI's messages form.",
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(
            help="With --sft: the chat format, longcat or chatml.", show_default="longcat"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's directory.", show_default="runs/PRESET")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps.", show_default=f"{DEFAULT_STEPS}")
    ] = None,
    time_budget: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Train this long, instead of --steps.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Decides weights and data order.", show_default="0")
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(help="Steps between snapshots.", show_default="200")
    ] = None,
    keep: Annotated[
        int | None,
        typer.Option(help="Newest snapshots to keep, beside the best one.", show_default="2"),
    ] = None,
    from_step: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="With --resume: go on from this kept snapshot; later ones are removed.",
            show_default="the newest",
        ),
    ] = None,
    rollback: Annotated[
        int | None,
        typer.Option(
            metavar="TIMES",
            help="After a spike, a corruption or a loss that is no number, go back so many times.",
            show_default="0",
        ),
    ] = None,
    sdc_every: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS",
            help="Check for silent corruption: compute an attention twice, compare processes.",
            show_default="0, never",
        ),
    ] = None,
    verify_determinism: Annotated[
        bool,
        typer.Option(
            "--verify-determinism", help="Make three steps twice first, and compare every bit."
        ),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Windows per step.", show_default="8")
    ] = None,
    micro_batches: Annotated[
        int | None,
        typer.Option(help="Shares of a step, one after another: less memory.", show_default="2"),
    ] = None,
    seq_len: Annotated[
        int | None, typer.Option(help="Tokens per window.", show_default="256")
    ] = None,
    context_stage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP:SEQ_LEN:THETA",
            help="From STEP on, longer windows and a larger rotary base; may be repeated.",
        ),
    ] = None,
    document_mask: Annotated[
        bool | None,
        typer.Option("--document-mask", help="Documents of a window do not see each other."),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default="4e-3 x 128/width")
    ] = None,
    recompute: Annotated[
        str | None,
        typer.Option(
            help="Less memory, the same bits: layer or layer-reentrant.", show_default="none"
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(help="After warm-up: wsd (plateau, decay) or cosine.", show_default="wsd"),
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(help="Steps of rising learning rate.", show_default="40")
    ] = None,
    decay: Annotated[
        float | None,
        typer.Option(help="Share of the run, at its end, that wsd falls.", show_default="0.3"),
    ] = None,
    grad_clip: Annotated[
        float | None, typer.Option(help="Largest gradient norm.", show_default="1.0")
    ] = None,
    freeze_bias_at: Annotated[
        int | None,
        typer.Option(metavar="STEP", help="Stop the bias controller here.", show_default="never"),
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Entries of the tokenizer.", show_default="the preset's")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32, bf16 or float64.", show_default="the faster one")
    ] = None,
    distill_steps: Annotated[
        int | None,
        typer.Option(
            help="Steps that teach the draft head the finished model's own choices.",
            show_default="0",
        ),
    ] = None,
    search_lr: Annotated[
        int | None,
        typer.Option(metavar="N", help="Train at N learning rates around --lr, find the best."),
    ] = None,
    transfer_from: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="A narrow run whose settings to use at --width."),
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Another hidden size.", show_default="the preset's")
    ] = None,
    processes: Annotated[
        str, typer.Option(metavar="N|auto", help="One-thread processes that share the work.")
    ] = "auto",
    expert_parallel: Annotated[
        int, typer.Option(metavar="N", help="Split the FFN experts over groups of N processes.")
    ] = 1,
    fsdp: Annotated[
        bool, typer.Option("--fsdp", help="Split all weights over the processes (fully_shard).")
    ] = False,
    quickstart: Annotated[
        bool, typer.Option("--quickstart", help="Under 8 minutes from nothing to a report.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on standard output, no more.")
    ] = False,
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
    }
    wanted = {name: value for name, value in given.items() if value is not None}
    console = make_console(stderr=as_json)

    def say(text: str) -> None:
        console.print(f"  {text} ...", style="note")

    check_schedule(wanted)
    launch = launched()
    if launch is not None and launch.rank:
        follow(launch)
        return
    layout = Layout(expert_parallel=expert_parallel, fsdp=fsdp)
    workers = process_count(processes, launch, layout, searching=search_lr is not None)
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
        search = ask_search(out, wanted, search_lr, transfer_from, processes=workers, say=say)
        raise typer.Exit(run_search(search, console, processes=workers, say=say))
    place, resume = find_place(out, wanted, resume, quickstart, console)
    if resume:
        session = resume_run(
            place, wanted, processes=workers, layout=layout, from_step=from_step, say=say
        )
    else:
        settings = (
            chosen_settings(wanted, quickstart, processes=workers)
            if transfer_from is None
            else transferred_settings(transfer_from, wanted)
        )
        session = open_run(place, settings, processes=workers, layout=layout, say=say)
    show_card(console, session.card, session.prepared.config)
    if verify_determinism:
        from longcat.train.watch.rerun import rerun

        found = rerun(session.prepared, session.directory.latest())
        console.print(f"  {found.sentence()}", style="bad" if found.differing else "note")
        if found.differing:
            raise typer.Exit(1)
    with Watcher(console, session) as watcher:
        trainer, interrupted = train_run(session, watcher)
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
