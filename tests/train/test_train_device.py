"""Who computes on what: the choice of a device, one GPU for each process, and what travels by which
backend. No GPU is needed: torch's answers are played.
"""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from longcat.train import device as devices
from longcat.train import preflight
from longcat.train.device import CPU, backend_of, choose_device, own_device, sent
from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange, connected
from longcat.train.loop import begin, make_trainer
from longcat.train.memory import check_memory, estimate_bytes
from longcat.train.parallel import launch as launching
from longcat.train.parallel.launch import Launch, follow
from longcat.train.parallel.layout import Layout
from longcat.train.preflight import choose_processes
from longcat.train.prepare import prepare, reopen
from longcat.train.snapshot import read_snapshot
from longcat.train.workers import Workers

CUDA = torch.device("cuda")


@pytest.fixture
def two_gpus(monkeypatch):
    """torch.cuda as it answers where there are two GPUs."""
    asked = SimpleNamespace(device=None, deterministic=None)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: setattr(asked, "device", d))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (10**9, 2 * 10**9))
    monkeypatch.setattr(
        torch, "use_deterministic_algorithms", lambda on: setattr(asked, "deterministic", on)
    )
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    return asked


def test_auto_is_a_gpu_where_torch_sees_one(two_gpus):
    assert choose_device() == choose_device("auto") == choose_device("cuda") == CUDA
    assert choose_device("cpu") == CPU


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device() == choose_device("cpu") == CPU
    with pytest.raises(RunError, match="--device cuda needs a CUDA device, and torch sees none"):
        choose_device("cuda")
    with pytest.raises(RunError, match="--device must be auto, cpu or cuda; got gpu"):
        choose_device("gpu")


def test_a_process_takes_the_gpu_of_its_number_and_makes_it_deterministic(two_gpus):
    assert own_device(CUDA, 1) == two_gpus.device == torch.device("cuda", 1)
    assert two_gpus.deterministic is True
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"
    with pytest.raises(RunError, match="process 2 of this machine has no GPU of its own, torch"):
        own_device(CUDA, 2)


def test_on_the_cpu_nothing_of_torchs_is_changed(two_gpus):
    assert own_device(CPU, 7) == CPU
    assert two_gpus.device is two_gpus.deterministic is None
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_host_numbers_stay_with_gloo_beside_nccl():
    assert backend_of(CPU) == "gloo"
    assert backend_of(CUDA) == "cpu:gloo,cuda:nccl"


def test_a_broken_connection_of_either_backend_is_told_in_a_sentence():
    for message in ("[gloo/transport] Connection closed", "NCCL error in: x.cpp:1, remote process"):
        with pytest.raises(RunError, match="a process of this run ended"), connected():
            raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="out of memory"), connected():
        raise RuntimeError("CUDA out of memory")


def test_what_is_sent_to_a_gpu_is_pinned_and_not_waited_for(monkeypatch):
    array = np.arange(3)
    assert torch.equal(sent(array, CPU), torch.arange(3))
    told = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: told.append("pinned") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda *args, **how: told.append(how))
    sent(array, torch.device("cuda", 0))
    assert told == ["pinned", {"non_blocking": True}]


def test_there_is_one_process_for_each_gpu(two_gpus):
    count, why = choose_processes(None, 4, CUDA)
    assert (count, why) == (2, "one for each GPU; torch sees 2 here")
    assert choose_processes(None, 3, CUDA)[0] == 1  # two cannot share three micro-batches
    assert choose_processes(4, 4, CUDA) == (4, "as asked")  # torchrun's may be on more machines


def test_memory_is_that_of_one_gpu_and_splitting_helps(kit, two_gpus, monkeypatch):
    config, settings, gpu = kit.config(num_layers=8), kit.settings(), torch.device("cuda", 0)
    need = check_memory(config, settings, 2, device=gpu)
    assert need == estimate_bytes(config, settings)  # not twice
    assert check_memory(config, settings, 2, Layout(fsdp=True), gpu) < need
    by_experts = check_memory(config, settings, 2, Layout(expert_parallel=2), gpu)
    assert check_memory(config, settings, 2, Layout(fsdp=True), gpu) < by_experts < need
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (10**5, 10**9))
    with pytest.raises(RunError, match=r"on each of 2 GPU\(s\), the first has .* split the model"):
        check_memory(config, settings, 2, device=gpu)


