"""The tables of docs/hollow.md, from bench/results: ``python -m bench.hollow_page``.

``--check`` fails if they would change. The figures come from ``python -m bench.hollow_table`` and
``python -m bench.hollow_sweep``.
"""

from __future__ import annotations

import json

from . import hollow_sweep, hollow_table
from .generated import RESULTS, rewrite


def content() -> str:
    memory, quality = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("hollow_table", "hollow_sweep")
    )
    subjects = len({row["seed"] for row in quality})
    return (
        f"{hollow_table.report(memory)}\n"
        "Scores of the bundled model's pictures after the demo's run at each cut, mean and\n"
        f"standard deviation over {subjects} subjects (`python -m bench.hollow_sweep`):\n\n"
        f"{hollow_sweep.report(quality)}\n![Scores over memory](hollow_sweep.svg)\n"
    )


if __name__ == "__main__":
    rewrite("docs/hollow.md", "bench.hollow_page", content(), __doc__)
