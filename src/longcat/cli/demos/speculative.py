"""`longcat demo speculative`: drafts accepted, refused and replaced, and rules that bend the text.

The decoding and the rules are in `drafts.py`; here they become a walkthrough.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from longcat.cli.demos.drafts import (
    DRAFTS,
    PROMPTS,
    RULES,
    Drafting,
    Judged,
    Rule,
    Trial,
    Watched,
    coupling,
    small,
    try_rule,
)
from longcat.cli.ui.page import Page, Question, Verdict, source_line
from longcat.cli.ui.prose import spelled
from longcat.cli.ui.theme import is_plain, spell, style
from longcat.serve import Decoding
from longcat.serve.reference import expected_tokens_per_step, judge

TOKENS = 64
_LINES = 7  # of the ledger
_DRAWS = 2000
_LIMIT = 5.0  # standard deviations

PAGE = Page(
    name="speculative",
    title="Speculative decoding with the MTP head",
    claim=(
        "The multi-token-prediction head drafts tokens, and one pass of the model judges them all. "
        "Every draft that is accepted saves a pass, and no draft changes the text."
    ),
    formula=(
        "x_i = argmax(log p_i + G_i),  d_i = argmax(log q_i + G_i): accepted while d_i = x_i",
        "tokens per pass = 1 + α + α² + ... + α^g",
    ),
    source="LongCat-Flash report, sections 2.4 and 5",
    question=Question(
        text="At temperature 0.8 the nano's head is wrong about every second time. What suffers?",
        options={
            "a": "the text: a wrong draft slips through now and then",
            "b": "the speed alone",
            "c": "the text, unless temperature is 0",
        },
        answer="b",
        reason=(
            "The target draws each token itself, with noise that depends on seed and place alone. "
            "A draft saves its pass when it is that very token, and is dropped when it is not."
        ),
    ),
    read_next={
        "decoding": source_line(Decoding),
        "rules": source_line(judge),
        "tutorial": "longcat tutorial 10",
    },
)


class SpeculativeDemo:
    """The walkthrough; see `longcat.cli.ui.page.Walkthrough`.

    Args:
        seed: decides every draw. steps: tokens of each text, at least 24. rules: to be tried.

    Raises:
        ValueError: with fewer than 24 tokens.
    """

    page = PAGE

    def __init__(self, seed: int = 0, steps: int = TOKENS, rules: Sequence[Rule] = RULES) -> None:
        if steps < 24:
            raise ValueError(
                f"demo speculative: a text needs at least 24 tokens to be judged; got {steps}"
            )
        self.seed = seed
        self._drafting = Drafting(seed, steps)
        self._rules = rules
        self._trials: list[Trial] = []
        self._coupling = (0.0, 0.0, 0.0)
        self.last_frame: RenderableType = ""

    def frames(self) -> Iterator[RenderableType]:
        """Decode with three drafts while one watches, then everything else."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # one token at a time gains nothing from more
        try:
            shown = self._drafting.start(0, max(DRAFTS))
            while self._drafting.step(shown):
                yield self._frame(shown)
            for g in DRAFTS:
                for prompt in range(len(PROMPTS)):
                    watched = (prompt, g) == (0, max(DRAFTS))
                    decoding = shown if watched else self._drafting.start(prompt, g)
                    self._drafting.finish(prompt, g, decoding)
            self._measure()
        finally:
            torch.set_num_threads(threads)
        self.last_frame = self._frame(shown)
        yield self.last_frame

    def _measure(self) -> None:
        p, q = small(*self._drafting.distributions())
        self._coupling = coupling(p, q, self.seed)
        apart = np.abs(p - q).sum(1) / 2
        row = int(np.abs(apart - 0.5).argmin())  # a place where head and model half disagree
        self._trials = [try_rule(rule, p[row], q[row], self.seed, _DRAWS) for rule in self._rules]

    def _frame(self, decoding: Watched) -> RenderableType:
        name = self._drafting.tokenizer.token_bytes()
        stats = decoding.stats
        counts = Text.assemble(
            (f"pass {stats.steps}", "dim"),
            (f"   accepted {stats.accepted}", style("good", bold=True)),
            (f"   refused {sum(p.accepted < len(p.drafts) for p in decoding.passes)}", "bad"),
            (f"   {stats.tokens_per_step:.2f} tokens per pass", "default"),
        )
        parts: list[RenderableType] = [
            _Passes(decoding.passes, name, PROMPTS[0]),
            Text(),
            counts,
            Text(),
        ]
        return Padding(Group(*parts, _Ledger(decoding.passes[-_LINES:], name)), (0, 2))

    def details(self) -> RenderableType:
        """What g drafts give, and what each rule does to the distribution."""
        gains = _table("drafts", "accepted at depth 1, 2, 3", "tokens per pass", "from α alone")
        for g in DRAFTS[1:]:
            depths, tokens = self._drafting.of(g)
            alone = expected_tokens_per_step(depths[0], g)
            shares = ", ".join(f"{share:.0%}" for share in depths)
            gains.add_row(str(g), shares, f"{tokens:.2f}", f"{alone:.2f}")
        rules = _table("rule, at one place of the text", "accepted", "TV from p", "surprise")
        for trial in self._trials:
            role = "bad" if trial.rule.faulty else "good"
            rules.add_row(
                spelled(trial.rule.name, role),
                f"{trial.accepted:.0%}",
                f"{trial.tv:.3f}",
                f"{trial.surprise:.1f}",
            )
        legend = (
            "accepted at depth i: passes in which drafts 1 to i all stood. from α alone: what the "
            "first draft's acceptance would give if places were independent. surprise: of "
            f"{_DRAWS} draws, in standard deviations of chi-square"
        )
        return Group(gains, Text(), rules, Text(), spelled(legend, "note"))

    def verdicts(self) -> list[Verdict]:
        """The same text, the theory's acceptance, the gain, and the rules right and wrong."""
        same, texts = self._drafting.same_texts()
        equal, theory, error = self._coupling
        depths, tokens = self._drafting.of(1)
        right = [t for t in self._trials if not t.rule.faulty]
        wrong = [t for t in self._trials if t.rule.faulty]
        return [
            Verdict(
                claim="drafts change no text",
                measured=f"{same} of {texts} the same",
                published="all, in exact arithmetic",
                holds=same == texts,
            ),
            Verdict(
                claim="shared noise accepts what theory says",
                measured=f"{equal:.3f}",
                published=f"{theory:.3f} ± {error:.3f}",
                holds=abs(equal - theory) < _LIMIT * error,
            ),
            Verdict(
                claim="one draft gives 1 + α tokens per pass",
                measured=f"{tokens:.2f}",
                published=f"{1 + depths[0]:.2f}",
                holds=abs(tokens - 1 - depths[0]) <= self._drafting.cut_passes(1) and tokens > 1,
            ),
            Verdict(
                claim="sound rules keep the distribution",
                measured=f"surprise {max(t.surprise for t in right):.1f}",
                published=f"below {_LIMIT:g}",
                holds=all(t.surprise < _LIMIT for t in right),
            ),
            Verdict(
                claim="faulty rules bend it",
                measured=f"surprise {min(t.surprise for t in wrong):.1f} or more",
                published=f"above {_LIMIT:g}",
                holds=all(t.surprise > _LIMIT for t in wrong),
            ),
        ]

    def summary(self) -> dict[str, object]:
        """What was measured, for `--json`."""
        equal, theory, _ = self._coupling
        return {
            "seed": self.seed,
            "tokens": self._drafting.tokens,
            "drafts": {
                str(g): {"acceptance": depths, "tokens_per_pass": tokens}
                for g in DRAFTS[1:]
                for depths, tokens in [self._drafting.of(g)]
            },
            "coupled_acceptance": {"measured": equal, "theory": theory},
            "rules": {
                t.rule.name: {"accepted": t.accepted, "tv": t.tv, "surprise": t.surprise}
                for t in self._trials
            },
        }


