"""Claims about the flags of `longcat serve`: what reaches the engine, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from longcat.cli.main import main
from longcat.cli.serving import build_engine
from longcat.serve import EngineConfig, Request, SamplingParams


def test_flags_of_the_engine_reach_it(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[EngineConfig] = []
    asked: list[dict[str, bool]] = []

    def build(*arguments: Any, **options: bool) -> Any:
        seen.append(arguments[-1])
        asked.append(options)
        raise ValueError("enough")

    monkeypatch.setattr("longcat.cli.serve._service", build)
    flags = ["--exact", "--overlap", "--no-graphs", "--steps", "2", "--drafts", "3"]
    flags.append("--disaggregated")
    assert main(["serve", "--port", "0", "--model", str(tiny_checkpoint), *flags]) == 2
    assert asked == [{"disaggregated": True}]
    assert seen == [
        EngineConfig(exact=True, overlap=True, graphs=False, steps_per_schedule=2, num_drafts=3)
    ]
    engine = build_engine(tiny_checkpoint, "float32", "cpu", seen[0])
    assert engine.overlaps
    engine.add(Request(request_id="a", prompt_ids=(1,), params=SamplingParams(max_tokens=3)))
    while engine.has_work:
        engine.step()  # in exact mode, which not every form of a model has
    engine = build_engine(tiny_checkpoint, "int8", "cpu", EngineConfig())
    assert engine.model.latent_layout.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "no-such"], "no model 'no-such'"),
        (["--model", "nano", "--dtype", "float3"], "float16 (f16), bfloat16 (bf16), int8"),
        (["--model", "nano", "--no-speculative", "--drafts", "2"], "contradicts"),
        (["--model", "nano", "--drafts", "4"], "--drafts"),
        (["--model", "nano", "--exact", "--dtype", "bfloat16"], "--exact computes in float32"),
        (["--model", "nano", "--exact", "--dtype", "int8"], "not in int8"),
        (["--model", "nano", "--host", "256.1.1.1"], "cannot listen on 256.1.1.1"),
        (["--model", "nano", "--drain", "-1"], "--drain"),
        (["--model", "nano", "--timeout", "-1"], "--timeout"),
        (["--model", "nano", "--api-key", ""], "api_keys"),
        (["--model", "nano", "--port", "70000"], "--port"),
    ],
)
def test_bad_usage_is_told_in_a_sentence_with_code_2(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *options]) == 2
    assert told in capsys.readouterr().err
