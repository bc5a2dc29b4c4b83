"""Packed conversations: whole, apart, learned where the assistant speaks, and nowhere else."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from longcat.flash import FlashModel
from longcat.train.errors import DataError
from longcat.train.sft import packing
from longcat.train.sft.packing import (
    CHAT,
    IDS,
    LEARNED,
    Encoded,
    PackedWindows,
    as_batch,
    pack,
    real_ids,
)

BOS, PAD, T = 1, 3, 24
CHATS = st.lists(
    st.lists(st.tuples(st.integers(4, 299), st.booleans()), min_size=1, max_size=40),
    min_size=1,
    max_size=12,
)


def encoded(tokens: Any) -> Encoded:
    return Encoded(ids=[i for i, _ in tokens], learned=[said for _, said in tokens])


def make_chats(count: int = 9, seed: int = 0) -> list[Encoded]:
    """Prompts of 3 to 6 tokens with replies of 2 to 8, some of two turns."""
    rng = np.random.default_rng(seed)
    chats = []
    for _ in range(count):
        learned: list[bool] = []
        for _ in range(rng.integers(1, 3)):
            learned += [False] * int(rng.integers(3, 7)) + [True] * int(rng.integers(2, 9))
        ids = rng.integers(4, 300, size=len(learned)).tolist()
        chats.append(Encoded(ids=ids[:T], learned=learned[:T]))
    return chats


def conversations(windows: Any) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """What stands in the windows, conversation by conversation."""
    found = []
    for window in windows.astype(int):
        for number in range(1, window[CHAT].max() + 1):
            here = np.flatnonzero(window[CHAT] == number)
            assert here.tolist() == list(range(here[0], here[-1] + 1))  # in one piece
            ids, learned = window[IDS][here], window[LEARNED][here]
            found.append((tuple(ids.tolist()), tuple((learned > 0).tolist())))
    return sorted(found)


@given(chats=CHATS)
def test_every_conversation_is_packed_once_and_whole(chats: Any) -> None:
    every = [encoded(c) for c in chats]
    kept = [c for c in every if any(c.learned[1:T])]
    if not kept:
        with pytest.raises(DataError, match="no assistant turn lies within the first 24 tokens"):
            pack(every, T, PAD)
        return
    packed = pack(every, T, PAD)
    wanted = [(tuple(c.ids[:T]), tuple(c.learned[:T])) for c in kept]
    assert conversations(packed.windows) == sorted(wanted)
    assert packed.skipped == len(every) - len(kept)
    assert packed.cut == sum(len(c.ids) > T for c in kept)
    padding = packed.windows[:, CHAT] == 0
    assert (packed.windows[:, IDS][padding] == PAD).all()
    assert not packed.windows[:, LEARNED][padding].any()
    assert (np.diff(padding.astype(int), axis=1) >= 0).all()  # at the end alone
    assert real_ids(packed.windows).size == sum(len(c.ids[:T]) for c in kept)


def test_a_conversation_goes_into_the_fullest_window_that_has_room() -> None:
    lengths = [20, 4, 12, 12, 3, 1]
    chats = [Encoded(ids=[7] * n, learned=[True] * n) for n in lengths]
    assert pack(chats[:5], T, PAD).windows.shape == (3, 3, T)
    filled = (pack(chats[:5], T, PAD).windows[:, CHAT] > 0).sum(axis=1)
    assert sorted(filled.tolist()) == [3, 24, 24]


def batch_by_brute_force(windows: Any) -> dict[str, Any]:
    """The same, one place at a time: None where there is nothing to predict."""
    found: dict[str, Any] = {"main": [], "mtp": [], "documents": []}
    for ids, learned, chat in windows.astype(int):
        for t in range(T):
            for name, by in (("main", 1), ("mtp", 2)):
                there = t + by
                wanted = (
                    there < T and chat[t] > 0 and chat[there] == chat[t] and learned[there] == 1
                )
                found[name].append(int(ids[there]) if wanted else None)
            found["documents"].append(int(chat[t]) - 1)
    return found


def check_batch(windows: Any) -> None:
    batch, want = as_batch(windows, BOS), batch_by_brute_force(windows)
    main, mtp = batch.targets(BOS).ravel().tolist(), batch.after_next.ravel().tolist()
    assert [None if i == BOS else i for i in main] == want["main"]
    assert [None if i == BOS else i for i in mtp] == want["mtp"]
    assert batch.document_ids is not None
    assert batch.document_ids.ravel().tolist() == want["documents"]
    assert (batch.inputs == windows[:, IDS]).all()
    # The draft head reads the token after each position, learned or not.
    assert (batch.next_ids[:, :-1] == windows[:, IDS, 1:]).all()


@given(chats=CHATS)
def test_targets_are_those_of_the_definition(chats: Any) -> None:
    every = [encoded(c) for c in chats if any(said for _, said in c[1:T])]
    if every:
        check_batch(pack(every, T, PAD).windows)


def all_learned(windows: Any) -> Any:
    wrong = windows.copy()
    wrong[:, LEARNED] = wrong[:, CHAT] > 0
    return wrong


def padding_learned(windows: Any) -> Any:
    wrong = windows.copy()
    wrong[:, LEARNED][wrong[:, CHAT] == 0] = 1
    wrong[:, CHAT][wrong[:, CHAT] == 0] = 99
    return wrong


def shifted(windows: Any) -> Any:
    wrong = windows.copy()
    wrong[:, LEARNED] = np.roll(wrong[:, LEARNED], 1, axis=1)
    return wrong


def merged(windows: Any) -> Any:
    wrong = windows.copy()
    wrong[:, CHAT] = wrong[:, CHAT] > 0
    return wrong


MUTANTS = [all_learned, padding_learned, shifted, merged]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_control_a_wrong_mask_is_noticed(mutant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = pack(make_chats(), T, PAD).windows
    check_batch(windows)
    right = as_batch
    monkeypatch.setitem(globals(), "as_batch", lambda w, bos: right(mutant(w), bos))
    with pytest.raises(AssertionError):
        check_batch(windows)


def of_conversations_alone(model: Any, chats: list[Encoded], mtp_weight: float) -> Any:
    """Gradients and expert counts of the objective, every conversation run by itself."""
    losses: dict[int, list[Any]] = {1: [], 2: []}
    counts = 0
    for chat in chats:
        ids = torch.tensor([list(chat.ids)])
        output = model(ids)
        counts = counts + output.counts
        drafted, _ = model.mtp(output.hidden[:, :-1], ids[:, 1:])
        for by, logits in ((1, output.logits), (2, drafted)):
            for t in range(len(chat.ids) - by):
                if chat.learned[t + by]:
                    losses[by].append(cross_entropy(logits[0, t], ids[0, t + by]))
    main, mtp = (torch.stack(losses[by]).mean() for by in (1, 2))
    (main + mtp_weight * mtp).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}, counts


def difference(kit: Any) -> tuple[float, bool]:
    """A packed step against the definition: (gradient's deviation, counts and tokens the same).

    The deviation is the largest, over the largest entry of each parameter.
    """
    chats = make_chats()
    windows = pack(chats, T, PAD).windows
    settings = kit.settings(
        precision="float64", grad_clip=1e9, lr=1e-9, balance_weight=0.0, z_loss_weight=0.0,
        batch_size=len(windows), micro_batches=1, init="x", sft=("x",),
    )  # fmt: skip
    trainer = kit.trainer(settings, tokens=windows)
    model = FlashModel(kit.config(), dtype=torch.float64, seed=settings.seed)
    want, counts = of_conversations_alone(model, chats, settings.mtp_weight)
    record = trainer.train_step()
    counted = torch.equal(trainer.tally.counts, counts.double())
    same = counted and record["tokens"] == sum(len(c.ids) for c in chats)
    got = {n: p.grad for n, p in trainer.model.named_parameters()}
    apart = [(got[n] - g).abs().max() / g.abs().max().clamp(min=1e-30) for n, g in want.items()]
    return float(max(apart)), same


def test_a_packed_step_is_that_of_the_conversations_alone(kit: Any) -> None:
    """Gradient, counts of the experts and tokens: nothing sees its neighbour or the padding."""
    apart, same = difference(kit)
    assert apart < 1e-9
    assert same


@pytest.mark.parametrize("mutant", MUTANTS)
def test_control_a_step_on_other_tokens_is_noticed(
    kit: Any, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = as_batch
    monkeypatch.setattr(packing, "as_batch", lambda w, bos: right(mutant(w), bos))
    apart, same = difference(kit)
    assert apart > 1e-3
    assert same == (mutant in (all_learned, shifted))  # the others let the experts see more


def test_batches_are_a_function_of_seed_and_step_and_cover_every_epoch() -> None:
    windows = pack(make_chats(30), T, PAD).windows
    count = len(windows)

    def order(seed: int) -> list[int]:
        made = PackedWindows(windows, batch_size=4, seed=seed, bos=BOS)
        return [made.place(n) for n in range(3 * count)]

    assert order(0) == order(0) != order(1)
    for epoch in range(3):
        assert sorted(order(0)[epoch * count : (epoch + 1) * count]) == list(range(count))
    made = PackedWindows(windows, batch_size=4, seed=0, bos=BOS)
    whole = made.batch(5).inputs
    parts = [PackedWindows(windows, batch_size=4, seed=0, bos=BOS).batch(5, p, 2) for p in (0, 1)]
    assert (np.concatenate([p.inputs for p in parts]) == whole).all()
    with pytest.raises(ValueError, match="cannot be cut into part 0 of 3"):
        made.batch(0, 0, 3)
