"""`longcat demo disaggregation`: a prompt's latents go to another process, layer by layer.

A prompt is computed in a process of its own, a chunk at a time; each attention's latents leave as
soon as they are stored. Then the same again, and that process is killed while they are under way.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from longcat.cli.demos.crossing import CHUNK, Killable, Watched, build, start_process
from longcat.cli.ui.page import Page, Question, Verdict, source_line
from longcat.cli.ui.prose import spelled
from longcat.cli.ui.theme import style
from longcat.flash import FlashConfig
from longcat.serve import Engine, Request, SamplingParams
from longcat.serve.disaggregation import (
    Disaggregated,
    Piece,
    PrefillNode,
    Timeline,
)

TOKENS = 768  # of the prompt
TEXT = 24
_DRAFTS = 1

PAGE = Page(
    name="disaggregation",
    title="Prompts in one process, text in another",
    claim=(
        "A prompt's pass keeps everybody who decodes waiting. Computed in a process of its own, "
        "its latents are sent layer by layer while the next layers compute, and the text is the "
        "same."
    ),
    formula=(
        "bytes per token = attentions · (C + R) · bytes per number",
        "beside H · (nope + R + value) · attentions for keys and values",
    ),
    source="LongCat-Flash report, section 6 (prefill/decode disaggregation, layer-wise transfer)",
    question=Question(
        text="The process that computes the prompt is killed when half of the latents are across. "
        "What becomes of the request?",
        options={
            "a": "it ends with an error, and its pages stay held",
            "b": "it goes on with what has come, and the text differs",
            "c": "its pages are given back, and it is computed again: the same text, later",
        },
        answer="c",
        reason=(
            "Nobody looks at latents before all of them are there. What a dead process owed is "
            "given up and asked of the next one; what it had still sent belongs to no transfer."
        ),
    ),
    read_next={
        "front": source_line(Disaggregated),
        "sending": source_line(PrefillNode),
        "guide": "docs/guides/disaggregation.md",
    },
)


class DisaggregationDemo:
    """The walkthrough; see `longcat.cli.ui.page.Walkthrough`.

    Args:
        seed: decides the weights and the prompt. tokens: of the prompt, at least two chunks.
        prefill: makes the other side of a factory of its engine.

    Raises:
        ValueError: for a prompt of fewer tokens.
    """

    page = PAGE

    def __init__(
        self,
        seed: int = 0,
        tokens: int = TOKENS,
        prefill: Callable[[Callable[[], Engine]], Killable] = start_process,
    ) -> None:
        if tokens < 2 * CHUNK:
            raise ValueError(
                f"demo disaggregation: a prompt needs at least {2 * CHUNK} tokens, which are two "
                f"chunks; got {tokens}"
            )
        self.seed, self.tokens = seed, tokens
        self._prefill = prefill
        self._engine = build(seed, _DRAFTS)
        layout = self._engine.model.latent_layout
        self._attentions = layout.target_attentions + layout.draft_attentions
        generator = torch.Generator().manual_seed(seed)
        vocabulary = self._engine.model.vocab_size
        self._prompt = torch.randint(4, vocabulary, (tokens,), generator=generator).tolist()
        self.pieces: list[tuple[int, int]] = []  # attention and first place, as they came
        self.bytes = 0
        self.texts: dict[str, list[int]] = {}
        self.held = -1
        self._half = self._attentions * (tokens // CHUNK) // 2
        self._victim: Killable | None = None
        self.restarts = 0
        self._timeline = Timeline()
        self.last_frame: RenderableType = ""

    def frames(self) -> Iterator[RenderableType]:
        """One engine alone, then two, then two with a death in between."""
        yield Padding(Text("one engine computes the prompt and the text"), (0, 2))
        self.texts["one"] = self._run(self._engine)
        engine = build(self.seed, _DRAFTS)
        prefill = self._prefill(partial(build, self.seed, _DRAFTS))
        divided = Disaggregated(engine, Watched(prefill, self._arrived, self.pieces.clear))
        try:
            yield from self._running(divided, "two")
            self._timeline = prefill.timeline()
            self.pieces.clear()
            self._victim = prefill
            engine = build(self.seed, _DRAFTS)
            divided = Disaggregated(
                engine, Watched(prefill, self._arrived_or_killed, self.pieces.clear)
            )
            yield from self._running(divided, "killed")
            self.restarts = divided.stats().prefill_restarts
            self.held = engine.stats().pages_used
        finally:
            divided.close()
        self.last_frame = self._frame("killed half-way, and computed again")
        yield self.last_frame

    def _arrived(self, piece: Piece) -> None:
        self.pieces.append((piece.attention, piece.first))
        self.bytes += piece.latents.nbytes

    def _arrived_or_killed(self, piece: Piece) -> None:
        self.pieces.append((piece.attention, piece.first))
        if self._victim is not None and len(self.pieces) == self._half:
            self._victim.kill()
            self._victim = None

    def _running(self, engine: Disaggregated, name: str) -> Iterator[RenderableType]:
        words = {"two": "the prompt in another process", "killed": "again, and it is killed"}[name]
        shown = -1
        self.texts[name] = []
        engine.add(self._request())
        while engine.has_work:
            for delta in engine.step():
                self.texts[name] += [token.id for token in delta.tokens]
            engine.check_integrity()
            if len(self.pieces) != shown:
                shown = len(self.pieces)
                yield self._frame(words)

    def _run(self, engine: Engine) -> list[int]:
        engine.add(self._request())
        tokens: list[int] = []
        while engine.has_work:
            tokens += [token.id for delta in engine.step() for token in delta.tokens]
        return tokens

    def _request(self) -> Request:
        params = SamplingParams(max_tokens=TEXT, ignore_eos=True)
        return Request(request_id="a", prompt_ids=tuple(self._prompt), params=params)

    def _frame(self, words: str) -> RenderableType:
        """A line per attention, a cell per chunk that has come."""
        firsts = range(0, self.tokens, CHUNK)
        there = {(attention, first // CHUNK) for attention, first in self.pieces}
        lines = [Text(words, style="dim")]
        for attention in range(self._attentions):
            last = attention == self._attentions - 1
            line = Text(f"{'MTP head' if last else f'attention {attention}':<14}")
            for chunk in range(len(firsts)):
                come = (attention, chunk) in there
                line.append("##### " if come else "..... ", style("ffn" if come else "zero"))
            lines.append(line)
        return Padding(Group(*lines), (0, 2))

    def details(self) -> RenderableType:
        """When the other process computed, and when it sent."""
        legend = (
            "the other process in the first run: a mark wherever it computed a chunk, and wherever "
            "its thread sent what an attention had stored"
        )
        drawn = Text(self._timeline.draw(64))
        return Padding(Group(drawn, Text(), spelled(legend, "note")), (0, 2))

    @property
    def layer_wise(self) -> bool:
        """Whether, in the last whole transfer, each chunk came attention by attention."""
        chunks = [first for _, first in self.pieces]
        of_chunk = [[a for a, f in self.pieces if f == first] for first in sorted(set(chunks))]
        in_turn = list(range(self._attentions))
        return chunks == sorted(chunks) and bool(chunks) and all(of == in_turn for of in of_chunk)

    @property
    def ratio(self) -> float:
        """Keys and values of the prompt, over the latents that were sent."""
        config = FlashConfig.preset("nano").attention
        head = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        numbers = config.num_heads * head * self._attentions * self.tokens
        return numbers * 4 / max(self.bytes, 1)

    def verdicts(self) -> list[Verdict]:
        """The same text twice, the order, what was hidden, what was left."""
        one, two, killed = (self.texts.get(name, []) for name in ("one", "two", "killed"))
        same = sum(a == b for a, b in zip(one, two, strict=False))
        hidden = self._timeline.hidden()
        return [
            Verdict(
                claim="two processes write the text of one",
                measured=f"{same} of {len(one)} tokens the same",
                published="all",
                holds=bool(one) and one == two,
            ),
            Verdict(
                claim="latents come attention by attention",
                measured="in turn" if self.layer_wise else "out of turn",
                published="in turn, chunk after chunk",
                holds=self.layer_wise,
            ),
            Verdict(
                claim="sending goes on while something is computed",
                measured=f"{hidden:.0%} of it",
                published="most of it",
                holds=hidden > 0.5,
            ),
            Verdict(
                claim="a killed process is replaced",
                measured=f"{self.restarts} restart, {'the same' if killed == one else 'another'} "
                "text",
                published="the same text",
                holds=self.restarts == 1 and killed == one,
            ),
            Verdict(
                claim="no page stays behind",
                measured=f"{self.held} held",
                published="0",
                holds=self.held == 0,
            ),
        ]

    def summary(self) -> dict[str, object]:
        """What was measured, for `--json`."""
        return {
            "seed": self.seed,
            "tokens": self.tokens,
            "bytes_sent": self.bytes,
            "keys_and_values_over_latents": self.ratio,
            "hidden": self._timeline.hidden(),
            "restarts": self.restarts,
            "pages_held": self.held,
        }
