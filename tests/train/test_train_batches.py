"""The data order is a pure function of (seed, step), and every token is predicted once an epoch."""

import numpy as np
import pytest

from longcat.flash.tokenizer import Tokenizer
from longcat.train.batches import Windows, load_tokens, save_tokens, tokenize
from longcat.train.corpus import Document
from longcat.train.errors import DataError


def make_windows(count=1000, seed=0, seq_len=10, batch_size=4):
    ids = np.arange(count)
    return Windows(ids, seq_len=seq_len, batch_size=batch_size, seed=seed)


def test_a_step_gives_the_same_batch_in_any_order_of_asking():
    once, again = make_windows(), make_windows()
    later = [once.batch(s).inputs for s in (7, 3, 30)]
    again.batch(55)
    for step, inputs in zip((30, 3, 7), reversed(later), strict=True):
        if step != 3:
            assert np.array_equal(again.batch(step).inputs, inputs)
    assert np.array_equal(again.batch(3).inputs, later[1])


def test_parts_of_a_batch_are_the_batch():
    windows = make_windows()
    whole = windows.batch(5).inputs
    for parts in (1, 2, 4):
        pieces = [windows.batch(5, p, parts).inputs for p in range(parts)]
        assert np.array_equal(np.concatenate(pieces), whole)


def test_targets_are_the_next_token_and_the_one_after():
    batch = make_windows().batch(2)
    assert np.array_equal(batch.next_ids, batch.inputs + 1)
    assert np.array_equal(batch.after_next, batch.inputs + 2)


def test_an_epoch_takes_every_window_once():
    windows = make_windows(count=202, batch_size=4)  # 20 windows, 5 steps
    starts = [windows.start(n) for n in range(windows.count)]
    assert sorted(np.diff(sorted(starts)).tolist()) == [10] * 19
    second = [windows.start(n) for n in range(windows.count, 2 * windows.count)]
    assert sorted(second) == sorted(starts)
    assert second != starts


def test_seeds_differ():
    a, b = make_windows(seed=0), make_windows(seed=1)
    assert not np.array_equal(a.batch(0).inputs, b.batch(0).inputs)


def test_windows_stay_inside_the_text():
    windows = make_windows(count=37, seq_len=10)
    for number in range(40):
        assert 0 <= windows.start(number) <= 37 - 12


def test_too_little_text_is_refused_with_numbers():
    with pytest.raises(DataError, match="at least 12 tokens for one window of 10, got 11"):
        make_windows(count=11)


def test_a_batch_that_cannot_be_cut_evenly_is_refused():
    with pytest.raises(ValueError, match="must divide the batch size"):
        make_windows().batch(0, 0, 3)


def test_documents_stand_between_their_control_tokens():
    tokenizer = Tokenizer.train_bpe(["ab ab"], 260)
    ids = tokenize(
        [Document(name="1", text="ab"), Document(name="2", text="<s>b")], tokenizer
    ).tolist()
    assert ids == [1, *tokenizer.encode("ab"), 2, 1, *tokenizer.encode("<s>b"), 2]
    assert ids.count(1) == 2


def test_ids_are_stored_in_two_bytes_and_come_back(tmp_path):
    ids = np.array([0, 5, 65535], dtype=np.uint32)
    save_tokens(tmp_path / "ids.npy", ids, 65536)
    loaded = load_tokens(tmp_path / "ids.npy")
    assert loaded.dtype == np.uint16
    assert loaded.tolist() == ids.tolist()
    save_tokens(tmp_path / "ids.npy", np.array([70000], dtype=np.uint32), 131072)
    assert load_tokens(tmp_path / "ids.npy").tolist() == [70000]


def test_control_an_order_that_remembers_would_be_noticed():
    """A loader that draws from one running generator gives other batches when asked elsewhere."""

    class Remembering(Windows):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.generator = np.random.default_rng(self.seed)

        def start(self, number):
            return int(self.generator.integers(self.count)) * self.seq_len

    make = lambda: Remembering(np.arange(1000), seq_len=10, batch_size=4, seed=0)  # noqa: E731
    a, b = make(), make()
    first = a.batch(3).inputs
    b.batch(0)
    assert not np.array_equal(b.batch(3).inputs, first)
