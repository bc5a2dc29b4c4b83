"""What can go wrong in a run and is the user's to mend: one sentence each, never a traceback."""


class DataError(ValueError):
    """Training text is missing, unreadable or too little."""


class RunError(ValueError):
    """A run directory cannot be created, saved or resumed, or the run cannot go on."""


class DivergedError(RunError):
    """The loss or its gradient stopped being a finite number."""


def has_diverged(error: BaseException) -> bool:
    """Whether a divergence is behind an error that was raised on the way up."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, DivergedError):
        seen = seen.__cause__
    return seen is not None
