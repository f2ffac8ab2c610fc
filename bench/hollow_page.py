"""The tables of docs/hollow.md, from bench/results: ``python -m bench.hollow_page``.

``--check`` fails if they would change. The figures come from ``python -m bench.hollow_table``.
"""

from __future__ import annotations

import json

from . import hollow_table
from .generated import RESULTS, rewrite


def content() -> str:
    return hollow_table.report(json.loads((RESULTS / "hollow_table.json").read_text()))


if __name__ == "__main__":
    rewrite("docs/hollow.md", "bench.hollow_page", content(), __doc__)
