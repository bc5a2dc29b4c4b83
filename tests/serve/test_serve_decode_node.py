"""The decode side by itself: what it asks of prefill, and what it takes from whom."""

from typing import Any

import pytest
import torch

from longcat.serve import Engine, EngineConfig, Request, SamplingParams, Token
from longcat.serve.disaggregation import (
    Broken,
    DecodeNode,
    Disaggregated,
    Handover,
    LocalPrefill,
    Piece,
)

CONFIG = EngineConfig(num_drafts=1, page_size=4, overlap=False)


@pytest.fixture
def node(markov: Any) -> DecodeNode:
    return DecodeNode(Engine(markov(), None, CONFIG))


def asked(name: str, *prompt: int, **params: Any) -> Request:
    return Request(request_id=name, prompt_ids=prompt, params=SamplingParams(**params))


def piece(name: str, attention: int, first: int, count: int) -> Piece:
    latents = torch.full((count, 2), 9.0, dtype=torch.float64)
    return Piece(request_id=name, attention=attention, first=first, latents=latents)


def test_a_handover_needs_all_latents(node: DecodeNode) -> None:
    node.add(asked("a", 1, 2, 3))
    ((request, skip),) = node.offers()
    assert skip == 0
    with pytest.raises(Broken, match="handed over at"):
        node.take(Handover(request_id=request.request_id, token=Token(id=1)))


@pytest.mark.parametrize(
    ("attention", "first", "count", "message"),
    [
        (0, 1, 2, "attention 0 at 1 are out of turn"),  # place 0 is missing
        (2, 0, 3, "attention 2 at 0 are out of turn"),  # there are two
        (-1, 0, 3, "attention -1 at 0 are out of turn"),
        (0, -1, 3, "attention 0 at -1 are out of turn"),
        (0, 0, 4, "do not fit the prompt"),
    ],
)
def test_latents_out_of_turn_are_refused(
    node: DecodeNode, attention: int, first: int, count: int, message: str
) -> None:
    node.add(asked("a", 1, 2, 3))
    ((request, _),) = node.offers()
    with pytest.raises(Broken, match=message):
        node.take(piece(request.request_id, attention, first, count))


def test_latents_of_a_transfer_that_was_given_up_are_nobodys(node: DecodeNode) -> None:
    node.add(asked("a", 1, 2, 3))
    ((old, _),) = node.offers()
    node.abort("a")
    node.add(asked("a", 4, 5, 6))
    ((new, _),) = node.offers()
    assert node.take(piece(old.request_id, 0, 0, 3)) == []
    assert all(not store.any() for store in node.engine.latents.stores)
    node.take(piece(new.request_id, 0, 0, 3))
    assert node.engine.latents.stores[0].any()


def test_what_was_preempted_has_its_pages_before_the_next_prompt_is_offered(
    node: DecodeNode,
) -> None:
    node.add(asked("a", 1, 2, 3))
    ((first, _),) = node.offers()
    for attention in (0, 1):
        node.take(piece(first.request_id, attention, 0, 3))
    node.take(Handover(request_id=first.request_id, token=Token(id=1)))
    node.engine._scheduler.preempt()
    node.add(asked("b", 1, 2, 3))
    assert node.offers() == []
    node.engine.step()
    assert [request.prompt_ids for request, _ in node.offers()] == [(1, 2, 3)]


class Listening(LocalPrefill):
    """Keeps the orders and the pieces."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.orders: list[tuple[Request, int]] = []
        self.pieces: list[Piece] = []

    def start(self, request: Request, skip: int) -> None:
        self.orders.append((request, skip))
        super().start(request, skip)

    def receive(self, seconds: float = 0.0) -> Any:
        message = super().receive(seconds)
        if isinstance(message, Piece):
            self.pieces.append(message)
        return message


def test_a_prefill_that_lacks_the_prefix_sends_only_what_decode_lacks(markov: Any) -> None:
    engine = Engine(markov(), None, CONFIG)
    shared = (1, 2, 3, 4, 5, 6, 1, 2, 3)
    for name in ("a", "b"):
        prefill = Listening(Engine(markov(), None, CONFIG))  # one that knows nothing, each time
        divided = Disaggregated(engine, prefill)
        divided.add(asked(name, *shared, max_tokens=3))
        while divided.has_work:
            divided.step()
    assert [skip for _, skip in prefill.orders] == [8]
    assert {(sent.first, len(sent.latents)) for sent in prefill.pieces} == {(8, 1)}


def test_both_sides_draw_with_one_seed_where_none_was_asked_for(markov: Any) -> None:
    engine = Engine(markov(), None, CONFIG)
    prefill = Listening(Engine(markov(), None, CONFIG))
    divided = Disaggregated(engine, prefill)
    divided.add(asked("a", 1, 2, temperature=1.0))
    divided.add(asked("b", 1, 2, temperature=1.0))
    divided.step()
    seeds = [request.params.seed for request, _ in prefill.orders]
    assert seeds == [engine.sequence(name).seed for name in ("a", "b")]
    assert len(set(seeds)) == 2
