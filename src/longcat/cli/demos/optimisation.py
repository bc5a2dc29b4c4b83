"""`longcat demo optimisation`: what Adam's epsilon, the hidden z-loss and R_g do, live.

Seven small models train side by side on the same windows; each pair differs in one setting.
"""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from longcat.cli.demos.toy import tiny_trainer
from longcat.cli.ui.page import Page, Question, Verdict, source_line
from longcat.cli.ui.plot import Line
from longcat.cli.ui.theme import style
from longcat.optim import adamw, epsilon_share, hidden_z_loss
from longcat.router import router_gradient_ratio
from longcat.train.trainer import Trainer

STEPS = 50
_FEWEST = 20
_HEIGHT = 9
EPSILONS = {1e-16: "ffn", 1e-8: "good", 1e-3: "net", 1e-1: "bad"}
LAMBDAS = {1e-5: "ffn", 0.0: "bad"}
ALPHAS = {5e-4: "ffn", 5e-2: "bad"}
HARSH = 0.1  # learning rate of the two models with and without the z-loss
_SAME = 0.03  # nats

PAGE = Page(
    name="optimisation",
    title="Keeping a large model's training steady",
    claim=(
        "Adam's epsilon must stay far below the size of the gradients, which falls as models grow; "
        "a small loss on the last layer's activations keeps them from growing; and the balance "
        "loss may pull a router with at most a tenth of the language-model loss's force."
    ),
    formula=(
        "step = η m / (√v + ε)   with ε = 1e-16",
        "L_Z  = λ mean over tokens of (log Σ exp |z|)²",
        "R_g  = |α grad L_balance| / |grad L_LM| < 0.1",
    ),
    source="LongCat-Flash report, section 3.1.3, figures 6 and 7",
    question=Question(
        text="Gradients here are about 3e-3 in size. Which epsilons cost something?",
        options={
            "a": "none: Adam divides by the gradient's size, whatever it is",
            "b": "1e-1 and 1e-3, the ones that reach that size",
            "c": "all but 1e-16",
        },
        answer="b",
        reason=(
            "Where epsilon outweighs the root of v, the step shrinks with the gradient. Below that "
            "threshold nothing happens; the report takes 1e-16 because the threshold falls with "
            "every larger model."
        ),
    ),
    read_next={
        "epsilon": source_line(adamw),
        "microscope": source_line(epsilon_share),
        "z-loss": source_line(hidden_z_loss),
        "R_g": source_line(router_gradient_ratio),
        "tutorial": "longcat tutorial 06",
    },
)


