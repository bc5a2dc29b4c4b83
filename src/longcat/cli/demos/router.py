"""`longcat demo router`: the bias controller converges, live, beside three laws that do not.

The experiment is in `laws.py`; here it becomes a walkthrough (see `longcat.cli.ui.page`).
"""

import math
import re
from collections.abc import Iterator, Sequence

import torch
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from longcat.cli.demos.laws import LAWS, SHAPE, WORDS, Experiment, Law, Trial
from longcat.cli.ui.page import Page, Question, Verdict, source_line
from longcat.cli.ui.plot import Bars, Line
from longcat.cli.ui.prose import spelled
from longcat.cli.ui.shade import Shade
from longcat.cli.ui.theme import style
from longcat.flash import FlashConfig
from longcat.flash.accounting import count_parameters
from longcat.router import BiasController, Router

STEPS = 400
_FRAMES = 100
_HEIGHT = 10
_TOLERANCE = 0.01
_TEXT = (
    "The cat sat on the mat, for the mat was warm. That no list of the primes is complete takes "
    "a longer thought.\nfor step in range(400):\n    bias += mu * (share - load)"
)

PAGE = Page(
    name="router",
    title="Zero-computation experts and their bias controller",
    claim=(
        "A token may choose experts that do nothing. Biases on the choice, moved after every step "
        "by each FFN expert's distance from its share, hold the mean number of FFN experts per "
        "token at K_e, within 1 %."
    ),
    formula=(
        "Δb_i = μ e_i   for the N FFN experts, 0 for the Z that do nothing",
        "e_i  = K_e/(K N) − T_i/ΣT   (T_i: how many tokens chose expert i)",
    ),
    source="LongCat-Flash report, section 2.1.1, equation 2",
    question=Question(
        text="Here K = 4, K_e = 3, and 8 experts of 16 do nothing. Which law gets to 3?",
        options={
            "a": "the published one, which adds up errors (I)",
            "b": "biases proportional to the error (P), or to its change too (PD)",
            "c": "any of them: all see the same error",
        },
        answer="a",
        reason=(
            "A sum of errors rests only where the error is 0. A bias proportional to the error "
            "needs an error to hold it up; more gain, or the change on top, makes experts take "
            "turns instead (PD: the heaviest has twice its share)."
        ),
    ),
    read_next={
        "controller": source_line(BiasController.update),
        "router": source_line(Router.forward),
        "tutorial": "longcat tutorial 01",
    },
)


