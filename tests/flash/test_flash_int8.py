"""What 8-bit weights cost the shipped nano, and that they are what is read."""

import inspect
from importlib.resources import files
from pathlib import Path

import pytest
import torch

from longcat.flash import FlashModel, load_llm
from longcat.flash.int8 import Int8Experts, Int8Linear, to_int8
from longcat.flash.tokenizer import Tokenizer
from longcat.serve import EngineConfig, SamplingParams

FOLDER = Path(str(files("longcat.flash"))) / "nano"


@torch.no_grad()
def bits_per_byte(model: FlashModel) -> float:
    text = inspect.getsource(inspect)[20_000:22_000]
    ids = torch.tensor([Tokenizer.load(FOLDER).encode(text, bos=True)])
    logits = model(ids[:, :-1]).logits[0].double()
    nats = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
    return float(nats) / 0.6931471805599453 / len(text.encode())


def test_eight_bits_cost_less_than_a_hundredth_of_a_bit_per_byte_and_four_do_not():
    model = FlashModel.from_pretrained(FOLDER, dtype=torch.bfloat16).eval()
    before = bits_per_byte(model)
    assert bits_per_byte(to_int8(model)) < before + 0.01
    for module in model.modules():  # control: the same measure notices coarser weights
        if isinstance(module, Int8Linear):
            module.weight.copy_((module.weight.float() / 16).round() * 16)
    assert bits_per_byte(model) > before + 0.01


def test_every_linear_map_and_expert_is_quantised_but_those_that_are_named():
    model = to_int8(FlashModel.from_pretrained(FOLDER).eval())
    left = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {name.rsplit(".", 1)[-1] for name in left} == {"lm_head", "kv_b_proj", "classifier"}
    layer = model.model.layers[0]
    assert isinstance(layer.mlp.experts, Int8Experts)
    assert layer.mlp.experts.gate_up.dtype == torch.int8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_of_eight_bits_is_served_with_drafts(dtype):
    llm = load_llm(FOLDER, dtype=dtype, int8=True, config=EngineConfig(num_drafts=1))
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    (completion,) = llm.generate("class Reader:\n    def read(self, size=-1):\n", params)
    assert len(completion.tokens) == 40
    assert llm.stats().acceptance > 0.4
