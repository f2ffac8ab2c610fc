"""``sopt report``."""

import argparse
from pathlib import Path
from typing import Any


def report(options: dict[str, Any]) -> None:
    """Write a page about a run, or one that compares runs."""
    from ..report import write_report

    output = options.get("output")
    print(write_report(options["runs"], None if output is None else Path(output)))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="HTML file to write (default: RUN/report.html; comparison.html for several runs)",
    )
