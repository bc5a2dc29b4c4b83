"""One prompt continued by an engine of its own: tokens as they come, and the drafts counted."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from longcat.serve import (
    Engine,
    EngineConfig,
    PagedModel,
    Request,
    SamplingParams,
    Token,
    pages_for,
)
from longcat.serve.sampling import fresh_seed

_CHUNK = 2048  # tokens of the prompt fed in one pass


class Continuation:
    """Iterate for the tokens; everything else can be read at any time.

    Args:
        drafts: proposed per step, 0 .. 3.

    Attributes:
        params: with the seed in use. tokens: those that have come.
        finish_reason: None while it runs, then "stop" or "length".

    Raises ValueError, before anything is computed, for a prompt or parameters that the model cannot
    honour, and while it runs for logits that are no numbers.
    """

    def __init__(
        self, model: PagedModel, prompt_ids: Sequence[int], params: SamplingParams, drafts: int
    ) -> None:
        seed = fresh_seed() if params.seed is None else params.seed
        self.params = replace(params, seed=seed)
        self.prompt_ids = tuple(prompt_ids)
        self.tokens: list[Token] = []
        self.finish_reason: str | None = None
        longest = min(len(prompt_ids) + params.max_tokens, model.max_position)
        config = EngineConfig(
            num_pages=pages_for(1, longest, model.latent_layout.device.type),
            max_running=1,
            token_budget=_CHUNK,
            prefix_cache=False,
            num_drafts=drafts,
            graphs=False,  # they are made for each shape, and one text has many shapes
        )
        self._engine = Engine(model, None, config)
        self._engine.add(Request(request_id="0", prompt_ids=self.prompt_ids, params=self.params))

    def __iter__(self) -> Iterator[Token]:
        while self._engine.has_work:
            for delta in self._engine.step():
                if delta.error is not None:
                    raise ValueError(delta.error)
                self.finish_reason = delta.finish_reason
                for token in delta.tokens:
                    self.tokens.append(token)
                    yield token

    @property
    def drafted(self) -> int:
        """Drafts that were judged; those behind a refused one are not."""
        return sum(token.drafted or token.refused for token in self.tokens)

    @property
    def accepted(self) -> int:
        """Drafts that the model agreed with."""
        return sum(token.drafted for token in self.tokens)

    @property
    def acceptance(self) -> float | None:
        """Accepted / judged; None when nothing was."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def steps(self) -> int:
        """Passes of the model behind the prompt's: each ends in a token that was no draft, but for
        one that was cut off.
        """
        if not self.tokens:
            return 0
        return sum(not token.drafted for token in self.tokens[1:]) + self.tokens[-1].drafted

    @property
    def tokens_per_step(self) -> float:
        """Tokens per pass behind the prompt's, which gives the first one."""
        return (len(self.tokens) - 1) / self.steps if self.steps else 1.0
