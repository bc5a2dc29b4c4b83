"""Claims about what passes between the front and the engine, and gathers for a client."""

import asyncio
from typing import Any

import pytest

from longcat.serve import Delta, Request, SamplingParams, Token
from longcat.serve.server.call import Call
from longcat.serve.server.wire import read


@pytest.mark.parametrize("error", [BrokenPipeError, ConnectionResetError, None])
def test_an_engine_is_gone_whether_a_read_or_a_write_finds_it_out(error: Any) -> None:
    async def scenario() -> None:
        reader = asyncio.StreamReader()
        if error is None:
            reader.feed_eof()
        else:
            reader.set_exception(error())  # what asyncio does when a write fails
        assert await read(reader) is None

    asyncio.run(scenario())


def test_a_slow_reader_gets_everything_in_one_piece() -> None:
    params = SamplingParams(max_tokens=3)
    call = Call([Request(request_id="a", prompt_ids=(1,), params=params)])
    for i, reason in enumerate((None, None, "length")):
        token = Token(id=i)
        call.put(
            Delta(
                request_id="a",
                tokens=(token,),
                text=str(i),
                finish_reason=reason,
                cached_tokens=5 if i == 0 else 0,
            )
        )

    async def scenario() -> None:
        [delta] = await call.take()
        assert (delta.text, delta.finish_reason, delta.cached_tokens) == ("012", "length", 5)
        assert [token.id for token in delta.tokens] == [0, 1, 2]
        assert await call.take() == []

    asyncio.run(scenario())
