"""How much the engine may hold and do at once, and what it counts."""

from dataclasses import dataclass

MAX_DRAFTS = 3
ROOM = 65_536  # tokens that the latent cache holds where nobody says how many


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes and policies of an engine.

    page_size           tokens per page of the latent cache; None: 64 on a GPU, whose kernel reads a
                        tile of 64 fastest where it lies in one page, and 16 on a CPU
    num_pages           pages; page_size * num_pages tokens can be held at once; None: as many as
                        hold 65,536
    max_running         sequences that are computed together
    token_budget        most tokens fed in one pass: one for each running sequence and its
                        drafts, the rest for prompts, which are cut into chunks to fit
    prefix_cache        keep the full pages of finished sequences for prompts that begin alike
    num_drafts          drafts per step, 0 .. 3; None chooses from what is measured
    steps_per_schedule  passes launched per schedule; more than one costs a look at the results
                        only every so many tokens
    overlap             launch a schedule before the one ahead of it is read, and discard what it
                        computes for sequences that turn out to have ended; None: on a GPU. Where
                        the host has a say in the tokens (a form, penalties, min_tokens), every
                        schedule is read before the next all the same
    graphs              capture steps as CUDA graphs, one for each shape, and replay them; None: on
                        a GPU, where the weights are bfloat16. A CPU has none
    exact               compute in `longcat.kernels.exact()`: the same bits whatever the batch, the
                        chunks and the drafts

    Raises ValueError for a value outside its range.
    """

    page_size: int | None = None
    num_pages: int | None = None
    max_running: int = 32
    token_budget: int = 512
    prefix_cache: bool = True
    num_drafts: int | None = None
    steps_per_schedule: int = 1
    overlap: bool | None = None
    graphs: bool | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        for name in ("page_size", "num_pages", "max_running", "token_budget", "steps_per_schedule"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(
                    f"EngineConfig: {name} must be a whole number from 1 on; got {value!r}"
                )
        if self.num_drafts is not None and self.num_drafts not in range(MAX_DRAFTS + 1):
            raise ValueError(
                f"EngineConfig: num_drafts must be in 0 .. {MAX_DRAFTS}, or None to choose it "
                f"while running; got {self.num_drafts!r}"
            )

    def pages_on(self, device: str) -> tuple[int, int]:
        """(num_pages, page_size) of an engine on a device of this type."""
        size = self.page_size or default_page_size(device)
        return self.num_pages or -(-ROOM // size), size


def default_page_size(device: str) -> int:
    """Tokens per page where nobody says how many, on a device of this type."""
    return 16 if device == "cpu" else 64


def pages_for(sequences: int, tokens: int, device: str) -> int:
    """Pages of that size which so many sequences of up to so many tokens never run out of."""
    return sequences * (1 + -(-tokens // default_page_size(device)))


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """A moment's picture of an engine; counters run from its start.

    running, waiting       sequences being computed, and queued
    pages_*                pages that are free, kept for their prefix, in use, and altogether
    steps                  passes of the target
    prompt_tokens, tokens  fed prompt tokens (cached ones excluded), and generated tokens
    drafts                 drafts per step in use now
    drafted_at             [MAX_DRAFTS] drafts of each depth that were judged
    accepted_at            [MAX_DRAFTS] of these, accepted
    preemptions            sequences whose pages were taken back; they are computed again later
    prefix_queries         prompt tokens looked up in the prefix cache
    prefix_hits            of these, found
    finished               sequences that ended, aborted ones included
    prefill_alive          whether the process that computes prompts lives; None where there is none
    prefill_restarts       times that it was started again
    """

    running: int
    waiting: int
    pages_free: int
    pages_cached: int
    pages_used: int
    pages_total: int
    steps: int
    prompt_tokens: int
    tokens: int
    drafts: int
    drafted_at: tuple[int, ...]
    accepted_at: tuple[int, ...]
    preemptions: int
    prefix_queries: int
    prefix_hits: int
    finished: int
    prefill_alive: bool | None = None
    prefill_restarts: int = 0

    @property
    def acceptance(self) -> float:
        """Accepted / judged drafts; 0 when none was."""
        drafted = sum(self.drafted_at)
        return sum(self.accepted_at) / drafted if drafted else 0.0
