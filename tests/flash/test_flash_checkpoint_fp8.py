"""FP8 checkpoints: 8-bit weights times one factor per 128 x 128 block."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from longcat.flash.checkpoint import export_checkpoint, load_model
from longcat.flash.checkpoint import fp8 as format_fp8
from longcat.flash.checkpoint.fp8 import dequantize
from longcat.flash.errors import CheckpointError

SINGLE = "model.safetensors"
# More than one block in both directions, and none of the sizes a multiple of 128.
SIZES = {"hidden_size": 160, "ffn_hidden_size": 300, "kv_lora_rank": 130, "num_layers": 1}
LINEARS = (".mlps.", ".experts.", "q_a_proj.weight", "kv_b_proj.weight", "eh_proj.weight")


def quantize(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per block: the largest magnitude becomes 448, the largest float8_e4m3."""
    rows, columns = (-(-n // 128) for n in weight.shape)
    scale = torch.empty(rows, columns)
    out = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            block = weight[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128]
            scale[i, j] = block.abs().max() / 448
            out[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128] = block / scale[i, j]
    return out, scale


def definition(weight: torch.Tensor, scale: torch.Tensor) -> np.ndarray:
    """float32 [O, I], one number at a time."""
    values, factors = weight.float().numpy(), scale.numpy()
    out = np.empty_like(values)
    for o in range(values.shape[0]):
        for i in range(values.shape[1]):
            out[o, i] = values[o, i] * factors[o // 128, i // 128]
    return out


@pytest.fixture(scope="module")
def fp8(tiny_config, random_model, tmp_path_factory):
    """(directory, its tensors, the model before quantisation)"""
    directory = tmp_path_factory.mktemp("fp8") / "c"
    model = random_model(tiny_config(**SIZES))
    model.save_pretrained(directory)
    tensors = {}
    for name, tensor in load_file(directory / SINGLE).items():
        if any(part in name for part in LINEARS):
            tensors[name], tensors[name + "_scale_inv"] = quantize(tensor)
        else:
            tensors[name] = tensor
    save_file(tensors, directory / SINGLE)
    fields = json.loads((directory / "config.json").read_text())
    fields["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    (directory / "config.json").write_text(json.dumps(fields))
    return directory, tensors, model


def test_dequantisation_is_its_definition():
    weight, scale = quantize(torch.randn(150, 260, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(dequantize(weight, scale), torch.from_numpy(definition(weight, scale)))
    assert not np.array_equal(dequantize(weight, scale.flip(0)).numpy(), definition(weight, scale))


def test_every_byte_gets_the_bits_of_its_definition():
    numbers = torch.arange(256, dtype=torch.uint8).repeat(130, 1).view(torch.float8_e4m3fn)
    scale = torch.tensor([[1.0, 0.37], [-3e-5, 1e35]])
    found, expected = dequantize(numbers, scale), definition(numbers, scale)
    assert np.isnan(expected).sum() == 2 * 130
    assert np.array_equal(found.numpy(), expected, equal_nan=True)
    assert np.array_equal(np.signbit(found.numpy()), np.signbit(expected))


def test_no_more_than_a_block_of_rows_is_looked_up_at_once(monkeypatch):
    sizes, own = [], format_fp8.eager.widened

    def widened(numbers):
        sizes.append(tuple(numbers.shape))
        return own(numbers)

    monkeypatch.setattr(format_fp8.eager, "widened", widened)
    weight, scale = quantize(torch.ones(300, 200))
    dequantize(weight, scale)
    assert sizes == [(128, 200), (128, 200), (44, 200)]


def test_an_fp8_checkpoint_loads_dequantised(fp8):
    directory, tensors, model = fp8
    state = load_model(directory).state_dict()
    mlp = "model.layers.0.mlps.1.up_proj.weight"
    assert tensors[mlp + "_scale_inv"].shape == (3, 2)
    assert torch.equal(
        state[mlp], torch.from_numpy(definition(tensors[mlp], tensors[mlp + "_scale_inv"]))
    )
    expert = "model.layers.0.mlp.experts.4.down_proj.weight"
    expected = definition(tensors[expert], tensors[expert + "_scale_inv"])
    stacked = state["model.layers.0.mlp.experts.down_proj"]
    assert torch.equal(stacked[4], torch.from_numpy(expected))
    for name, tensor in model.state_dict().items():
        error = (state[name] - tensor).abs().max()
        assert error <= 0.04 * tensor.abs().max(), name  # three mantissa bits: half of 1/8


def test_an_fp8_checkpoint_loads_in_bfloat16_with_one_rounding(fp8):
    directory, _, _ = fp8
    wide, narrow = load_model(directory).state_dict(), load_model(directory, dtype=torch.bfloat16)
    for name, tensor in narrow.state_dict().items():
        assert torch.equal(tensor, wide[name].to(tensor.dtype)), name


def test_exporting_fp8_writes_bfloat16_without_factors(fp8, tmp_path):
    directory, _, _ = fp8
    export_checkpoint(directory, tmp_path / "out", format="transformers5")
    written = load_file(tmp_path / "out" / SINGLE)
    assert not any(name.endswith("_scale_inv") for name in written)
    assert written["model.layers.0.mlps.0.gate_proj.weight"].dtype == torch.bfloat16
    assert written["model.layers.0.mlp.experts.8.up_proj.weight"].dtype == torch.bfloat16
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    left = load_model(directory, dtype=torch.bfloat16).state_dict()
    right = load_model(tmp_path / "out", dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("damage", ["no factors", "factors of another shape", "stray factors"])
def test_fp8_weights_need_exactly_their_factors(fp8, tmp_path, damage):
    directory, tensors, _ = fp8
    shutil.copytree(directory, tmp_path / "c")
    name = "model.layers.0.mlps.0.up_proj.weight_scale_inv"
    tensors = dict(tensors)
    if damage == "no factors":
        del tensors[name]
    elif damage == "factors of another shape":
        tensors[name] = tensors[name][:1]
    else:
        name = "model.norm.weight_scale_inv"
        tensors[name] = torch.ones(2)
    save_file(tensors, tmp_path / "c" / SINGLE)
    with pytest.raises(CheckpointError, match=name):
        load_model(tmp_path / "c")
