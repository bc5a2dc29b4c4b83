"""Schedules launched before the one ahead of them is read: the report's bound, the same tokens."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from longcat.serve import (
    ConstraintSpec,
    Engine,
    EngineConfig,
    Request,
    SamplingParams,
    decode,
    reference,
    runner,
    scheduler,
)
from longcat.serve import engine as engine_module
from longcat.serve.flight import Flight

LETTERS = [b"a", b"b", b"c", b"d", b"e", b"f", b"g"]


class Letters:
    """Seven tokens, a letter each."""

    eos_id = 0

    def encode(self, text: str) -> list[int]:
        return ["abcdefg".index(letter) for letter in text]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join("abcdefg"[token] for token in ids)

    def token_bytes(self) -> list[bytes]:
        return LETTERS


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Flight]]:
    """Every launch and every reading, as they come."""
    events: list[tuple[str, Flight]] = []
    launch, read = engine_module.launch, Flight.read

    def launching(*arguments: Any, **options: Any) -> Flight:
        flight = launch(*arguments, **options)
        events.append(("launch", flight))
        return flight

    def reading(flight: Flight) -> None:
        events.append(("read", flight))
        read(flight)

    monkeypatch.setattr(engine_module, "launch", launching)
    monkeypatch.setattr(Flight, "read", reading)
    return events


def run(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def texts(engine: Engine, asked: dict[str, SamplingParams]) -> dict[str, str]:
    """What every request gained; the pages are accounted for after every step."""
    found = dict.fromkeys(asked, "")
    for name, params in asked.items():
        engine.add(Request(request_id=name, prompt_ids=(1, 2), params=params))
    while engine.has_work:
        for delta in engine.step():
            found[delta.request_id] += delta.text
        engine.check_integrity()
    assert engine.stats().pages_used == 0
    return found


def test_a_schedule_is_launched_before_the_one_ahead_of_it_is_read(markov, monkeypatch):
    events = watched(monkeypatch)
    engine = Engine(markov(), None, EngineConfig(num_drafts=1, overlap=True))
    engine.add(Request(request_id="a", prompt_ids=(1,), params=SamplingParams(max_tokens=40)))
    run(engine)
    kinds = [kind for kind, _ in events]
    assert kinds[:6] == ["launch", "launch", "read", "launch", "read", "launch"]
    # In the order of their launch; what was launched in vain at the end is never read.
    launched = [flight for kind, flight in events if kind == "launch"]
    read = [flight for kind, flight in events if kind == "read"]
    assert read == launched[: len(read)]


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("drafts", [0, 1, 2, 3])
def test_the_reserve_of_every_schedule_is_that_of_the_report(markov, monkeypatch, steps, drafts):
    """With pages of one token the pages held are the entries held."""
    held: list[int] = []
    used: list[int] = []
    launch, read = engine_module.launch, Flight.read

    def launching(model: Any, latents: Any, plan: Any, *arguments: Any, **options: Any) -> Flight:
        held.append(len(plan.rows[0].pages))
        return launch(model, latents, plan, *arguments, **options)

    def reading(flight: Flight) -> None:
        read(flight)
        used.append(sum(judged.accepted + 1 for judged in flight.of_row(0)))

    monkeypatch.setattr(engine_module, "launch", launching)
    monkeypatch.setattr(Flight, "read", reading)
    config = EngineConfig(
        page_size=1, num_drafts=drafts, steps_per_schedule=steps, overlap=True, prefix_cache=False
    )
    engine = Engine(markov(), None, config)
    params = SamplingParams(max_tokens=150, temperature=0.6, seed=3)
    engine.add(Request(request_id="a", prompt_ids=(1,), params=params))
    run(engine)
    provisional = max(drafts - 1, 0)
    stored = [sum(used[:i]) for i in range(len(used))]
    reserves = [pages - provisional - start for pages, start in zip(held, stored, strict=False)]
    clear = sum(pages < 151 for pages in held)  # until the request's own limit cuts it off
    assert clear > 5
    assert reserves[:clear] == reference.reserves(used, steps, drafts)[:clear]
    assert all((drafts + 1) * steps <= r <= (2 * drafts + 1) * steps for r in reserves[1:clear])


def test_a_scheduler_that_forgets_what_is_under_way_is_found_out(markov, monkeypatch):
    """Control: where a pass is taken to use one entry, the reserve runs out."""
    monkeypatch.setattr(scheduler, "entries_needed", lambda steps, drafts: steps)
    engine = Engine(markov(), None, EngineConfig(page_size=1, num_drafts=1, overlap=True))
    engine.add(Request(request_id="a", prompt_ids=(1,), params=SamplingParams(max_tokens=40)))
    with pytest.raises(RuntimeError, match="may write up to place"):
        run(engine)


def test_rows_that_go_on_from_what_the_host_knows_are_found_out(markov, monkeypatch):
    """Control: the device's own lengths and tokens are needed."""
    monkeypatch.setattr(runner, "_carried", lambda rows, *_: rows)
    asked = SamplingParams(max_tokens=20)
    alone = [token.id for token in decode(markov(), (1, 2), asked)]
    engine = Engine(markov(), Letters(), EngineConfig(num_drafts=1, overlap=True))
    assert texts(engine, {"a": asked})["a"] != Letters().decode(alone)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_stop_string_found_late_ends_the_text_where_it_stands(markov, steps):
    plain = SamplingParams(max_tokens=30, temperature=0.8, seed=7)
    [whole] = texts(Engine(markov(), Letters()), {"a": plain}).values()
    stop = whole[9:12]
    asked = {
        "stops": SamplingParams(max_tokens=30, temperature=0.8, seed=7, stop=(stop,)),
        "goes on": SamplingParams(max_tokens=60, temperature=0.8, seed=8),
    }
    config = {"num_drafts": 2, "page_size": 4, "steps_per_schedule": steps}
    read = texts(Engine(markov(), Letters(), EngineConfig(**config)), asked)
    ahead = texts(Engine(markov(), Letters(), EngineConfig(**config, overlap=True)), asked)
    assert ahead == read
    assert ahead["stops"] == whole[: whole.index(stop)]


