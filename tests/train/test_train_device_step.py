"""A whole step on a device that is not the CPU, without one: no stray tensor, no wait for it.

torch lets a backend be played: tensors of its fake tensor mode that claim to lie on it have shapes,
dtypes and a device, and no numbers. Two devices meeting in one operation are an error, and so is
whatever needs a number: `.item()`, `nonzero`, a shape that depends on data. Copies to the host,
which the mode lets pass, are refused by a watch of ours, and copies from memory of the host that is
not pinned, for which the host waits. The device is called "gpu" and not "cuda":
the CPU build of torch, on which these tests must run, cannot even name one of those. So operations
are eager torch; Triton's kernels, which CUDA tensors get for RMSNorm and SwiGLU, are not run here.
"""

import re
import runpy
from functools import partial
from pathlib import Path

import pytest

KIT = runpy.run_path(str(Path(__file__).parent / "conftest.py"))
HALF = ("linear", "mm", "matmul", "bmm", "scaled_dot_product_attention")  # what autocast casts

WAYS = {
    "plain": {},
    "measured": {"measure_every": 1},
    "documents": {"document_mask": True},
    "recomputed": {"recompute": "layer"},
    "recomputed, reentrant": {"recompute": "layer-reentrant"},
    "a draft head with a mixture": {"mtp_layer": "scmoe"},
    "conversations": {"sft": ("chats",), "init": "model"},
    "float32": {"precision": "float32"},
}
# What each mutant does, and what must refuse it.
MUTANTS = {
    "a rotary table on the CPU": "inv_freq is on cpu",
    "bytes per token on the CPU": "copied to the host",
    "a number of the step": "_local_scalar_dense",
    "the real tokens taken out": "nonzero",
    "the number of FFN slots": "nonzero",
    "counts read for the controller": "copied to the host",
    "biases made on the CPU": "same device",
    "an optimizer's state on the CPU": "'cpu', 'gpu:0'",
}


def played_device():
    """Register the backend in this process; returns its device."""
    import torch
    from torch.utils import backend_registration as registration

    class Module(registration._DummyBackendModule):
        def get_amp_supported_dtype(self):
            return [torch.bfloat16]

    def cast(operation, *operands, **options):
        keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
        with torch._C._ExcludeDispatchKeyGuard(keys):
            return operation(
                *(
                    x.bfloat16() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
                    for x in operands
                ),
                **options,
            )

    registration._setup_privateuseone_for_python_backend("gpu", backend_module=Module())
    for name in HALF:
        LIBRARIES[0].impl(
            name, partial(cast, getattr(torch.ops.aten, name).default), "AutocastPrivateUse1"
        )
    LIBRARIES[1].fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    torch.Tensor.pin_memory = pin_memory  # the mode has none
    return torch.device("gpu", 0)


PINNED = []
LIBRARIES = [None, None]  # torch forgets what a library registered once the library is gone


def pin_memory(tensor):
    PINNED.append(tensor)
    return tensor


