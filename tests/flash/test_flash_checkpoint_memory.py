"""Loading, saving and exporting need little memory beside the model."""

import subprocess
import sys
from pathlib import Path

import pytest

SINGLE = "model.safetensors"
# 158 MB, half of it in two embeddings and half in experts.
SIZES = {
    "vocab_size": 32768,
    "hidden_size": 256,
    "num_layers": 2,
    "n_routed_experts": 48,
    "moe_topk": 4,
    "expert_ffn_hidden_size": 320,
    "num_nextn_predict_layers": 1,
}
BODY = {
    "load": "model = load_model(source, dtype=torch.float32)",
    "load16": "model = load_model(source, dtype=torch.bfloat16)",
    "export": "export_checkpoint(source, target, format='transformers5', dtype=torch.bfloat16)",
    "save": "save_checkpoint(model, target, format='transformers5')",
}
# High-water mark of resident memory, in bytes; writing 5 to clear_refs starts it afresh.
MEASURE = """
import sys, torch
from longcat.flash.checkpoint import export_checkpoint, files, load_model, save_checkpoint
source, target = sys.argv[1:]
def high_water():
    with open("/proc/self/status") as status:
        return 1024 * next(int(l.split()[1]) for l in status if l.startswith("VmHWM"))
{setup}
with open("/proc/self/clear_refs", "w") as control:
    control.write("5")
before = high_water()
{body}
print(high_water() - before)
"""


def peak(body: str, source: Path, target: Path, setup: str = "") -> int:
    """Bytes of memory that `body` needed at its worst."""
    code = MEASURE.format(body=BODY[body], setup=setup)
    done = subprocess.run(
        [sys.executable, "-c", code, source, target], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.fixture(scope="module")
def large(tiny_config, tmp_path_factory) -> Path:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    from longcat.flash import FlashModel

    directory = tmp_path_factory.mktemp("large") / "c"
    model = FlashModel(tiny_config(**SIZES))
    model.save_pretrained(directory)
    return directory


@pytest.mark.slow
def test_peak_memory_of_loading_is_below_1_3_times_the_model(large, tmp_path):
    size = (large / SINGLE).stat().st_size - 4 * 32768 * 256  # the draft head's copy is shared
    assert size > 150e6
    assert 0.95 * size < peak("load", large, tmp_path) < 1.3 * size
    # A model of half the size from the same file: what is read does not count, a constant does.
    assert peak("load16", large, tmp_path) < 0.5 * size + 48e6
    # The control keeps one mapping of the file open, as a plain load would.
    keep = "files.WINDOW_BYTES = 10**12"
    assert peak("load", large, tmp_path, setup=keep) > 1.8 * size


@pytest.mark.slow
def test_saving_and_exporting_hold_a_small_part_of_the_model(large, tmp_path):
    size = (large / SINGLE).stat().st_size
    assert peak("export", large, tmp_path / "e") < 0.6 * size
    setup = "model = load_model(source)"
    assert peak("save", large, tmp_path / "s", setup) < 0.2 * size
