"""`longcat chat`: talk with a model in the terminal, one here or one behind a server."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from longcat.cli.models import (
    DTYPE_HELP,
    MODEL_DEFAULT,
    MODEL_HELP,
    Device,
    ModelArgument,
    find_model,
    one_name,
    open_model,
)

if TYPE_CHECKING:
    from longcat.cli.talk.local import LocalPartner
    from longcat.cli.talk.partner import Partner

KEY_VARIABLE = "LONGCAT_API_KEY"


def command(
    named: ModelArgument = None,
    model: Annotated[
        str | None,
        typer.Option(help=f"{MODEL_HELP} With --url: its name there.", show_default=MODEL_DEFAULT),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="A running server instead, http://HOST:PORT.")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option(help="The server's key.", envvar=KEY_VARIABLE)
    ] = None,
    system: Annotated[
        str | None, typer.Option(help="The system message.", show_default="none")
    ] = None,
    session: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            help="Go on with this saved chat if it is there; save to it.",
            show_default="nothing is saved",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy.", show_default="0.7")
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(help="Draw from the most probable mass.", show_default="0.95"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same text.", show_default="a fresh one")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a reply.", show_default="512, or what fits")
    ] = None,
    colour: Annotated[
        bool, typer.Option("--colour", help="Show what became of the drafts.")
    ] = False,
    dtype: Annotated[str, typer.Option(help=DTYPE_HELP)] = "float32",
    device: Device = None,
) -> None:
    """Talk with a model in the terminal, here or behind a server; /help lists the commands.

    On a terminal replies are rendered as Markdown while they come, and Ctrl-C stops one. From a
    pipe every line is a message, and replies come out as they are.

    A model that was not fine-tuned on chats continues your text instead.

    Example: longcat chat nano

    A server: longcat chat --url http://127.0.0.1:8000 --session talk.json
    """
    from longcat.cli.talk.commands import Talk
    from longcat.cli.talk.lines import reader
    from longcat.cli.talk.loop import Loop
    from longcat.cli.talk.remote import RemotePartner
    from longcat.cli.talk.session import Session
    from longcat.cli.ui.theme import make_console

    if session is not None and not session.absolute().parent.is_dir():
        raise typer.BadParameter(f"--session: there is no folder {session.parent} to save to")
    saved = session is not None and session.exists()
    model = one_name(named, model)
    said = Session.load(session) if session is not None and saved else Session()
    changes = {
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "max_tokens": max_tokens,
    }
    said.change(**{name: value for name, value in changes.items() if value is not None})
    if system is not None:
        said.set_system(os.fsencode(system).decode("utf-8", "replace"))
    partner: Partner = RemotePartner(url, api_key, model) if url else _local(model, dtype, device)
    if system is not None and not partner.chats:
        raise ValueError(f"chat: {partner.name} has learned no chats, so --system means nothing")
    if colour and not partner.drafts:
        raise ValueError("chat: --colour shows drafts, and there are none here")
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    out, notes = make_console(), make_console(stderr=True)
    if interactive:
        out.print(_greeting(partner), style="note", markup=False)
        if saved:
            out.print(f"{len(said.messages)} messages from {session}", style="note", markup=False)
    talk = Talk(partner=partner, session=said, colour=colour, file=session)
    Loop(talk, out, out if interactive else notes, reader(), interactive).run()


def _local(name: str | None, dtype: str, device: str | None) -> "LocalPartner":
    from longcat.cli.talk.local import LocalPartner

    found = find_model(name)
    model, tokenizer = open_model(found, dtype, device)
    return LocalPartner(found.directory.name, model, tokenizer)


def _greeting(partner: "Partner") -> str:
    from longcat.cli.stream import harmless

    kind = "" if partner.chats else " It has learned no chats: it continues what you write."
    name = harmless(partner.name)  # as a server gives it
    return f"{name}.{kind} /help lists the commands."
