"""The sentences and figures that terminal and page share."""

from dataclasses import dataclass

from longcat.train.peak import percent
from longcat.train.summary import Summary


@dataclass(frozen=True, kw_only=True)
class Next:
    """A suggestion: why, and the command that does it."""

    why: str
    command: str


def figures(summary: Summary) -> list[tuple[str, str]]:
    """(what, figure) of a run's headline, in the order they are told."""
    held_out, mtp = summary["held_out"], summary["mtp"]
    rows = []
    if held_out:
        what = "held-out replies" if held_out.get("of") == "replies" else "held out"
        rows.append((f"bits per byte, {what}", f"{held_out['bits_per_byte']:.3f}"))
        if held_out.get("bits_per_byte_before") is not None:
            before = f"{held_out['bits_per_byte_before']:.3f}"
            rows.append(("the same before fine-tuning", before))
        rows.append((f"loss, {what} (nats per token)", f"{held_out['loss']:.3f}"))
        means = ", ".join(f"{m:.2f}" for m in held_out["ffn_experts_mean"])
        rows.append((f"FFN experts per token (target {summary['ffn_experts_target']:g})", means))
    heaviest = summary["balance"]["expert_load_max"]
    if heaviest:
        shown = ", ".join(f"{load:.2f}" for load in heaviest)
        rows.append(("heaviest expert, last tenth (mean 1)", shown))
    if mtp and mtp["acceptance"] is not None:
        rows.append(("drafts accepted", f"{mtp['acceptance']:.1%}"))
    if mtp and mtp["acceptance_without_repeats"] is not None:
        rows.append(("the same without repeats", f"{mtp['acceptance_without_repeats']:.1%}"))
    rows.append(("tokens trained on", f"{summary['tokens'] / 1e6:.2f} M"))
    rows.append(("training time", f"{summary['seconds']:.0f} s"))
    rows.append(("processor time", f"{summary['cpu_seconds']:.0f} s"))
    if summary["memory_peak"]:
        shown = f"{summary['memory_peak'] / 1e9:.2f} GB"
        rows.append(("memory at most, all processes", shown))
    if summary["mfu"] is not None:
        rows.append(("MFU, of the measured peak (median step)", percent(summary["mfu"])))
    alarms = ", ".join(f"{a['kind']} {a['count']}x" for a in summary["alarms"])
    rows.append(("alarms", alarms or "none"))
    parameters = summary["parameters"]
    total, active = parameters["total"] / 1e6, parameters["activated_mean"] / 1e6
    rows.append(("parameters, total / activated", f"{total:.2f} / {active:.2f} M"))
    return rows


def next_steps(summary: Summary) -> list[Next]:
    """What to try after this run."""
    directory, settings = summary["directory"], summary["settings"]
    write = Next(
        why="Let the model write; drafted and accepted tokens are coloured.",
        command=f'longcat generate --model {directory} --prompt "def main("',
    )
    if settings.get("sft"):
        write = Next(
            why="Ask it something.",
            command=f'longcat generate --model {directory} --chat --prompt "What does len do?"',
        )
    steps = [
        write,
        Next(
            why="Train on your own text: files, folders, globs, .jsonl, or - for standard input.",
            command="longcat train --preset nano --data PATH --out runs/mine --time-budget 280",
        ),
        Next(
            why="See the bias controller find its target, beside laws that do not.",
            command="longcat demo router",
        ),
        Next(
            why="Hand the model to transformers 5.",
            command=f"longcat export --model {directory} --out {directory}-hf "
            "--format transformers5",
        ),
    ]
    held_out = summary["held_out"]
    from_scratch = not settings.get("init")
    if (
        from_scratch
        and held_out
        and held_out["bits_per_byte"] > held_out["compressors"].get("xz", 0.0)
    ):
        longer = round(2 * max(60.0, summary["seconds"]))
        again = Next(
            why="xz still needs fewer bits for the same bytes: train twice as long.",
            command=f"longcat train --preset {settings['preset']} --time-budget {longer} "
            "--out runs/longer",
        )
        steps.insert(1, again)
    return steps
