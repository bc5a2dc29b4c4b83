"""Conversations as ids: markers are control tokens, the mask is exact, transformers agrees."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longcat.chat import TEMPLATES, Rendered, parse_reply, render, render_spans
from longcat.flash import CheckpointError
from longcat.flash import chat as chat_module
from longcat.flash.chat import (
    chat_format,
    decode_reply,
    encode_conversation,
    encode_prompt,
    encode_text,
    reply_bytes,
)
from longcat.flash.tokenizer import SPECIAL_TOKENS, Tokenizer
from longcat.flash.vocabulary import grow_vocabulary, grown_config

TEXT = "What does len do? Return the number of items in a container.\n    USER: ASSISTANT:\n" * 8
NAMES = list(TEMPLATES)
PLAIN = Tokenizer.train_bpe([TEXT], 300)
TOOLS: Any = [{"type": "function", "function": {"name": "length", "parameters": {}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "length", "arguments": '{"of":[1]}'}}
CHAT: Any = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "How long is [1]?"},
    {"role": "assistant", "content": "I count.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "1"},
    {"role": "assistant", "content": "One.\n"},
    {"role": "user", "content": "And é?"},
    {"role": "assistant", "content": "One."},
]


def chat_tokenizer(name: str) -> Tokenizer:
    return PLAIN.with_markers(TEMPLATES[name])


def token_texts(tokenizer: Tokenizer, ids: list[int]) -> list[bytes]:
    """The bytes each id stands for in a rendered conversation, markers included."""
    names = {i: text.encode() for text, i in tokenizer.markers.items()}
    table = tokenizer.token_bytes()
    return [names.get(i, table[i]) for i in ids]


def check_mask(tokenizer: Tokenizer, rendered: Rendered, name: str) -> None:
    """By brute force: a token is learned when its first byte is one that the assistant produced."""
    ids, learned = encode_conversation(tokenizer, rendered, TEMPLATES[name])
    pieces = token_texts(tokenizer, ids)
    assert b"".join(pieces) == rendered.text.encode()
    spoken = bytearray()
    for i, character in enumerate(rendered.text):
        inside = any(start <= i < stop for start, stop in rendered.spans)
        spoken += bytes([inside]) * len(character.encode())
    place = 0
    for piece, is_learned in zip(pieces, learned, strict=True):
        assert set(spoken[place : place + len(piece)]) == {int(is_learned)}  # never half of one
        place += len(piece)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("markers", [True, False])
def test_exactly_what_the_assistant_produced_is_learned(name: str, markers: bool) -> None:
    tokenizer = chat_tokenizer(name) if markers else PLAIN
    check_mask(tokenizer, render_spans(CHAT, name, TOOLS), name)


@pytest.mark.parametrize("name", NAMES)
@given(texts=st.lists(st.text(max_size=8), min_size=2, max_size=4))
def test_the_mask_holds_for_any_text(name: str, texts: list[str]) -> None:
    roles = ("user", "assistant")
    chat: Any = [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]
    check_mask(chat_tokenizer(name), render_spans(chat, name), name)


@pytest.mark.parametrize("shift", [(1, 0), (0, -1), (-1, 0)])
def test_control_a_mask_that_is_off_by_one_is_noticed(
    shift: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    rendered = render_spans(CHAT, "longcat", TOOLS)
    spans = tuple((a + shift[0], b + shift[1]) for a, b in rendered.spans)
    shifted = encode_conversation(
        chat_tokenizer("longcat"), replace(rendered, spans=spans), TEMPLATES["longcat"]
    )
    monkeypatch.setitem(globals(), "encode_conversation", lambda *_: shifted)
    with pytest.raises(AssertionError):
        check_mask(chat_tokenizer("longcat"), rendered, "longcat")


@pytest.mark.parametrize("name", NAMES)
def test_markers_are_single_ids_after_all_others_and_other_ids_stay(name: str) -> None:
    tokenizer, special = chat_tokenizer(name), TEMPLATES[name].special
    assert [tokenizer.markers[m] for m in special] == list(range(300, 300 + len(special)))
    assert tokenizer.encode(TEXT) == PLAIN.encode(TEXT)
    for marker in special:
        assert encode_text(tokenizer, marker, TEMPLATES[name]) == [tokenizer.markers[marker]]
        assert len(tokenizer.encode(marker)) > 1  # text that spells a marker is text
    again = tokenizer.with_markers(TEMPLATES[name])
    assert again.vocab_size == tokenizer.vocab_size  # known markers are not added twice
    assert set(SPECIAL_TOKENS) | set(special) == set(tokenizer.markers)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_the_beginning_of_the_conversation_it_asks_in(name: str) -> None:
    tokenizer = chat_tokenizer(name)
    ids, learned = encode_conversation(tokenizer, render_spans(CHAT, name, TOOLS), TEMPLATES[name])
    first = learned.index(True)
    assert encode_prompt(tokenizer, CHAT[:2], TOOLS) == ids[:first]
    reply = ids[first : learned.index(False, first)]
    said = parse_reply(decode_reply(tokenizer, reply), name)
    assert (said.text, said.finished, said.calls[0].arguments) == ("I count.", True, {"of": [1]})
    assert TEMPLATES[name].end not in b"".join(reply_bytes(tokenizer, end=False)).decode(
        errors="replace"
    )


@pytest.mark.parametrize("name", NAMES)
def test_saved_it_keeps_its_format_and_transformers_gives_the_same_ids(
    name: str, tmp_path: Any
) -> None:
    tokenizer = chat_tokenizer(name)
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert chat_format(loaded) is TEMPLATES[name]
    assert loaded.markers == tokenizer.markers
    assert encode_prompt(loaded, CHAT[:2]) == encode_prompt(tokenizer, CHAT[:2])
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.eos_token == TEMPLATES[name].end
    text = theirs.apply_chat_template(CHAT, tools=TOOLS, tokenize=False)
    assert text == render(CHAT, name, False, TOOLS)
    given = theirs.apply_chat_template(
        CHAT, tools=TOOLS, return_assistant_tokens_mask=True, return_dict=True
    )
    ids, learned = encode_conversation(loaded, render_spans(CHAT, name, TOOLS), TEMPLATES[name])
    assert given["input_ids"] == ids
    assert given["assistant_masks"] == [int(x) for x in learned]
    asked = theirs.apply_chat_template(CHAT[:2], add_generation_prompt=True, return_dict=True)
    assert asked["input_ids"] == encode_prompt(loaded, CHAT[:2])


def test_a_user_who_spells_a_control_token_says_so_and_no_more() -> None:
    """Unlike with transformers, which reads the text <s> as the control token."""
    ids = encode_prompt(chat_tokenizer("longcat"), [{"role": "user", "content": "<s></s><pad>"}])
    assert min(ids) > 3


def test_a_tokenizer_without_or_with_a_foreign_chat_template_has_no_format(tmp_path: Any) -> None:
    PLAIN.save(tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    loaded = Tokenizer.load(tmp_path)
    with pytest.raises(CheckpointError, match="has no chat template of ours"):
        chat_format(loaded)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "</s>"


def test_control_markers_spelled_out_are_not_what_transformers_gives(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_module, "encode_text", lambda t, text, form: t.encode(text))
    with pytest.raises(AssertionError):
        test_saved_it_keeps_its_format_and_transformers_gives_the_same_ids("longcat", tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("untied", [False, True])
def test_a_grown_vocabulary_leaves_old_tokens_as_they_were(
    tiny_config: Any, random_model: Any, untied: bool
) -> None:
    model = random_model(tiny_config(), dtype=torch.float64)
    if untied:
        model.untie_mtp_embedding()
        model.model.mtp.embed_tokens.weight += 1
    size = model.config.vocab_size
    config = grown_config(model.config, size + 3, eos_token_id=size)
    grown = grow_vocabulary(model, config, seed=5)
    ids = torch.randint(4, size, (2, 9), generator=torch.Generator().manual_seed(0))
    before, after = model(ids), grown(ids)
    assert torch.equal(after.logits[..., :size], before.logits)
    drafted = [m.mtp(before.hidden[:, :-1], ids[:, 1:])[0] for m in (model, grown)]
    assert torch.equal(drafted[1][..., :size], drafted[0])
    fresh = grown.model.embed_tokens.weight[size:]
    assert torch.unique(fresh, dim=0).shape[0] == 3  # new tokens can be told apart
    assert torch.allclose(after.logits[..., size], before.logits.mean(-1))  # and start as average
    assert torch.equal(
        grow_vocabulary(model, config, seed=5)(ids + 1).logits, grown(ids + 1).logits
    )
    assert (grown.eos_token_id, grown.vocab_size) == (size, size + 3)


def test_spare_rows_are_used_before_new_ones(tiny_config: Any) -> None:
    config = tiny_config()
    assert grown_config(config, config.vocab_size - 5, 7).vocab_size == config.vocab_size


def test_a_vocabulary_never_shrinks(tiny_config: Any, random_model: Any) -> None:
    model = random_model(tiny_config())
    with pytest.raises(ValueError, match="ids are never lost"):
        grow_vocabulary(model, replace(model.config, vocab_size=50), seed=0)
