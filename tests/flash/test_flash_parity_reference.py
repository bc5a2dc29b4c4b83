"""The numpy file against torch in float64, and what transformers cannot run (K = 1) against it."""

import numpy as np
import pytest
import torch

from longcat.flash import reference
from longcat.flash.checkpoint import load_model

# transformers 5.x crashes with one choice per token and has no setting for the others.
OWN_CASES = {
    "one choice": {"moe_topk": 1},
    "one choice of one expert": {"n_routed_experts": 1, "zero_expert_num": 0, "moe_topk": 1},
    "another latent epsilon": {"latent_norm_eps": 1e-3},
    "no scale correction": {"mla_scale_q_lora": False, "mla_scale_kv_lora": False},
}
CASES = [
    "base",
    "no identity experts",
    "more identity than ffn experts",
    "twelve choices",
    "every expert chosen",
    "identity experts only",
    "one layer, one head",
    "three layers, unequal heads",
    "attention bias",
    "yarn",
    "yarn with mscale",
    "coarse epsilon",
    "wide model, narrow experts",
    *OWN_CASES,
]
DOUBLE, SINGLE = 1e-9, 5e-5


@pytest.fixture(params=CASES)
def model(request, tiny_config, random_model, parity_cases):
    """A float64 model of each case."""
    changes = {**parity_cases, **OWN_CASES}[request.param]
    return random_model(tiny_config(**changes), seed=5, dtype=torch.float64)


def ids(length: int) -> torch.Tensor:
    return torch.randint(4, 96, (length,), generator=torch.Generator().manual_seed(1))


def arrays(model) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}


def test_torch_in_float64_is_the_numpy_file(model):
    text = ids(40)
    expected = reference.forward(arrays(model), model.config.to_hf(), text.numpy())
    with torch.no_grad():
        found = model(text[None], output_router=True)
        draft, _ = model.mtp(found.hidden[:, :-1], text[None, 1:])
    assert np.abs(found.logits[0].numpy() - expected.logits).max() < DOUBLE
    assert np.abs(found.hidden[0].numpy() - expected.hidden).max() < DOUBLE
    assert np.abs(found.last_layer[0].numpy() - expected.last_layer).max() < DOUBLE
    for layer, routing in enumerate(found.router):
        assert np.array_equal(routing.indices.numpy(), expected.choices[layer])
        assert np.abs(routing.gates.numpy() - expected.gates[layer]).max() < DOUBLE
    expected_draft = reference.draft(
        arrays(model), model.config.to_hf(), expected.hidden[:-1], text[1:].numpy()
    )
    assert np.abs(draft[0].numpy() - expected_draft).max() < DOUBLE


def test_float32_through_a_checkpoint_stays_close_to_the_numpy_file(model, tmp_path):
    model.save_pretrained(tmp_path / "c")
    single = load_model(tmp_path / "c", dtype=torch.float32)
    text = ids(40)
    expected = reference.forward(arrays(single), single.config.to_hf(), text.numpy())
    with torch.no_grad():
        found = single(text[None], output_router=True)
    assert np.abs(found.logits[0].numpy() - expected.logits).max() < SINGLE
    for layer, routing in enumerate(found.router):
        chosen = np.sort(routing.indices.numpy(), axis=-1)
        assert np.array_equal(chosen, np.sort(expected.choices[layer], axis=-1))


def test_greedy_tokens_with_one_choice_are_those_of_the_numpy_file(tiny_config, random_model):
    model = random_model(tiny_config(**OWN_CASES["one choice"]), seed=5)
    weights, config = arrays(model), model.config.to_hf()
    text = ids(5)
    for _ in range(32):
        logits = reference.forward(weights, config, text.numpy()).logits
        text = torch.cat([text, torch.tensor([int(logits[-1].argmax())])])
    for speculative in (False, True):
        found = model.generate(
            text[None, :5], max_new_tokens=32, ignore_eos=True, speculative=speculative
        )
        assert torch.equal(found[0], text)


def test_control_the_double_precision_check_sees_a_float32_rounding(tiny_config, random_model):
    model = random_model(tiny_config(), seed=5, dtype=torch.float64)
    text = ids(40)
    expected = reference.forward(arrays(model), model.config.to_hf(), text.numpy())
    with torch.no_grad():
        model.model.norm.weight.copy_(model.model.norm.weight.float())
        found = model(text[None]).logits[0].numpy()
    assert np.abs(found - expected.logits).max() > DOUBLE
