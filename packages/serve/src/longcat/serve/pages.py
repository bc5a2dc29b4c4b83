"""Pages of the latent cache: who holds which, and which are worth keeping.

A page is in one of three states:

    free    blank; nobody's
    used    held by one sequence or more
    cached  nobody's, but full and known by what it holds: found again by a prompt that begins
            alike, and taken for something else, oldest first, when no free page is left

A full page is known by a chained hash: of its tokens and of the page before it. So equal hashes
mean equal prefixes; the tokens are compared as well, and a collision costs a miss, nothing more.

Page 0 belongs to nobody. What falls outside a sequence's pages is written there and never read.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np

ROOT = b""  # the key before the first page


@dataclass(frozen=True)
class _Known:
    """What a full page holds: its own key, the key of the page before it, and its tokens."""

    key: bytes
    parent: bytes
    tokens: tuple[int, ...]


def chained_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a full page of tokens after the page of key `parent`."""
    data = np.asarray(tokens, dtype=np.int64).tobytes()
    return blake2b(parent + data, digest_size=16).digest()


class Pages:
    """Hands out pages 1 .. num_pages of page_size tokens each.

    With prefix_cache=False no page is ever known by what it holds.
    """

    def __init__(self, num_pages: int, page_size: int, *, prefix_cache: bool = True) -> None:
        self.total = num_pages
        self.page_size = page_size
        self._prefix_cache = prefix_cache
        self._free = deque(range(1, num_pages + 1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first
        self._holders = [0] * (num_pages + 1)
        self._known: dict[int, _Known] = {}
        self._page_of: dict[bytes, int] = {}

    @property
    def room(self) -> int:
        """Tokens that all pages hold."""
        return self.total * self.page_size

    @property
    def free(self) -> int:
        """Blank pages."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Pages that nobody holds and that may be found again."""
        return len(self._cached)

    @property
    def used(self) -> int:
        """Pages that some sequence holds."""
        return sum(holders > 0 for holders in self._holders)

    def needed(self, tokens: int) -> int:
        """Pages for so many tokens."""
        return -(-tokens // self.page_size)

    def take(self, count: int) -> list[int] | None:
        """`count` pages with unknown contents, or None, and nothing taken, when there are fewer."""
        if count > len(self._free) + len(self._cached):
            return None
        taken = []
        for _ in range(count):
            if self._free:
                page = self._free.popleft()
            else:
                page, _ = self._cached.popitem(last=False)
                del self._page_of[self._known.pop(page).key]
            self._holders[page] = 1
            taken.append(page)
        return taken

    def find(self, tokens: Sequence[int]) -> tuple[list[int], bytes]:
        """Hold the pages of the longest known prefix -> (pages, key of the last one).

        The last token is never among them: it has to be computed, for something to follow it.
        """
        pages: list[int] = []
        key = ROOT
        for end in range(self.page_size, len(tokens), self.page_size):
            content = tuple(tokens[end - self.page_size : end])
            next_key = chained_key(key, content)
            page = self._page_of.get(next_key)
            if page is None or self._known[page] != _Known(next_key, key, content):
                break
            self._cached.pop(page, None)
            self._holders[page] += 1
            pages.append(page)
            key = next_key
        return pages, key

    def commit(self, page: int, parent: bytes, tokens: Sequence[int]) -> bytes:
        """Make a full page known by its tokens -> its key. Where another holds the same, it stays
        unknown and will be blank when it is given back.
        """
        if not self._prefix_cache:
            return ROOT
        content = tuple(tokens)
        key = chained_key(parent, content)
        if key not in self._page_of:
            self._page_of[key] = page
            self._known[page] = _Known(key, parent, content)
        return key

    def give_back(self, pages: Sequence[int]) -> None:
        """Let go of a sequence's pages, in the order of its tokens."""
        for page in reversed(pages):  # the end of a prefix is of use to fewer, so it goes first
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._known:
                self._cached[page] = None
            else:
                self._free.append(page)

    def check(self) -> None:
        """Raise RuntimeError unless every page is in exactly one state and well known."""
        states = [*self._free, *self._cached]
        states += [page for page, holders in enumerate(self._holders) if holders > 0]
        if sorted(states) != list(range(1, self.total + 1)):
            raise RuntimeError(
                f"latent cache: {self.free} free + {self.cached} cached + {self.used} used pages "
                f"are not the {self.total} there are, each once"
            )
        if {key: page for page, known in self._known.items() for key in [known.key]} != (
            self._page_of
        ) or not self._cached.keys() <= self._known.keys():
            raise RuntimeError("latent cache: the index of known pages does not match the pages")
