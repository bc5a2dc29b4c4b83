"""`longcat demo corruption`: faults of a machine in a run, which detector sees them, and when.

Runs of one small model that differ in nothing but one fault each, beside undisturbed ones.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table

from longcat.cli.demos.faults import (
    EVERY,
    Drill,
    Fault,
    highest_bit,
    loud_head,
    output_bit,
    stale_expert,
)
from longcat.cli.ui.page import Page, Question, Verdict, source_line
from longcat.cli.ui.prose import Rows, spelled
from longcat.train.watch.recheck import Recheck
from longcat.train.watch.replicas import differing
from longcat.train.watch.rollback import Rollback
from longcat.train.watch.spike import scores

STEPS = 32
# The checks are at every fourth step; attentions take turns, and the first has that of step 20.
FAULTS = (
    Fault(name="a weight's highest bit", step=19, strike=highest_bit, found_by="divergence"),
    Fault(name="an output head 30 times", step=21, strike=loud_head, found_by="spike"),
    Fault(
        name="a bit of attention 1",
        step=20,
        strike=output_bit(0),
        found_by="corruption",
    ),
    Fault(name="a bit of attention 2", step=20, strike=output_bit(1)),
    Fault(
        name="a stale expert, 1 of 2",
        step=22,
        strike=stale_expert,
        processes=2,
        found_by="corruption",
        within=2,
    ),
)

PAGE = Page(
    name="corruption",
    title="Silent corruption: who notices, when, and what then",
    claim=(
        "Hardware now and then computes something wrong and says nothing. A run that looks at its "
        "losses, computes one attention twice and compares its processes at an interval finds "
        "most of it, goes back to a snapshot it trusts, and ends with the bits of a run to which "
        "nothing happened."
    ),
    formula=(
        "attend(x) = attend(x), gradient too   bit for bit, one attention in turn",
        "Σ word × place, of every tensor       the same in all processes",
        "(value − median) / 1.4826 MAD         a spike above 8, for gradients 16",
    ),
    source="LongCat-Flash report, section 5, for the recomputation; the rest is ours",
    question=Question(
        text="Of five faults, how many are found?",
        options={
            "a": "all five: every step is watched",
            "b": "four: what is checked now and then is a sample",
            "c": "one: only a loss that is no number shows",
        },
        answer="b",
        reason=(
            "One attention in turn is computed twice. A bit that changes in another one moves no "
            "loss far enough, and one process has nobody to compare itself with. Its run simply "
            "ends with other weights."
        ),
    ),
    read_next={
        "twice": source_line(Recheck),
        "replicas": source_line(differing),
        "spikes": source_line(scores),
        "going back": source_line(Rollback),
        "guide": "docs/guides/train.md, What is watched",
    },
)


class CorruptionDemo:
    """The walkthrough; see `longcat.cli.ui.page.Walkthrough`.

    Args:
        seed: decides weights and text. steps: of every run, at least as many as the last fault
            needs to be found in.

    Raises:
        ValueError: with fewer steps.
    """

    page = PAGE

    def __init__(self, seed: int = 0, steps: int = STEPS) -> None:
        fewest = max(fault.step for fault in FAULTS) + EVERY
        if steps < fewest:
            raise ValueError(
                f"demo corruption: the last fault needs a run of at least {fewest} steps; got "
                f"{steps}"
            )
        self.seed, self.steps = seed, steps
        self.calm: dict[int, Drill] = {}  # by number of processes
        self.struck: dict[str, Drill] = {}

    def frames(self) -> Iterator[RenderableType]:
        """Undisturbed runs, then one for each fault; a frame for each step."""
        with tempfile.TemporaryDirectory(prefix="longcat-demo-") as folder:
            for processes in sorted({fault.processes for fault in FAULTS}):
                place = Path(folder) / f"calm-{processes}"
                self.calm[processes] = Drill(
                    None, place, steps=self.steps, seed=self.seed, processes=processes
                )
                yield from self._run(self.calm[processes])
            for number, fault in enumerate(FAULTS):
                place = Path(folder) / f"fault-{number}"
                drill = Drill(fault, place, steps=self.steps, seed=self.seed)
                self.struck[fault.name] = drill
                yield from self._run(drill)

    def _run(self, drill: Drill) -> Iterator[RenderableType]:
        for _ in drill.steps():
            yield self._frame()

    def _frame(self) -> RenderableType:
        """A line of signs for each run."""
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("run")
        table.add_column("steps, as they were made")
        for processes, drill in self.calm.items():
            of = f"{processes} process" + "es" * (processes > 1)
            table.add_row(spelled(f"undisturbed, {of}", "zero"), spelled(drill.trace, "zero"))
        for name, drill in self.struck.items():
            role = "good" if drill.trouble else "bad" if "x" in drill.trace else "ffn"
            table.add_row(spelled(name), spelled(drill.trace, role))
        return Padding(table, (0, 2))

    def details(self) -> RenderableType:
        """What the signs mean, and what each detector said."""
        rows = [("signs", "net", "· a step  x the fault  ! found, in that step  < back")]
        for drill in self.struck.values():
            found = drill.trouble
            if found is not None:
                said = f"step {found.step}: {found.text}; back to step {found.back_to}"
                rows.append((found.kind, "good", said))
        return Rows(rows, indent=0, width=10)

    def verdicts(self) -> list[Verdict]:
        """Nothing where nothing happened; each fault found as it should be; equal ends."""
        made = sum(len(drill.trace) for drill in self.calm.values())
        calm = [drill for drill in self.calm.values() if drill.trouble is None]
        return [
            Verdict(
                claim="no false alarm",
                measured=f"{len(calm)} of {len(self.calm)} runs, {made} steps",
                published="no figure given",
                holds=len(calm) == len(self.calm),
            ),
            *(self._verdict(fault) for fault in FAULTS),
        ]

    def _verdict(self, fault: Fault) -> Verdict:
        drill = self.struck[fault.name]
        same = drill.ends_as(self.calm[fault.processes])
        found = drill.trouble
        ends = "same bits" if same else "other bits"
        if found is None:
            return Verdict(
                claim=fault.name,
                measured=f"not found, {ends}",
                published="a sample, not proof",
                holds=fault.found_by is None and not same,
            )
        late = found.step - fault.step
        when = "that step" if not late else f"{late} steps on"
        return Verdict(
            claim=fault.name,
            measured=f"{found.kind}, {when}, {ends}",
            published="recomputed" if "twice" in found.text else "no figure given",
            holds=found.kind == fault.found_by and late == fault.within and same,
        )

    def summary(self) -> dict[str, object]:
        """What was measured, for `--json`."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "check_every": EVERY,
            "faults": {
                fault.name: {
                    "step": fault.step,
                    "processes": fault.processes,
                    "found": None if drill.trouble is None else vars(drill.trouble),
                    "ends_as_undisturbed": drill.ends_as(self.calm[fault.processes]),
                }
                for fault, drill in zip(FAULTS, self.struck.values(), strict=True)
            },
        }
