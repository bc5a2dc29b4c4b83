"""`longcat serve`: a checkpoint behind the OpenAI API."""

import json
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from longcat.cli.models import MODEL_DEFAULT, MODEL_HELP, FoundModel, find_model

if TYPE_CHECKING:
    from longcat.serve import EngineConfig
    from longcat.serve.server import ServerConfig, Service

KEY_VARIABLE = "LONGCAT_API_KEY"
_LIMITS, _ENGINE, _WHO = "Limits", "Engine", "Who may ask"


def command(
    model: Annotated[str | None, typer.Option(help=MODEL_HELP, show_default=MODEL_DEFAULT)] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    name: Annotated[
        str | None,
        typer.Option(help="How requests name the model.", show_default="its directory's name"),
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="A key that requests must present; may be given several times.",
            envvar=KEY_VARIABLE,
            show_default="everybody may ask",
            rich_help_panel=_WHO,
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="An origin whose pages may ask from a browser; * for all.",
            show_default="none",
            rich_help_panel=_WHO,
        ),
    ] = None,
    max_queue: Annotated[
        int,
        typer.Option(
            min=0,
            help="Sequences that may wait beyond those computed; more get a 429.",
            rich_help_panel=_LIMITS,
        ),
    ] = 256,
    max_body: Annotated[
        int, typer.Option(min=1, help="Largest body in bytes.", rich_help_panel=_LIMITS)
    ] = 4 * 2**20,
    max_prompt: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Longest prompt in tokens.",
            show_default="what the model takes",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most tokens that one sequence may ask for.",
            show_default="what the model takes",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_choices: Annotated[
        int, typer.Option(min=1, help="Most sequences in a request.", rich_help_panel=_LIMITS)
    ] = 128,
    timeout: Annotated[
        float, typer.Option(help="Seconds for one request; 0: no limit.", rich_help_panel=_LIMITS)
    ] = 600.0,
    drain: Annotated[
        float,
        typer.Option(
            help="Seconds that requests get to finish when the server is stopped.",
            rich_help_panel=_LIMITS,
        ),
    ] = 30.0,
    max_running: Annotated[
        int, typer.Option(min=1, help="Sequences computed together.", rich_help_panel=_ENGINE)
    ] = 32,
    pages: Annotated[
        int, typer.Option(min=1, help="Pages of the latent cache.", rich_help_panel=_ENGINE)
    ] = 4096,
    page_size: Annotated[
        int, typer.Option(min=1, help="Tokens per page.", rich_help_panel=_ENGINE)
    ] = 16,
    token_budget: Annotated[
        int, typer.Option(min=1, help="Most tokens fed in one pass.", rich_help_panel=_ENGINE)
    ] = 512,
    steps: Annotated[
        int,
        typer.Option(
            min=1,
            help="Passes between two looks at the results; text comes in larger pieces.",
            rich_help_panel=_ENGINE,
        ),
    ] = 1,
    overlap: Annotated[
        bool | None,
        typer.Option(
            "--overlap/--no-overlap",
            help="Launch the next passes before the results of the last are read.",
            show_default="on a GPU",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    graphs: Annotated[
        bool | None,
        typer.Option(
            "--graphs/--no-graphs",
            help="Capture steps as CUDA graphs; a CPU has none.",
            show_default="on a GPU, in bfloat16",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    prefix_cache: Annotated[
        bool,
        typer.Option(
            "--prefix-cache/--no-prefix-cache",
            help="Keep latents for prompts that begin alike.",
            rich_help_panel=_ENGINE,
        ),
    ] = True,
    speculative: Annotated[
        bool,
        typer.Option(
            "--speculative/--no-speculative",
            help="Draft with the MTP head, if there is one; the text is the same.",
            rich_help_panel=_ENGINE,
        ),
    ] = True,
    drafts: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=3,
            help="Drafts per step.",
            show_default="chosen while running",
            rich_help_panel=_ENGINE,
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...", show_default="cuda if there is one")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No line per request.")] = False,
) -> None:
    """Serve a checkpoint behind the OpenAI API: completions, chat, tools, streams.

    The engine runs in a process of its own and is started again if it dies. Ctrl-C lets what runs
    finish.

    Example: longcat serve --model nano --port 8000

    With a key: LONGCAT_API_KEY=secret longcat serve --model nano --host 0.0.0.0
    """
    from longcat.serve import EngineConfig
    from longcat.serve.server import ServerConfig, listen, run

    if not speculative and drafts is not None:
        raise typer.BadParameter(f"--no-speculative contradicts --drafts {drafts}")
    found = find_model(model)
    engine = EngineConfig(
        page_size=page_size,
        num_pages=pages,
        max_running=max_running,
        token_budget=token_budget,
        steps_per_schedule=steps,
        overlap=overlap,
        graphs=graphs,
        prefix_cache=prefix_cache,
        num_drafts=drafts if speculative else 0,
    )
    server = ServerConfig(
        model_name=name or found.directory.absolute().name,
        api_keys=tuple(api_key or ()),
        cors_origins=tuple(cors_origin or ()),
        max_body_bytes=max_body,
        max_prompt_tokens=max_prompt,
        max_tokens=max_tokens,
        max_queue=max_queue,
        max_choices=max_choices,
        request_seconds=timeout or None,
        drain_seconds=drain,
    )
    try:
        listener = listen(host, port)
    except OSError as error:
        raise ValueError(
            f"serve: cannot listen on {host} port {port}: {error.strerror}; choose another with "
            "--host and --port"
        ) from None
    with listener:
        service = _service(server, found, dtype, device, engine)
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
        if not quiet:
            logging.getLogger("longcat.serve").setLevel(logging.INFO)
        typer.echo(f"loading {found.directory} ...", err=True)
        run(service, listener, partial(_greet, found, service, listener))
    typer.echo("stopped", err=True)


def _service(
    server: "ServerConfig",
    found: FoundModel,
    dtype: str,
    device: str | None,
    engine: "EngineConfig",
) -> "Service":
    from longcat.cli.models import torch_dtype
    from longcat.cli.serving import ServedTokenizer, build_engine
    from longcat.flash.checkpoint import open_checkpoint
    from longcat.flash.llm import constraint_factory
    from longcat.flash.tokenizer import Tokenizer
    from longcat.serve.server import EngineProcess, Gate, Metrics, Service

    torch_dtype(dtype)  # refused here rather than in the engine's process
    tokenizer = Tokenizer.load(found.directory)
    with open_checkpoint(found.directory) as checkpoint:  # says early what is wrong with it
        config = checkpoint.config
    process = EngineProcess(partial(build_engine, found.directory, dtype, device, engine))
    gate = Gate(engine.max_running + server.max_queue)
    return Service(
        config=server,
        engine=process,
        tokenizer=ServedTokenizer(tokenizer),
        gate=gate,
        metrics=Metrics(process, gate),
        constraints=constraint_factory(tokenizer, config.vocab_size, config.eos_token_id),
    )


def _greet(found: FoundModel, service: "Service", listener: socket.socket) -> None:
    """Say what is served, where, how, and how to try it."""
    from longcat.cli.ui.theme import make_console

    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{'127.0.0.1' if host == '0.0.0.0' else shown}:{port}"
    info, config = service.engine.info, service.config
    why = f", {found.reason}" if found.reason else ""
    lines = [
        f"serving {config.model_name} ({found.directory}{why})",
        f"at {address}: /v1 for clients of the OpenAI API, /metrics for Prometheus",
        _speculation(info.has_draft_head, info.speculative),
        f"up to {info.max_position} tokens a sequence, {info.pool_tokens} in the latent cache, "
        f"{info.max_running} sequences at once, {config.max_queue} more may wait",
        "structured output on" if service.constraints else "structured output off: no llguidance",
        "chat in the " + service.tokenizer.chat.name + " format"
        if service.tokenizer.chat
        else "no chat template: /v1/completions continues text, /v1/chat/completions refuses",
        f"{len(config.api_keys)} keys may ask" if config.api_keys else "everybody may ask",
    ]
    console = make_console()
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"try: {_example(address, service)}", soft_wrap=True, highlight=False, markup=False
    )


def _speculation(has_head: bool, on: bool) -> str:
    if on:
        return "speculation on: the MTP head drafts"
    if has_head:
        return "speculation off, as asked"
    return "speculation off: this checkpoint has no MTP head"


def _example(address: str, service: "Service") -> str:
    key = " -H 'Authorization: Bearer KEY'" if service.config.api_keys else ""
    name = service.config.model_name
    if service.tokenizer.chat is None:
        path, body = "completions", {"model": name, "prompt": "def read(", "max_tokens": 40}
    else:
        message = {"role": "user", "content": "What does len do?"}
        path, body = "chat/completions", {"model": name, "messages": [message]}
    sent = json.dumps(body)
    return f"curl {address}/v1/{path}{key} -H 'Content-Type: application/json' -d '{sent}'"
