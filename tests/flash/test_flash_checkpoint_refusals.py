"""A checkpoint that is not whole and consistent is refused with one sentence that says why."""

import contextlib
import errno
import json
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from longcat.flash.checkpoint import export_checkpoint, load_model
from longcat.flash.checkpoint import save_checkpoint as save
from longcat.flash.errors import CheckpointError, ConfigError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.layers.0.input_layernorm.1.weight"


@pytest.fixture
def checkpoint(tiny_config, random_model, tmp_path) -> Path:
    random_model(tiny_config()).save_pretrained(tmp_path / "c")
    return tmp_path / "c"


@pytest.fixture
def sharded(tiny_config, random_model, tmp_path) -> Path:
    save(random_model(tiny_config()), tmp_path / "s", max_shard_bytes=20_000)
    return tmp_path / "s"


@pytest.fixture(scope="module")
def whole_file(tiny_config, random_model, tmp_path_factory) -> tuple[Path, bytes]:
    """(a checkpoint to damage, the bytes of its weights)"""
    directory = tmp_path_factory.mktemp("whole") / "c"
    random_model(tiny_config(num_layers=1)).save_pretrained(directory)
    return directory, (directory / SINGLE).read_bytes()


def edit_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(directory / SINGLE)
    change(tensors)
    save_file(tensors, directory / SINGLE)


def shard(directory: Path, i: int) -> Path:
    return sorted(directory.glob("model-*.safetensors"))[i]


def edit_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def refusal(directory: Path, kind: type[ValueError] = CheckpointError) -> str:
    """The message, which must be one line."""
    with pytest.raises(kind) as caught:
        load_model(directory)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) - len(str(directory)) < 560
    return message


def test_a_missing_tensor_is_named(checkpoint):
    edit_tensors(checkpoint, lambda t: t.pop(NORM))
    assert f"tensor {NORM} is missing" in refusal(checkpoint)


def test_many_missing_tensors_are_counted_and_the_first_are_named(checkpoint):
    names = [n for n in load_file(checkpoint / SINGLE) if n.startswith("model.layers")]
    edit_tensors(checkpoint, lambda t: [t.pop(n) for n in names])
    message = refusal(checkpoint)
    assert f"{len(names)} tensors (" in message
    assert f"and {len(names) - 3} more) are missing" in message
    assert "model.layers.0.self_attn.0.q_a_proj.weight" in message


def test_a_renamed_tensor_is_missing_and_unexpected(checkpoint):
    edit_tensors(checkpoint, lambda t: t.update({"model.layers.0.norm": t.pop(NORM)}))
    message = refusal(checkpoint)
    assert f"tensor {NORM} is missing" in message
    assert "tensor model.layers.0.norm is unexpected" in message


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.mlp.experts.6.down_proj.weight",  # identity experts have none in any form
        "model.layers.0.mlp.experts.9.gate_proj.weight",  # beyond N+Z
        "model.layers.0.mlp.router.classifier.bias",
        "model.layers.2.input_layernorm.0.weight",
        "model.mtp.layers.1.eh_proj.weight",
    ],
)
def test_an_unknown_tensor_is_refused(checkpoint, name):
    edit_tensors(checkpoint, lambda t: t.update({name: torch.ones(2)}))
    assert f"tensor {name} is unexpected" in refusal(checkpoint)


def test_a_wrong_shape_is_given_with_the_right_one(checkpoint):
    name = "model.layers.1.mlp.experts.5.down_proj.weight"
    edit_tensors(checkpoint, lambda t: t.update({name: t[name].T.contiguous()}))
    assert f"{name} [16, 32] instead of [32, 16]" in refusal(checkpoint)


def test_a_type_that_is_no_number_of_ours_is_refused(checkpoint):
    edit_tensors(checkpoint, lambda t: t.update({NORM: t[NORM].to(torch.int8)}))
    assert f"{NORM} stored as I8" in refusal(checkpoint)


def test_half_a_draft_head_is_refused(checkpoint):
    edit_tensors(checkpoint, lambda t: t.pop("model.mtp.embed_tokens.weight"))
    assert "model.mtp.embed_tokens.weight is missing" in refusal(checkpoint)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_a_truncated_file_is_refused(checkpoint, keep):
    data = (checkpoint / SINGLE).read_bytes()
    size = keep if isinstance(keep, int) else int(len(data) * keep)
    (checkpoint / SINGLE).write_bytes(data[:size])
    assert "not a complete safetensors file" in refusal(checkpoint)


@pytest.mark.parametrize("data", [b"not a checkpoint" * 100, b"\xff" * 64, b"\0" * 64])
def test_a_corrupt_file_is_refused(checkpoint, data):
    whole = (checkpoint / SINGLE).read_bytes()
    (checkpoint / SINGLE).write_bytes(data + whole[len(data) :])
    assert "not a complete safetensors file" in refusal(checkpoint)


