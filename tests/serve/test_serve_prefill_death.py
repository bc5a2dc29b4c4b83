"""A prefill that dies with nothing to do: nobody waits for it, and the next request starts another.

Deaths in mid-transfer are in test_serve_disaggregation.py.
"""

import asyncio
import os
import socket
import threading
from typing import Any

import pytest

from longcat.serve import Engine, EngineConfig, EngineStats, Request, SamplingParams
from longcat.serve.disaggregation import Disaggregated, LocalPrefill

CONFIG = EngineConfig(num_drafts=1, overlap=False)
PROMPT = Request(request_id="a", prompt_ids=(1, 2, 3), params=SamplingParams(max_tokens=4))


class Mortal(LocalPrefill):
    """Is dead once `pipe` can be read, and alive again after a restart."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.pipe, self.knife = os.pipe()
        self.restarts = 0
        self.dead = False

    @property
    def alive(self) -> bool:
        return not self.dead

    @property
    def sentinel(self) -> int | None:
        return self.pipe

    def die(self) -> None:
        self.dead = True
        os.write(self.knife, b"x")

    def restart(self) -> None:
        self.dead = False
        self.restarts += 1
        super().restart()


@pytest.fixture
def mortal(markov: Any) -> tuple[Disaggregated, Mortal]:
    prefill = Mortal(Engine(markov(), None, CONFIG))
    return Disaggregated(Engine(markov(), None, CONFIG), prefill), prefill


def test_the_next_request_starts_another(mortal: tuple[Disaggregated, Mortal]) -> None:
    divided, prefill = mortal
    prefill.die()
    assert divided.sentinel is None
    assert divided.stats().prefill_alive is False
    divided.add(PROMPT)
    tokens = []
    while divided.has_work:
        tokens += [token for delta in divided.step() for token in delta.tokens]
    assert len(tokens) == 4
    assert (prefill.restarts, divided.stats().prefill_restarts) == (1, 1)
    assert divided.stats().prefill_alive is True
    assert divided.stats().pages_used == 0


@pytest.mark.parametrize("unseen", [False, True])
def test_the_front_hears_of_it_while_nothing_is_asked(
    mortal: tuple[Disaggregated, Mortal], unseen: bool
) -> None:
    """Also where it died before anybody looked at what tells of it."""
    pytest.importorskip("fastapi")
    from longcat.serve.server.wire import Progress, read
    from longcat.serve.server.worker import answer

    divided, prefill = mortal
    if unseen:  # as if it died between the last counts and the next wait
        stats = divided.stats
        told_once: list[bool] = []

        def told() -> EngineStats:
            found = stats()
            if not told_once:
                told_once.append(True)
                prefill.dead = True
            return found

        divided.stats = told  # type: ignore[method-assign]

    async def scenario() -> list[bool | None]:
        ours, theirs = socket.socketpair()
        threading.Thread(target=answer, args=(lambda: divided, theirs), daemon=True).start()
        reader, writer = await asyncio.open_connection(sock=ours)
        told: list[bool | None] = []
        async with asyncio.timeout(10):
            while told[-1:] != [False]:
                message = await read(reader)
                if isinstance(message, Progress) and message.stats is not None:
                    told.append(message.stats.prefill_alive)
                    if told == [True] and not unseen:
                        prefill.die()
        writer.close()
        return told

    assert asyncio.run(scenario()) == [True, False]
