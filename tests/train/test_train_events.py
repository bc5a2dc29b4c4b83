"""Claims about TensorBoard's event files, and about the option where the package is missing."""

import sys

import pytest

from longcat.cli.main import main
from longcat.train import events, resume_run, train_run
from longcat.train.directory import RunDirectory
from longcat.train.events import TensorBoard, require_tensorboard, scalars
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.metrics import read_metrics
from longcat.train.prepare import prepare

LINE = {
    "step": 3,
    "loss": 2.5,
    "r_g": None,
    "spike_norm": float("nan"),
    "ffn_experts_mean": [3.0, 3.5],
    "expert_load": [[1.0, 1.0], [0.5, 1.5]],
    "epsilon_meets_gradient": False,
    "alarms": [{"kind": "spike", "text": "so high"}],
}


def test_a_line_becomes_tags_with_a_suffix_per_layer_and_no_gaps():
    assert scalars(LINE) == {
        "loss": 2.5,
        "ffn_experts_mean/layer_1": 3.0,
        "ffn_experts_mean/layer_2": 3.5,
        "epsilon_meets_gradient": 0.0,
    }


@pytest.fixture
def missing(monkeypatch):
    """Importing tensorboard fails, installed or not."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)


@pytest.mark.parametrize("more", [[], ["--quickstart"], ["--resume"], ["--search-lr", "3"]])
def test_without_the_package_one_sentence_comes_before_anything_is_made(
    missing, tmp_path, monkeypatch, capsys, more
):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--steps", "2", "--out", "run", "--tensorboard", *more]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: train: --tensorboard needs the package tensorboard")
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_check_stays_silent_where_the_package_is(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", sys)
    require_tensorboard()


def test_a_search_has_no_event_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboard", sys)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--steps", "2", "--search-lr", "3", "--tensorboard"]) == 2
    assert "--tensorboard is for one run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


class Recorded:
    """In place of torch's writer: what it was told."""

    def __init__(self, told, folder, purge_step):
        self.told = told
        told.append(("open", purge_step))

    def add_scalar(self, tag, value, step):
        if tag == "loss":
            self.told.append((step, value))

    def __getattr__(self, name):
        return lambda *_: None


def test_going_back_opens_another_file_that_purges_from_that_step(monkeypatch, tmp_path):
    told = []
    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = lambda folder, purge_step: Recorded(told, folder, purge_step)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with TensorBoard(tmp_path, Silent()) as board:
        for step in (1, 2, 3, 2, 3):
            board.step({**LINE, "step": step}, 0.0, None)
    assert [entry[0] if entry[0] != "open" else entry for entry in told] == [
        *(("open", 1), 1, 2, 3),
        *(("open", 2), 2, 3),
    ]


class Listening(Silent):
    def __init__(self):
        self.steps, self.saves = [], []

    def step(self, record, progress, seconds_left):
        self.steps.append(record["step"])

    def saved(self, step):
        self.saves.append(step)


def loaded(path):
    """TensorBoard's own reading of a run: tag -> [(step, value)], without what was purged."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.plugin_event_multiplexer"
    )
    multiplexer = accumulator.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(path))
    multiplexer.Reload()
    tags = multiplexer.PluginRunToTagToContent("scalars")["."]
    return {
        tag: [
            (event.step, event.tensor_proto.float_val[0]) for event in multiplexer.Tensors(".", tag)
        ]
        for tag in tags
    }


@pytest.mark.parametrize("purging", [True, False])
def test_files_say_what_the_lines_say_after_a_kill_and_a_resume(
    kit, tmp_path, monkeypatch, purging
):
    pytest.importorskip("tensorboard")
    if not purging:  # the control: a file that purges nothing shows the lost steps twice
        from torch.utils import tensorboard

        honest = tensorboard.SummaryWriter
        monkeypatch.setattr(tensorboard, "SummaryWriter", lambda folder, purge_step: honest(folder))
    directory = RunDirectory(tmp_path / "run")
    settings = kit.settings(steps=5, save_every=2)
    made = prepare(directory, kit.corpus(), settings, kit.config())
    begin(directory, made)
    beside = Listening()
    with TensorBoard(directory.path, beside) as board:
        run(directory, made, Exchange(), board)
    assert beside.steps == [1, 2, 3, 4, 5]
    assert beside.saves == [2, 4, 5]
    # As after a kill at step 5: the run goes on from the snapshot of step 4.
    session = resume_run(directory.path, {"steps": 7}, processes=1, from_step=4, say=lambda _: None)
    with TensorBoard(directory.path, Silent()) as board:
        train_run(session, board)
    records = read_metrics(directory.path)
    found = loaded(directory.path / events.FOLDER)
    wanted = [(r["step"], pytest.approx(r["loss"], rel=1e-6)) for r in records]
    assert (found["loss"] == wanted) == purging
    if purging:
        assert [step for step, _ in found["mfu"]] == [5, 6, 7]  # the first part had no peak
        second = [(r["step"], pytest.approx(r["ffn_experts_mean"][1])) for r in records]
        assert found["ffn_experts_mean/layer_2"] == second
