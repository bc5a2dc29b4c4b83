"""What was computed and what was sent, on one clock, and how much of the sending that hid."""

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

NEWEST = 10_000  # spans that are kept, as a process may compute for months


@dataclass(frozen=True, kw_only=True)
class Span:
    """kind ("compute" or "send") from start to end, in seconds of one clock."""

    kind: str
    start: float
    end: float


class Timeline:
    """Notes spans, of which it keeps the newest; from several threads, if need be."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self.spans = deque(spans, NEWEST)

    @contextmanager
    def span(self, kind: str) -> Iterator[None]:
        """Note how long the block takes."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.spans.append(Span(kind=kind, start=start, end=time.monotonic()))

    def hidden(self) -> float:
        """Share of the sending that went on while something was computed; 1 of nothing."""
        computing = [s for s in self.spans if s.kind == "compute"]
        sending = [s for s in self.spans if s.kind == "send"]
        total = sum(s.end - s.start for s in sending)
        covered = sum(
            max(0.0, min(s.end, c.end) - max(s.start, c.start)) for s in sending for c in computing
        )
        return covered / total if total else 1.0

    def draw(self, width: int = 72) -> str:
        """A line per kind, with a block wherever it was at work."""
        if not self.spans:
            return ""
        start = min(span.start for span in self.spans)
        scale = width / max(max(span.end for span in self.spans) - start, 1e-9)
        lines = []
        for kind in ("compute", "send"):
            lines.append(f"{kind:<8}{_line(self.spans, kind, start, scale, width)}")
        return "\n".join(lines)


def _line(spans: Iterable[Span], kind: str, start: float, scale: float, width: int) -> str:
    cells = [" "] * width
    for span in spans:
        if span.kind == kind:
            first = int((span.start - start) * scale)
            last = int((span.end - start) * scale)
            for cell in range(first, min(last, width - 1) + 1):
                cells[min(cell, width - 1)] = "#"
    return "".join(cells).rstrip()
