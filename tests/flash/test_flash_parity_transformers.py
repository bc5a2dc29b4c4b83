"""Our float32 model against transformers' LongcatFlashForCausalLM: the same numbers and tokens."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from longcat.flash import FlashModel

transformers = pytest.importorskip("transformers", minversion="5.0")

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
]
LOGITS, LOSS, GRADIENT = 5e-5, 1e-5, 1e-4
NEW_TOKENS = 32


def tokens(batch: int, length: int, seed: int = 7) -> torch.Tensor:
    """[batch, length] without the special ids 0..3."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 96, (batch, length), generator=generator)


def test_no_case_is_left_out(parity_cases):
    assert set(CASES) == set(parity_cases)


def their_choices(theirs, *args, **kwargs) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """(logits, per layer the chosen experts [T, K])."""
    chosen: list[torch.Tensor] = []
    hooks = [
        layer.mlp.router.register_forward_hook(lambda module, x, out: chosen.append(out[2]))
        for layer in theirs.model.layers
    ]
    with torch.no_grad():
        logits = theirs(*args, **kwargs).logits
    for hook in hooks:
        hook.remove()
    return logits, chosen


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_and_the_same_experts_are_chosen(parity_pair, case):
    ours, theirs = parity_pair(case)
    ids = tokens(3, 48)
    expected, their_experts = their_choices(theirs, ids)
    with torch.no_grad():
        found = ours(ids, output_router=True)
    assert (found.logits - expected).abs().max() < LOGITS
    assert expected.std() > 0.3  # the tolerance means something
    for routing, choice in zip(found.router, their_experts, strict=True):
        assert torch.equal(routing.indices.sort().values, choice.sort().values)


@pytest.mark.parametrize("case", CASES)
def test_the_router_bias_of_every_case_changes_choices(parity_pair, case):
    ours, _ = parity_pair(case)
    router = ours.config.router
    with torch.no_grad():
        for routing in ours(tokens(3, 48), output_router=True).router:
            unbiased = routing.scores.topk(router.top_k).indices.sort().values
            same = bool(torch.equal(unbiased, routing.indices.sort().values))
            assert same == (router.top_k == router.n_experts)


@pytest.mark.parametrize("case", CASES)
def test_left_padding_does_not_change_the_logits_of_the_text(parity_pair, case):
    ours, theirs = parity_pair(case)
    ids = tokens(3, 20)
    mask = torch.ones_like(ids)
    for row, pad in enumerate((0, 5, 19)):
        mask[row, :pad] = 0
        ids[row, :pad] = 3
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask).logits
        found = ours(ids, mask).logits
    assert ((found - expected).abs().amax(-1) * mask).max() < LOGITS


@pytest.mark.parametrize("case", CASES)
def test_greedy_continuations_of_a_left_padded_batch_agree(parity_pair, case):
    ours, theirs = parity_pair(case)
    ids = tokens(3, 9, seed=11)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    mask[2, :8] = 0
    ids[mask == 0] = 3
    theirs.generation_config.eos_token_id = None  # go on for all the steps
    expected = theirs.generate(
        ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=3
    )
    assert expected.shape == (3, 9 + NEW_TOKENS)
    for speculative in (False, None):
        found = ours.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=NEW_TOKENS,
            ignore_eos=True,
            speculative=speculative,
        )
        assert torch.equal(found, expected)
    assert len(expected[:, 9:].unique()) > 5  # not a single token over and over


@pytest.mark.parametrize("case", CASES)
def test_loss_and_every_gradient_agree(parity_pair, case):
    ours, theirs = parity_pair(case)
    ids = tokens(4, 40)
    ours.zero_grad()
    theirs.zero_grad()
    logits = ours(ids).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected = theirs(ids, labels=ids).loss
    assert abs(loss.item() - expected.item()) < LOSS
    loss.backward()
    expected.backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    compared = 0
    for name, parameter in ours.named_parameters():
        if name.startswith("model.mtp.") or parameter.numel() == 0:
            continue
        wanted = their_gradients.pop(name)
        if name.endswith("gate_up_proj"):
            wanted, unused = wanted.split([len(parameter), len(wanted) - len(parameter)])
            assert not unused.any()
        error = (parameter.grad - wanted).norm() / wanted.norm()
        assert wanted.norm() > 0, name
        assert error < GRADIENT, name
        compared += 1
    assert compared > 20
    assert not their_gradients


@pytest.mark.parametrize("case", CASES)
def test_what_transformers_saves_loads_bit_for_bit(parity_pair, tmp_path, case):
    ours, theirs = parity_pair(case)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="40KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    loaded = FlashModel.from_pretrained(tmp_path / "theirs")
    assert loaded.model.mtp is None  # transformers has no draft head
    assert loaded.config.attention == ours.config.attention
    assert loaded.config.moe == ours.config.moe
    state = ours.state_dict()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_transformers_5_cannot_read_the_hub_form_itself_when_there_are_identity_experts(
    parity_pair, tmp_path
):
    ours, _ = parity_pair("base")
    ours.save_pretrained(tmp_path / "hub")
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.LongcatFlashForCausalLM.from_pretrained(tmp_path / "hub")


def test_bfloat16_agrees_to_bfloat16(parity_pair, tmp_path):
    """transformers rounds the router to bfloat16 too, so ours is given its rounded weights."""
    ours, _ = parity_pair("base")
    ours.save_pretrained(tmp_path / "t5", format="transformers5")
    theirs = transformers.LongcatFlashForCausalLM.from_pretrained(
        tmp_path / "t5", dtype=torch.bfloat16
    )
    theirs.save_pretrained(tmp_path / "theirs")
    narrow = FlashModel.from_pretrained(tmp_path / "theirs", dtype=torch.bfloat16)
    assert narrow.model.layers[0].mlp.router.classifier.weight.dtype == torch.float32
    ids = tokens(2, 24)
    with torch.no_grad():
        difference = narrow(ids).logits.float() - theirs(ids).logits.float()
    assert difference.square().mean().sqrt() < 0.05
    assert not math.isnan(difference.sum())
