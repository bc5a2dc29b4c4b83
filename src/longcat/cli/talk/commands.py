"""The slash commands: a table of names, each a function of the talk and of what follows."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from longcat.cli.talk.partner import Partner, Turn
from longcat.cli.talk.session import Session, read_tools


class Leave(Exception):
    """The reader wants to go."""


@dataclass(kw_only=True)
class Talk:
    """What commands may change.

    colour      show what became of the drafts, instead of rendering Markdown
    total       what all replies took together
    file        where the session is saved after every reply, if anywhere
    again       a question to ask anew
    unanswered  the last question where it got no reply, which the session does not keep
    """

    partner: Partner
    session: Session
    colour: bool = False
    total: Turn = field(default_factory=Turn)
    file: Path | None = None
    again: str | None = None
    unanswered: str | None = None


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command: how it is used, what it does, and the function; it returns what to show."""

    usage: str
    does: str
    run: Callable[[Talk, str], str]


def run(talk: Talk, line: str) -> str:
    """Carry out `/name rest`; returns what to show.

    Raises ValueError for an unknown command or a value that it cannot take, Leave for /exit.
    """
    name, _, rest = line[1:].partition(" ")
    if name not in COMMANDS:
        raise ValueError(f"there is no command /{name}; /help lists them")
    return COMMANDS[name].run(talk, rest.strip())


def _help(talk: Talk, rest: str) -> str:
    wide = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:<{wide}}  {command.does}" for command in COMMANDS.values()]
    return "\n".join(
        [
            *lines,
            'A line that ends with \\ goes on in the next; """ begins and ends a longer text.',
            "Ctrl-C stops a reply, Ctrl-D leaves.",
        ]
    )


def _system(talk: Talk, rest: str) -> str:
    if not talk.partner.chats:
        raise ValueError("this model has learned no chats, so it has no system message")
    talk.session.set_system(rest)
    return "the system message is set" if rest else "no system message"


def _reset(talk: Talk, rest: str) -> str:
    talk.session.reset()
    talk.unanswered = None
    return "forgotten; settings and system message stay"


def _retry(talk: Talk, rest: str) -> str:
    talk.again = talk.unanswered or talk.session.take_back()
    if talk.again is None:
        raise ValueError("nothing has been asked yet")
    return "once more"


def _save(talk: Talk, rest: str) -> str:
    path = Path(rest) if rest else talk.file
    if path is None:
        raise ValueError("say where: /save FILE")
    talk.session.save(path)
    talk.file = path
    return f"saved to {path}, and after every reply from now on"


def _load(talk: Talk, rest: str) -> str:
    if not rest:
        raise ValueError("say what: /load FILE")
    talk.session, talk.file, talk.unanswered = Session.load(Path(rest)), Path(rest), None
    return f"{len(talk.session.messages)} messages from {rest}"


def _tools(talk: Talk, rest: str) -> str:
    talk.session.tools = read_tools(Path(rest)) if rest else []
    names = [tool["function"]["name"] for tool in talk.session.tools]
    return f"tools: {', '.join(names) or 'none'}"


def _number(name: str, kind: type) -> Callable[[Talk, str], str]:
    def change(talk: Talk, rest: str) -> str:
        if rest:
            absent = rest in ("off", "none") and name in ("seed", "max_tokens")
            try:
                value = None if absent else kind(rest)
            except ValueError:
                raise ValueError(f"{name} must be a number, got {rest!r}") from None
            talk.session.change(**{name: value})
        value = getattr(talk.session.settings, name)
        return f"{name} {'not set' if value is None else value}"

    return change


def _draft(talk: Talk, rest: str) -> str:
    if not talk.partner.drafts:
        raise ValueError("there is no MTP head to draft with here")
    talk.session.change(draft=_switch("draft", rest, talk.session.settings.draft))
    return f"draft {'on' if talk.session.settings.draft else 'off'}; the text is the same"


def _colour(talk: Talk, rest: str) -> str:
    if not talk.partner.drafts:
        raise ValueError("there are no drafts to show here")
    talk.colour = _switch("colour", rest, talk.colour)
    return (
        "green: drafted; orange: a draft refused, the target's own; Markdown is not rendered"
        * (talk.colour)
        or "colour off"
    )


def _switch(name: str, rest: str, now: bool) -> bool:
    if rest not in ("on", "off", ""):
        raise ValueError(f"/{name} takes on or off, got {rest!r}")
    return (not now) if not rest else rest == "on"


def _stats(talk: Talk, rest: str) -> str:
    words = {None: "not set", True: "on", False: "off"}
    settings = ", ".join(
        f"{name} {words[value] if value is None or isinstance(value, bool) else value}"
        for name, value in asdict(talk.session.settings).items()
    )
    return "\n".join(
        [
            f"model {talk.partner.name}; {len(talk.session.messages)} messages",
            settings,
            f"last reply: {talk.partner.turn.words()}",
            f"altogether: {talk.total.words()}",
        ]
    )


def _exit(talk: Talk, rest: str) -> str:
    raise Leave


def _command(usage: str, does: str, function: Callable[[Talk, str], str]) -> Command:
    return Command(usage=usage, does=does, run=function)


COMMANDS: dict[str, Command] = {
    "help": _command("/help", "this list", _help),
    "system": _command("/system [TEXT]", "set the system message, or take it away", _system),
    "reset": _command("/reset", "forget what was said", _reset),
    "retry": _command("/retry", "ask the last question again", _retry),
    "save": _command("/save [FILE]", "write the session, now and after every reply", _save),
    "load": _command("/load FILE", "go on with a saved session", _load),
    "tools": _command("/tools [FILE]", "functions it may call (JSON), or none", _tools),
    "temperature": _command(
        "/temperature [T]", "0 is greedy, 0.7 lively", _number("temperature", float)
    ),
    "top_p": _command("/top_p [P]", "draw from the most probable mass", _number("top_p", float)),
    "seed": _command("/seed [N|off]", "same seed, same text", _number("seed", int)),
    "max_tokens": _command(
        "/max_tokens [N|off]", "most tokens of a reply", _number("max_tokens", int)
    ),
    "draft": _command("/draft [on|off]", "draft with the MTP head", _draft),
    "colour": _command("/colour [on|off]", "show what became of the drafts", _colour),
    "stats": _command("/stats", "tokens, speed, drafts, settings", _stats),
    "exit": _command("/exit", "leave", _exit),
}
