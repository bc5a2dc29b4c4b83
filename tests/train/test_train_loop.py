"""The optimizer step and the loop: exact resuming, counts, the controller, an orderly end."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from longcat.flash import FlashModel
from longcat.flash.tokenizer import Tokenizer
from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.metrics import FIELDS, TIMED_FIELDS, read_metrics
from longcat.train.prepare import prepare, reopen
from longcat.train.snapshot import read_snapshot
from longcat.train.trainer import Trainer


def start(kit, path, **changes):
    directory = RunDirectory(path)
    prepared = prepare(directory, kit.corpus(), kit.settings(**changes), kit.config())
    begin(directory, prepared)
    return directory, prepared


def state_of(trainer):
    state = {n: t.clone() for n, t in trainer.model.state_dict().items()}
    names = {p: n for n, p in trainer.model.named_parameters()}
    for parameter, moments in trainer.optimizer.state.items():
        for key, value in moments.items():
            state[f"{names[parameter]}.{key}"] = value.clone()
    for key, value in trainer.controller.state_dict().items():
        state[f"controller.{key}"] = torch.as_tensor(value)
    return state


def untimed(records):
    return [{k: v for k, v in r.items() if k not in TIMED_FIELDS} for r in records]


class Killed(BaseException):
    """Ends the loop as a kill would: nothing is saved or tidied up."""


def killer(at):
    class Killer(Silent):
        def step(self, record, progress, seconds_left):
            if record["step"] == at:
                raise Killed

    return Killer()


def test_a_killed_and_resumed_run_gives_the_bits_of_one_that_was_not(kit, tmp_path):
    whole_dir, prepared = start(kit, tmp_path / "whole", steps=8, save_every=4)
    whole = run(whole_dir, prepared, Exchange(), Silent())
    cut_dir, prepared = start(kit, tmp_path / "cut", steps=8, save_every=4)
    with pytest.raises(Killed):
        run(cut_dir, prepared, Exchange(), killer(at=6))
    assert cut_dir.latest().name == "step-00000004"
    resumed = run(cut_dir, reopen(cut_dir), Exchange(), Silent())
    expected, got = state_of(whole), state_of(resumed)
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name
    assert untimed(read_metrics(cut_dir.path)) == untimed(read_metrics(whole_dir.path))


@pytest.mark.parametrize("lost", ["moments", "controller", "position"])
def test_control_a_resume_that_loses_a_part_of_the_state_is_noticed(
    kit, tmp_path, monkeypatch, lost
):
    whole_dir, prepared = start(kit, tmp_path / "whole", steps=6, save_every=3)
    whole = run(whole_dir, prepared, Exchange(), Silent())
    cut_dir, prepared = start(kit, tmp_path / "cut", steps=6, save_every=3)
    with pytest.raises(Killed):
        run(cut_dir, prepared, Exchange(), killer(at=5))

    def forgetful(trainer, snapshot):
        read_snapshot(trainer, snapshot)
        if lost == "moments":
            trainer.optimizer.state.clear()
        elif lost == "controller":
            trainer.controller.step = 0
        else:
            trainer.windows.seed += 1

    monkeypatch.setattr("longcat.train.loop.read_snapshot", forgetful)
    resumed = run(cut_dir, replace(reopen(cut_dir)), Exchange(), Silent())
    expected, got = whole.model.state_dict(), resumed.model.state_dict()
    assert not all(torch.equal(expected[n], got[n]) for n in expected)


def test_metrics_have_every_field_and_are_cut_back_on_resume(kit, tmp_path):
    directory, prepared = start(kit, tmp_path / "run", steps=6, save_every=2)
    with pytest.raises(Killed):
        run(directory, prepared, Exchange(), killer(at=5))
    with (directory.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1.')
    run(directory, reopen(directory), Exchange(), Silent())
    lines = (directory.path / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert all(set(FIELDS) <= set(r) for r in records)
    assert [r["r_g"] is not None for r in records] == [True, False] * 3
    assert all(len(r["ffn_experts_mean"]) == 2 for r in records)
    assert all(r["cpu_seconds"] > 0 for r in records)


def test_every_token_is_counted_once_in_each_layer(kit):
    trainer = kit.trainer()
    trainer.train_step()
    tokens = 4 * 24
    assert trainer.tally.counts.sum(dim=1).tolist() == [tokens * 4] * 2  # top-4
    assert trainer.tally["tokens"] == tokens
    assert trainer.tokens_seen == tokens


def test_the_measurement_of_r_g_changes_nothing(kit):
    """Measured or not, a step gives the same bits: the extra gradient is not accumulated."""
    often = kit.trainer(kit.settings(measure_every=1))
    never = kit.trainer(kit.settings(measure_every=1 << 20))
    never.step = often.step = 1
    for trainer in (often, never):
        trainer.train_step()
    for a, b in zip(often.model.parameters(), never.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_r_g_is_the_ratio_of_two_separate_gradients(kit):
    """Against finite differences of the cross entropy and the definition of the loss."""
    settings = kit.settings(measure_every=1, precision="float64", micro_batches=1, mtp_weight=0.0)
    trainer = kit.trainer(settings, config=kit.config(num_nextn_predict_layers=0))
    batch = trainer.windows.batch(0)
    inputs = torch.from_numpy(batch.inputs)
    targets = torch.from_numpy(batch.next_ids).flatten()
    model = trainer.model
    before = {n: t.clone() for n, t in model.state_dict().items()}
    record = trainer.train_step()
    model.load_state_dict(before)
    with torch.no_grad():
        f = model(inputs).balance_f[0].double()
    pull = torch.cat([f[:1].expand(8), f[1:].expand(8)])
    # d(loss)/d(mean scores): shift every token's score of one expert by +-h through the gates
    import longcat.router.router as router_module

    original, gradient, h = router_module.route, [], 1e-6
    for expert in range(16):
        losses = []
        for sign in (1, -1):
            calls = []

            def shifted(logits, bias, k, scale, chosen, e=expert, s=sign, calls=calls):
                scores, indices, gates = original(logits, bias, k, scale, chosen)
                calls.append(1)
                if len(calls) == 1:  # the first layer's router
                    gates = gates + scale * s * h * (indices == e)
                return scores, indices, gates

            router_module.route = shifted
            try:
                with torch.no_grad():
                    logits = model(inputs).logits.flatten(0, 1)
                losses.append(torch.nn.functional.cross_entropy(logits, targets).item())
            finally:
                router_module.route = original
        gradient.append((losses[0] - losses[1]) / (2 * h))
    expected = settings.balance_weight * float(pull.norm()) / float(np.linalg.norm(gradient))
    assert record["r_g"][0] == pytest.approx(expected, rel=1e-4)


def test_the_controller_brings_ffn_experts_to_their_target(kit):
    """K_e/K = 3/4 where N/(N+Z) = 1/2: evening out all experts would end at 2, not at 3."""
    settings = kit.settings(steps=120, lr=1e-3, batch_size=8, mtp_weight=0.0, micro_batches=1)
    trainer = kit.trainer(settings, config=kit.config(num_layers=1, num_nextn_predict_layers=0))
    records = [trainer.train_step() for _ in range(120)]
    late = np.mean([r["ffn_experts_mean"] for r in records[-40:]], axis=0)
    assert np.abs(late - 3).max() < 0.06
    heaviest = np.mean([r["expert_load_max"] for r in records[-40:]], axis=0)
    assert heaviest.max() < 1.6


@pytest.mark.parametrize("mutant", ["no controller", "uniform target"])
def test_control_without_the_right_law_the_target_is_missed(kit, mutant):
    settings = kit.settings(steps=120, lr=1e-3, batch_size=8, mtp_weight=0.0, micro_batches=1)
    trainer = kit.trainer(settings, config=kit.config(num_layers=1, num_nextn_predict_layers=0))
    if mutant == "no controller":
        trainer.controller.frozen = True
    else:
        uniform = kit.config(expected_ffn_experts=2).router
        trainer.controller.router = uniform
    records = [trainer.train_step() for _ in range(120)]
    late = np.mean([r["ffn_experts_mean"] for r in records[-40:]], axis=0)
    assert np.abs(late - 3).max() > 0.3


def test_training_lowers_the_loss(kit, tmp_path):
    directory, prepared = start(kit, tmp_path / "run", steps=40)
    run(directory, prepared, Exchange(), Silent())
    losses = [r["loss"] for r in read_metrics(directory.path)]
    assert np.mean(losses[-5:]) < losses[0] - 1


def test_the_run_directory_is_a_checkpoint(kit, tmp_path):
    directory, prepared = start(kit, tmp_path / "run", steps=2)
    trainer = run(directory, prepared, Exchange(), Silent())
    loaded = FlashModel.from_pretrained(directory.path)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    tokenizer = Tokenizer.load(directory.path)
    assert tokenizer.encode("def alpha") == prepared.tokenizer.encode("def alpha")


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_snapshot(kit, tmp_path):
    directory, prepared = start(kit, tmp_path / "run", steps=6, save_every=2)

    class Poison(Silent):
        def saved(self, step):
            if step == 4:
                poisoned.model.lm_head.weight.data[0, 0] = math.nan

    poisoned = None
    original = Trainer.start_clock

    def remember(self):
        nonlocal poisoned
        poisoned = self
        original(self)

    Trainer.start_clock = remember
    try:
        with pytest.raises(RunError, match=r"not finite at step 5.*step 4 stands.*--resume"):
            run(directory, prepared, Exchange(), Poison())
    finally:
        Trainer.start_clock = original
    restored = FlashModel.from_pretrained(directory.path)
    assert all(t.isfinite().all() for t in restored.state_dict().values())
    assert [r["step"] for r in read_metrics(directory.path)] == [1, 2, 3, 4]


def test_an_asked_for_end_saves_the_step_it_finished(kit, tmp_path):
    directory, prepared = start(kit, tmp_path / "run", steps=50)
    asked = iter([False, False, True, True, True])
    trainer = run(directory, prepared, Exchange(), Silent(), stopping=lambda: next(asked))
    assert trainer.step == 3
    assert trainer.progress < 1
    assert directory.latest().name == "step-00000003"


def test_the_learning_rate_rises_stays_and_falls_to_zero(kit):
    trainer = kit.trainer(kit.settings(steps=100, warmup_steps=10, lr=1.0))
    rates = []
    for step in range(100):
        trainer.step = step
        rates.append(trainer.learning_rate)
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:70] == [1.0] * 60
    assert rates[85] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(1 / 30)


def test_with_a_time_budget_the_learning_rate_follows_elapsed_time(kit):
    trainer = kit.trainer(kit.settings(steps=None, time_budget=100.0, warmup_steps=1, lr=1.0))
    trainer.step = 50
    for seconds, rate in ((10, 1.0), (85, 0.5), (100, 0.0)):
        trainer.seconds = seconds
        assert trainer.learning_rate == pytest.approx(rate)
    assert trainer.is_done


def test_gradients_are_means_over_all_targets_of_the_batch_however_it_is_cut(kit):
    def gradient(parts):
        settings = kit.settings(precision="float64", micro_batches=parts, balance_weight=0.0)
        trainer = kit.trainer(settings, tokens=documents)
        captured = []
        trainer.optimizer.step = lambda: captured.append(trainer.pieces.gradients.clone())
        trainer.train_step()
        return captured[0]

    documents = kit.ids()
    documents[::17] = 1  # <s> is in no loss, so micro-batches hold unequal numbers of targets
    assert torch.allclose(gradient(1), gradient(4), rtol=1e-9, atol=1e-14)


def test_a_model_without_mtp_or_experts_trains(kit):
    plain = kit.config(num_nextn_predict_layers=0)
    record = kit.trainer(kit.settings(mtp_weight=0.0), config=plain).train_step()
    assert record["mtp_loss"] is None
    only_identity = kit.config(n_routed_experts=0, moe_topk=2, expected_ffn_experts=None)
    record = kit.trainer(config=only_identity).train_step()
    assert record["ffn_experts_mean"] == [0, 0]
    assert record["r_g"] is None
    only_ffn = kit.config(zero_expert_num=0, expected_ffn_experts=None)
    record = kit.trainer(config=only_ffn).train_step()
    assert record["ffn_experts_mean"] == [4, 4]
