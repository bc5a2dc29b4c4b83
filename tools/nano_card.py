"""Write the README of the shipped nano weights: `nano_card.py RUN SHIPPED`, a part of `make nano`.

Training figures are those of RUN/run.json, those of the draft head what `longcat bench acceptance`
found of the run, all others are measured here on the weights as they ship. No figure is typed.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from longcat.cli.benchmarks.acceptance.page import ALL, FRESH, share
from longcat.cli.benchmarks.acceptance.runs import FILE_NAME, command_of, read
from longcat.train.directory import RunDirectory
from longcat.train.prepare import reopen

RESULTS = Path("bench/results")


def evaluated(shipped: Path) -> dict[str, Any]:
    """What `longcat evaluate` says of the weights as they ship."""
    command = [sys.executable, "-m", "longcat.cli.main", "evaluate", "--json"]
    command += ["--model", str(shipped)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    document: dict[str, Any] = json.loads(found.stdout)
    return document


def card(run: dict[str, Any], drafts: dict[str, Any], figures: dict[str, Any]) -> str:
    """The README from run.json, the run's entry in acceptance.json, and `longcat evaluate`."""
    corpus = run["corpus"]
    total, head = run["parameters"]["total"], run["parameters"]["mtp"]
    compressors = ", ".join(f"{name} {bits:.3f}" for name, bits in figures["compressors"].items())
    experts = " and ".join(
        f"{mean:.2f} ± {half:.2f}"
        for mean, half in zip(
            figures["ffn_experts_mean"], figures["ffn_experts_half_width"], strict=True
        )
    )
    every, fresh = share([drafts], ALL), share([drafts], FRESH)
    return f"""# The shipped nano

The `nano` preset, {total / 1e6:.2f} M parameters and an MTP head of {head / 1e6:.2f} M, trained on
{corpus["source"]} ({corpus["licence"]}), so that `longcat generate`, the demos and
the speculation tests have a real model at once. bfloat16, in the hub's form. `make nano` makes one
anew, and writes this file.

| | |
|---|---|
| command | `{drafts["command"]}` |
| training | {run["tokens"]:,} tokens ({run["tokens"] / corpus["train_tokens"]:.2f} passes), \
{run["cpu_seconds"]:,.0f} seconds of processor time, then \
{drafts["settle_cpu_seconds"] + drafts["distill_cpu_seconds"]:,.0f} for biases and draft head |
| held out ({figures["documents"]} files, {figures["bytes"]:,} bytes, never trained on) | \
{figures["bits_per_byte"]:.3f} bits per byte; {compressors} |
| FFN experts per token on held-out text, target {figures["ffn_experts_target"]:g} | {experts} |
| drafts accepted, greedy, {drafts["prompts"]["count"]} fresh held-out prompts | \
{every.mean:.1%} (± {every.over_prompts:.1%}); {fresh.mean:.1%} where no 5-gram repeats; \
{drafts["tokens_per_pass"]:.2f} tokens per pass |
| the same, sampled at temperature 1 | {drafts["sampled"]:.1%} |

Bits per byte and FFN experts are those of these weights, as `longcat evaluate --model nano` prints
them; the others are of the float32 run. Other seeds of the recipe are in
`docs/results/acceptance.md`. Another machine, or another version of what computes, gives other
bits: `make nano` then makes a sibling.
"""


def main(path: Path, shipped: Path) -> None:
    """Measure, and write SHIPPED/README.md."""
    run = json.loads((path / "run.json").read_text(encoding="utf-8"))
    command = command_of(reopen(RunDirectory(path)).settings)
    (drafts,) = (entry for entry in read(RESULTS / FILE_NAME) if entry["command"] == command)
    (shipped / "README.md").write_text(card(run, drafts, evaluated(shipped)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