class RouterDemo:
    """The walkthrough; see `longcat.cli.ui.page.Walkthrough`.

    Args:
        seed: decides router, tokens and contexts.
        steps: controller steps, at least 40.
        laws: the laws to compare: the claim's own first, then P, PD and the uniform target.

    Raises:
        ValueError: with fewer than 40 steps.
    """

    page = PAGE

    def __init__(self, seed: int = 0, steps: int = STEPS, laws: Sequence[Law] = LAWS) -> None:
        if steps < 40:
            raise ValueError(
                f"demo router: a controller needs at least 40 steps to be judged; got {steps}"
            )
        self.seed, self.steps = seed, steps
        self.window = min(100, steps // 4)
        self._experiment = Experiment(seed, laws)
        self._tokens = re.findall(r"\n? *(?:\w+|[^\w\s])", _TEXT)
        self._states = self._experiment.in_context(_word_ids(self._tokens))

    @property
    def trials(self) -> list[Trial]:
        """One per law, in order."""
        return self._experiment.trials

    def frames(self) -> Iterator[RenderableType]:
        """Run, and show about a hundred moments of it."""
        every = max(1, self.steps // _FRAMES)
        threads = torch.get_num_threads()
        # Batches this small keep one core busy; on a loaded machine a second thread costs tenfold.
        torch.set_num_threads(1)
        try:
            for step in range(1, self.steps + 1):
                self._experiment.step()
                if step % every == 0 or step == self.steps:
                    yield self._frame(step)
        finally:
            torch.set_num_threads(threads)

    def _frame(self, step: int) -> RenderableType:
        main = self.trials[0]
        n, z = SHAPE.n_routed_experts, SHAPE.zero_expert_num
        line = Line(
            {trial.law.name: trial.ffn_mean for trial in self.trials},
            SHAPE.target_ffn,
            height=_HEIGHT,
            title="FFN experts per token",
            length=self.steps,
            limits=(1.8, 3.2),
            roles={trial.law.name: trial.law.role for trial in self.trials},
        )
        bars = Bars(
            [float(share) for share in main.load],
            [str(i + 1) for i in range(n)] + [str(i + 1) for i in range(z)],
            1.0,
            height=_HEIGHT,
            title="load, law I",
            roles=["ffn"] * n + ["zero"] * z,
            legend={"ffn": "FFN", "zero": "identity"},
            top=1.4,
        )
        used = main.ffn_experts(self._states)
        shade = Shade(
            self._tokens,
            used,
            low=0,
            high=SHAPE.top_k,
            unit="FFN experts each token gets; the router is random",
        )
        plots = Table.grid(expand=True, padding=(0, 2))
        plots.add_column(ratio=3)
        plots.add_column(ratio=2)
        plots.add_row(line, bars)
        now = Text(f"step {step:>{len(str(self.steps))}} of {self.steps}", style="dim")
        for trial in self.trials:
            now.append(f"   {trial.law.name} ", "default not dim")
            now.append(f"{trial.ffn_mean[-1]:.2f}", style(trial.law.role, bold=True, dim=False))
        return Padding(Group(plots, now, Text(), shade), (0, 2))

    def details(self) -> RenderableType:
        """The table of laws, and what the target means for the released model."""
        table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("law")
        table.add_column("biases")
        for name in (f"within {_TOLERANCE * 100:g} %", f"last {self.window}", "heaviest load"):
            table.add_column(name, justify="right")
        for trial in self.trials:
            arrived = trial.steps_to_target(tolerance=_TOLERANCE)
            table.add_row(
                Text(trial.law.name, style(trial.law.role, bold=True)),
                spelled(trial.law.rule),
                "never" if arrived is None else f"step {arrived}",
                f"{trial.settled(self.window):.3f}",
                f"{trial.heaviest_settled(self.window):.2f}",
            )
        legend = (
            "within: step from which the mean of 20 steps stays that near K_e; "
            "last: FFN experts per token; heaviest load: in fair shares"
        )
        return Group(table, Text(legend, "note"), Text(), _released())

    def verdicts(self) -> list[Verdict]:
        """The claim, its three controls, and the released model's activated parameters."""
        main, *others = (trial.settled(self.window) for trial in self.trials)
        k_e = SHAPE.target_ffn
        uniform = SHAPE.top_k * SHAPE.n_routed_experts / SHAPE.n_experts
        low, mean, high = _activated()
        return [
            Verdict(
                claim="law I holds K_e",
                measured=f"{main:.3f}",
                published=f"{k_e:g}, within 1 %",
                holds=_near(main, k_e) and self.trials[0].steps_to_target() is not None,
            ),
            Verdict(
                claim="P and PD alone do not get there",
                measured=" and ".join(f"{value:.2f}" for value in others[:-1]),
                published="the law has neither term",
                holds=all(t.steps_to_target() is None for t in self.trials[1:-1]),
            ),
            Verdict(
                claim="a uniform target goes wrong",
                measured=f"{others[-1]:.3f}",
                published="K N/(N+Z) = 2; as released, K_e",
                holds=_near(others[-1], uniform) and not _near(others[-1], k_e),
            ),
            Verdict(
                claim="parameters with 0, 8, 12 FFN experts",
                measured=f"{low:.2f}, {mean:.2f}, {high:.2f} B",
                published="18.6, about 27, 31.3 B",
                # The report cuts the ends off after one digit and rounds the mean.
                holds=(math.floor(low * 10), round(mean), math.floor(high * 10)) == (186, 27, 313),
            ),
        ]

    def summary(self) -> dict[str, object]:
        """What was measured, for `--json`."""
        low, mean, high = _activated()
        return {
            "seed": self.seed,
            "steps": self.steps,
            "target_ffn_experts": SHAPE.target_ffn,
            "laws": {
                trial.law.name: {
                    "steps_to_target": trial.steps_to_target(tolerance=_TOLERANCE),
                    "ffn_experts_mean": trial.settled(self.window),
                    "expert_load_max": trial.heaviest_settled(self.window),
                }
                for trial in self.trials
            },
            "activated_parameters_billion": {"min": low, "mean": mean, "max": high},
        }


def _near(value: float, target: float) -> bool:
    return abs(value / target - 1) <= _TOLERANCE


def _word_ids(tokens: Sequence[str]) -> torch.Tensor:
    """A word of the experiment for each different token, frequent tokens first."""
    bare = [token.strip() for token in tokens]
    ranked = sorted(set(bare), key=lambda token: (-bare.count(token), bare.index(token)))
    if len(ranked) > WORDS:
        raise ValueError(f"demo router: at most {WORDS} different tokens; got {len(ranked)}")
    return torch.tensor([ranked.index(token) for token in bare])


def _released() -> RenderableType:
    """What the target means in the released model: parameters that one token activates."""
    low, *_ = amounts = _activated()
    width = 40
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_row("[note]FFN experts[/]", "[note]parameters one token activates in LongCat-Flash[/]")
    for label, amount in zip(("0", "8 = K_e", "12 = K"), amounts, strict=True):
        always, more = (round(width * x / amounts[-1]) for x in (low, amount - low))
        bar = Table.grid()
        bar.add_row(
            spelled("▆" * always, "zero"), spelled("▆" * more, "ffn"), f" [bold]{amount:.2f} B[/]"
        )
        rows.add_row(label, bar)
    return rows


def _activated() -> tuple[float, float, float]:
    """Billions of parameters per token in the released model: least, mean, most."""
    counted = count_parameters(FlashConfig.preset("longcat-flash"))
    return (
        counted.activated_min / 1e9,
        counted.activated_mean / 1e9,
        counted.activated_max / 1e9,
    )
