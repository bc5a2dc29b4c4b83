"""Figure 9: a draft head of one dense layer against one of a whole ScMoE layer.

Both heads are taught the same frozen model's choices (`longcat.train.distill`), so that only the
heads differ: the model under them has the same bits. The report trains its head together with the
model, from the middle of the training on.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np

from longcat.cli.benchmarks.paper import drafting, page
from longcat.cli.benchmarks.paper.figure import Arm, Figure, Row, Scale
from longcat.cli.benchmarks.paper.interval import estimate
from longcat.cli.benchmarks.paper.plot import Panel, plot
from longcat.cli.benchmarks.paper.results import Results
from longcat.cli.benchmarks.paper.training import Job, follow
from longcat.cli.benchmarks.paper.verdict import Verdict, difference
from longcat.flash import count_parameters
from longcat.train.acceptance import measure_acceptance
from longcat.train.batches import tokenize
from longcat.train.distill import DistillSettings

DENSE, SCMOE = "dense layer", "ScMoE layer"


def arms(scale: Scale) -> Sequence[Arm]:
    """The same model under either head."""
    window = {"window": scale.seq_len, "prompt": scale.seq_len // 4}
    teaching = {"teach_steps": scale.steps // 2, "prompts": 48, "new_tokens": 48, **window}
    return (
        Arm(name=DENSE, options={"head": "dense", **teaching}),
        Arm(name=SCMOE, options={"head": "scmoe", **teaching}),
    )


def run(job: Job) -> Row:
    """Train the model, teach it the arm's head, then draft with it."""
    trainer = job.trainer()
    row = follow(job, trainer)
    options = job.arm.options
    model = drafting.with_head(trainer.model, options["head"], job.seed)
    begun = time.process_time()
    taught = drafting.teach(
        model,
        job.text.tokens,
        DistillSettings(
            steps=options["teach_steps"],
            corpus_windows=4,
            own_windows=4,
            window=options["window"],
            prompt=options["prompt"],
            pool=128,
            refresh=2,
            seed=job.seed,
        ),
    )
    teaching = time.process_time() - begun
    model.eval()
    stream = tokenize(job.text.held_out, job.text.tokenizer).astype(np.int64)
    asked = {"prompts": options["prompts"], "new_tokens": options["new_tokens"]}
    found = measure_acceptance(model, stream, prompt_tokens=48, **asked)
    assert found is not None
    counted = count_parameters(model.config)
    return {
        **row,
        "cpu_seconds": row["cpu_seconds"] + teaching,
        "acceptance": found.rate,
        "acceptance_without_repeats": found.fresh_rate,
        "repeated": found.repeated,
        "drafted": found.drafted,
        "tokens_per_step": found.tokens_per_step,
        "head_parameters": counted.mtp_parameters,
        "head_activated": counted.mtp_activated_mean,
        "model_activated": counted.activated_mean,
        "teaching": taught,
        **drafting.times(model, stream),
    }


def verdicts(results: Results) -> Sequence[Verdict]:
    """Acceptance, cost and what is left of it."""
    dense, scmoe = (f"the {arm}" for arm in (DENSE, SCMOE))

    def values(name: str, *, scale: float = 1.0) -> list[list[float]]:
        return [[scale * v for v in results.values(arm, name)] for arm in (SCMOE, DENSE)]

    said = [
        difference(
            f"share of drafts accepted{where}",
            *values(name, scale=100),
            of=(scmoe, dense),
            expected="higher",
            unit=" points",
            digits=1,
        )
        for name, where in (
            ("acceptance", ""),
            ("acceptance_without_repeats", " where no 5-gram repeats"),
        )
    ]
    said.append(
        difference(
            "time of one draft",
            *values("ms_draft"),
            of=(scmoe, dense),
            expected="higher",
            unit=" ms",
            digits=2,
        )
    )
    gains = values("speed_up")[::-1]
    said.append(
        difference("speed-up of decoding", *gains, of=(dense, scmoe), expected="higher", digits=2)
    )
    return said


def body(results: Results) -> Iterable[str]:
    """The report's table 5, what stands behind its times, and the heads' teaching."""
    yield page.table([row(results, arm) for arm in (DENSE, SCMOE)])

    def mean(name: str, arm: str = DENSE) -> float:
        return fmean(results.values(arm, name))

    one, two, draft = (mean(f"ms_{name}") for name in ("one", "two", "draft"))
    held = fmean(run["teaching"]["head_ffn_experts"] for run in results.runs(SCMOE))
    yield (
        f"In CPU time, a pass of the model over one token takes {one:.2f} ms, over two tokens, "
        f"which is what verifies a draft, {two:.2f} ms, and a draft of the {DENSE} "
        f"{draft / one:.0%} of the former. A draft of the {SCMOE} takes "
        f"{mean('ms_draft', SCMOE) / draft:.1f} times as long, for "
        f"{mean('head_activated', SCMOE) / mean('head_activated'):.1f} times the activated "
        f"parameters; it used {held:.2f} FFN experts per token at the end of its teaching. "
        "One token at a time, these times are mostly those of calling operations, not of "
        "arithmetic. "
        f"{mean('repeated'):.0%} of the generated tokens complete a 5-gram that has occurred "
        "before, which is easy to draft: that is why the share without repeats stands beside."
    )
    taught = {
        arm: results.curve(arm, "agreement", x="step", table="teaching") for arm in results.arms
    }
    yield plot(
        [Panel(series=taught, x_label="step of the teaching")],
        title="How often the head's choice is the model's own, on text that the model wrote for "
        "its teaching; mean of the seeds with its interval.",
        y_label="share of tokens",
        limits=(0.0, 1.0),
    )


def row(results: Results, arm: str) -> dict[str, str]:
    """One line of the table."""

    def percent(name: str) -> str:
        return estimate([100 * v for v in results.values(arm, name)]).show(1)

    share = results.values(arm, lambda run: run["head_activated"] / run["model_activated"])
    return {
        "draft head": arm,
        "parameters": f"{results.runs(arm)[0]['head_parameters']:,}",
        "of the model's activated": f"{100 * fmean(share):.1f} %",
        "accepted, %": percent("acceptance"),
        "without repeats, %": percent("acceptance_without_repeats"),
        "draft, ms": results.estimate(arm, "ms_draft").show(2),
        "speed-up": results.estimate(arm, "speed_up").show(2),
    }


FIGURE = Figure(
    number=9,
    title="A dense draft head against one of a ScMoE layer",
    report="table 5",
    shows="a dense layer with 1.41 % of the activated parameters has 92.1 % of its drafts "
    "accepted, a ScMoE layer with 4.17 % has 92.9 %; the report takes the dense one, whose drafts "
    "are cheaper.",
    differs="two layers instead of 28, so that a head is a far larger part of the model; both "
    "heads are taught on the same frozen model, half as long as it was trained, instead of "
    "together with it. Greedy continuations of held-out prompts, one sequence at a time.",
    arms=arms,
    verdicts=verdicts,
    body=body,
    run=run,
)
