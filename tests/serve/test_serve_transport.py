"""Messages arrive as they were sent, in order, whole, or not at all."""

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from longcat.serve import PromptToken, Token
from longcat.serve.disaggregation import (
    Broken,
    Failed,
    Handover,
    Message,
    Piece,
    Span,
    Timeline,
)
from longcat.serve.disaggregation.background import MOST, Background
from longcat.serve.disaggregation.frames import MOST_HEADER, Unframe, frame
from longcat.serve.disaggregation.messages import decode, encode
from longcat.serve.disaggregation.shared_memory import SharedMemoryReceiver
from longcat.serve.disaggregation.tcp import TcpReceiver
from longcat.serve.disaggregation.timeline import NEWEST
from longcat.serve.disaggregation.transport import InProcess


def piece(first: int = 0, dtype: torch.dtype = torch.float32) -> Piece:
    generator = torch.Generator().manual_seed(first)
    latents = torch.randn(5, 7, generator=generator).to(dtype)
    return Piece(request_id="a", attention=2, first=first, latents=latents)


HANDOVER = Handover(
    request_id="é",
    token=Token(id=3, logprob=-0.1 - 1e-17, top_logprobs=((3, -0.1), (1, -2.5))),
    drafts=(4, 5),
    draft_q=torch.rand(2, 6, dtype=torch.float64),
    prompt_logprobs=(PromptToken(id=1, logprob=None), PromptToken(id=2, logprob=-1 / 3)),
)


def same(one: Message | None, two: Message) -> bool:
    if one is None:
        return False
    left, right = dict(vars(one)), dict(vars(two))
    for name in ("latents", "draft_q"):
        a, b = left.pop(name, None), right.pop(name, None)
        if a is None or b is None:
            if a is not b:
                return False
        elif a.dtype != b.dtype or not torch.equal(a, b):
            return False
    return type(one) is type(two) and left == right


