"""Conversations as `--sft` reads them: places, lines out of form, what is held out."""

import io
import json
from typing import Any

import pytest

from longcat.chat import render_spans
from longcat.train.errors import DataError
from longcat.train.sft.chats import read_chats, split_chats

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
CALLS = [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def records(count: int, tools: bool = False) -> list[dict[str, Any]]:
    """Questions and answers, every fifth with a tool where tools are wanted."""
    made: list[dict[str, Any]] = []
    for i in range(count):
        messages = [user(f"What is alpha_{i}?"), said(f"It is {i + 1}.")]
        if tools and i % 5 == 4:
            result = {"role": "tool", "tool_call_id": "c", "content": str(i)}
            messages[1:1] = [said(None, tool_calls=CALLS), result]
        made.append({"messages": messages, "tools": TOOLS if tools else [], "id": i})
    return made


def write(path: Any, lines: list[Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_files_folders_globs_and_standard_input_are_read(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    named_alone = write(tmp_path / "other.lines", records(40))
    line = json.dumps(records(1)[0])
    write(tmp_path / "a.jsonl", records(7, tools=True))
    (tmp_path / "notes.txt").write_text("no conversation\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"\n{line}\n".encode())))
    for named, count in (
        (named_alone, 40), (str(tmp_path), 7), (f"{tmp_path}/*.jsonl", 7), ("-", 1),
    ):  # fmt: skip
        assert len(read_chats([named], "longcat")) == count
    chats = read_chats([named_alone, str(tmp_path)], "chatml")
    assert chats[0].name == f"{named_alone}, line 1"
    assert chats[0].rendered == render_spans(records(1)[0]["messages"], "chatml")


BAD: list[tuple[Any, str]] = [
    ("{", "expected one JSON object a line"),
    (3, "expected an object with a list 'messages'; got int"),
    ({"prompt": "a"}, r"expected an object with a list 'messages'; got \['prompt'\]"),
    ({"messages": []}, "'messages' is empty"),
    ({"messages": [user("a")]}, "there is no assistant turn, so nothing to learn"),
    ({"messages": [user("a"), {"role": "bot", "content": "b"}]}, "message 1 has role 'bot'"),
    ({"messages": [said("a")]}, "Expected a message of role user at turn 0"),
    ({"messages": [user("a"), said("</longcat_s>")]}, "keeps for itself"),
    (
        {"messages": [user("a"), said("", tool_calls=[{**CALLS[0], "id": None}])], "tools": TOOLS},
        "message 1, call 0 must be an object with an id",
    ),
    ({"messages": [user("a"), said("", tool_calls=CALLS)]}, "not among the tools"),
    ({"messages": [user("a"), said("b")], "tools": {} | {"x": 1}}, "'tools' must be a list"),
    ({"messages": [user("a"), said("\ud800")]}, "half a character"),
]


@pytest.mark.parametrize(("record", "sentence"), BAD)
def test_a_line_out_of_form_is_refused_with_its_file_and_number(
    record: Any, sentence: str, tmp_path: Any
) -> None:
    good = json.dumps(records(1)[0])
    bad = record if isinstance(record, str) else json.dumps(record)
    path = tmp_path / "chats.jsonl"
    path.write_text(f"{good}\n\n{bad}\n")
    with pytest.raises(DataError, match=rf"chats: {path}, line 3: .*{sentence}") as refused:
        read_chats([str(path)], "longcat")
    assert "\n" not in str(refused.value)


def test_what_is_no_file_of_conversations_is_refused(tmp_path: Any) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\0")
    (tmp_path / "folder").mkdir()
    for name, sentence in (
        ("none.jsonl", "found none"), ("folder", "found none"), ("empty.jsonl", "it is empty"),
        ("binary.jsonl", "binary data"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=sentence):
            read_chats([str(tmp_path / name)], "longcat")


def test_one_in_twenty_is_held_out_and_never_also_trained_on(tmp_path: Any) -> None:
    many = read_chats([write(tmp_path / "a.jsonl", records(60))], "longcat")
    train, held_out = split_chats(many)
    assert (len(train), len(held_out)) == (57, 3)
    assert split_chats(many) == (train, held_out)
    few = read_chats([write(tmp_path / "b.jsonl", records(3))], "longcat")
    assert [len(part) for part in split_chats(few)] == [2, 1]
    same = read_chats([write(tmp_path / "c.jsonl", records(1) * 4)], "longcat")
    assert [len(part) for part in split_chats(same)] == [3, 0]
    assert [len(part) for part in split_chats(few[:1])] == [1, 0]
