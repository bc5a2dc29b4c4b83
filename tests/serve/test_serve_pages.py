"""Every page is free, cached or used, whatever happens; equal prefixes share theirs."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from longcat.serve.pages import ROOT, Pages, chained_key

SIZE, TOTAL = 2, 7


class Sequences(RuleBasedStateMachine):
    """Sequences over a small alphabet come, grow and go, as a scheduler would let them."""

    def __init__(self) -> None:
        super().__init__()
        self.pages = Pages(TOTAL, SIZE)
        self.held: list[tuple[list[int], list[int]]] = []  # tokens, pages
        self.written: dict[int, list[int]] = {}  # page to the prefix that it ends

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=8))
    def begin(self, tokens: list[int]) -> None:
        found, key = self.pages.find(tokens)
        for index, page in enumerate(found):
            assert self.written[page] == tokens[: (index + 1) * SIZE], "another prefix was found"
        taken = self.pages.take(self.pages.needed(len(tokens)) - len(found))
        if taken is None:
            self.pages.give_back(found)
            return
        held = found + taken
        for index in range(len(found), len(tokens) // SIZE):
            end = (index + 1) * SIZE
            self.written[held[index]] = tokens[:end]
            key = self.pages.commit(held[index], key, tokens[end - SIZE : end])
        self.held.append((tokens, held))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        which = data.draw(st.integers(0, len(self.held) - 1))
        self.pages.give_back(self.held.pop(which)[1])

    @invariant()
    def every_page_is_in_one_state(self) -> None:
        self.pages.check()
        assert self.pages.free + self.pages.cached + self.pages.used == TOTAL
        assert self.pages.used == len({page for _, pages in self.held for page in pages})

    @invariant()
    def nobody_writes_what_another_reads(self) -> None:
        for tokens, held in self.held:
            for index in range(len(tokens) // SIZE):
                assert self.written[held[index]] == tokens[: (index + 1) * SIZE]


TestSequences = Sequences.TestCase
TestSequences.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


def test_the_last_token_is_always_computed():
    pages = Pages(4, 2)
    held = pages.take(2)
    key = pages.commit(held[0], ROOT, [1, 2])
    pages.commit(held[1], key, [3, 4])
    assert pages.find([1, 2, 3, 4])[0] == held[:1]
    assert pages.find([1, 2, 3, 4, 5])[0] == held
    assert pages.find([1, 3, 3, 4, 5])[0] == []


def test_the_page_unused_for_longest_goes_first_and_ends_go_before_beginnings():
    pages = Pages(3, 1)
    held = pages.take(3)
    key = ROOT
    for page, token in zip(held, [7, 8, 9], strict=True):
        key = pages.commit(page, key, [token])
    pages.give_back(held)
    assert pages.cached == 3
    pages.take(1)
    assert pages.find([7, 8, 9, 0])[0] == held[:2]


def test_a_colliding_key_is_a_miss(monkeypatch):
    monkeypatch.setattr("longcat.serve.pages.chained_key", lambda parent, tokens: b"same")
    pages = Pages(4, 1)
    (page,) = pages.take(1)
    pages.commit(page, ROOT, [5])
    assert pages.find([6, 1])[0] == []
    assert pages.find([5, 1])[0] == [page]


def test_a_key_holds_all_that_went_before():
    assert chained_key(chained_key(ROOT, [1]), [2]) != chained_key(chained_key(ROOT, [3]), [2])
    assert chained_key(ROOT, [1, 2]) != chained_key(chained_key(ROOT, [1]), [2])


def test_a_lost_page_is_noticed():
    pages = Pages(4, 2)
    pages.take(2)
    pages.check()
    pages._holders[1] = 0
    with pytest.raises(RuntimeError, match="not the 4"):
        pages.check()
