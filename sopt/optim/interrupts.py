"""Ctrl-C where it must not come between two things."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block.

    Python raises it between any two instructions, and after a kernel rather than within: also
    between a write to weights and the note that says where they are.
    """
    handler = signal.getsignal(signal.SIGINT)
    # It comes in the main thread only, and not where it is ignored or ends the process at once.
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    arrived: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for number in arrived:  # a handler may count them
            handler(number, None)
