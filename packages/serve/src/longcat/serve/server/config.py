"""Who may ask, how much, and for how long."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """What the server allows. The engine's own sizes are `EngineConfig`'s.

    model_name         how requests name the model
    api_keys           keys of which a request must present one; none: everybody may ask
    cors_origins       origins whose pages may ask from a browser; "*" for all
    max_body_bytes     largest body of a request
    max_prompt_tokens  longest prompt; None: what the model takes
    max_tokens         most tokens that one sequence may ask for; None: what the model takes
    max_queue          sequences that may wait beyond those being computed; more get a 429
    max_choices        most sequences in one request, prompts times n
    request_seconds    longest time for one request; None: no limit
    drain_seconds      time that running requests get to finish when the server is told to stop

    Raises ValueError for a value outside its range.
    """

    model_name: str
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 2**20
    max_prompt_tokens: int | None = None
    max_tokens: int | None = None
    max_queue: int = 256
    max_choices: int = 128
    request_seconds: float | None = 600.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        _require(bool(self.model_name), "model_name must not be empty", self.model_name)
        _require(
            all(key and key.isascii() and key.isprintable() for key in self.api_keys),
            "api_keys must be printable ASCII and not empty",
            f"{len(self.api_keys)} keys",
        )
        for name in ("max_body_bytes", "max_prompt_tokens", "max_tokens", "max_choices"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1", value)
        _require(self.max_queue >= 0, "max_queue must be 0 or more", self.max_queue)
        seconds = math.inf if self.request_seconds is None else self.request_seconds
        _require(seconds > 0, "request_seconds must be positive, or None", seconds)
        _require(self.drain_seconds >= 0, "drain_seconds must be 0 or more", self.drain_seconds)


def _require(holds: bool, expectation: str, came: object) -> None:
    if not holds:
        raise ValueError(f"ServerConfig: {expectation}; got {came}")