def test_a_model_that_no_gpu_holds_whole_is_not_measured(kit, two_gpus, tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path / "run")
    settings = kit.settings(precision="auto")
    prepared = prepare(directory, kit.corpus(), settings, kit.config())
    monkeypatch.setattr(preflight, "measure_peak", lambda precision, device: 1e15)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda d: (10**5, 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    gpu, layout = torch.device("cuda", 0), Layout(fsdp=True)
    found = preflight.probe(prepared, gpu)
    assert (found.tokens_per_s, found.precision) == ({}, "bf16")
    rows = preflight.card(prepared, found, 2, "", "run", layout, gpu)
    told = {row.label: row.value for row in rows}
    assert told["time"] == "not estimated"
    assert told["processes"] == "2 x H100"
    assert told["memory"].endswith("on each GPU")


def test_the_exchange_says_where_model_optimizer_and_sums_lie(kit):
    # The meta device stands for a GPU: it has places and no numbers.
    trainer = kit.trainer(exchange=Exchange(device=torch.device("meta")))
    tensors = [*trainer.model.state_dict().values(), trainer.controller.error, trainer._token_bytes]
    tensors += [trainer._sums.row, trainer.pieces.gradients, trainer.controller.previous_error]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert trainer.tally.row.device == CPU  # what the metrics line is made of is read


def test_a_snapshot_of_one_device_is_read_on_another(kit, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    begin(directory, prepare(directory, kit.corpus(), kit.settings(), kit.config()))
    there = Exchange(device=torch.device("meta"))
    trainer = make_trainer(reopen(directory), there)
    read_snapshot(trainer, directory.latest())
    places = {v.device.type for s in trainer.optimizer.state.values() for v in s.values()}
    assert places == {"meta"}


def test_a_mesh_is_made_of_the_devices_that_the_processes_compute_on(kit, monkeypatch):
    from longcat.train.parallel import split

    asked = []

    def stop(kind, *_, **__):
        asked.append(kind)
        raise KeyboardInterrupt

    monkeypatch.setattr(split, "init_device_mesh", stop)
    for kind in ("cpu", "cuda"):
        exchange = Exchange(0, 2, Layout(expert_parallel=2), device=torch.device(kind, 0))
        with pytest.raises(KeyboardInterrupt):
            kit.trainer(exchange=exchange)
    assert asked == ["cpu", "cuda"]


def test_local_workers_are_told_the_kind_of_device_and_take_their_own(kit, tmp_path, monkeypatch):
    directory = RunDirectory(tmp_path / "run")
    begin(directory, prepare(directory, kit.corpus(), kit.settings(), kit.config()))
    tasks = []

    def start(self, task, environment):
        tasks.append(task)
        raise KeyboardInterrupt

    monkeypatch.setattr(Workers, "_start", start)
    with pytest.raises(KeyboardInterrupt):
        Workers(directory.path, 2, device=torch.device("cuda", 0)).__enter__()
    assert (tasks[0].device, tasks[0].rank) == ("cuda", 1)


def test_a_process_on_another_kind_of_device_than_rank_0_is_refused(monkeypatch):
    joined = []
    monkeypatch.setattr(launching, "_join", lambda launch, device: joined.append(device))
    monkeypatch.setattr(
        launching.dist,
        "broadcast_object_list",
        lambda told, src: told.__setitem__(0, {"device": "cuda", "layout": {}}),
    )
    monkeypatch.setattr(launching.signal, "signal", lambda *_: None)
    with pytest.raises(RunError, match="rank 0 computes on cuda, rank 3 on cpu; give every proc"):
        follow(Launch(rank=3, world=4, local=4, local_rank=3), CPU)
    assert joined == [CPU]


def test_torchruns_local_rank_is_the_number_of_the_gpu(two_gpus, monkeypatch):
    joined = []
    monkeypatch.setattr(
        launching, "_join", lambda launch, device: joined.append(device) or exit("here")
    )
    with pytest.raises(SystemExit):
        follow(Launch(rank=5, world=8, local=2, local_rank=1), CUDA)
    assert joined == [torch.device("cuda", 1)]
    assert devices.gpus() == 2
