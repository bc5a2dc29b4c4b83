"""`longcat demo growth`: a stacked model starts where the small one stood, a rate carries over.

Three parts in turn: a small model, grown and beside it a deep one from random weights; how far
activations move in a few steps at three widths; learning rates at a narrow and a wide model.
"""

import math
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from longcat.cli.demos.scales import MOVED, grown_trainer, is_stacked, moved
from longcat.cli.demos.toy import WIDTH, held_out_loss, tiny_trainer
from longcat.cli.ui.page import Page, Question, Verdict, source_line
from longcat.cli.ui.plot import Line
from longcat.optim import learning_rate_factor, stacked_names
from longcat.train.growth import grow_model
from longcat.train.trainer import Trainer

STEPS = 60  # of the small model; all other lengths follow
_FEWEST = 24
_HEIGHT = 9
LAYERS, TIMES = 2, 2
WIDTHS = (16, 32, 64)
RATES = tuple(8e-3 * 2**i for i in range(5))

PAGE = Page(
    name="growth",
    title="Start small: growth by stacking, settings by transfer",
    claim=(
        "A deep model may start as a trained shallow one, its whole stack repeated; it then learns "
        "faster than from random weights. And a learning rate found on a narrow model serves a "
        "wide one, divided by the ratio of widths in hidden and output matrices."
    ),
    formula=(
        "target = (l_1 ∘ … ∘ l_n) ∘ (l_1 ∘ … ∘ l_n)    the stack twice, in order",
        "rate, variance: embedding as they were, hidden and output / s",
        "s = width of the target / width of the proxy",
    ),
    source="LongCat-Flash report, sections 3.1.1 (table 1) and 3.1.2 (equation 9)",
    question=Question(
        text="The stack of a trained model is repeated. What is the deep model's loss at step 0?",
        options={
            "a": "that of random weights: no layer was trained on such inputs",
            "b": "near the small model's: layers add to a residual stream",
            "c": "exactly the small model's: the second stack does nothing",
        },
        answer="b",
        reason=(
            "Each layer adds a little to the stream, and a second helping of the same is close to "
            "what the norm and the head expect. Close, not equal: the loss may rise at first."
        ),
    ),
    read_next={
        "growth": source_line(grow_model),
        "stacking": source_line(stacked_names),
        "transfer": source_line(learning_rate_factor),
        "tutorial": "longcat tutorial 07",
    },
)


