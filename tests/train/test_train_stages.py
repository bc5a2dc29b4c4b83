"""Context extension in stages: window length and rotary base are pure functions of the step."""

import json

import numpy as np
import pytest
import torch

from longcat.flash import FlashConfig, FlashModel, reference
from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.metrics import TIMED_FIELDS, read_metrics
from longcat.train.prepare import model_config, prepare, reopen
from longcat.train.session import resume_run
from longcat.train.settings import TrainSettings
from longcat.train.snapshot import read_snapshot
from longcat.train.stages import ContextStage, stage_at

STAGES = (ContextStage(3, 48, 5e4), ContextStage(5, 192, 1e5))
LONG = {"steps": 7, "batch_size": 16, "seq_len": 24, "context_stages": STAGES}


def test_the_stage_follows_from_the_step_alone():
    assert [stage_at(STAGES, step) for step in (0, 2, 3, 4, 5, 99)] == [
        None,
        None,
        STAGES[0],
        STAGES[0],
        STAGES[1],
        STAGES[1],
    ]
    assert stage_at((), 7) is None


def test_tokens_per_step_stay_while_windows_grow(kit):
    trainer = kit.trainer(kit.settings(**LONG), config=kit.config(max_position_embeddings=128))
    seen = []
    for _ in range(7):
        before = trainer.tokens_seen
        trainer.train_step()
        inputs = trainer.windows.batch(trainer.step).inputs.shape
        config = trainer.model.config
        theta, positions = config.attention.rope_theta, config.max_position_embeddings
        seen.append((trainer.tokens_seen - before, inputs, theta, positions))
    assert (
        seen
        == [(384, (16, 24), 1e4, 128)] * 3
        + [(384, (8, 48), 5e4, 128)] * 2
        + [(384, (2, 192), 1e5, 192)] * 2
    )


@torch.no_grad()
def test_a_model_with_a_new_base_is_the_model_built_with_it(kit):
    model = FlashModel(kit.config(), dtype=torch.float64, seed=0)
    built = FlashModel(kit.config(rope_theta=5e4, max_position_embeddings=192), seed=0).double()
    built.load_state_dict(model.state_dict())
    ids = torch.from_numpy(kit.ids()[:40])[None]
    before = model(ids).logits
    model.set_rope(5e4, 192)
    assert model.config == built.config
    assert torch.equal(model(ids).logits, built(ids).logits)
    assert not torch.allclose(model(ids).logits, before)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    want = reference.forward(weights, model.config.to_hf(), ids[0].numpy())
    np.testing.assert_allclose(model(ids).logits[0].numpy(), want.logits, rtol=0, atol=1e-9)


def started(kit, path):
    directory = RunDirectory(path)
    prepared = prepare(directory, kit.corpus(), kit.settings(**LONG), kit.config())
    begin(directory, prepared)
    return directory, prepared


def stopped_at(kit, path, at):
    directory, prepared = started(kit, path)
    asked = iter(step + 1 >= at for step in range(100))
    run(directory, prepared, Exchange(), Silent(), stopping=lambda: next(asked))
    assert directory.latest().name == f"step-{at:08d}"
    return directory


@pytest.fixture(scope="module")
def whole(kit, tmp_path_factory):
    directory, prepared = started(kit, tmp_path_factory.mktemp("whole") / "run")
    return directory, run(directory, prepared, Exchange(), Silent())


def untimed(directory):
    return [
        {k: v for k, v in r.items() if k not in TIMED_FIELDS} for r in read_metrics(directory.path)
    ]


