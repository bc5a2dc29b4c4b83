"""`longcat serve`: a checkpoint behind the OpenAI API."""

import json
import logging
import shlex
import socket
from functools import partial
from typing import TYPE_CHECKING

import typer

from longcat.cli import serve_options as opt
from longcat.cli.models import Device, FoundModel, Model, ModelArgument, find_model, one_name

if TYPE_CHECKING:
    from longcat.serve import EngineConfig
    from longcat.serve.server import ServerConfig, Service


def command(
    named: ModelArgument = None,
    model: Model = None,
    host: opt.Host = "127.0.0.1",
    port: opt.Port = 8000,
    name: opt.Name = None,
    api_key: opt.ApiKey = None,
    cors_origin: opt.CorsOrigin = None,
    max_queue: opt.MaxQueue = 256,
    max_body: opt.MaxBody = 4 * 2**20,
    max_prompt: opt.MaxPrompt = None,
    max_tokens: opt.MaxTokens = None,
    max_choices: opt.MaxChoices = 128,
    timeout: opt.Timeout = 600.0,
    drain: opt.Drain = 30.0,
    max_running: opt.MaxRunning = 32,
    pages: opt.NumPages = None,
    page_size: opt.PageSize = None,
    token_budget: opt.TokenBudget = 512,
    steps: opt.Steps = 1,
    overlap: opt.Overlap = None,
    graphs: opt.Graphs = None,
    prefix_cache: opt.PrefixCache = True,
    speculative: opt.Speculative = True,
    drafts: opt.NumDrafts = None,
    disaggregated: opt.Divided = False,
    exact: opt.Exact = False,
    dtype: opt.Dtype = "float32",
    device: Device = None,
    quiet: opt.Quiet = False,
) -> None:
    """Serve a checkpoint behind the OpenAI API: completions, chat, tools, streams.

    The engine runs in a process of its own and is started again if it dies. Ctrl-C lets what runs
    finish.

    Example: longcat serve nano --port 8000

    With a key: LONGCAT_API_KEY=secret longcat serve nano --host 0.0.0.0
    """
    import torch

    from longcat.cli.models import weights
    from longcat.serve import EngineConfig
    from longcat.serve.server import ServerConfig, listen, run

    if not speculative and drafts is not None:
        raise typer.BadParameter(f"--no-speculative contradicts --drafts {drafts}")
    if exact and weights(dtype)[0] not in (torch.float32, torch.float64):
        raise typer.BadParameter(f"--exact computes in float32 or float64, not in {dtype}")
    found = find_model(one_name(named, model))
    engine = EngineConfig(
        page_size=page_size,
        num_pages=pages,
        max_running=max_running,
        token_budget=token_budget,
        steps_per_schedule=steps,
        overlap=overlap,
        graphs=graphs,
        exact=exact,
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
        service = _service(server, found, dtype, device, engine, disaggregated=disaggregated)
        logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
        if not quiet:
            logging.getLogger("longcat.serve").setLevel(logging.INFO)
        typer.echo(f"loading {found.directory} ...", err=True)
        if disaggregated:
            typer.echo("prompts are computed in a process of their own", err=True)
        run(service, listener, partial(_greet, found, service, listener))
    typer.echo("stopped", err=True)


def _service(
    server: "ServerConfig",
    found: FoundModel,
    dtype: str,
    device: str | None,
    engine: "EngineConfig",
    *,
    disaggregated: bool = False,
) -> "Service":
    from longcat.cli.models import weights
    from longcat.cli.serving import ServedTokenizer, build_divided, build_engine
    from longcat.flash.checkpoint import open_checkpoint
    from longcat.flash.llm import constraint_factory
    from longcat.flash.tokenizer import Tokenizer
    from longcat.serve.server import EngineProcess, Gate, Metrics, Service

    weights(dtype)  # refused here rather than in the engine's process
    tokenizer = Tokenizer.load(found.directory)
    with open_checkpoint(found.directory) as checkpoint:  # says early what is wrong with it
        config = checkpoint.config
    build = build_divided if disaggregated else build_engine
    process = EngineProcess(partial(build, found.directory, dtype, device, engine))
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
        f"at {address}: a page for a browser, /v1 for clients of the OpenAI API, /metrics for "
        "Prometheus",
        _speculation(info.has_draft_head, info.speculative),
        f"up to {info.longest} tokens a sequence, {info.pool_tokens} in the latent cache, "
        f"{info.max_running} sequences at once, {config.max_queue} more may wait",
        "structured output on" if service.constraints else "structured output off: no llguidance",
        "chat in the " + service.tokenizer.chat.name + " format"
        if service.tokenizer.chat
        else "no chat template: /v1/completions continues text, /v1/chat/completions refuses",
        _callers(len(config.api_keys)),
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


def _callers(keys: int) -> str:
    if keys == 0:
        return "everybody may ask"
    return "one key may ask" if keys == 1 else f"{keys} keys may ask"


def _example(address: str, service: "Service") -> str:
    key = " -H 'Authorization: Bearer KEY'" if service.config.api_keys else ""
    name = service.config.model_name
    if service.tokenizer.chat is None:
        path, body = "completions", {"model": name, "prompt": "def read(", "max_tokens": 40}
    else:
        message = {"role": "user", "content": "What does len do?"}
        path, body = "chat/completions", {"model": name, "messages": [message]}
    sent = shlex.quote(json.dumps(body))
    return f"curl {address}/v1/{path}{key} -H 'Content-Type: application/json' -d {sent}"