class _Passes:
    """The text so far: drafted tokens green or underlined, replaced ones orange or bold."""

    def __init__(self, passes: Sequence[Judged], name: Sequence[bytes], prompt: str) -> None:
        self._passes, self._name, self._prompt = list(passes), name, prompt

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        plain = is_plain(console, options)
        looks = ("underline", "bold") if plain else (style("good"), style("net"))
        text = Text.assemble((self._prompt, "dim"))
        for judged in self._passes:
            for i, token in enumerate(judged.tokens):
                refused = i == judged.accepted < len(judged.drafts)
                look = looks[0] if i < judged.accepted else looks[1] if refused else ""
                shown = self._name[token].decode("utf-8", "replace")
                text.append(spell(shown, ascii_only=options.ascii_only), look)
        yield Text("\n").join(text.split("\n")[-6:])


class _Ledger:
    """The last passes, a line each: + accepted, - refused, = the target's own token."""

    def __init__(self, passes: Sequence[Judged], name: Sequence[bytes]) -> None:
        self._passes, self._name = list(passes), name

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for judged in self._passes:
            row = Text(no_wrap=True, overflow="ellipsis")
            for i, draft in enumerate(judged.drafts):
                mark, role = ("+", "good") if i < judged.accepted else ("-", "bad")
                look = style(role) if i <= judged.accepted else "dim"
                row.append(f"{mark}{self._shown(draft, options)}  ", look)
            own = judged.tokens[judged.accepted :]
            row.append(
                "".join(f"={self._shown(token, options)}" for token in own[:1]), style("net")
            )
            yield row
        yield Text("+ drafted, accepted   - drafted, refused   = the target's own", style="dim")

    def _shown(self, token: int, options: ConsoleOptions) -> str:
        text = repr(self._name[token].decode("utf-8", "replace"))[1:-1].replace(" ", "·")
        return spell(text, ascii_only=options.ascii_only).replace("*", "_")


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
    for i, name in enumerate(names):
        table.add_column(spelled(name), justify="right" if i > 1 or i == len(names) - 1 else "left")
    return table
