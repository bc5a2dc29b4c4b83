"""What `--sft` takes: .jsonl files of {"messages": [...], "tools": [...]}, folders, globs, stdin.

Every line is checked whole before anything is trained: each must be a conversation that the chat
format can write, with a turn of the assistant to learn. What is wrong is said with file and line.
Other keys of a line (an id, where it came from) are left alone.
"""

import glob
import json
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longcat.chat import Rendered, render_spans
from longcat.train.corpus import HELD_OUT_ONE_IN, decode_text, files_below
from longcat.train.errors import DataError

STDIN = "-"


@dataclass(frozen=True, kw_only=True)
class Chat:
    """One conversation.

    Attributes:
        name: file and line. messages, tools: as they were read. rendered: in the chat format.
    """

    name: str
    messages: tuple[Any, ...]
    tools: tuple[Any, ...]
    rendered: Rendered

    def to_json(self) -> str:
        """As a line of a file."""
        record = {"name": self.name, "messages": self.messages, "tools": self.tools}
        return json.dumps(record, ensure_ascii=False)


def read_chats(data: Sequence[str], template: str) -> list[Chat]:
    """Every conversation that `data` names.

    Args:
        data: paths. template: the name of a chat format.

    Raises:
        DataError: a path does not exist or holds no conversation; a line is out of form.
        ValueError: unknown template.
    """
    chats = [chat for item in data for chat in _read_item(item, template)]
    if not chats:
        raise DataError("chats: expected conversations, found none; give a .jsonl file")
    return chats


def parse_chats(text: str, name: str, template: str) -> list[Chat]:
    """The conversations of one file's text, blank lines skipped."""
    lines = enumerate(text.split("\n"), start=1)
    return [_parse(line, f"{name}, line {n}", template) for n, line in lines if line.strip()]


def split_chats(chats: Sequence[Chat]) -> tuple[list[Chat], list[Chat]]:
    """(training, held-out): every twentieth by a hash of the name, and one of few.

    A held-out conversation that also occurs in the training part is dropped.
    """
    order = sorted(chats, key=lambda c: (zlib.crc32(c.name.encode("utf-8", "replace")), c.name))
    every = HELD_OUT_ONE_IN if len(chats) >= HELD_OUT_ONE_IN else max(2, len(chats))
    chosen = {chat.name for chat in order[every - 1 :: every]}
    train = [chat for chat in chats if chat.name not in chosen]
    seen = {chat.rendered.text for chat in train}
    held_out = [c for c in chats if c.name in chosen and c.rendered.text not in seen]
    return train, held_out


def _read_item(item: str, template: str) -> list[Chat]:
    if item == STDIN:
        return _read_bytes(sys.stdin.buffer.read(), "standard input", template)
    path = Path(item)
    if path.is_dir():
        paths = [p for p in files_below(path, without=set()) if p.suffix == ".jsonl"]
    elif path.exists():
        paths = [path]
    else:
        paths = [Path(p) for p in sorted(glob.glob(item, recursive=True))]
    if not paths:
        raise DataError(
            f"chats: expected a .jsonl file, a folder of them or a glob at {item!r}, found none; "
            "check the path"
        )
    chats = []
    for file in paths:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise DataError(f"chats: {file} cannot be read: {error.strerror}") from error
        chats += _read_bytes(data, str(file), template)
    return chats


def _read_bytes(data: bytes, name: str, template: str) -> list[Chat]:
    text = decode_text(data)
    if text is None or not text.strip():
        found = "binary data" if text is None else "it is empty"
        raise DataError(f"chats: expected UTF-8 lines of JSON in {name}, {found}")
    return parse_chats(text, name, template)


def _parse(line: str, where: str, template: str) -> Chat:
    def refuse(reason: str) -> DataError:
        return DataError(f"chats: {where}: {reason}")

    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise refuse(f"expected one JSON object a line; {error.msg}") from error
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list):
        came = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise refuse(f"expected an object with a list 'messages'; got {came}")
    tools = record.get("tools") or []
    if not isinstance(tools, list):
        raise refuse(f"'tools' must be a list; got {type(tools).__name__}")
    if not messages:
        raise refuse("'messages' is empty; give at least a user's and an assistant's")
    try:
        rendered = render_spans(messages, template, tools)
    except ValueError as error:
        raise refuse(str(error).removeprefix("chat: ")) from error
    if not rendered.spans:
        raise refuse("there is no assistant turn, so nothing to learn")
    if any("\ud800" <= c <= "\udfff" for c in rendered.text):
        raise refuse("a text has half a character (a lone surrogate); mend it")
    return Chat(name=where, messages=tuple(messages), tools=tuple(tools), rendered=rendered)
