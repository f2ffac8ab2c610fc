"""A page about a run that a person looks at rather than reads."""

from .page import record_run, write_report

__all__ = ["record_run", "write_report"]
