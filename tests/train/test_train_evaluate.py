"""Held-out figures are exact: each byte is paid for once, whatever the windows."""

import bz2
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longcat.flash import FlashModel
from longcat.flash.tokenizer import Tokenizer
from longcat.train import evaluate as evaluate_module
from longcat.train.classes import KINDS, by_kind, by_token, kinds_of
from longcat.train.corpus import Document
from longcat.train.errors import DataError
from longcat.train.evaluate import compressed_bits_per_byte, evaluate, window_starts
from longcat.train.interval import ratio_interval


@pytest.fixture(scope="module")
def setting(kit):
    documents = [Document(name="a", text=kit.text(1, 12)), Document(name="b", text="naïve\n" * 9)]
    tokenizer = Tokenizer.train_bpe([kit.text(0, 50)], 300)
    model = FlashModel(
        kit.config(vocab_size=tokenizer.vocab_size, max_position_embeddings=1024), seed=0
    ).eval()
    return model, tokenizer, documents


def direct_bits(model, tokenizer, documents, window, stride):
    """The definition: for each position, the window it is scored in, alone."""
    ids = [
        i
        for d in documents
        for i in [tokenizer.bos_id, *tokenizer.encode(d.text), tokenizer.eos_id]
    ]
    window = min(window, len(ids))
    starts, bits = window_starts(len(ids), window, stride), 0.0
    for position in range(1, len(ids)):
        if not tokenizer.decode_bytes([ids[position]]):
            continue
        start = next(s for s in starts if s <= position < s + window)
        context = torch.tensor([ids[start:position]])
        with torch.inference_mode():
            if position == start:  # cannot be: the first window that holds it has context
                raise AssertionError
            row = model(context).logits[0, -1].double().log_softmax(-1)
        bits -= float(row[ids[position]]) / math.log(2)
    return bits / sum(len(d.text.encode()) for d in documents)


@pytest.mark.parametrize(("window", "stride"), [(24, 12), (24, 23), (31, 5), (1000, None)])
def test_bits_per_byte_equal_the_definition(setting, window, stride):
    model, tokenizer, documents = setting
    held_out = evaluate(model, tokenizer, documents, window=window, stride=stride)
    expected = direct_bits(model, tokenizer, documents, window, stride or window // 2)
    assert held_out.bits_per_byte == pytest.approx(expected, rel=1e-5)


def test_all_bytes_of_all_documents_count_once(setting):
    model, tokenizer, documents = setting
    held_out = evaluate(model, tokenizer, documents, window=20)
    table = tokenizer.token_bytes()
    text = b"".join(table[i] for i in held_out.ids[held_out.is_text])
    assert text == b"".join(d.text.encode() for d in documents)
    assert held_out.text_bytes == len(text)
    assert (held_out.nats[1:] > 0).all()
    assert held_out.nats[0] == 0


def test_control_a_window_scored_twice_would_be_noticed(setting, monkeypatch):
    model, tokenizer, documents = setting
    right = evaluate(model, tokenizer, documents, window=24, stride=12).bits_per_byte
    monkeypatch.setattr(evaluate_module, "_overlap", lambda *_: 0)
    wrong = evaluate(model, tokenizer, documents, window=24, stride=12).bits_per_byte
    assert abs(wrong - right) > 1e-4


@given(st.integers(2, 400), st.integers(2, 60), st.integers(1, 60))
def test_windows_cover_everything_and_end_at_the_end(length, window, stride):
    window = min(window, length)
    stride = min(stride, window)
    starts = window_starts(length, window, stride)
    assert starts[0] == 0
    assert starts[-1] + window == length
    assert all(0 < b - a <= stride for a, b in itertools.pairwise(starts))


def test_results_do_not_depend_on_the_batch(setting, monkeypatch):
    model, tokenizer, documents = setting
    once = evaluate(model, tokenizer, documents, window=24)
    monkeypatch.setattr(evaluate_module, "BATCH", 3)
    again = evaluate(model, tokenizer, documents, window=24)
    assert np.allclose(once.nats, again.nats, atol=1e-5)


def test_ffn_experts_are_those_of_each_token_as_an_input(setting):
    model, tokenizer, documents = setting
    held_out = evaluate(model, tokenizer, documents, window=1000)
    with torch.inference_mode():
        routings = model(torch.from_numpy(held_out.ids)[None], output_router=True).router
    for layer, routing in enumerate(routings):
        assert held_out.ffn[layer].tolist() == routing.ffn_per_token.tolist()
    assert held_out.ffn_mean == pytest.approx(held_out.ffn.mean(axis=1).tolist())


def test_ffn_experts_have_the_interval_of_a_ratio_over_documents(setting):
    model, tokenizer, documents = setting
    held_out = evaluate(model, tokenizer, documents, window=24)
    lengths = [len(tokenizer.encode(d.text)) + 2 for d in documents]  # <s> before, </s> behind
    ends = np.cumsum(lengths)
    assert ends[-1] == len(held_out.ids)
    for layer, half in enumerate(held_out.ffn_half_width):
        sums = [s.sum() for s in np.split(held_out.ffn[layer], ends[:-1])]
        assert half == pytest.approx(ratio_interval(np.array(sums), np.array(lengths)))
    assert evaluate(model, tokenizer, documents[:1], window=24).ffn_half_width is None


def test_without_text_there_is_no_figure(setting):
    model, tokenizer, _ = setting
    with pytest.raises(DataError, match="expected held-out text"):
        evaluate(model, tokenizer, [], window=24)


def test_compressors_get_the_same_bytes():
    documents = [Document(name="a", text="héllo " * 50), Document(name="b", text="world\n" * 30)]
    data = "".join(d.text for d in documents).encode()
    figures = compressed_bits_per_byte(documents, train=data)
    assert figures["bz2"] == 8 * len(bz2.compress(data, 9)) / len(data)
    assert set(figures) == {"zlib", "bz2", "xz", "xz + training text"}
    assert figures["xz + training text"] < figures["xz"]


def test_kinds_of_tokens():
    pieces = [b"if", b" x", b"\n    ", b"1", b" (", b"in", b"put", b" in", b"_", b"  ", b"", b" "]
    names = ["-" if k < 0 else KINDS[k] for k in kinds_of(pieces)]
    assert names == [
        "Python keyword",
        "word or part of one",
        "newline and indentation",
        "digit",
        "punctuation",
        "word or part of one",  # in|put is a word, not the keyword
        "word or part of one",
        "word or part of one",  # in_ is a name
        "punctuation",
        "blank",
        "-",
        "blank",
    ]


def test_figures_by_kind_and_by_token_are_means_over_layers(setting):
    model, tokenizer, documents = setting
    held_out = evaluate(model, tokenizer, documents, window=24)
    kinds = by_kind(held_out, tokenizer)
    assert sum(k.tokens for k in kinds) == held_out.is_text.sum()
    whole = sum(k.tokens * k.ffn_experts for k in kinds) / sum(k.tokens for k in kinds)
    assert whole == pytest.approx(held_out.ffn[:, held_out.is_text].mean())
    assert [k.ffn_experts for k in kinds] == sorted(k.ffn_experts for k in kinds)
    tokens = by_token(held_out, tokenizer, at_least=5)
    assert all(t.tokens >= 5 for t in tokens)


def test_the_correlation_is_numpys(setting):
    model, tokenizer, documents = setting
    held_out = evaluate(model, tokenizer, documents, window=24)
    expected = np.corrcoef(held_out.ffn.mean(axis=0)[:-1], held_out.nats[1:])[0, 1]
    assert held_out.correlation_with_loss == pytest.approx(expected)