def watch():
    """A mode that refuses copies from the device to the host, and slow ones the other way."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))

            def places(values):
                return {x.device.type for x in tree_leaves(values) if isinstance(x, torch.Tensor)}

            if "gpu" in places((args, kwargs)) and "cpu" in places(result):
                raise RuntimeError(f"{func} copied to the host")
            if "gpu" not in places((args, kwargs)) and "gpu" in places(result):
                slow = [x for x in tree_leaves(args) if isinstance(x, torch.Tensor) and x.dim()]
                if any(x is not pinned for x in slow for pinned in PINNED[-1:]):
                    raise RuntimeError(f"{func} waited for the host")
            return result

    return Watch()


def made_trainer(device, changes):
    import numpy as np

    from longcat.attention import MLA
    from longcat.train.exchange import Exchange

    usual = {"precision": "bf16", "measure_every": 1 << 30, "micro_batches": 1}
    settings = KIT["make_settings"](**{**usual, **changes})
    config = KIT["make_config"](num_layers=1, nextn_use_scmoe=settings.mtp_layer == "scmoe")
    more = {}
    if settings.sft:  # windows of ids, of what is learned, and of which chat: 0 is padding
        windows = np.ones((40, 3, settings.seq_len), dtype=np.int64)
        windows[:, 2, -5:] = 0
        more["tokens"] = windows
    trainer = KIT["make_trainer"](settings, config=config, exchange=Exchange(device=device), **more)
    for module in trainer.model.modules():
        if isinstance(module, MLA):
            module.frequencies(device)  # the first step takes the tables there, once and for all
    return trainer


def mutate(mutant, trainer):
    import torch

    from longcat.attention import MLA
    from longcat.kernels.permute import eager
    from longcat.router import BiasController
    from longcat.train import step

    if mutant == "a rotary table on the CPU":
        MLA.frequencies = lambda self, device: torch.ones(self._inv_freq.shape)
    if mutant == "bytes per token on the CPU":
        trainer._token_bytes = torch.ones(300, dtype=torch.int64)
    if mutant == "a number of the step":
        add = step.add_ffn
        step.add_ffn = lambda tally, layer, used: add(tally, layer, used * used.sum().item())
    if mutant == "the real tokens taken out":
        step._without_padding = lambda values, real: values if real is None else values[real]
    if mutant == "the number of FFN slots":
        eager.plan_of = partial(lambda plan_of, *slots, **_: plan_of(*slots), eager.plan_of)
    if mutant == "counts read for the controller":
        error = BiasController.expert_error
        BiasController.expert_error = lambda self, counts: error(self, counts.cpu())
    if mutant == "biases made on the CPU":
        update = BiasController.update

        def stray(self, bias, counts):
            fresh = update(self, bias, counts)
            return fresh + torch.zeros(fresh.shape, dtype=fresh.dtype)

        BiasController.update = stray
    if mutant == "an optimizer's state on the CPU":
        from longcat.train.snapshot import moments

        for _, held in trainer.pieces.named_parameters():
            state = moments(trainer, held)
            trainer.optimizer.state[held] = state | {"exp_avg": torch.zeros(held.shape)}


def steps(ways):
    """What became of steps taken in each way; runs in a process of its own."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    LIBRARIES[:] = [torch.library.Library(name, "IMPL") for name in ("aten", "_")]
    device = played_device()
    outcomes = {}
    for name, changes, mutant in ways:
        # from_numpy makes ordinary tensors, inside the mode as well
        with FakeTensorMode(allow_non_fake_inputs=True):
            trainer = made_trainer(device, changes)
            try:
                if mutant is not None:
                    mutate(mutant, trainer)
                with watch():
                    measure = trainer.settings.measure_every == 1
                    batch = trainer.windows.batch(0)
                    norms = trainer._gradients(batch, measure=measure, stop=False)
                    trainer._update(1e-3, 2 * trainer.settings.grad_clip)
                places = {norms.device, trainer._sums.row.device, trainer.controller.error.device}
                for state in trainer.optimizer.state.values():
                    places |= {value.device for value in state.values()}
                places |= {tensor.device for tensor in trainer.model.state_dict().values()}
                places |= {p.grad.device for _, p in trainer.pieces.named_parameters()}
                outcomes[name] = sorted(str(place) for place in places)
            except Exception as error:  # every kind of refusal is an outcome
                outcomes[name] = f"{type(error).__name__}: {error}"
    return outcomes


def sorted_by_time(names, quick):
    """Parameters of a test, those that `make test` leaves to `make test-slow` marked as such."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def outcome(ranks, way, mutant=None):
    return ranks(1, __file__, "steps", [(way, WAYS[way], mutant)])[0][way]


@pytest.mark.parametrize(
    "way", sorted_by_time([way for way in WAYS if way != "float32"], ("measured", "documents"))
)
def test_a_step_stays_on_its_device_and_nobody_waits_for_it(ranks, way):
    assert outcome(ranks, way) == ["gpu:0"]


@pytest.mark.slow
def test_experts_in_float32_wait_for_the_fullest_ones_row_count(ranks):
    """As longcat.kernels.experts says; a control too: what waits is noticed."""
    assert "_local_scalar_dense" in outcome(ranks, "float32")


@pytest.mark.parametrize(
    "mutant", sorted_by_time(MUTANTS, ("a rotary table on the CPU", "a number of the step"))
)
def test_control_what_is_left_behind_or_read_back_is_refused(ranks, mutant):
    got = outcome(ranks, "documents" if mutant == "the real tokens taken out" else "plain", mutant)
    assert got != ["gpu:0"]
    assert re.search(MUTANTS[mutant], str(got)), got
