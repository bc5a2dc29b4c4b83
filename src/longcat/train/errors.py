"""What can go wrong in a run and is the user's to mend: one sentence each, never a traceback."""


class DataError(ValueError):
    """Training text is missing, unreadable or too little."""


class RunError(ValueError):
    """A run directory cannot be created, saved or resumed, or the run cannot go on."""