def weights_equal(a, b):
    wanted, got = a.model.state_dict(), b.model.state_dict()
    return all(torch.equal(got[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("at", [2, 3, 4, 6])
def test_a_run_cut_anywhere_around_a_border_resumes_to_the_same_bits(kit, tmp_path, whole, at):
    directory = stopped_at(kit, tmp_path / "run", at)
    resumed = run(directory, reopen(directory), Exchange(), Silent())
    assert weights_equal(whole[1], resumed)
    assert untimed(directory) == untimed(whole[0])


@pytest.mark.parametrize("mutant", ["base of the start", "windows of the start"])
def test_control_a_resume_that_forgets_its_stage_is_noticed(
    kit, tmp_path, whole, mutant, monkeypatch
):
    directory = stopped_at(kit, tmp_path / "run", 6)
    name = "set_rope" if mutant == "base of the start" else "of_length"
    owner = "longcat.flash.FlashModel" if name == "set_rope" else "longcat.train.batches.Windows"
    reopened = reopen(directory)
    if name == "set_rope":  # reopening alone would bring the base along with the snapshot's sizes
        old = kit.config(max_position_embeddings=192)
        reopened = type(reopened)(**{**vars(reopened), "config": old})
    monkeypatch.setattr(f"{owner}.{name}", lambda self, *_: self)
    resumed = run(directory, reopened, Exchange(), Silent())
    assert not weights_equal(whole[1], resumed)


def test_the_saved_config_holds_the_base_in_force_and_its_positions(kit, tmp_path, whole):
    def saved(directory):
        fields = json.loads((directory.path / "config.json").read_text())
        return fields["rope_theta"], fields["max_position_embeddings"]

    assert saved(whole[0]) == (1e5, 192)
    loaded = FlashModel.from_pretrained(whole[0].path)
    assert loaded.config == whole[1].model.config
    # A snapshot taken exactly at a border was trained with the base before it.
    assert saved(stopped_at(kit, tmp_path / "run", 3)) == (1e4, 128)


def test_going_back_over_a_border_goes_back_to_its_base(kit, tmp_path, whole):
    early = stopped_at(kit, tmp_path / "early", 2)
    trainer = kit.trainer(kit.settings(**LONG), config=whole[1].model.config)
    read_snapshot(trainer, early.latest())
    assert trainer.model.config.attention.rope_theta == 1e4
    trainer.train_step()
    assert (trainer.windows.seq_len, trainer.model.config.attention.rope_theta) == (24, 1e4)


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([(5, 48, 5e4), (3, 96, 1e5)], "3:96:100000 begins no later than step 5; give stages in"),
        ([(0, 48, 5e4)], "begins no later than step 0"),
        ([(9, 48, 5e4)], "is never reached in 7 steps"),
        ([(3, 24, 5e4)], "windows no longer than the 24 tokens before it"),
        ([(3, 48, 5e4), (5, 96, 1e4)], "not below the 50000 before it"),
        ([(3, 48, float("nan"))], "must have a theta above 1"),
        ([(3, 40, 5e4)], "cannot cut the 384 tokens of a step into windows of 40 for 2 micro"),
        ([(3, 384, 5e4)], "for 2 micro-batches; choose a --batch-size"),
    ],
)
def test_stages_that_make_no_sense_are_refused(kit, stages, words):
    with pytest.raises(RunError, match=words):
        kit.settings(**{**LONG, "context_stages": tuple(ContextStage(*s) for s in stages)})


def test_packed_conversations_cannot_be_cut_anew(kit):
    with pytest.raises(RunError, match="--context-stage does not go with --sft"):
        kit.settings(**LONG, sft=("chats.jsonl",), init="model")


def test_a_base_below_the_preset_s_is_refused():
    settings = TrainSettings(steps=9, context_stages=(ContextStage(3, 512, 5e3),))
    with pytest.raises(RunError, match="3:512:5000 has a theta below the preset's 10000"):
        model_config(settings)


def test_stages_are_written_as_text_and_saved_with_the_run(kit, tmp_path):
    assert ContextStage.parse("3:48:5e4") == STAGES[0]
    assert ContextStage.parse(str(STAGES[1])) == STAGES[1]
    for text in ("3:48", "a:48:1e5", "3:48:1e5:2"):
        with pytest.raises(RunError, match="expects STEP:SEQ_LEN:THETA"):
            ContextStage.parse(text)
    settings = kit.settings(**LONG)
    assert TrainSettings.from_json(settings.to_json()) == settings
    directory, _ = started(kit, tmp_path / "run")
    with pytest.raises(RunError, match="context_stages is"):
        resume_run(directory.path, {"context_stages": STAGES[:1]}, say=lambda _: None)
    same = resume_run(directory.path, {"context_stages": STAGES}, say=lambda _: None)
    assert same.prepared.settings.context_stages == STAGES
    assert [row.label for row in same.card if row.label.startswith("from step")] == [
        "from step 3",
        "from step 5",
    ]


def test_a_preset_extended_beyond_its_positions_says_so_in_its_config(kit):
    config = FlashConfig.preset("nano")
    model = FlashModel(config, device="meta")
    model.set_rope(5e5, 4096)
    assert model.config.to_hf()["max_position_embeddings"] == 4096
    assert model.config.attention.max_position == 4096
