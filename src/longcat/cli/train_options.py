"""The options of `longcat train`, in the groups that its help shows them in."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from longcat.cli.training import DEFAULT_STEPS

More = Annotated[
    list[str] | None, typer.Argument(metavar="PATH", help="More paths for --data or --sft.")
]

_start = partial(typer.Option, rich_help_panel="Text and start")
Data = Annotated[
    list[str] | None,
    _start(
        metavar="PATH",
        help="Text: files, folders, globs, .jsonl with a field text, - for standard input.",
        show_default="Python's standard library",
    ),
]
Init = Annotated[
    str | None,
    _start(
        metavar="MODEL",
        help="Start from this checkpoint and its tokenizer; nano is the shipped one.",
        show_default="random weights",
    ),
]
Sft = Annotated[
    list[str] | None,
    _start(
        metavar="CHATS",
        help="With --init: fine-tune on conversations, .jsonl in OpenAI's messages form.",
    ),
]
Template = Annotated[
    str | None,
    _start(help="With --sft: the chat format, longcat or chatml.", show_default="longcat"),
]
SearchLr = Annotated[
    int | None,
    _start(metavar="N", help="Train at N learning rates around --lr, find the best."),
]
TransferFrom = Annotated[
    Path | None,
    _start(metavar="RUN", help="A narrow run whose settings to use at --width."),
]
Quickstart = Annotated[
    bool,
    _start("--quickstart", help="Under 8 minutes from nothing to a report."),
]

_model = partial(typer.Option, rich_help_panel="Model")
Preset = Annotated[
    str | None,
    _model(help="The model's size: nano, nano-bytes or bench.", show_default="nano"),
]
VocabSize = Annotated[
    int | None,
    _model(help="Entries of the tokenizer.", show_default="the preset's"),
]
Width = Annotated[
    int | None,
    _model(help="Another hidden size.", show_default="the preset's"),
]
MtpLayer = Annotated[
    str | None,
    _model(help="The draft head's layer: dense or scmoe.", show_default="dense"),
]

_length = partial(typer.Option, rich_help_panel="Length and batch")
Steps = Annotated[
    int | None,
    _length(help="Optimizer steps.", show_default=f"{DEFAULT_STEPS}"),
]
TimeBudget = Annotated[
    float | None,
    _length(metavar="SECONDS", help="Train this long, instead of --steps."),
]
Seed = Annotated[
    int | None,
    _length(help="Decides weights and data order.", show_default="0"),
]
BatchSize = Annotated[
    int | None,
    _length(help="Windows per step.", show_default="8"),
]
MicroBatches = Annotated[
    int | None,
    _length(help="Shares of a step, one after another: less memory.", show_default="2"),
]
SeqLen = Annotated[
    int | None,
    _length(help="Tokens per window.", show_default="256"),
]
ContextStage = Annotated[
    list[str] | None,
    _length(
        metavar="STEP:SEQ_LEN:THETA",
        help="From STEP on, longer windows and a larger rotary base; may be repeated.",
    ),
]
DocumentMask = Annotated[
    bool | None,
    _length("--document-mask", help="Documents of a window do not see each other."),
]
DistillSteps = Annotated[
    int | None,
    _length(
        help="Steps that teach the draft head the finished model's own choices.", show_default="0"
    ),
]

_optimisation = partial(typer.Option, rich_help_panel="Optimisation")
Lr = Annotated[
    float | None,
    _optimisation(help="Peak learning rate.", show_default="4e-3 x 128/width"),
]
Recompute = Annotated[
    str | None,
    _optimisation(
        help="Less memory, the same bits: layer or layer-reentrant.", show_default="none"
    ),
]
Schedule = Annotated[
    str | None,
    _optimisation(help="After warm-up: wsd (plateau, decay) or cosine.", show_default="wsd"),
]
WarmupSteps = Annotated[
    int | None,
    _optimisation(help="Steps of rising learning rate.", show_default="40"),
]
Decay = Annotated[
    float | None,
    _optimisation(help="Share of the run, at its end, that wsd falls.", show_default="0.3"),
]
GradClip = Annotated[
    float | None,
    _optimisation(help="Largest gradient norm.", show_default="1.0"),
]
FreezeBiasAt = Annotated[
    int | None,
    _optimisation(metavar="STEP", help="Stop the bias controller here.", show_default="never"),
]
Precision = Annotated[
    str | None,
    _optimisation(help="float32, bf16 or float64.", show_default="the faster one"),
]

_saving = partial(typer.Option, rich_help_panel="Snapshots and resuming")
Out = Annotated[
    Path | None,
    _saving(help="The run's directory.", show_default="runs/PRESET"),
]
SaveEvery = Annotated[
    int | None,
    _saving(help="Steps between snapshots.", show_default="200"),
]
Keep = Annotated[
    int | None,
    _saving(help="Newest snapshots to keep, beside the best one.", show_default="2"),
]
FromStep = Annotated[
    int | None,
    _saving(
        metavar="N",
        help="With --resume: go on from this kept snapshot; later ones are removed.",
        show_default="the newest",
    ),
]
Rollback = Annotated[
    int | None,
    _saving(
        metavar="TIMES",
        help="After a spike, a corruption or a loss that is no number, go back so many times.",
        show_default="0",
    ),
]
Resume = Annotated[
    bool,
    _saving("--resume", help="Go on with the run in --out."),
]

_check = partial(typer.Option, rich_help_panel="Checks")
SdcEvery = Annotated[
    int | None,
    _check(
        metavar="STEPS",
        help="Check for silent corruption: compute an attention twice, compare processes.",
        show_default="0, never",
    ),
]
VerifyDeterminism = Annotated[
    bool,
    _check("--verify-determinism", help="Make three steps twice first, and compare every bit."),
]
TensorBoard = Annotated[
    bool, _saving("--tensorboard", help="Also write event files to DIR/tensorboard.")
]

_process = partial(typer.Option, rich_help_panel="Processes")
Processes = Annotated[
    str,
    _process(metavar="N|auto", help="Processes that share the work: a thread or a GPU each."),
]
Device = Annotated[
    str,
    _process(metavar="auto|cpu|cuda", help="Where: auto is cuda if torch sees a GPU."),
]
ExpertParallel = Annotated[
    int,
    _process(metavar="N", help="Split the FFN experts over groups of N processes."),
]
Fsdp = Annotated[
    bool,
    _process("--fsdp", help="Split all weights over the processes (fully_shard)."),
]
Pipeline = Annotated[
    bool,
    _process("--pipeline", help="Cut the model by layers over the processes (zero bubble)."),
]

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, no more.")
]
