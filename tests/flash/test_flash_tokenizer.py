"""The tokenizer: any bytes round-trip, and other programs read its files."""

import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longcat.flash import CheckpointError, FlashConfig
from longcat.flash.tokenizer import (
    BOS,
    EOS,
    PAD,
    SMALLEST_VOCABULARY,
    SPECIAL_TOKENS,
    UNK,
    Tokenizer,
)

SOURCE = "def main(path, count=10):\n    for line in open(path):\n        print(line, 1234)\n\n"
TEXT = SOURCE * 20 + "naïve café 🐈 日本語\r\n\tend  \n" * 5


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train_bpe([TEXT], 400)


@given(st.text())
def test_any_text_round_trips(text):
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.binary())
def test_any_bytes_round_trip(data):
    tokenizer = Tokenizer.train_bpe([TEXT], 300)
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_bytes_that_are_text_get_the_ids_of_the_text(tokenizer):
    assert tokenizer.encode_bytes(SOURCE.encode()) == tokenizer.encode(SOURCE)


def test_control_tokens_have_the_ids_of_the_released_model(tokenizer):
    assert (UNK, BOS, EOS, PAD) == (0, 1, 2, 3)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (BOS, EOS, PAD)
    assert tokenizer.decode_bytes(range(4)) == b""
    assert tokenizer.encode("x", bos=True)[0] == BOS


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_text_that_spells_a_control_token_is_text(tokenizer, name):
    ids = tokenizer.encode(f"a {name} b")
    assert min(ids) > 3
    assert tokenizer.decode(ids) == f"a {name} b"


def test_digits_stand_alone(tokenizer):
    pieces = [tokenizer.decode_bytes([i]) for i in tokenizer.encode("x = 1234")]
    assert pieces[-4:] == [b"1", b"2", b"3", b"4"]


def test_a_newline_keeps_its_indentation(tokenizer):
    table = tokenizer.token_bytes()
    assert b"\n    " in table
    assert b"\n        " in table
    # and no entry runs from the indentation into the word after it
    assert not [t for t in table if t[:1] == b"\n" and t.strip(b" \r\n\t")]


def test_byte_lengths_of_the_ids_add_up_to_the_text(tokenizer):
    table = tokenizer.token_bytes()
    assert len(table) == tokenizer.vocab_size
    assert sum(len(table[i]) for i in tokenizer.encode(TEXT)) == len(TEXT.encode())


def test_saved_and_loaded_it_gives_the_same_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    assert loaded.encode("<s>") == tokenizer.encode("<s>")
    assert loaded.encode_batch([TEXT, "x"]) == [tokenizer.encode(TEXT), tokenizer.encode("x")]


def test_transformers_reads_it_and_opens_texts_as_training_did(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(SOURCE)["input_ids"] == tokenizer.encode(SOURCE, bos=True)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 3)
    assert theirs.decode(tokenizer.encode(SOURCE)) == SOURCE


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size must be at least 260"):
        Tokenizer.train_bpe([TEXT], 259)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_damaged_file_is_named(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        Tokenizer.load(tmp_path)


def test_ids_outside_the_vocabulary_are_refused(tokenizer):
    with pytest.raises(ValueError, match=r"ids must lie in 0\.\.\d+; got 400"):
        tokenizer.decode([400])


def test_control_a_vocabulary_without_all_bytes_loses_text(tokenizer, tmp_path):
    """The round-trip tests would notice a vocabulary that lacks a byte."""
    tokenizer.save(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    del document["model"]["vocab"]["ā"]  # stands for byte 1
    document["model"]["merges"] = []
    document["model"]["vocab"] = {
        t: i for i, t in enumerate(t for t in document["model"]["vocab"] if len(t) == 1 or "<" in t)
    }
    document["added_tokens"] = []
    mutant_dir = tmp_path / "mutant"
    mutant_dir.mkdir()
    shutil.copy(tmp_path / "tokenizer_config.json", mutant_dir)
    (mutant_dir / "tokenizer.json").write_text(json.dumps(document | {"post_processor": None}))
    mutant = Tokenizer.load(mutant_dir)
    assert mutant.decode_bytes(mutant.encode("a\x01b")) != b"a\x01b"


def test_the_preset_over_bytes_has_a_token_for_each_byte_and_merges_nothing():
    text = "def f():\n    return 'ä'\n" * 20
    size = FlashConfig.preset("nano-bytes").vocab_size
    tokenizer = Tokenizer.train_bpe([text], size)
    assert tokenizer.vocab_size == size == SMALLEST_VOCABULARY
    assert len(tokenizer.encode(text)) == len(text.encode())
    # The control: one entry more is a merge.
    assert len(Tokenizer.train_bpe([text], size + 1).encode(text)) < len(text.encode())
