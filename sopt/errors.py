"""The exceptions that mean "what was asked for cannot be done"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user asked for cannot be done: one sentence with argument, value and rule.

    Raised before any long work and with nothing written or lost. The command line prints it as one
    line and exits with status 2; every other exception is a fault of this package and keeps its
    traceback.
    """


class NotFiniteError(InputError):
    """A run diverged: what it was to draw has values that are NaN or infinite."""


def nearest(name: object, known: Iterable[str]) -> str:
    """What to append to "unknown ...": the nearest known name, or else all of them.

    Example:
        >>> nearest("dtab", ["dtap", "tap"])
        "did you mean 'dtap'?"
        >>> nearest("cosine", ["dtap", "tap"])
        'known are dtap, tap'
    """
    names = list(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"
