"""Figure 10: a held-out passage shaded by the FFN experts of each token, over training.

Nothing in the report is drawn like this; its figure 11 and section 2.1 say in numbers and words
what can be seen here in the text itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from longcat.cli.benchmarks.paper import heat, page
from longcat.cli.benchmarks.paper.figure import Arm, Figure, Row, Scale
from longcat.cli.benchmarks.paper.interval import estimate
from longcat.cli.benchmarks.paper.results import Results
from longcat.cli.benchmarks.paper.training import Job, follow, held_out_loss
from longcat.cli.benchmarks.paper.verdict import Verdict, difference
from longcat.train.classes import by_kind
from longcat.train.evaluate import HeldOut
from longcat.train.trainer import Trainer

NAME = "one model, watched"
TIMES = 2  # the ordinary length: routing has to settle before tokens differ
SHARES = (0.1, 0.5, 1.0)  # of the training
PASSAGE = 260  # tokens shown
FEWEST, MOST = "newline and indentation", "word or part of one"


def arms(scale: Scale) -> Sequence[Arm]:
    """A single one: the figure compares kinds of tokens, not models."""
    return (Arm(name=NAME, settings={"steps": TIMES * scale.steps}),)


def run(job: Job) -> Row:
    """The ordinary run, and the held-out text token by token at each of SHARES."""
    trainer = job.trainer()
    steps = trainer.settings.steps or 0
    wanted = {round(share * steps): share for share in SHARES}
    looks: list[Row] = []

    def watch(trainer: Trainer) -> Mapping[str, Any]:
        if trainer.step in wanted:
            held_out = held_out_loss(job, trainer)
            looks.append(
                {"share": wanted[trainer.step], "step": trainer.step, **look(job, held_out)}
            )
            trainer.start_clock()
        return {}

    row = follow(job, trainer, read=("ffn_experts_mean", "ffn_experts_std"), watch=watch)
    return {**row, "looks": looks}


def look(job: Job, held_out: HeldOut) -> Row:
    """What one look at the held-out text gives: kinds of tokens, and a passage of it."""
    tokenizer = job.text.tokenizer
    table = tokenizer.token_bytes()
    start = passage_start([table[i] for i in held_out.ids])
    shown = range(start, min(len(held_out.ids), start + PASSAGE))
    return {
        "loss": held_out.loss,
        "correlation_with_loss": held_out.correlation_with_loss,
        "ffn_mean": held_out.ffn_mean,
        "ffn_std": held_out.ffn_std,
        "kinds": {k.kind: [k.tokens, k.ffn_experts] for k in by_kind(held_out, tokenizer)},
        "passage": [table[held_out.ids[i]].decode("utf-8", errors="replace") for i in shown],
        "ffn": held_out.ffn[:, shown].tolist(),
    }


def passage_start(pieces: Sequence[bytes]) -> int:
    """Where the first function with a docstring after the middle of the text begins."""
    middle = len(pieces) // 2
    for i in range(middle, len(pieces)):
        ahead = b"".join(pieces[i : i + 40])
        if b"\n" in pieces[i - 1] and ahead.lstrip().startswith(b"def ") and b'"""' in ahead:
            return i
    return middle


def whole_document(passage: Sequence[str]) -> int:
    """How many tokens of the passage stand before the end of its document, which has no text."""
    return passage.index("") if "" in passage else len(passage)


def at(row: Row, share: float) -> Row:
    """The look at this share of the training."""
    found: Row = next(one for one in row["looks"] if one["share"] == share)
    return found


def kinds(results: Results) -> list[str]:
    """Kinds of tokens that every run saw, fewest FFN experts first at the end of training."""
    rows = results.runs(NAME)
    names = set.intersection(*(set(at(row, SHARES[-1])["kinds"]) for row in rows))
    return sorted(names, key=lambda name: fmean(used(row, name) for row in rows))


def used(row: Row, kind: str, share: float = SHARES[-1]) -> float:
    """FFN experts per token of this kind, mean of layers."""
    return float(at(row, share)["kinds"][kind][1])


