"""What the package logs, shown to those who use the command line."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def printed_log() -> Iterator[None]:
    """Meanwhile what the package logs, the captions of the pictures above all, is on stderr."""
    logger, handler = logging.getLogger("sopt"), logging.StreamHandler()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