@given(data=st.data())
def test_no_damage_to_the_header_escapes_as_another_error(whole_file, data):
    """Either the values are still all there, or it is a CheckpointError."""
    directory, whole = whole_file
    (length,) = struct.unpack("<Q", whole[:8])
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, 8 + length))] = data.draw(st.integers(0, 255))
    (directory / SINGLE).write_bytes(damaged)
    with contextlib.suppress(CheckpointError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_model(directory)


def test_a_missing_shard_is_named(sharded):
    file = shard(sharded, 2)
    file.unlink()
    assert f"shard {file.name} is named in {INDEX} but missing" in refusal(sharded)


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
def test_a_file_that_may_not_be_read_is_not_called_damaged(checkpoint, monkeypatch, name):
    opened = Path.open

    def denied(self, *args, **kwargs):
        if self.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    assert f"{name} cannot be read: Permission denied" in refusal(checkpoint)


def test_a_truncated_shard_is_refused(sharded):
    file = shard(sharded, 3)
    file.write_bytes(file.read_bytes()[:-1])
    assert f"{file.name} is not a complete" in refusal(sharded)


def test_shards_of_two_checkpoints_are_told_apart(sharded):
    shard(sharded, 3).write_bytes(shard(sharded, 4).read_bytes())
    assert "disagree" in refusal(sharded)


@pytest.mark.parametrize(
    "index",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../x"}}',
        '{"weight_map": {"a": 1}}',
    ],
)
def test_a_damaged_index_is_refused(sharded, index):
    (sharded / INDEX).write_text(index)
    assert INDEX in refusal(sharded)


def test_weights_of_another_kind_are_not_guessed_at(checkpoint):
    (checkpoint / SINGLE).rename(checkpoint / "pytorch_model.bin")
    assert "convert them to safetensors" in refusal(checkpoint)


def test_a_directory_that_is_not_there_is_said_to_be_missing(tmp_path):
    assert "no checkpoint at" in refusal(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    assert "no checkpoint at" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "no config.json in" in refusal(tmp_path / "empty")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", pytest.param("[" * 99_999, id="deep")])
def test_a_damaged_config_is_refused(checkpoint, text):
    (checkpoint / "config.json").write_text(text, encoding="latin-1")
    assert "config.json" in refusal(checkpoint)


def test_another_model_type_is_refused(checkpoint):
    edit_json(checkpoint / "config.json", model_type="llama")
    assert "llama" in refusal(checkpoint, ConfigError)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"moe_topk": 10}, "top_k"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"num_layers": 0}, "num_layers"),
        ({"qk_rope_head_dim": 7}, "rope"),
        ({"router_bias": True}, "router_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"pad_token_id": 96}, "pad_token_id"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"zero_expert_num": 1e30}, "zero_expert_num"),
        ({"rope_theta": [1]}, "rope_theta"),
        ({"rms_norm_eps": "x"}, "rms_norm_eps must be a number; got 'x'"),
        ({"routed_scaling_factor": "6"}, "routed_scaling_factor must be a number; got '6'"),
        ({"num_nextn_predict_layers": "x"}, "num_nextn_predict_layers must be an integer"),
        ({"rope_scaling": 4}, "rope_scaling"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "factor"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(checkpoint, change, said):
    edit_json(checkpoint / "config.json", **change)
    assert said in refusal(checkpoint, ConfigError)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 64}, "model.embed_tokens.weight [96, 32] instead of [96, 64]"),
        ({"num_layers": 3}, "model.layers.2."),
        ({"num_layers": 1}, "model.layers.1."),
        ({"n_routed_experts": 8}, "experts.6.gate_proj.weight"),
        ({"n_routed_experts": 5, "zero_expert_num": 4}, "experts.5.down_proj.weight is unexpected"),
        ({"zero_expert_num": 4}, "classifier.weight [9, 32] instead of [10, 32]"),
        ({"attention_bias": True}, "q_a_proj.bias"),
        ({"num_layers": 10**9}, "1000000000 layers of 6 experts need more than"),
        ({"n_routed_experts": 10**9}, "2 layers of 1000000000 experts need more than"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(checkpoint, change, said):
    edit_json(checkpoint / "config.json", **change)
    message = refusal(checkpoint)
    assert said.removesuffix(" is unexpected") in message
    assert "does not fit its config.json" in message


def test_a_type_that_no_model_has_is_refused(checkpoint):
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        load_model(checkpoint, dtype=torch.int8)


def test_an_unknown_format_is_refused_before_anything_is_written(
    checkpoint, tiny_config, random_model, tmp_path
):
    with pytest.raises(ValueError, match="hub, transformers5"):
        export_checkpoint(checkpoint, tmp_path / "out", format="gguf")
    with pytest.raises(ValueError, match="hub, transformers5"):
        random_model(tiny_config()).save_pretrained(tmp_path / "out", format="gguf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change", [{"latent_norm_eps": 1e-5}, {"mla_scale_q_lora": False}, {"mla_scale_kv_lora": False}]
)
def test_what_transformers_would_ignore_is_not_exported_to_it(
    tiny_config, random_model, tmp_path, change
):
    model = random_model(tiny_config(**change))
    with pytest.raises(
        CheckpointError, match="transformers has no setting for " + next(iter(change))
    ):
        model.save_pretrained(tmp_path / "t5", format="transformers5")
    model.save_pretrained(tmp_path / "hub")
    assert load_model(tmp_path / "hub").config == model.config