def apart(row: Row, share: float) -> float:
    """FFN experts between the kind that gets most and the one that gets fewest."""
    means = [experts for _, experts in at(row, share)["kinds"].values()]
    return float(max(means) - min(means))


def verdicts(results: Results) -> Sequence[Verdict]:
    """Trivial tokens, the growth of the difference, and difficulty."""
    rows = results.runs(NAME)
    names = kinds(results)
    few, many = (FEWEST, MOST) if {FEWEST, MOST} <= set(names) else (names[0], names[-1])
    early, late = SHARES[0], SHARES[-1]
    correlation = estimate([at(row, late)["correlation_with_loss"] for row in rows])
    hard = correlation.low > HARD
    return [
        difference(
            "mean number of FFN experts",
            [used(row, few) for row in rows],
            [used(row, many) for row in rows],
            of=(f"tokens of the kind “{few}”", f"“{many}”"),
            expected="lower",
            digits=2,
        ),
        difference(
            "distance between the kinds with most and fewest FFN experts",
            [apart(row, late) for row in rows],
            [apart(row, early) for row in rows],
            of=(f"the model at {late:.0%} of its training", f"the same at {early:.0%}"),
            expected="higher",
            digits=2,
        ),
        Verdict(
            seen=hard,
            text="the correlation of a token's FFN experts with the loss of the token after it is "
            f"{correlation.show(2)}: "
            + (
                "harder places get more."
                if hard
                else f"not above {HARD}, so these models do not give more to what is harder to "
                "predict."
            ),
        ),
    ]


HARD = 0.1  # a correlation below explains under a hundredth of the variance


def body(results: Results) -> Iterable[str]:
    """The table by kind, then the passage at each share, layer by layer."""
    rows = results.runs(NAME)
    table = []
    for kind in kinds(results):
        line = {"kind of token": kind, "held-out tokens": f"{at(rows[0], 1.0)['kinds'][kind][0]:,}"}
        for share in SHARES:
            values = [used(row, kind, share) for row in rows if kind in at(row, share)["kinds"]]
            line[f"FFN experts at {share:.0%}"] = estimate(values).show(2)
        table.append(line)
    everything = {"kind of token": "**all**", "held-out tokens": ""}
    for share in SHARES:
        mean = estimate([fmean(at(row, share)["ffn_mean"]) for row in rows])
        everything[f"FFN experts at {share:.0%}"] = mean.show(2)
    yield page.table([*table, everything])
    target = float(results.document["model"]["expected_ffn_experts"])
    most = int(results.document["model"]["moe_topk"])
    yield "## The passage, layer by layer"
    yield (
        f"From the middle of the held-out text, under the model of seed {results.seeds[0]}. The "
        "stronger a token's shade, the more FFN experts it used; point at it for the number."
    )
    yield heat.scale(most, target)
    first = rows[0]
    shown = whole_document(at(first, SHARES[-1])["passage"])
    for layer in range(len(first["looks"][0]["ffn_mean"])):
        for share in SHARES:
            one = at(first, share)
            mean, spread = one["ffn_mean"][layer], one["ffn_std"][layer]
            yield heat.passage(
                one["passage"][:shown],
                one["ffn"][layer][:shown],
                most=most,
                caption=f"Layer {layer + 1} at {share:.0%} of the training: {mean:.2f} FFN experts "
                f"per token over all held-out text, standard deviation {spread:.2f}",
            )


FIGURE = Figure(
    number=10,
    title="Where the compute goes: a passage shaded by FFN experts",
    report="section 2.1, figures 3c and 11, appendix A.1",
    shows="tokens differ in how many FFN experts they get: in the first layer function words, "
    "digits and punctuation always get fewer; the last layer looks driven by difficulty. "
    "The spread over tokens grows in training. Averages by benchmark lie between 7.46 and 8.32 "
    "for a target of 8.",
    differs="program text instead of benchmarks, and two layers; kinds of tokens by their "
    "spelling. The same held-out text is scored at 10, 50 and 100 % of the training.",
    arms=arms,
    verdicts=verdicts,
    body=body,
    run=run,
)