class GrowthDemo:
    """The walkthrough; see `longcat.cli.ui.page.Walkthrough`.

    Args:
        seed: decides weights and text. steps: of the small model, at least 24.

    Raises:
        ValueError: with fewer steps.
    """

    page = PAGE

    def __init__(self, seed: int = 0, steps: int = STEPS) -> None:
        if steps < _FEWEST:
            raise ValueError(
                f"demo growth: a small model needs at least {_FEWEST} steps to be worth growing; "
                f"got {steps}"
            )
        self.seed, self.steps = seed, steps
        self.extra = 2 * steps // 3
        # Cost in steps of the deep model; a step of the small one costs a TIMES-th of that.
        self.spent = steps // TIMES
        self.loss: dict[str, list[float]] = {"grown": [], "random": [], "small": []}
        self.held_out: dict[str, float] = {}
        self.moves: dict[str, list[float]] = {"with the rule": [], "without": []}
        self.sweeps: dict[str, list[float]] = {}
        self.stacked = False

    def frames(self) -> Iterator[RenderableType]:
        """Grow, check coordinates, sweep rates; a frame for every few steps."""
        yield from self._grow()
        for width in WIDTHS:
            ratio = width / WIDTHS[0]
            self.moves["with the rule"].append(moved(width, ratio=ratio, seed=self.seed))
            self.moves["without"].append(moved(width, ratio=1.0, seed=self.seed))
            yield self._frame("coordinate check")
        narrow, wide = WIDTHS[0], WIDTHS[-1]
        ratio = wide / narrow
        yield from self._sweep(f"width {narrow}", narrow, 1.0)
        yield from self._sweep(f"width {wide}, rule", wide, ratio)
        yield from self._sweep(f"width {wide}, same rate", wide, 1.0)

    def _grow(self) -> Iterator[RenderableType]:
        steps, constant = self.steps, {"seed": self.seed, "decay": 0.0}
        small = tiny_trainer(WIDTH, LAYERS, steps=steps, **constant)
        yield from self._train(small, "small", steps)
        grown = grown_trainer(small, TIMES, steps + self.extra)
        self.stacked = is_stacked(grown.model, small.model)
        self.held_out["small"] = held_out_loss(small.model, self.seed)
        self.held_out["grown, step 0"] = held_out_loss(grown.model, self.seed)
        self.loss["grown"] = [math.nan] * self.spent
        yield from self._train(grown, "grown", self.extra)
        self.held_out["grown"] = held_out_loss(grown.model, self.seed)
        length = self.spent + self.extra
        deep = tiny_trainer(WIDTH, LAYERS * TIMES, steps=length, **constant)
        self.held_out["random, step 0"] = held_out_loss(deep.model, self.seed)
        yield from self._train(deep, "random", self.extra)
        self.held_out["random, equal steps"] = held_out_loss(deep.model, self.seed)
        yield from self._train(deep, "random", self.spent)
        self.held_out["random, equal cost"] = held_out_loss(deep.model, self.seed)

    def _train(self, trainer: Trainer, name: str, steps: int) -> Iterator[RenderableType]:
        for step in range(steps):
            loss = trainer.train_step()["loss"]
            if name != "small" or step % TIMES == TIMES - 1:
                self.loss[name].append(loss)
            if step % 2 == 1 or step == steps - 1:
                yield self._frame(f"{name}, {trainer.config.num_layers} layers: step {step + 1}")

    def _sweep(self, name: str, width: int, ratio: float) -> Iterator[RenderableType]:
        self.sweeps[name] = []
        for rate in RATES:
            trainer = tiny_trainer(
                width, steps=self.extra, lr=rate, width_ratio=ratio, seed=self.seed
            )
            losses = [trainer.train_step()["loss"] for _ in range(self.extra)]
            last = losses[-max(1, self.extra // 4) :]
            self.sweeps[name].append(sum(last) / len(last))
            yield self._frame(f"{name}: learning rate {rate:.0e}")

    def _frame(self, doing: str) -> RenderableType:
        left = Line(
            {name: one for name, one in self.loss.items() if one},
            height=_HEIGHT,
            title="loss (nats) by cost",
            length=self.spent + self.extra,
            roles={"grown": "ffn", "random": "bad", "small": "zero"},
            x_label="deep steps",
            limits=(1.8, 4.0),
        )
        right = Line(
            {name: one for name, one in self.sweeps.items() if one},
            height=_HEIGHT,
            title="loss by learning rate",
            length=len(RATES),
            roles=dict(zip(self.sweeps, ("zero", "ffn", "bad"), strict=False)),
            ends=(f"{RATES[0]:.0e}", f"{RATES[-1]:.1e}"),
            limits=(1.8, 4.0),
        )
        plots = Table.grid(expand=True, padding=(0, 2))
        plots.add_column(ratio=1)
        plots.add_column(ratio=1)
        plots.add_row(left, right)
        return Padding(Group(plots, Text(doing, style="dim")), (0, 2))

    def details(self) -> RenderableType:
        """Held-out losses, and how far activations moved at each width."""
        losses = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
        losses.add_column("model")
        losses.add_column("held-out loss", justify="right")
        for name, loss in self.held_out.items():
            losses.add_row(name, f"{loss:.3f}")
        moves = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
        moves.add_column(f"moved in {MOVED} steps")
        for width in WIDTHS:
            moves.add_column(f"width {width}", justify="right")
        for name, values in self.moves.items():
            moves.add_row(name, *(f"{value:.2f}" for value in values))
        best = [f"{name}: {RATES[index]:.0e}" for name, index in self._best().items()]
        return Group(losses, Text(), moves, Text(), Text("best rate, " + "; ".join(best), "note"))

    def verdicts(self) -> list[Verdict]:
        """Equation 9, closeness, what growth bought, and the transfer table at work."""
        held = self.held_out
        gap = held["random, step 0"] - held["small"]
        closeness = (held["grown, step 0"] - held["small"]) / gap
        with_rule, without = (max(m) / min(m) for m in self.moves.values())
        best = list(self._best().values())
        shown = " and ".join(f"{RATES[i]:.0e}" for i in best[:2])
        return [
            Verdict(
                claim="layer j is layer j mod n",
                measured="to the bit" if self.stacked else "other layers",
                published="equation 9, r = 2",
                holds=self.stacked,
            ),
            Verdict(
                claim="it starts near the small model",
                measured=f"{held['grown, step 0']:.2f}, small {held['small']:.2f}",
                published="first rises, then falls",
                holds=abs(closeness) < 0.25,
            ),
            Verdict(
                claim="and learns faster than random",
                measured=f"{held['grown']:.2f}, {held['random, equal steps']:.2f} at equal steps",
                published="lower at the end (fig. 5b)",
                holds=held["grown"] < held["random, equal steps"] - 0.05,
            ),
            Verdict(
                claim="the rule evens out widths",
                measured=f"moves differ {with_rule:.1f}x, else {without:.1f}x",
                published="no figure given",
                holds=with_rule < 2 and with_rule < without / 1.4,
            ),
            Verdict(
                claim="the narrow model's rate serves",
                measured=f"{shown}; same rate {RATES[best[2]]:.0e}",
                published="s = 8, rate not published",
                holds=abs(best[0] - best[1]) <= 1 and best[2] < best[1],
            ),
        ]

    def summary(self) -> dict[str, object]:
        """What was measured, for `--json`."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "extra_steps": self.extra,
            "stacked": self.stacked,
            "held_out_loss": self.held_out,
            "moved": dict(self.moves),
            "learning_rates": list(RATES),
            "loss_by_learning_rate": dict(self.sweeps),
        }

    def _best(self) -> dict[str, int]:
        """Which rate did best, by sweep."""
        return {
            name: min(range(len(RATES)), key=one.__getitem__) for name, one in self.sweeps.items()
        }
