"""Training on GPUs against training on the CPU, where there are some: `pytest -m gpu`."""

import pytest
import torch

from longcat.train import open_run, resume_run, train_run
from longcat.train.device import choose_device, own_device
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent
from longcat.train.metrics import read_metrics
from longcat.train.parallel.layout import Layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
STEPS = 20


@pytest.fixture
def gpu():
    yield own_device(torch.device("cuda"), 0)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("changes", [{}, {"document_mask": True}, {"recompute": "layer"}])
def test_twenty_steps_agree_with_the_cpu_in_float32(kit, gpu, changes):
    """Later a rounding may flip a router's near-tie, as between two layouts."""
    settings = kit.settings(steps=STEPS, lr=1e-3, **changes)
    losses = [
        [trainer.train_step()["loss"] for _ in range(STEPS)]
        for trainer in (kit.trainer(settings), kit.trainer(settings, exchange=Exchange(device=gpu)))
    ]
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-3
    assert max(abs(a - b) for a, b in zip(losses[0][:3], losses[1][:3], strict=True)) < 1e-5


def test_a_bf16_step_waits_for_the_device_only_where_its_figures_are_read(kit, gpu):
    trainer = kit.trainer(kit.settings(precision="bf16"), exchange=Exchange(device=gpu))
    trainer.train_step()  # what is made or moved once
    torch.cuda.set_sync_debug_mode("error")
    try:
        norms = trainer._gradients(trainer.windows.batch(1), measure=False, stop=False)
        with pytest.raises(RuntimeError, match="synchroniz"):  # the control
            norms.cpu()
        trainer._update(1e-3, 2.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_a_resumed_run_has_the_bits_of_one_in_one_go(kit, gpu, tmp_path, precision):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(6):
        (text / f"{number}.txt").write_text(kit.text(number, 200))
    found = []
    for cut in (None, 5):
        out = tmp_path / f"run-{cut}"
        settings = kit.settings(
            preset="nano", data=(str(text),), steps=10, save_every=5, precision=precision
        )
        session = open_run(out, settings, processes=1, device=choose_device(), say=lambda _: None)
        if cut:
            asked = iter([False] * (cut - 1) + [True] * 9)
            from longcat.train.loop import run

            run(
                session.directory,
                session.prepared,
                Exchange(device=gpu),
                Silent(),
                lambda asked=asked: next(asked),
            )
            session = resume_run(out, {}, processes=1, device=choose_device(), say=lambda _: None)
            assert "exactness" not in {row.label for row in session.card}
        trainer, _ = train_run(session, Silent())
        found.append((trainer, [record["loss"] for record in read_metrics(out)]))
    (whole, whole_losses), (resumed, resumed_losses) = found
    assert whole_losses == resumed_losses
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize(
    "layout", [Layout(), Layout(expert_parallel=2), Layout(fsdp=True), Layout(pipeline=True)]
)
def test_two_gpus_by_nccl_agree_with_one(kit, gpu, tmp_path, layout):
    text = tmp_path / "text.txt"
    text.write_text(kit.text(0, 2000))
    losses = []
    for processes, how in ((1, Layout()), (2, layout)):
        out = tmp_path / f"run-{processes}"
        settings = kit.settings(
            preset="bench", data=(str(text),), steps=10, micro_batches=4, lr=1e-3, seq_len=64
        )
        session = open_run(
            out,
            settings,
            processes=processes,
            layout=how,
            device=choose_device(),
            say=lambda _: None,
        )
        train_run(session, Silent())
        losses.append([record["loss"] for record in read_metrics(out)])
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-3
