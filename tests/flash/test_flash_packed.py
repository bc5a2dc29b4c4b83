"""Claims about the packed model: the FlashModel's numbers, from weights that are held once."""

import gc
import weakref
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import Tensor

from longcat.flash import ConfigError, FlashModel
from longcat.flash.int8 import to_int8
from longcat.flash.packed import PackedModel, as_served, attention, ffn, maps
from longcat.kernels import exact, huge_pages, onednn, use_backend
from longcat.kernels.linear import packed as packed_linear
from longcat.moe import StandardBlock
from longcat.serve import Engine, EngineConfig, PagedModel, Request, SamplingParams
from longcat.serve.latents import Latents
from longcat.serve.step import Chunk, _lay_out

FOLDER = Path(str(files("longcat.flash"))) / "nano"


@pytest.fixture(autouse=True)
def pack_everything(monkeypatch) -> None:
    monkeypatch.setattr(packed_linear, "SMALLEST", 1)


@torch.inference_mode()
def one_pass(model: PagedModel, dtype: torch.dtype) -> list[Tensor]:
    """Two rows of two tokens, a long chunk and a later one: every form of attention.

    Hidden states, the head's, logits, and all latents that were written.
    """
    generator = torch.Generator().manual_seed(1)
    latents = Latents(model.latent_layout, 40, 4)
    for store in latents.stores:
        store.normal_(generator=generator)
    table = torch.tensor([[3, 1, 7, 5], [2, 9, 8, 4]])
    places = torch.tensor([[9, 10], [3, 4]])

    def chunk(first: int, count: int, page: int) -> Chunk:
        pages = torch.arange(page, page + 14).unsqueeze(0)
        ids = torch.randint(0, model.vocab_size, (count,), generator=generator)
        return Chunk(table=pages, first=first, ids=ids, next_ids=ids)

    chunks = [chunk(0, 50, 10), chunk(40, 3, 25)]
    ragged, positions = _lay_out(latents, table, places, chunks)
    ids = torch.randint(0, model.vocab_size, (len(positions),), generator=generator)
    hidden = model.forward_paged(ids, positions, latents.target(ragged))
    results = [hidden, model.logits(hidden)]
    if model.has_draft_head:
        results.append(model.draft_paged(ids.flip(0), hidden, positions, latents.draft(ragged)))
    assert {result.dtype for result in results} == {dtype}
    return results + latents.stores


def apart(left: list[Tensor], right: list[Tensor]) -> float:
    """The largest difference, relative to the size of what differs."""
    pairs = list(zip(left, right, strict=True))
    return max(float((a - b).double().norm() / b.double().norm()) for a, b in pairs)


CASES = [
    "base",
    "no identity experts",
    "twelve choices",
    "identity experts only",
    "one layer, one head",
    "three layers, unequal heads",
    "attention bias",
    "yarn with mscale",
    "coarse epsilon",
    "scmoe head",
    "no head",
]
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", list(BOUNDS), ids=["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_a_packed_pass_gives_the_models_numbers(
    tiny_config, random_model, parity_cases, case, dtype
):
    own = {"scmoe head": {"mtp_layer": "scmoe"}, "no head": {"num_nextn_predict_layers": 0}}
    model = random_model(tiny_config(**own.get(case, parity_cases.get(case))), dtype=dtype).eval()
    assert apart(one_pass(PackedModel(model), dtype), one_pass(model, dtype)) < BOUNDS[dtype]


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("case", ["base", "no identity experts", "identity experts only"])
@torch.inference_mode()
def test_so_do_few_tokens(tiny_config, random_model, parity_cases, case, tokens):
    model = random_model(tiny_config(**parity_cases[case])).eval()
    results = []
    for form in (PackedModel(model), model):
        latents = Latents(form.latent_layout, 3, 4)
        for place in range(0, 6, tokens):
            table, places = torch.tensor([[2, 1]]), place + torch.arange(tokens).unsqueeze(0)
            ragged, positions = _lay_out(latents, table, places, [])
            ids = 7 * positions + 5
            hidden = form.forward_paged(ids, positions, latents.target(ragged))
        results.append([hidden, *latents.stores[:-1]])
    assert apart(*results) < BOUNDS[torch.float32]


