"""The engine on the real model: exact mode gives the tokens of plain decoding, bit for bit."""

from collections.abc import Iterator
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from longcat.flash import FlashModel
from longcat.kernels import exact
from longcat.kernels.paged_mla.tiles import LARGE, ROWS
from longcat.serve import Engine, EngineConfig, Request, SamplingParams, decode
from longcat.serve.acceptance import Drafts, Rules
from longcat.serve.edits import Penalties
from longcat.serve.latents import Latents
from longcat.serve.sampling import Sampler
from longcat.serve.step import Chunk, Rows, _lay_out, step


@pytest.fixture(scope="module")
def model(served_config) -> FlashModel:
    return FlashModel(served_config(300), seed=0).eval()


@pytest.fixture(scope="module")
def prompts() -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(0)
    long = torch.randint(4, 300, (21,), generator=generator).tolist()
    return [tuple(long[:1]), tuple(long[:17]), (*long[:16], 9), tuple(long)]


PARAMS = SamplingParams(max_tokens=9, ignore_eos=True)


@pytest.fixture(scope="module")
def alone(model, prompts) -> list[list[int]]:
    with exact():
        return [
            [token.id for token in decode(model, prompt, PARAMS, speculative=False)]
            for prompt in prompts
        ]


def served(engine: Engine, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    for index, prompt in enumerate(prompts):
        engine.add(Request(request_id=str(index), prompt_ids=prompt, params=PARAMS))
    tokens: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for delta in engine.step():
            tokens[int(delta.request_id)] += [token.id for token in delta.tokens]
    engine.check_integrity()
    return tokens


@pytest.mark.parametrize(
    "config",
    [
        {"num_drafts": 0},
        {"num_drafts": 1, "max_running": 1},
        {"num_drafts": 3, "token_budget": 7, "page_size": 4},
        {"num_drafts": 2, "token_budget": 5, "max_running": 1},  # passes without rows
        {"num_drafts": 1, "token_budget": 5, "page_size": 8, "prefix_cache": False},
        {"num_drafts": 2, "steps_per_schedule": 4},
        {"num_drafts": 1, "steps_per_schedule": 2, "page_size": 4, "num_pages": 14},  # preempts
        {},
    ],
    ids=str,
)
def test_exact_mode_serves_the_tokens_of_plain_decoding(model, prompts, alone, config):
    with exact():
        engine = Engine(model, None, EngineConfig(**config))
        assert served(engine, prompts) == alone
        assert (engine.stats().preemptions > 0) == (config.get("num_pages") == 14)
        if config.get("prefix_cache", True) and config.get("max_running") == 1:
            assert engine.stats().prefix_hits > 0


def test_a_ragged_pass_gives_the_hidden_states_of_single_passes(model, prompts):
    """Fast mode too, to rounding: rows, chunks and the draft head's own states."""
    latents = Latents(model.latent_layout, 20, 4)
    first, second = prompts[1], prompts[3]
    table = torch.tensor([[3, 1, 7, 5, 2, 0]])
    other = torch.tensor([[4, 6, 8, 9, 10, 11]])
    ids = torch.tensor([*first, *second])
    following = torch.tensor([*first[1:], 5, *second[1:], 6])
    chunks = [
        Chunk(table=table, first=0, ids=torch.tensor(first), next_ids=torch.tensor(first)),
        Chunk(table=other, first=0, ids=torch.tensor(second), next_ids=torch.tensor(second)),
    ]
    ragged, positions = _lay_out(latents, table[:0], torch.zeros(0, 1, dtype=torch.int64), chunks)
    with torch.inference_mode():
        hidden = model.forward_paged(ids, positions, latents.target(ragged))
        own = model.draft_paged(following, hidden, positions, latents.draft(ragged))
        for part, prompt in ((slice(0, 17), first), (slice(17, 38), second)):
            output = model(torch.tensor([prompt]))
            torch.testing.assert_close(hidden[part], output.hidden[0], atol=1e-4, rtol=1e-4)
            _, wanted = model.mtp(output.hidden, following[None, part])
            torch.testing.assert_close(own[part], wanted[0], atol=1e-4, rtol=1e-4)


class NoReading(TorchDispatchMode):
    """Raises when a tensor's value is brought to the host."""

    READS: ClassVar[set[str]] = {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero"}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.name() not in self.READS, f"{func.name()} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_reading(monkeypatch) -> Iterator[None]:
    def refuse(*_, **__):
        raise AssertionError("a step brought a tensor to the host")

    with monkeypatch.context() as patch:
        for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__"):
            patch.setattr(torch.Tensor, name, refuse)
        with NoReading():
            yield


def rows_of(model: FlashModel, params: list[SamplingParams], drafts: int) -> Rows:
    count = len(params)
    one = torch.ones(count, 1, dtype=torch.bool)
    return Rows(
        table=torch.arange(1, 1 + 4 * count).view(count, 4),
        lengths=torch.tensor([2 + row for row in range(count)]),
        last=torch.tensor([5 + row for row in range(count)]),
        speculate=torch.ones(count, dtype=torch.bool),
        drafts=Drafts(
            tokens=torch.full((count, drafts), 7),
            usable=torch.full((count,), drafts),
            q=torch.full((count, drafts, model.vocab_size), 1 / model.vocab_size).double(),
        ),
        sampler=Sampler.of(params, list(range(count)), [0] * count),
        rules=Rules(rejecting=one, guessing=~one),
        penalties=Penalties.of(params, [[1]] * count, [[2]] * count, model.vocab_size),
        top=3,
    )


def test_a_step_never_waits_for_the_host(model, request, monkeypatch):
    params = [
        SamplingParams(temperature=0.0, presence_penalty=1.0),
        SamplingParams(temperature=0.7, top_p=0.9, top_k=20),
        SamplingParams(temperature=1.0, min_p=0.1, acceptance="rejection"),
    ]
    latents = Latents(model.latent_layout, 20, 4)
    rows = rows_of(model, params, 2)
    ids = torch.arange(5, 11)
    chunk = Chunk(table=torch.tensor([[14, 15, 16]]), first=3, ids=ids, next_ids=ids + 1, top=2)
    # On a CPU with few rows, experts run in a loop over counts that are on the host anyway.
    monkeypatch.setattr("longcat.kernels.onednn.available", lambda: False)
    request.getfixturevalue("no_reading")
    for chunks in ([chunk], []):
        outcome, rows = step(model, latents, rows, chunks, proposals=2, keep=True)
    assert outcome.tokens.shape == (3, 3)


def test_reading_is_noticed(no_reading):
    with pytest.raises(AssertionError, match="host"):
        bool(torch.ones(1))


@pytest.mark.parametrize("device", ["cpu", "meta"])  # the latter stands for a GPU
def test_where_nobody_says_otherwise_a_page_on_a_gpu_holds_whole_tiles_of_its_kernel(
    served_config, device
) -> None:
    model = FlashModel(served_config(300), device=device).eval()
    engine = Engine(model, None, EngineConfig())
    assert engine.latents.stores[0].shape[1] == engine.pages.page_size
    assert engine.pages.room == 65_536
    whole = [engine.pages.page_size % tile.keys == 0 for tile in (*(t for _, t in ROWS), LARGE)]
    assert whole == [device == "meta"] * len(whole)
    assert Engine(model, None, EngineConfig(page_size=4)).pages.page_size == 4
