"""Claims about MFU: a step's operations over what this machine was measured to multiply."""

import numpy as np
import pytest
import torch

from longcat.flash.operations import causal_pairs, training_operations
from longcat.train import peak, readings, resume_run, train_run
from longcat.train.batches import Batch
from longcat.train.directory import RunDirectory
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.metrics import TIMED_FIELDS, read_metrics
from longcat.train.prepare import prepare


@pytest.fixture
def prepared(kit, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    prepared = prepare(directory, kit.corpus(), kit.settings(steps=3), kit.config())
    begin(directory, prepared)
    return directory, prepared


def test_the_peak_is_the_work_of_a_product_over_its_time(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(peak.time, "process_time", lambda: float(next(clock)))
    assert peak.measure_peak("float64", size=8, seconds=0.0) == 2 * 8**3 / 1.0


@pytest.mark.parametrize("precision", ["float32", "bf16", "float64"])
def test_a_measured_peak_is_a_finite_speed(precision):
    assert 1e6 < peak.measure_peak(precision, size=64, seconds=0.01) < 1e16


def expected(kit, record, speed):
    """By hand, from what the metrics line itself says."""
    settings, config = kit.settings(steps=3), kit.config()
    tokens = settings.batch_size * settings.seq_len
    done = training_operations(
        config,
        tokens=tokens,
        pairs=causal_pairs(settings.batch_size, settings.seq_len),
        ffn_slots=sum(record["ffn_experts_mean"]) * tokens,
    )
    return done * record["tokens_per_s"] / tokens / speed


def test_every_line_has_the_steps_operations_over_what_was_possible(kit, prepared):
    directory, made = prepared
    run(directory, made, Exchange(), Silent(), peak=1e10)
    records = read_metrics(directory.path)
    for record in records:
        assert record["mfu"] == pytest.approx(expected(kit, record, 1e10), rel=1e-9)
    assert peak.usual(records) == sorted(r["mfu"] for r in records)[1]


def test_an_mfu_that_takes_the_target_for_the_experts_used_is_rejected(kit, prepared, monkeypatch):
    honest = readings.training_operations

    def by_target(config, *, ffn_slots, tokens, **rest):
        slots = config.router.target_ffn * config.num_layers * tokens
        return honest(config, ffn_slots=slots, tokens=tokens, **rest)

    monkeypatch.setattr(readings, "training_operations", by_target)
    directory, made = prepared
    run(directory, made, Exchange(), Silent(), peak=1e10)
    first = read_metrics(directory.path)[0]
    assert first["mfu"] != pytest.approx(expected(kit, first, 1e10), rel=1e-6)


def test_a_peak_changes_no_bit_and_is_in_no_snapshot(kit, tmp_path):
    kept, lines = [], []
    for name, speed in (("a", None), ("b", 1e10)):
        directory = RunDirectory(tmp_path / name)
        made = prepare(directory, kit.corpus(), kit.settings(steps=3), kit.config())
        begin(directory, made)
        trainer = run(directory, made, Exchange(), Silent(), peak=speed)
        kept.append([p.detach().clone() for p in trainer.model.parameters()])
        records = read_metrics(directory.path)
        assert all((r["mfu"] is None) == (speed is None) for r in records)
        lines.append([{k: v for k, v in r.items() if k not in TIMED_FIELDS} for r in records])
        state = (directory.latest() / "trainer.json").read_text()
        assert "peak" not in state
        assert "mfu" not in state
    assert all(torch.equal(a, b) for a, b in zip(*kept, strict=True))
    assert lines[0] == lines[1]


def test_a_resumed_run_measures_the_peak_anew_and_says_so_on_its_card(prepared, monkeypatch):
    directory, made = prepared
    run(directory, made, Exchange(), Silent(), peak=1e10)
    monkeypatch.setattr("longcat.train.preflight.measure_peak", lambda precision, device: 4e9)
    session = resume_run(directory.path, {"steps": 4}, processes=2, say=lambda _: None)
    card = {row.label: row.value for row in session.card}
    assert (session.peak, card["peak"]) == (4e9, "8 G operations/s")
    single = resume_run(directory.path, {"steps": 4}, processes=1, say=lambda _: None)
    trainer, _ = train_run(single, Silent())
    assert trainer.peak == 4e9


def batch(rows):
    ids = np.array(rows)
    return Batch(inputs=ids, next_ids=ids, after_next=ids, document_ids=ids)


def test_pairs_are_counted_within_documents_and_padding_has_none():
    documents = batch([[0, 0, 0, 1, 1, -1], [2, 3, 3, 3, 3, 4]])
    same = documents.document_ids[:, :, None] == documents.document_ids[:, None]
    seen = np.tril(same & (documents.document_ids >= 0)[:, None])
    assert peak.attention_pairs(documents) == seen.sum() == 21
    assert causal_pairs(2, 6) == 42  # what the count without documents would say


def test_words():
    assert (peak.usual([{"step": 1}, {"mfu": None}]), peak.percent(None)) == (None, "?")
    assert peak.percent(0.314) == "31.4%"