def test_angles_of_positions_never_met_are_those_of_the_first(tiny_config, random_model):
    mla = random_model(tiny_config()).model.layers[0].self_attn[0]
    fresh, used = (attention.Rotation(mla, torch.float32) for _ in range(2))
    for last in (3, 70, 200):
        used.at(torch.tensor([last]))
    x, positions = torch.randn(4, 2, 8), torch.tensor([0, 200, 3, 150])
    assert torch.equal(used.at(positions).turned(x), fresh.at(positions).turned(x))


def test_a_matrix_turns_a_token_as_cosines_and_sines_do(tiny_config, random_model, monkeypatch):
    mla = random_model(tiny_config()).double().model.layers[0].self_attn[0]
    rotation = attention.Rotation(mla, torch.float64)
    x, positions = torch.randn(4, 2, 8, dtype=torch.float64), torch.tensor([0, 200, 3, 150])
    by_matrix = rotation.at(positions).turned(x)
    monkeypatch.setattr(attention, "FEW_TOKENS", 0)
    by_elements = rotation.at(positions).turned(x)
    assert not torch.allclose(by_elements, x)
    assert torch.allclose(by_matrix, by_elements, rtol=0, atol=1e-14)
    monkeypatch.setattr(attention, "FEW_TOKENS", 4)
    rotation._other.neg_()  # the other way round
    assert not torch.allclose(rotation.at(positions).turned(x), by_elements)


def test_in_bfloat16_it_is_as_near_to_float64_as_the_model(tiny_config, random_model):
    model = random_model(tiny_config()).to(torch.bfloat16).eval()
    packed, plain = (one_pass(form, torch.bfloat16) for form in (PackedModel(model), model))
    wanted = one_pass(model.double(), torch.float64)
    assert apart(packed, wanted) < 1.2 * apart(plain, wanted)


def _unscaled(norm: torch.nn.Module, factor: float = 1.0) -> maps.Norm:
    return maps.Norm(norm)


def _swapped(*modules: torch.nn.Module, order: Tensor | None = None) -> maps.Map:
    return maps.joined(*reversed(modules))


def _side_by_side(heads: int, width: int, rope: int) -> Tensor:
    return torch.arange(heads * width)


@pytest.mark.parametrize(
    ("where", "name", "mutant"),
    [
        (attention, "Norm", _unscaled),
        (ffn, "joined", _swapped),
        (attention, "_pairs_apart", _side_by_side),
        (attention.Places, "unseen", lambda *_: torch.zeros(1, 1, 1)),
        (packed_linear.PackedLinear, "added_to", lambda self, residual, rows: self(rows)),
        (maps.Int8Map, "added_to", None),  # not called here: nothing to notice
    ],
    ids=["latent scale", "gate and up", "rotary pairs", "mask", "residual", "none"],
)
def test_the_comparison_notices(tiny_config, random_model, monkeypatch, where, name, mutant):
    model = random_model(tiny_config()).eval()
    if mutant is not None:
        monkeypatch.setattr(where, name, mutant)
    error = apart(one_pass(PackedModel(model), torch.float32), one_pass(model, torch.float32))
    assert (error > 1e-3) == (mutant is not None)


def test_weights_of_8_bits_stay_what_they_are(tiny_config, random_model):
    model = to_int8(random_model(tiny_config()).eval())
    error = apart(one_pass(PackedModel(model), torch.float32), one_pass(model, torch.float32))
    assert error < BOUNDS[torch.float32]


