"""Silent corruption: one operator computed twice, replicas compared, steps made twice."""

from dataclasses import replace

import pytest
import torch

from longcat.attention.mla import MLA
from longcat.train.directory import RunDirectory
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.metrics import read_metrics
from longcat.train.prepare import prepare
from longcat.train.trainer import Trainer
from longcat.train.watch.recheck import same_bits
from longcat.train.watch.replicas import differing, fingerprint
from longcat.train.workers import Workers


def start(kit, path, **changes):
    directory = RunDirectory(path)
    prepared = prepare(directory, kit.corpus(), kit.settings(**changes), kit.config())
    begin(directory, prepared)
    return directory, prepared


def flipped(tensor, place=5, bit=9):
    changed = tensor.detach().clone(memory_format=torch.contiguous_format)
    changed.view(-1).view(torch.int32)[place] ^= 1 << bit
    return changed


@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
@pytest.mark.parametrize("mask", [False, True])
def test_a_healthy_machine_gives_the_same_bits_twice_and_the_check_changes_nothing(
    kit, precision, mask
):
    settings = kit.settings(precision=precision, document_mask=mask)
    plain, checked = kit.trainer(settings), kit.trainer(replace(settings, sdc_every=1))
    for _ in range(5):  # all four attentions, and the first one again
        plain.train_step()
        assert checked.train_step()["alarms"] == []
    assert checked.corruption.clean_until == 5
    for a, b in zip(plain.model.parameters(), checked.model.parameters(), strict=True):
        assert torch.equal(a, b)


def spoil(monkeypatch, attention, what):
    """One bit of this attention's output, or of a gradient, changes on the next call."""
    original, left = MLA.attend, [1]

    def attend(self, state, cache=None):
        if self is not attention or not left[0]:
            return original(self, state, cache)
        left[0] = 0
        if what == "gradient":
            q_nope = state.q_nope.clone()
            q_nope.register_hook(flipped)
            return original(self, replace(state, q_nope=q_nope), cache)
        output = original(self, state, cache)
        return output + (flipped(output) - output.detach())

    monkeypatch.setattr(MLA, "attend", attend)


@pytest.mark.parametrize("what", ["output", "gradient"])
@pytest.mark.parametrize("turn", range(4))
def test_a_flipped_bit_in_the_attention_of_the_turn_is_found_and_named(
    kit, monkeypatch, what, turn
):
    trainer = kit.trainer(kit.settings(sdc_every=1, measure_every=1 << 20))
    layer, which = divmod(turn, 2)
    for _ in range(turn):
        trainer.train_step()
    spoil(monkeypatch, trainer.layers[layer].self_attn[which], what)
    found = trainer.train_step()["alarms"]
    assert found[0]["kind"] == "corruption"
    assert f"the {what} of attention {which + 1} in layer {layer + 1}" in found[0]["text"]
    assert len(found) == 1
    assert trainer.corruption.clean_until == turn


def test_control_a_bit_in_an_attention_whose_turn_it_is_not_is_missed(kit, monkeypatch):
    """The check is a sample: say so, rather than promise more."""
    trainer = kit.trainer(kit.settings(sdc_every=1))
    spoil(monkeypatch, trainer.layers[1].self_attn[0], "output")
    assert trainer.train_step()["alarms"] == []


def test_between_two_checks_nothing_is_checked(kit, monkeypatch):
    trainer = kit.trainer(kit.settings(sdc_every=3))
    spoil(monkeypatch, trainer.layers[0].self_attn[0], "output")
    assert [bool(trainer.train_step()["alarms"]) for _ in range(3)] == [False] * 3
    assert trainer.corruption.clean_until == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_every_single_bit_changes_the_fingerprint(dtype):
    tensor = torch.arange(1, 11).reshape(2, 5).to(dtype)
    original = fingerprint(tensor)
    octets = tensor.view(-1).view(torch.uint8)
    for place in range(octets.numel()):
        for bit in range(8):
            octets[place] ^= 1 << bit
            assert fingerprint(tensor) != original
            octets[place] ^= 1 << bit
    assert fingerprint(tensor) == original
    assert fingerprint(tensor.flip(0)) != original  # places count, a plain sum would not see it


def test_bits_are_compared_not_numbers():
    zero = torch.tensor([0.0])
    assert not same_bits(zero, -zero)
    assert same_bits(torch.tensor([torch.nan]), torch.tensor([torch.nan]))
    assert not same_bits(zero, zero.double())


class Other(Exchange):
    """Rank 0 of 2; what the other one would have added is computed from its tensors."""

    def __init__(self, own, other):
        super().__init__(0, 2)
        self.own, self.other = own, other

    def sum_(self, tensor, group=None):
        numbers = [fingerprint(t) for t in self.other.values()]
        if tensor.shape[1] != len(numbers):  # the second question: rows of the stack
            numbers = [fingerprint(t) for t in self.other["stack"]]
        tensor[1] = torch.tensor(numbers, dtype=torch.float64)


def test_the_tensor_and_the_expert_that_differ_are_named():
    own = {"plain": torch.randn(4, 3), "stack": torch.randn(5, 2, 2), "same": torch.randn(3)}
    other = {name: t.clone() for name, t in own.items()}
    assert differing(own, Other(own, other)) == []
    other["plain"] = flipped(other["plain"])
    other["stack"][3] += 1
    assert differing(own, Other(own, other)) == ["plain", "stack, expert 3"]
    assert differing(own, Exchange()) == []


def test_a_stale_expert_on_one_of_two_processes_is_found(kit, tmp_path, monkeypatch):
    original = Trainer.train_step

    def train_step(self, *, stop=False):
        expert = self.layers[1].mlp.experts.down_proj.data[3]
        before = expert.clone()
        record = original(self, stop=stop)
        if self.step == 4 and self.exchange.rank == 0:
            expert.copy_(before)
        return record

    monkeypatch.setattr(Trainer, "train_step", train_step)
    directory, prepared = start(kit, tmp_path / "run", steps=6, sdc_every=2)
    with Workers(directory.path, 2) as workers:
        run(directory, prepared, workers.exchange, Silent())
    found = {r["step"]: r["alarms"] for r in read_metrics(directory.path) if r["alarms"]}
    assert list(found) == [6]
    assert "model.layers.1.mlp.experts.down_proj, expert 3" in found[6][0]["text"]


def test_a_corruption_is_gone_back_for_to_the_last_checked_snapshot(kit, tmp_path, monkeypatch):
    """The snapshot of step 5 is not trusted: the last check that found nothing was step 4's."""
    clean, prepared = start(kit, tmp_path / "clean", steps=8, save_every=1, keep=8)
    expected = run(clean, prepared, Exchange(), Silent()).model.state_dict()
    changes = {"steps": 8, "save_every": 1, "keep": 8, "sdc_every": 2, "rollback": 1}
    directory, prepared = start(kit, tmp_path / "run", **changes)

    class Spoil(Silent):
        def step(self, record, progress, seconds_left):
            if record["step"] == 5 and not spoilt:  # attention 1 of layer 2 has the next turn
                spoilt.append(True)
                spoil(monkeypatch, kept[0].layers[1].self_attn[0], "output")

    spoilt, kept, original = [], [], Trainer.start_clock

    def remember(self):
        kept[:] = [self]
        original(self)

    monkeypatch.setattr(Trainer, "start_clock", remember)
    trainer = run(directory, prepared, Exchange(), Spoil())
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    text = read_metrics(directory.path)[4]["alarms"][0]["text"]
    assert "step 6 went wrong" in text
    assert "back to step 4" in text
