"""Claims about `longcat export`: it writes what was asked, or nothing at all."""

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from longcat.cli.export import size_in_bytes
from longcat.cli.main import main


def test_formats_and_types_are_as_asked_and_load_to_the_same_model(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    from longcat.flash import FlashModel

    out = tmp_path / "t5"
    argv = ["export", "--model", str(tiny_checkpoint), "--out", str(out)]
    assert main([*argv, "--format", "transformers5"]) == 0
    names = load_file(out / "model.safetensors")
    # The hub form writes the FFN experts only; transformers 5.x wants rows for all N+Z.
    assert "model.layers.0.mlp.experts.5.gate_proj.weight" in names
    assert (out / "tokenizer.json").is_file()
    ids = torch.tensor([[1, 20, 30]])
    before = FlashModel.from_pretrained(tiny_checkpoint)(ids).logits
    assert torch.equal(FlashModel.from_pretrained(out)(ids).logits, before)


def test_json_names_every_file_and_shards_keep_to_the_size(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "bf16"
    argv = ["export", "--model", str(tiny_checkpoint), "--out", str(out), "--dtype", "bf16"]
    assert main([*argv, "--max-shard-size", "60KB", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == {p.name: p.stat().st_size for p in out.iterdir()}
    assert told["bytes"] == sum(told["files"].values())
    shards = list(out.glob("*.safetensors"))
    assert len(shards) > 1
    stored = {name: t.dtype for shard in shards for name, t in load_file(shard).items()}
    assert stored["lm_head.weight"] == torch.bfloat16
    assert stored["model.layers.0.mlp.router.classifier.weight"] == torch.float32


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (["--max-shard-size", "5XB"], "--max-shard-size must be a size such as 5GB"),
        (["--dtype", "int8"], "unknown dtype 'int8'; known are float64 (f64)"),
        (["--model", "nowhere"], "no model 'nowhere'"),
        (["--model", "longcat-flash"], "is a configuration without weights"),
        (["--out", "a-file/below"], "cannot write the checkpoint to a-file/below"),
        (["--out", "a-file"], "a-file is a file"),
        (["--out", "full"], "full is not empty and holds no checkpoint"),
    ],
)
def test_a_bad_request_is_one_sentence_and_nothing_is_written(
    changed: list[str],
    sentence: str,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("")
    Path("full").mkdir()
    Path("full", "notes.txt").write_text("mine")
    before = sorted(Path().rglob("*"))
    assert main(["export", "--model", str(tiny_checkpoint), "--out", "new", *changed]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert shown.err.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_a_full_disk_is_exit_code_1_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A limit on the size of files fails a write half-way, as a full disk does.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        code = main(["export", "--model", str(tiny_checkpoint), "--out", str(tmp_path / "new")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    shown = capsys.readouterr()
    assert code == 1, shown.err
    assert "new: File too large" in shown.err
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500mb", 5 * 10**8), ("1.5G", 15 * 10**8), ("60 KB", 60_000), ("7", 7)],
)
def test_sizes_are_read_in_powers_of_a_thousand(text: str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "0", "0.1B", "5 potatoes"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        size_in_bytes(text)
