"""Several passes per schedule: the same text, and cache entries that never run out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longcat.serve import Engine, EngineConfig, Request, SamplingParams, reference
from longcat.serve import engine as engine_module
from longcat.serve.scheduler import entries_needed


@given(st.data(), st.integers(1, 4), st.integers(0, 3))
def test_a_reserve_lies_between_what_is_needed_and_the_reports_bound(data, steps, drafts):
    used = data.draw(st.lists(st.integers(steps, (drafts + 1) * steps), max_size=20))
    found = reference.reserves(used, steps, drafts)
    for reserve, next_used in zip(found, used, strict=False):
        assert next_used <= reserve  # no schedule can starve
    assert all((drafts + 1) * steps <= r <= (2 * drafts + 1) * steps for r in found[1:])


def test_the_reports_figure_for_one_draft_is_between_2n_and_3n():
    n = 4
    assert reference.reserves([n], n, 1)[1] == 3 * n  # nothing accepted
    assert reference.reserves([2 * n], n, 1)[1] == 2 * n  # everything


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_every_row_has_pages_for_all_that_its_schedule_can_write(
    markov, steps, drafts, monkeypatch
):
    seen = []
    launch = engine_module.launch

    def watched(model, latents, plan, proposals, **options):
        for sequence in plan.rows:
            ahead = len(sequence.pages) * 4 - (len(sequence.tokens) - 1)
            left = sequence.limit - (len(sequence.tokens) - 1)
            needed = entries_needed(plan.steps, drafts)
            seen.append(needed)
            assert min(needed, left) <= ahead < needed + 2 * 4
        return launch(model, latents, plan, proposals, **options)

    monkeypatch.setattr(engine_module, "launch", watched)
    config = EngineConfig(page_size=4, num_drafts=drafts, steps_per_schedule=steps)
    engine = Engine(markov(), None, config)
    for name in "abc":
        params = SamplingParams(max_tokens=30, temperature=0.6, seed=ord(name))
        engine.add(Request(request_id=name, prompt_ids=(1, 2, 3), params=params))
    while engine.has_work:
        engine.step()
    assert max(seen) == steps * (drafts + 1) + max(drafts - 1, 0)