@pytest.mark.skipif(not onednn.available(), reason="nothing is packed on this CPU")
def test_whoever_lets_go_of_the_model_holds_each_weight_once(tiny_config, random_model):
    model = random_model(tiny_config()).eval()
    watched = {
        name: weakref.ref(weight.untyped_storage()) for name, weight in model.named_parameters()
    }
    packed = as_served(model)
    del model
    gc.collect()
    kept = {name for name, storage in watched.items() if storage() is not None}
    large = {name for name in kept if "norm" not in name}
    assert {name.rsplit(".", 2)[-2] for name in large} == {
        "embed_tokens",
        "kv_b_proj",
        "classifier",
    }
    assert packed.vocab_size == 96


@pytest.mark.parametrize("eight_bits", [False, True])
def test_huge_pages_are_asked_for_all_that_a_pass_reads(
    tiny_config, random_model, monkeypatch, eight_bits
):
    model = random_model(tiny_config(num_nextn_predict_layers=0)).eval()
    named = {name: weight.numel() for name, weight in model.named_parameters() if weight.ndim > 1}
    expanding = sum(numbers for name, numbers in named.items() if "kv_b_proj" in name)
    embedding = named["model.embed_tokens.weight"]
    asked: list[Tensor] = []
    monkeypatch.setattr(huge_pages, "ask_for", asked.extend)
    PackedModel(to_int8(model) if eight_bits else model)
    held = sum(w.numel() for w in asked if w.ndim > 1 and min(w.shape[-2:]) > 1)
    # kv_b_proj is held whole and, for the absorbed form, head by head.
    assert held == sum(named.values()) - embedding + expanding


def served(model: PagedModel, **config: int) -> list[list[int]]:
    engine = Engine(model, None, EngineConfig(**config))
    texts: list[list[int]] = [[], [], []]
    for index, prompt in enumerate(([5, 9, 300], [7] * 40, [11, 12])):
        params = SamplingParams(max_tokens=24, ignore_eos=True)
        engine.add(Request(request_id=str(index), prompt_ids=tuple(prompt), params=params))
    while engine.has_work:
        for delta in engine.step():
            texts[int(delta.request_id)] += [token.id for token in delta.tokens]
    engine.check_integrity()
    return texts


def test_the_engine_gives_the_texts_it_gives_with_the_model():
    model = FlashModel.from_pretrained(FOLDER).eval()
    wanted, packed = served(model, num_drafts=0), PackedModel(model)
    assert served(packed, num_drafts=0) == wanted
    assert served(packed, num_drafts=2, token_budget=16) == wanted
    assert served(packed, num_drafts=1, max_running=1, page_size=4) == wanted


@pytest.mark.parametrize("mode", [exact, lambda: use_backend("numpy")], ids=["exact", "numpy"])
def test_other_forms_are_the_models(tiny_config, random_model, mode: Callable):
    packed = PackedModel(random_model(tiny_config()).eval())
    with mode(), pytest.raises(ValueError, match="give the engine the FlashModel itself"):
        one_pass(packed, torch.float32)


def test_what_no_checkpoint_holds_is_refused(tiny_config, random_model):
    model = random_model(tiny_config()).eval()
    model.model.layers[0] = StandardBlock.of(model.model.layers[0])
    with pytest.raises(ConfigError, match="plain ScMoE blocks, got StandardBlock"):
        PackedModel(model)
    model = random_model(tiny_config()).eval()
    model.model.layers[0].mlp.experts.parallel = object()
    with pytest.raises(ConfigError, match="experts must all be in this process"):
        PackedModel(model)
    with (
        torch.device("meta"),
        pytest.raises(ConfigError, match="must be on a CPU, got one on meta"),
    ):
        PackedModel(FlashModel(tiny_config()))


def test_without_a_head_nothing_is_drafted(tiny_config, random_model):
    packed = PackedModel(random_model(tiny_config(num_nextn_predict_layers=0)).eval())
    assert not packed.has_draft_head
    nothing = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ConfigError, match="no MTP head"):
        packed.draft_paged(nothing, torch.zeros(0, 32), nothing, [])
