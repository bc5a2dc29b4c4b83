"""The options of `longcat serve`, in the groups that its help shows them in."""

from functools import partial
from typing import Annotated

import typer

from longcat.cli.models import DTYPE_HELP

KEY_VARIABLE = "LONGCAT_API_KEY"

Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")]
Name = Annotated[
    str | None,
    typer.Option(help="How requests name the model.", show_default="its directory's name"),
]
Dtype = Annotated[str, typer.Option(help=DTYPE_HELP)]
Quiet = Annotated[bool, typer.Option("--quiet", help="No line per request.")]

_who = partial(typer.Option, rich_help_panel="Who may ask")
ApiKey = Annotated[
    list[str] | None,
    _who(
        help="A key that requests must present; may be given several times.",
        envvar=KEY_VARIABLE,
        show_default="everybody may ask",
    ),
]
CorsOrigin = Annotated[
    list[str] | None,
    _who(help="An origin whose pages may ask from a browser; * for all.", show_default="none"),
]

_limit = partial(typer.Option, rich_help_panel="Limits")
MaxQueue = Annotated[
    int, _limit(min=0, help="Sequences that may wait beyond those computed; more get a 429.")
]
MaxBody = Annotated[int, _limit(min=1, help="Largest body in bytes.")]
MaxPrompt = Annotated[
    int | None,
    _limit(min=1, help="Longest prompt in tokens.", show_default="what the model takes"),
]
MaxTokens = Annotated[
    int | None,
    _limit(
        min=1,
        help="Most tokens that one sequence may ask for.",
        show_default="what the model takes",
    ),
]
MaxChoices = Annotated[int, _limit(min=1, help="Most sequences in a request.")]
Timeout = Annotated[float, _limit(min=0, help="Seconds for one request; 0: no limit.")]
Drain = Annotated[
    float, _limit(min=0, help="Seconds that requests get to finish when the server is stopped.")
]

_engine = partial(typer.Option, rich_help_panel="Engine")
MaxRunning = Annotated[int, _engine(min=1, help="Sequences computed together.")]
NumPages = Annotated[
    int | None,
    _engine(min=1, help="Pages of the latent cache.", show_default="as many as hold 65,536 tokens"),
]
PageSize = Annotated[
    int | None,
    _engine(min=1, help="Tokens per page.", show_default="64 on a GPU, 16 on a CPU"),
]
TokenBudget = Annotated[int, _engine(min=1, help="Most tokens fed in one pass.")]
Steps = Annotated[
    int,
    _engine(min=1, help="Passes between two looks at the results; text comes in larger pieces."),
]
Overlap = Annotated[
    bool | None,
    _engine(
        "--overlap/--no-overlap",
        help="Launch the next passes before the results of the last are read.",
        show_default="on a GPU",
    ),
]
Graphs = Annotated[
    bool | None,
    _engine(
        "--graphs/--no-graphs",
        help="Capture steps as CUDA graphs; a CPU has none.",
        show_default="on a GPU, in bfloat16",
    ),
]
PrefixCache = Annotated[
    bool,
    _engine("--prefix-cache/--no-prefix-cache", help="Keep latents for prompts that begin alike."),
]
Speculative = Annotated[
    bool,
    _engine(
        "--speculative/--no-speculative",
        help="Draft with the MTP head, if there is one; the text is the same.",
    ),
]
NumDrafts = Annotated[
    int | None,
    _engine(min=1, max=3, help="Drafts per step.", show_default="chosen while running"),
]
Divided = Annotated[
    bool,
    _engine("--disaggregated", help="Compute prompts in a process of their own."),
]
Exact = Annotated[
    bool,
    _engine(
        "--exact",
        help="The same bits whatever the batch, the drafts and the chunks; float32 or float64.",
    ),
]
