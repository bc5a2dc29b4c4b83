"""The hub form in transformers 4.57, which reads it as it is.

The older release is installed into a directory of its own and runs in a process of its own; the
packages under test never see it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from longcat.chat import TEMPLATES, render_spans
from longcat.flash.chat import encode_conversation
from longcat.flash.checkpoint import save_checkpoint
from longcat.flash.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

VERSION = "4.57.3"
LOGITS = 5e-5
CASES = [
    "base",
    "no identity experts",
    "more identity than ffn experts",
    "twelve choices",
    "three layers, unequal heads",
    "attention bias",
    "yarn",
    "yarn with mscale",
    "coarse epsilon",
    "wide model, narrow experts",
]
LOAD_AND_RUN = """
import json, sys, torch, transformers
assert transformers.__version__ == "VERSION", transformers.__version__
torch.set_num_threads(1)
ids, mask, directories = torch.load(sys.argv[1])
for directory in directories:
    model, info = transformers.LongcatFlashForCausalLM.from_pretrained(
        directory, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    assert not info["mismatched_keys"], info["mismatched_keys"]
    model.eval()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        logits = model(ids).logits
        new = model.generate(
            ids, attention_mask=mask, max_new_tokens=32, do_sample=False, pad_token_id=3
        )
    torch.save((logits, new), directory + "/result.pt")
"""
RENDER = """
import json, sys, transformers
assert transformers.__version__ == "VERSION", transformers.__version__
for directory in sys.argv[1:]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    chat, tools, text, ids, learned = json.load(open(directory + "/expected.json"))
    assert tokenizer.apply_chat_template(chat, tools=tools, tokenize=False) == text
    given = tokenizer.apply_chat_template(
        chat, tools=tools, return_assistant_tokens_mask=True, return_dict=True
    )
    assert given["input_ids"] == ids
    assert given["assistant_masks"] == learned
"""
CALL = {"id": "1", "type": "function", "function": {"name": "length", "arguments": {"of": [1]}}}
TOOLS = [{"type": "function", "function": {"name": "length", "description": "é", "parameters": {}}}]
CHAT = [
    {"role": "user", "content": "How long?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "1", "content": "1"},
    {"role": "assistant", "content": "One."},
]


@pytest.fixture(scope="module")
def overlay(tmp_path_factory) -> Path:
    """A directory with transformers 4.57 and what it needs that is older than ours."""
    directory = tmp_path_factory.mktemp("transformers4")
    for packages in (
        ["--no-deps", f"transformers=={VERSION}"],
        ["huggingface-hub>=0.34,<1", "tokenizers>=0.22,<=0.23", "requests", "regex"],
    ):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", directory]
        done = subprocess.run([*command, *packages], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"transformers {VERSION} cannot be installed: {done.stderr[-300:]}")
    return directory


def test_transformers_4_57_loads_the_hub_form_whole_and_computes_the_same(
    overlay, tmp_path, tiny_config, random_model, parity_cases
):
    ids = torch.randint(4, 96, (3, 24), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    models = {}
    for case in CASES:
        model = random_model(tiny_config(**parity_cases[case]), seed=len(case))
        # Shards for one of them; a draft head, which transformers ignores, for all.
        limit = 30_000 if case == "base" else 10**9
        save_checkpoint(model, tmp_path / case, max_shard_bytes=limit)
        assert json.loads((tmp_path / case / "config.json").read_text())["num_layers"] > 0
        models[case] = model
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 1
    torch.save((ids, mask, [str(tmp_path / case) for case in CASES]), tmp_path / "input.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOAD_AND_RUN.replace("VERSION", VERSION), tmp_path / "input.pt"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(overlay), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for case, model in models.items():
        logits, generated = torch.load(tmp_path / case / "result.pt")
        with torch.no_grad():
            found = model(ids).logits
        assert (found - logits).abs().max() < LOGITS, case
        continued = model.generate(ids, mask, max_new_tokens=32, ignore_eos=True)
        assert torch.equal(continued, generated), case


def test_transformers_4_57_renders_and_masks_conversations_as_we_do(overlay, tmp_path):
    for name, form in TEMPLATES.items():
        tokenizer = Tokenizer.train_bpe(["How long? One."], 280).with_markers(form)
        rendered = render_spans(CHAT, name, TOOLS)
        ids, learned = encode_conversation(tokenizer, rendered, form)
        (tmp_path / name).mkdir()
        tokenizer.save(tmp_path / name)
        expected = [CHAT, TOOLS, rendered.text, ids, [int(x) for x in learned]]
        (tmp_path / name / "expected.json").write_text(json.dumps(expected))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            RENDER.replace("VERSION", VERSION),
            *(tmp_path / n for n in TEMPLATES),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(overlay), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
