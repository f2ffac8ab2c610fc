"""The tables of docs/memory.md, from bench/results: ``python -m bench.memory_page``.

``--check`` fails if they would change. The figures come from ``python -m bench.memory_table``, and
for each model from ``python -m bench.full_size_run --json bench/results/full_size_<model>.json``.
"""

from __future__ import annotations

import json

from . import full_size_run, memory_table
from .generated import RESULTS, rewrite


def content() -> str:
    results = json.loads((RESULTS / "memory_table.json").read_text())
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("full_size_*.json"))]
    sections = {
        "The paper's columns": memory_table.columns(results),
        "Whole runs, predicted": memory_table.plans(results),
        "Their phases, measured (and the error of the prediction)": memory_table.runs(results),
        "Whole runs, measured": "\n".join(f"{full_size_run.report(run)}\n" for run in runs),
    }
    return "\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)


if __name__ == "__main__":
    rewrite("docs/memory.md", "bench.memory_page", content(), __doc__)
