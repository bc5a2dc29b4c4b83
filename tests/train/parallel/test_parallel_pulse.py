"""A process that gives no sign of life is noticed; one that leaves in order is not missed."""

import time

import torch.distributed as dist

from longcat.train.parallel.pulse import Pulse

FAST = {"beat": 0.02, "silence": 0.3}


def watch(store, rank, **times):
    said = []
    return Pulse(store, rank, 2, said.append, **{**FAST, **times}), said


def wait_for(said, seconds=5.0):
    end = time.monotonic() + seconds
    while not said and time.monotonic() < end:
        time.sleep(0.01)
    return said


def test_two_that_live_say_nothing():
    store = dist.HashStore()
    (a, said_a), (b, said_b) = watch(store, 0), watch(store, 1)
    with a, b:
        time.sleep(1.0)
    assert said_a == said_b == []


def test_a_silent_process_is_reported_with_a_sentence():
    """Never seen, or seen and then silent."""
    never, said = watch(dist.HashStore(), 0)
    with never:
        assert "no sign of life from process 1" in wait_for(said)[0]
        assert "--resume" in said[0]
    store = dist.HashStore()
    store.set("pulse/1", "17")
    once, said = watch(store, 0)
    with once:
        assert "process 1" in wait_for(said)[0]
    assert len(said) == 1


def test_a_process_that_left_in_order_is_not_missed():
    store = dist.HashStore()
    other, _ = watch(store, 1)
    with other:
        time.sleep(0.1)
    watcher, said = watch(store, 0)
    with watcher:
        time.sleep(1.0)
    assert said == []


class Gone(dist.HashStore if hasattr(dist, "HashStore") else object):
    def check(self, keys):
        raise RuntimeError("connection reset")


def test_a_lost_meeting_place_is_a_loss_too():
    watcher, said = watch(Gone(), 0)
    with watcher:
        assert "no sign of life" in wait_for(said)[0]