def test_where_the_host_has_a_say_every_schedule_is_read_first(markov, monkeypatch):
    asked = {
        "penalised": SamplingParams(max_tokens=12, frequency_penalty=1.5),
        "beside it": SamplingParams(max_tokens=12, temperature=0.8, seed=1),
        "longer": SamplingParams(max_tokens=40, temperature=0.8, seed=2),
    }
    read = texts(Engine(markov(), Letters(), EngineConfig(num_drafts=2)), asked)
    events = watched(monkeypatch)
    ahead = texts(Engine(markov(), Letters(), EngineConfig(num_drafts=2, overlap=True)), asked)
    assert ahead == read
    waiting = []  # schedules launched, but not read, when another was launched
    for kind, flight in events:
        if kind == "launch":
            waiting.append(flight)
            assert len(waiting) == 1 or not any(s.params.edits_logits for s in flight.plan.rows)
        else:
            waiting.remove(flight)
    kinds = [kind for kind, _ in events]
    assert ("launch", "launch") in list(pairwise(kinds))


def test_a_form_is_kept_although_schedules_overlap(markov):
    pytest.importorskip("llguidance")
    from longcat.serve.structured import ConstraintCompiler

    form = ConstraintSpec(regex="(ab|cd){8}e")
    model = markov()
    model.eos_token_id = 6
    asked = {
        "held": SamplingParams(max_tokens=40, temperature=1.0, seed=1, constraint=form),
        "free": SamplingParams(max_tokens=40, temperature=1.0, seed=2, ignore_eos=True),
    }
    found = []
    for overlap in (False, True):
        config = EngineConfig(num_drafts=2, overlap=overlap, steps_per_schedule=2)
        constraints = ConstraintCompiler(LETTERS, 6)
        found.append(texts(Engine(model, Letters(), config, constraints=constraints), asked))
    assert found[0] == found[1]
    assert {found[1]["held"][i : i + 2] for i in range(0, 16, 2)} <= {"ab", "cd"}


def test_an_aborted_request_leaves_nothing_although_a_pass_is_under_way(markov):
    engine = Engine(markov(), None, EngineConfig(num_drafts=1, overlap=True, prefix_cache=False))
    for name in ("a", "b"):
        params = SamplingParams(max_tokens=50, seed=1)
        engine.add(Request(request_id=name, prompt_ids=(1,) * 20, params=params))
    for _ in range(3):
        engine.step()
    assert engine.abort("a")
    others = [delta for _ in range(3) for delta in engine.step()]
    assert {delta.request_id for delta in others} == {"b"}
    assert engine.abort("b")
    assert not engine.has_work
    assert engine.stats().pages_free == engine.stats().pages_total
    # Its name is free again, and the pass that was under way is nobody's.
    engine.add(Request(request_id="a", prompt_ids=(2,), params=SamplingParams(max_tokens=3)))
    tokens = []
    while engine.has_work:
        tokens += [token.id for delta in engine.step() for token in delta.tokens]
    assert tokens == [token.id for token in decode(markov(), (2,), SamplingParams(max_tokens=3))]
