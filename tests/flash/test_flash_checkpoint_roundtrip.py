"""What is written is what was in memory, in the names and layout that others read."""

import json
import struct
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from longcat.flash import FlashModel
from longcat.flash.checkpoint import checkpoint_tensors, export_checkpoint, load_model
from longcat.flash.checkpoint import save_checkpoint as save
from longcat.flash.checkpoint.names import DiskTensor
from longcat.flash.checkpoint.writer import write_safetensors

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def assert_equal_states(a: FlashModel, b: FlashModel) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


@pytest.mark.parametrize("format", ["hub", "transformers5"])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_a_saved_model_loads_bit_for_bit(
    tiny_config, random_model, tmp_path, format, max_shard_bytes
):
    model = random_model(tiny_config(attention_bias=True))
    save(model, tmp_path / "c", format=format, max_shard_bytes=max_shard_bytes)
    loaded = load_model(tmp_path / "c")
    assert loaded.config == model.config
    assert_equal_states(model, loaded)
    assert all(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize(("n", "z", "k"), [(6, 0, 2), (4, 8, 5), (0, 3, 2), (1, 1, 1)])
@pytest.mark.parametrize("format", ["hub", "transformers5"])
def test_every_mixture_of_experts_round_trips(tiny_config, random_model, tmp_path, n, z, k, format):
    config = tiny_config(n_routed_experts=n, zero_expert_num=z, moe_topk=k)
    model = random_model(config)
    save(model, tmp_path / "c", format=format)
    assert_equal_states(model, load_model(tmp_path / "c"))
    listed = {t.name: t for t in checkpoint_tensors(config, format, torch.float32)}
    written = load_file(tmp_path / "c" / SINGLE)
    assert {k: (v.shape, v.dtype) for k, v in written.items()} == {
        k: (torch.Size(t.shape), t.dtype) for k, t in listed.items()
    }


def test_the_hub_form_has_one_matrix_per_ffn_expert_and_the_head_of_the_release(
    tiny_config, random_model, tmp_path
):
    model = random_model(tiny_config())
    model.save_pretrained(tmp_path / "c")
    written = load_file(tmp_path / "c" / SINGLE)
    experts = model.model.layers[1].mlp.experts
    prefix = "model.layers.1.mlp.experts."
    for e in range(6):
        gate, up = experts.gate_up_proj[e].chunk(2)
        assert torch.equal(written[f"{prefix}{e}.gate_proj.weight"], gate)
        assert torch.equal(written[f"{prefix}{e}.up_proj.weight"], up)
        assert torch.equal(written[f"{prefix}{e}.down_proj.weight"], experts.down_proj[e])
    assert not any(name.startswith(f"{prefix}6.") for name in written)
    assert torch.equal(
        written["model.mtp.embed_tokens.weight"], written["model.embed_tokens.weight"]
    )
    head = {name for name in written if name.startswith("model.mtp.")}
    assert {
        "model.mtp.norm.weight",
        "model.mtp.layers.0.eh_proj.weight",
        "model.mtp.layers.0.enorm.m.weight",
        "model.mtp.layers.0.hnorm.m.weight",
        "model.mtp.layers.0.self_attn.kv_a_proj_with_mqa.weight",
        "model.mtp.layers.0.transformer_layer.mlp.down_proj.weight",
    } < head
    fields = json.loads((tmp_path / "c" / "config.json").read_text())
    assert fields["model_type"] == "longcat_flash"
    assert fields["torch_dtype"] == "float32"


def test_the_transformers5_form_adds_zero_rows_for_identity_experts(
    tiny_config, random_model, tmp_path
):
    model = random_model(tiny_config())
    model.save_pretrained(tmp_path / "hub")
    model.save_pretrained(tmp_path / "c", format="transformers5")
    written = load_file(tmp_path / "c" / SINGLE)
    added = written.keys() - load_file(tmp_path / "hub" / SINGLE).keys()
    assert added == {
        f"model.layers.{i}.mlp.experts.{e}.{m}_proj.weight"
        for i in range(2)
        for e in (6, 7, 8)
        for m in ("gate", "up")
    }
    assert all(not written[name].any() for name in added)
    fields = json.loads((tmp_path / "c" / "config.json").read_text())
    assert fields["head_dim"] == model.config.attention.qk_rope_head_dim
    assert fields["rope_parameters"]["rope_theta"] == 1e4


def test_shards_are_small_indexed_and_complete(tiny_config, random_model, tmp_path):
    model = random_model(tiny_config())
    save(model, tmp_path / "c", max_shard_bytes=20_000)
    index = json.loads((tmp_path / "c" / INDEX).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert not (tmp_path / "c" / SINGLE).exists()
    total = 0
    for name in files:
        tensors = load_file(tmp_path / "c" / name)
        size = sum(t.nbytes for t in tensors.values())
        assert size <= 20_000 or len(tensors) == 1
        assert all(index["weight_map"][t] == name for t in tensors)
        total += size
    assert index["metadata"]["total_size"] == total


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_and_double_precision_keep_the_router_wide(tiny_config, random_model, tmp_path, dtype):
    model = random_model(tiny_config())
    save(model, tmp_path / "c", dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for name, tensor in load_file(tmp_path / "c" / SINGLE).items():
        assert tensor.dtype == (wide if ".router." in name else dtype), name
    loaded = load_model(tmp_path / "c", dtype=dtype)
    for name, tensor in loaded.state_dict().items():
        kind = wide if ".router." in name else dtype
        assert tensor.dtype == kind, name
        assert torch.equal(tensor, model.state_dict()[name].to(kind)), name
    as_float = load_model(tmp_path / "c").state_dict()
    name = "model.layers.0.mlps.1.up_proj.weight"
    assert torch.equal(as_float[name], model.state_dict()[name].to(dtype).to(torch.float32))


def test_a_model_without_draft_head_loads_without_one_whatever_its_config_says(
    tiny_config, random_model, tmp_path
):
    model = random_model(tiny_config(num_nextn_predict_layers=0))
    model.save_pretrained(tmp_path / "c")
    assert not any("mtp" in name for name in load_file(tmp_path / "c" / SINGLE))
    fields = json.loads((tmp_path / "c" / "config.json").read_text())
    fields["num_nextn_predict_layers"] = 1  # transformers drops the head but keeps the key
    (tmp_path / "c" / "config.json").write_text(json.dumps(fields))
    loaded = load_model(tmp_path / "c")
    assert loaded.model.mtp is None
    assert loaded.config == model.config


def test_an_equal_draft_embedding_is_shared_and_another_is_kept(
    tiny_config, random_model, tmp_path
):
    model = random_model(tiny_config())
    model.save_pretrained(tmp_path / "c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tied = load_model(tmp_path / "c")
    assert tied.model.mtp.embed_tokens is tied.model.embed_tokens
    model.untie_mtp_embedding()
    with torch.no_grad():
        model.model.mtp.embed_tokens.weight[-1, -1] += 1
    model.save_pretrained(tmp_path / "c")
    with pytest.warns(UserWarning, match="an embedding of its own"):
        untied = load_model(tmp_path / "c")
    assert untied.model.mtp.embed_tokens is not untied.model.embed_tokens
    assert_equal_states(model, untied)


def test_tensors_known_to_be_unused_are_ignored(tiny_config, random_model, tmp_path):
    model = random_model(tiny_config(), seed=3)
    model.save_pretrained(tmp_path / "c", format="transformers5")
    file = tmp_path / "c" / SINGLE
    tensors = load_file(file)
    for name in tensors:
        if ".experts.7." in name:
            tensors[name] = torch.full((1,), torch.nan)  # never read, so neither are its shapes
    tensors["model.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, file)
    assert_equal_states(model, load_model(tmp_path / "c"))


def test_export_moves_between_the_forms_without_changing_a_bit(tiny_config, random_model, tmp_path):
    model = random_model(tiny_config(attention_bias=True))
    save(model, tmp_path / "hub", dtype=torch.bfloat16, max_shard_bytes=30_000)
    (tmp_path / "hub" / "tokenizer.json").write_text("{}")
    (tmp_path / "hub" / "metrics.jsonl").write_text("{}")
    export_checkpoint(tmp_path / "hub", tmp_path / "t5", format="transformers5")
    assert (tmp_path / "t5" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "t5" / "metrics.jsonl").exists()
    assert load_file(tmp_path / "t5" / SINGLE)["lm_head.weight"].dtype == torch.bfloat16
    fields = json.loads((tmp_path / "t5" / "config.json").read_text())
    assert fields["dtype"] == "bfloat16"
    export_checkpoint(tmp_path / "t5", tmp_path / "back", max_shard_bytes=30_000)
    for file in (tmp_path / "hub").iterdir():
        if file.name != "metrics.jsonl":
            assert file.read_bytes() == (tmp_path / "back" / file.name).read_bytes(), file.name
    export_checkpoint(tmp_path / "hub", tmp_path / "wide", dtype=torch.float32)
    assert_equal_states(load_model(tmp_path / "hub"), load_model(tmp_path / "wide"))


def test_export_carries_an_untied_draft_embedding(tiny_config, random_model, tmp_path):
    model = random_model(tiny_config())
    model.untie_mtp_embedding()
    with torch.no_grad():
        model.model.mtp.embed_tokens.weight.mul_(2)
    model.save_pretrained(tmp_path / "hub")
    export_checkpoint(tmp_path / "hub", tmp_path / "t5", format="transformers5")
    with pytest.warns(UserWarning, match="an embedding of its own"):
        assert_equal_states(model, load_model(tmp_path / "t5"))


DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=3)


@given(specs=st.lists(st.tuples(DTYPES, SHAPES), max_size=6), seed=st.integers(0, 9))
def test_the_safetensors_library_reads_what_the_writer_writes(tmp_path_factory, specs, seed):
    file = tmp_path_factory.mktemp("written") / "a.safetensors"
    generator = torch.Generator().manual_seed(seed)
    values = {
        f"tensor/{i}é": torch.randn(shape, generator=generator).to(dtype)
        for i, (dtype, shape) in enumerate(specs)
    }
    tensors = [
        DiskTensor(name=name, shape=tuple(v.shape), dtype=v.dtype, source=name)
        for name, v in values.items()
    ]
    write_safetensors(file, tensors, lambda t: values[t.name].split(2))
    read = load_file(file)
    assert read.keys() == values.keys()
    for name, value in values.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)
    with safe_open(file, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    (length,) = struct.unpack("<Q", file.read_bytes()[:8])
    assert length % 8 == 0
