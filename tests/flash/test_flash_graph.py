"""What is replayed from padded buffers are the tokens of the step itself."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longcat.flash import FlashModel
from longcat.kernels import exact
from longcat.serve import Engine, EngineConfig, Request, SamplingParams
from longcat.serve.acceptance import Drafts
from longcat.serve.graph import CudaCapture, Results, StepGraphs, _fill
from longcat.serve.latents import Latents
from longcat.serve.sampling import Sampler
from longcat.serve.step import Rows


def rerun(record: Callable[[], Results]) -> tuple[Callable[[], None], Results]:
    """What a graph does, without one: the same launches on the same buffers."""
    results = record()

    def replay() -> None:
        for old, new in zip(tensors(results), tensors(record()), strict=True):
            old.copy_(new)

    return replay, results


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in tensors(part)]
    return []


def rows_of(params: list[SamplingParams], device: str) -> Rows:
    count = len(params)
    return Rows(
        table=torch.arange(1, 1 + 4 * count, device=device).view(count, 4),
        lengths=torch.arange(2, 2 + count, device=device),
        last=torch.arange(5, 5 + count, device=device),
        speculate=torch.ones(count, dtype=torch.bool, device=device),
        drafts=Drafts(
            tokens=torch.full((count, 2), 7, device=device),
            usable=torch.full((count,), 2, device=device),
        ),
        sampler=Sampler.of(params, list(range(count)), [0] * count, device),
    )


@pytest.fixture(scope="module")
def model(served_config) -> FlashModel:
    return FlashModel(served_config(304), seed=0).eval()


ASKED = [
    ((5,), SamplingParams(max_tokens=24, ignore_eos=True)),
    (tuple(range(4, 40)), SamplingParams(max_tokens=30, ignore_eos=True, temperature=0.9, seed=1)),
    (tuple(range(9, 26)), SamplingParams(max_tokens=16, ignore_eos=True, top_p=0.8, seed=2)),
    ((8, 9), SamplingParams(max_tokens=6, ignore_eos=True, frequency_penalty=1.0)),
]


def served(engine: Engine) -> list[list[int]]:
    for index, (prompt, params) in enumerate(ASKED):
        engine.add(Request(request_id=str(index), prompt_ids=prompt, params=params))
    tokens: list[list[int]] = [[] for _ in ASKED]
    while engine.has_work:
        for delta in engine.step():
            tokens[int(delta.request_id)] += [token.id for token in delta.tokens]
        engine.check_integrity()
    return tokens


@pytest.mark.parametrize(
    "config",
    [
        {"num_drafts": 0},
        {"num_drafts": 2, "page_size": 4, "steps_per_schedule": 2},
        {"num_drafts": 1, "page_size": 4, "overlap": True, "max_running": 3},
        {},
    ],
    ids=str,
)
def test_replayed_steps_give_the_tokens_of_uncaptured_ones(model, config) -> None:
    with exact():
        wanted = served(Engine(model, None, EngineConfig(**config)))
        engine = Engine(model, None, EngineConfig(**config))
        engine._graphs = StepGraphs(model, engine.latents, rerun)
        assert served(engine) == wanted
    shapes = engine._graphs.shapes
    assert len({shape.rows for shape in shapes}) > 1
    assert all(shape.rows & (shape.rows - 1) == 0 for shape in shapes)


@pytest.mark.parametrize("careless", [False, True])
def test_a_row_that_pads_writes_to_nobodys_page(model, monkeypatch, careless) -> None:
    """And a filling that leaves an earlier batch's row behind, the control, is found out."""

    def fill(buffers: Rows, rows: Rows) -> None:
        before = buffers.table.clone()
        _fill(buffers, rows)
        buffers.table[len(rows.table) :] = before[len(rows.table) :]

    if careless:
        monkeypatch.setattr("longcat.serve.graph._fill", fill)
    latents = Latents(model.latent_layout, 20, 4)
    graphs = StepGraphs(model, latents, rerun)
    rows = rows_of([SamplingParams()] * 4, "cpu")
    graphs.step(rows, proposals=2, extend=True, keep=False)
    own = rows.table[3]
    left = [store[own].clone() for store in latents.stores]
    graphs.step(rows_of([SamplingParams()] * 3, "cpu"), proposals=2, extend=True, keep=False)
    assert len(graphs.shapes) == 1
    touched = any(
        not torch.equal(store[own], old) for store, old in zip(latents.stores, left, strict=True)
    )
    assert touched == careless


def test_a_step_that_cannot_be_captured_runs_without(model, caplog) -> None:
    def refuse(_: Callable[[], Results]) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")

    engine = Engine(model, None, EngineConfig(num_drafts=1))
    wanted = served(Engine(model, None, EngineConfig(num_drafts=1)))
    engine._graphs = StepGraphs(model, engine.latents, refuse)
    assert served(engine) == wanted
    assert [record.message for record in caplog.records] == [
        "a step cannot be captured as a graph, and runs without: operation not permitted when "
        "stream is capturing"
    ]


def test_there_are_no_graphs_on_a_cpu(model) -> None:
    assert Engine(model, None, EngineConfig(graphs=True))._graphs is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_captured_graph_gives_the_bits_of_its_step(served_config) -> None:
    model = FlashModel(served_config(304), seed=0).eval().to("cuda", torch.bfloat16)
    sampled = [SamplingParams(), SamplingParams(temperature=0.9), SamplingParams(temperature=0.5)]
    found = []
    for capture in (rerun, CudaCapture()):
        latents = Latents(model.latent_layout, 20, 4)
        graphs = StepGraphs(model, latents, capture)
        rows = rows_of(sampled, "cuda")
        tokens = []
        for _ in range(4):
            outcome, rows = graphs.step(rows, proposals=2, extend=True, keep=False)
            tokens.append((outcome.tokens.tolist(), outcome.accepted.tolist()))
        found.append((tokens, [store.cpu() for store in latents.stores]))
    assert found[0][0] == found[1][0]
    for of_step, of_graph in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(of_step[1:], of_graph[1:])
