"""Claims about the socket that the server listens on."""

import asyncio
import socket
from collections.abc import Callable

import pytest

from longcat.serve.server import listen


def bare(host: str, port: int) -> socket.socket:
    """What `listen` made before: a socket that does not name its protocol."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind((host, port))
    return listener


@pytest.mark.parametrize(("made", "at_once"), [(listen, True), (bare, False)])
def test_an_answer_goes_out_at_once_over_a_connection_that_is_kept(
    made: Callable[[str, int], socket.socket], at_once: bool
) -> None:
    # asyncio turns Nagle's algorithm off where a socket says that it is TCP. With it, what follows
    # the head of an answer waits until the client's kernel confirms the head, some 40 ms.
    async def scenario() -> bool:
        accepted: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        listener = made("127.0.0.1", 0)
        server = await asyncio.start_server(lambda _, w: accepted.put_nowait(w), sock=listener)
        async with server:
            _, mine = await asyncio.open_connection(*listener.getsockname())
            theirs = await accepted.get()
            taken: socket.socket = theirs.get_extra_info("socket")
            told = bool(taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            mine.close()
            theirs.close()
        return told

    assert asyncio.run(scenario()) == at_once
