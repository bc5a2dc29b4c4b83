"""Figure 7: identity experts against a fixed number of FFN experts at equal mean compute."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from longcat.cli.benchmarks.paper import page
from longcat.cli.benchmarks.paper.figure import Arm, Figure, Row, Scale
from longcat.cli.benchmarks.paper.results import Results
from longcat.cli.benchmarks.paper.training import Job, follow, held_out_loss
from longcat.cli.benchmarks.paper.verdict import Verdict, difference

DYNAMIC, FIXED, MORE = "identity experts", "fixed top-4", "fixed top-6"
EQUAL = 0.02  # of the FLOPs: what counts as equal compute


def arms(scale: Scale) -> Sequence[Arm]:
    """K_e of K slots on FFN experts, against K_e and against K slots that are always FFN."""
    k, k_e = scale.model["moe_topk"], scale.model["expected_ffn_experts"]

    def fixed(name: str, slots: int) -> Arm:
        model = {"zero_expert_num": 0, "moe_topk": slots, "expected_ffn_experts": slots}
        return Arm(name=name, model=model)

    return (Arm(name=DYNAMIC), fixed(FIXED, k_e), fixed(MORE, k))


def run(job: Job) -> Row:
    """The ordinary run, and the FFN experts per token on held-out text, layer by layer."""
    trainer = job.trainer()
    row = follow(job, trainer, read=("ffn_experts_mean", "ffn_experts_std"))
    held_out = held_out_loss(job, trainer)
    return {**row, "ffn_held_out": held_out.ffn_mean, "ffn_std_held_out": held_out.ffn_std}


def compute_ratio(results: Results) -> float:
    """Active FLOPs of the whole training, identity experts over fixed top-K_e."""
    return fmean(results.values(DYNAMIC, "flops")) / fmean(results.values(FIXED, "flops"))


def verdicts(results: Results) -> Sequence[Verdict]:
    """Equal compute, then the two losses; then what more compute would have been worth."""
    ratio = compute_ratio(results)
    loss = {arm: results.values(arm, "loss") for arm in results.arms}
    return [
        Verdict(
            seen=abs(ratio - 1) <= EQUAL,
            text=f"the compute is equal: over the whole training {DYNAMIC} spend {ratio:.3f} times "
            f"the active FLOPs of {FIXED}.",
        ),
        difference(
            "held-out loss", loss[DYNAMIC], loss[FIXED], of=(DYNAMIC, FIXED), expected="lower"
        ),
        difference("held-out loss", loss[MORE], loss[FIXED], of=(MORE, FIXED), expected="lower"),
    ]


def body(results: Results) -> Iterable[str]:
    """Loss on three axes, and the table."""
    yield page.loss_plots(
        results,
        results.arms,
        title="Held-out loss with identity experts and with a fixed number of FFN experts; mean of "
        "the seeds with its interval.",
    )
    yield page.table(
        [
            {
                "arm": arm,
                "FFN experts per token, held out": results.estimate(
                    arm, lambda row: fmean(row["ffn_held_out"])
                ).show(2),
                "their spread over tokens": results.estimate(
                    arm, lambda row: fmean(row["ffn_std_held_out"])
                ).show(2),
                "active FLOPs": f"{fmean(results.values(arm, 'flops')):.3g}",
                "CPU seconds": f"{fmean(results.values(arm, 'cpu_seconds')):.1f}",
                "held-out loss": results.estimate(arm).show(4),
            }
            for arm in results.arms
        ]
    )
    yield (
        f"The third arm, {MORE}, says what the gaps are to be measured by: it spends half as many "
        "FFN experts again on every token. The scaling factor of the gates is the same in all "
        "arms, although a softmax over 24 experts gives each less than one over 16; the report "
        "does not say what it did."
    )


FIGURE = Figure(
    number=7,
    title="Identity experts against a fixed top-K at equal mean compute",
    report="figure 3a",
    shows="a model that chooses 12 of its FFN and identity experts, 8 of them FFN on average, ends "
    "below one that always uses 8 FFN experts: about 2.395 against 2.407 nats after 500 billion "
    "tokens, half a percent.",
    differs="16 FFN experts; with 8 identity experts beside them K = 6 and K_e = 4, against K = 4 "
    "and K = 6 without. Same data, same steps, same seeds.",
    arms=arms,
    verdicts=verdicts,
    body=body,
    run=run,
)