class Course:
    """One model, and what was measured as it trained."""

    def __init__(self, seed: int, steps: int, **settings: float) -> None:
        self.trainer: Trainer = tiny_trainer(steps=steps, seed=seed, **settings)
        self.loss: list[float] = []
        self.hidden: list[float] = []
        self.r_g: list[float] = []

    def step(self) -> None:
        """One optimizer step."""
        record = self.trainer.train_step()
        self.loss.append(record["loss"])
        self.hidden.append(record["hidden_rms"])
        self.r_g += record["r_g"] or []

    @property
    def settled(self) -> float:
        """Mean loss over the last fifth of the steps so far."""
        last = self.loss[-max(1, len(self.loss) // 5) :]
        return sum(last) / len(last)


class OptimisationDemo:
    """The walkthrough; see `longcat.cli.ui.page.Walkthrough`.

    Args:
        seed: decides weights and text. steps: of each model, at least 20.

    Raises:
        ValueError: with fewer steps.
    """

    page = PAGE

    def __init__(self, seed: int = 0, steps: int = STEPS) -> None:
        if steps < _FEWEST:
            raise ValueError(
                f"demo optimisation: a model needs at least {_FEWEST} steps to be judged; got "
                f"{steps}"
            )
        self.seed, self.steps = seed, steps
        self.by_epsilon = {eps: Course(seed, steps, eps=eps) for eps in EPSILONS}
        self.by_lambda = {
            weight: Course(seed, steps, lr=HARSH, z_loss_weight=weight) for weight in LAMBDAS
        }
        strict, loose = ALPHAS
        self.by_alpha = {
            strict: self.by_epsilon[1e-16],  # the default, so that run serves twice
            loose: Course(seed, steps, balance_weight=loose),
        }

    def frames(self) -> Iterator[RenderableType]:
        """Train all models step by step, and show each step."""
        courses = [
            *self.by_epsilon.values(),
            *self.by_lambda.values(),
            [*self.by_alpha.values()][1],
        ]
        for step in range(1, self.steps + 1):
            for course in courses:
                course.step()
            yield self._frame(step)

    def _frame(self, step: int) -> RenderableType:
        losses = Line(
            {f"ε {eps:.0e}": course.loss for eps, course in self.by_epsilon.items()},
            height=_HEIGHT,
            title="loss (nats)",
            length=self.steps,
            roles={f"ε {eps:.0e}": role for eps, role in EPSILONS.items()},
        )
        sizes = Line(
            {_lambda(weight): course.hidden for weight, course in self.by_lambda.items()},
            height=_HEIGHT,
            title="last layer, RMS",
            length=self.steps,
            limits=(0.0, 1.05 * max(max(c.hidden) for c in self.by_lambda.values())),
            roles={_lambda(weight): role for weight, role in LAMBDAS.items()},
        )
        plots = Table.grid(expand=True, padding=(0, 2))
        plots.add_column(ratio=1)
        plots.add_column(ratio=1)
        plots.add_row(losses, sizes)
        now = Text(f"step {step:>{len(str(self.steps))}} of {self.steps}", style="dim")
        now.append("   R_g", "default not dim")
        for alpha, course in self.by_alpha.items():
            now.append(f"  α {alpha:.0e} ", "default not dim")
            now.append(f"{course.r_g[-1]:.3f}", style(ALPHAS[alpha], bold=True, dim=False))
        return Padding(Group(plots, now), (0, 2))

    def details(self) -> RenderableType:
        """The epsilons side by side, with the share of coordinates that each has reached."""
        table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
        for name in ("epsilon", "loss", "coordinates it reaches"):
            table.add_column(name, justify="right")
        for eps, course in self.by_epsilon.items():
            table.add_row(
                Text(f"{eps:.0e}", style(EPSILONS[eps], bold=True)),
                f"{course.settled:.3f}",
                f"{epsilon_share(course.trainer.optimizer):.1%}",
            )
        legend = (
            "loss: mean of the last fifth of the steps; a coordinate is reached where epsilon is "
            "over a tenth of Adam's denominator"
        )
        return Group(table, Text(legend, "note"))

    def verdicts(self) -> list[Verdict]:
        """Threshold, microscope, z-loss and R_g."""
        loss = {eps: course.settled for eps, course in self.by_epsilon.items()}
        reached = {
            eps: epsilon_share(course.trainer.optimizer) for eps, course in self.by_epsilon.items()
        }
        held, free = (course.hidden[-1] for course in self.by_lambda.values())
        held_loss, free_loss = (course.settled for course in self.by_lambda.values())
        strict, loose = (_late(course.r_g) for course in self.by_alpha.values())
        return [
            Verdict(
                claim="below the threshold, no effect",
                measured=f"{loss[1e-16]:.3f} and {loss[1e-8]:.3f} nats",
                published="3.96 up to 1e-7, 400 M",
                holds=abs(loss[1e-16] - loss[1e-8]) < _SAME,
            ),
            Verdict(
                claim="above it, worse and worse",
                measured=f"{loss[1e-3]:.2f}, {loss[1e-1]:.2f} nats",
                published="6.0 at 1e-3, 8.1 at 1e-1",
                holds=loss[1e-1] - loss[1e-16] > 0.5 and loss[1e-3] > loss[1e-16],
            ),
            Verdict(
                claim="the microscope sees it",
                measured=f"{reached[1e-8]:.0%} at 1e-8, {reached[1e-3]:.0%} at 1e-3",
                published="no figure given",
                holds=reached[1e-16] == 0 and reached[1e-8] < 0.05 and reached[1e-3] > 0.5,
            ),
            Verdict(
                claim="the z-loss holds activations",
                measured=f"RMS {held:.0f}, without {free:.0f}; loss {held_loss - free_loss:+.2f}",
                published="norm 2e2, without 1e5",
                holds=held < 0.5 * free and held_loss - free_loss < 0.15,
            ),
            Verdict(
                claim="R_g finds α too strong",
                measured=f"{strict:.3f} at α 5e-4, {loose:.2f} at 5e-2",
                published="choose α for R_g < 0.1",
                holds=strict < 0.1 < loose,
            ),
        ]

    def summary(self) -> dict[str, object]:
        """What was measured, for `--json`."""
        return {
            "seed": self.seed,
            "steps": self.steps,
            "epsilon": {
                f"{eps:.0e}": {
                    "loss": course.settled,
                    "share": epsilon_share(course.trainer.optimizer),
                }
                for eps, course in self.by_epsilon.items()
            },
            "z_loss": {
                f"{weight:.0e}": {"hidden_rms": course.hidden[-1], "loss": course.settled}
                for weight, course in self.by_lambda.items()
            },
            "r_g": {f"{alpha:.0e}": _late(course.r_g) for alpha, course in self.by_alpha.items()},
        }


def _late(values: Sequence[float]) -> float:
    """Mean of the second half: the first steps are the warm-up."""
    last = values[len(values) // 2 :]
    return sum(last) / len(last)


def _lambda(weight: float) -> str:
    return f"λ {weight:.0e}" if weight else "no z-loss"