@pytest.mark.parametrize(
    "message",
    [
        piece(),
        piece(3, torch.bfloat16),
        piece(3, torch.float64),
        HANDOVER,
        Handover(request_id="a", token=Token(id=1)),
        Failed(request_id="a", error="it is so", fault="request"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_becomes_bytes_and_itself_again_bit_for_bit(message: Message) -> None:
    assert same(decode(*encode(message)), message)


@pytest.mark.parametrize(
    ("header", "numbers"),
    [
        (b"no json", b""),
        (b"{}", b""),
        (b'{"kind": "else"}', b""),
        (b'{"kind": "failed", "request_id": "a", "error": "b", "more": 1}', b""),
        (encode(piece())[0], b"too few"),
        (encode(piece())[0].replace(b"float32", b"nn"), encode(piece())[1]),
    ],
)
def test_bytes_that_are_no_message_are_refused(header: bytes, numbers: bytes) -> None:
    with pytest.raises(ValueError, match="a message that prefill never sends"):
        decode(header, numbers)


def test_bytes_may_come_one_at_a_time() -> None:
    stream = frame(piece(1)) + frame(HANDOVER) + frame(piece(2))[:-1]
    unframe = Unframe()
    found = []
    for byte in stream:
        unframe.feed(bytes([byte]))
        while (message := unframe.next()) is not None:
            found.append(message)
    assert [same(m, want) for m, want in zip(found, (piece(1), HANDOVER), strict=True)] == [
        True,
        True,
    ]


def test_an_absurd_length_is_not_waited_for() -> None:
    unframe = Unframe()
    unframe.feed(b"\xff" * 12)
    with pytest.raises(Broken, match="none of ours"):
        unframe.next()


def test_the_log_probabilities_of_the_longest_prompt_are_not_absurd() -> None:
    best = tuple((131_071 - i, -100 / 3) for i in range(20))
    token = PromptToken(id=131_071, logprob=-100 / 3, top_logprobs=best)
    few, more = (
        Handover(request_id="a", token=Token(id=1), prompt_logprobs=(token,) * count)
        for count in (1, 2)
    )
    each = len(encode(more)[0]) - len(encode(few)[0])
    assert 131_072 * each < MOST_HEADER


RECEIVERS: list[Callable[[], Any]] = [TcpReceiver, lambda: SharedMemoryReceiver(100)]


@pytest.mark.parametrize("make", RECEIVERS, ids=["tcp", "shared memory, a ring smaller than one"])
def test_messages_arrive_in_order(make: Callable[[], Any]) -> None:
    receiver = make()
    assert receiver.receive() is None
    sent: list[Message] = [piece(n) for n in range(20)] + [HANDOVER]

    def send() -> None:
        sender = receiver.sender().open()
        for message in sent:
            sender.send(message)
        sender.close()

    thread = threading.Thread(target=send)
    thread.start()
    for want in sent:
        assert same(receiver.receive(10.0), want)
    thread.join()
    receiver.close()


def test_a_connection_that_ends_is_broken_after_what_it_sent() -> None:
    receiver = TcpReceiver()
    sender = receiver.sender().open()
    sender.send(piece())
    sender.close()
    assert same(receiver.receive(5.0), piece())
    with pytest.raises(Broken, match="gone"):
        receiver.receive(5.0)
    receiver.close()


def test_who_does_not_know_the_secret_is_not_listened_to() -> None:
    receiver = TcpReceiver()
    with socket.create_connection(receiver.address) as stranger:
        stranger.sendall(b"x" * 16 + frame(piece()))
        assert receiver.receive(0.1) is None
        sender = receiver.sender().open()
        sender.send(HANDOVER)
        assert same(receiver.receive(5.0), HANDOVER)
    sender.close()
    receiver.close()


def test_in_process_a_closed_channel_is_broken() -> None:
    channel = InProcess()
    channel.send(piece())
    channel.close()
    assert same(channel.receive(), piece())
    with pytest.raises(Broken):
        channel.receive()
    with pytest.raises(Broken):
        channel.send(piece())


def test_a_thread_sends_in_order_and_passes_on_what_it_raises() -> None:
    channel, timeline = InProcess(), Timeline()
    sender = Background(channel, timeline)
    for n in range(5):
        sender.send(piece(n))
    sender.close()
    assert [s.kind for s in timeline.spans] == ["send"] * 5
    for n in range(5):
        assert same(channel.receive(), piece(n))
    again = Background(channel)
    again.send(piece())
    again.close()
    with pytest.raises(Broken):
        again.send(piece())


def test_a_thread_that_fails_keeps_nobody_waiting() -> None:
    class Full:
        def send(self, message: Message) -> None:
            raise MemoryError

        def close(self) -> None: ...

    sender, raised = Background(Full()), []

    def send() -> None:
        try:
            for _ in range(2 * MOST):
                sender.send(piece())
        except MemoryError as error:
            raised.append(error)

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    sending.join(10.0)
    assert raised


def test_a_timeline_keeps_the_newest_of_what_never_ends() -> None:
    timeline = Timeline()
    for _ in range(NEWEST + 5):
        with timeline.span("send"):
            pass
    first = timeline.spans[0].start
    with timeline.span("compute"):
        pass
    assert len(timeline.spans) == NEWEST
    assert timeline.spans[-1].kind == "compute"
    assert timeline.spans[0].start > first


def test_a_timeline_tells_how_much_sending_was_hidden() -> None:
    assert Timeline().hidden() == 1.0
    timeline = Timeline(
        [
            Span(kind="compute", start=0.0, end=2.0),
            Span(kind="send", start=1.0, end=2.0),
            Span(kind="send", start=1.5, end=3.5),
        ]
    )
    assert timeline.hidden() == pytest.approx(1.5 / 3.0)
    compute, send = timeline.draw(7).splitlines()
    assert compute == "compute " + "#####"
    assert send == "send    " + "  #####"
