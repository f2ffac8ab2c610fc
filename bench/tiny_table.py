"""The README's table of quality, from bench/results/tiny.jsonl: ``python -m bench.tiny_table``.

``--check`` fails if it would change. The lines come from
``sopt benchmark tiny --output bench/results/tiny.jsonl --tuning bench/results/tiny_tuning.jsonl``.
"""

from __future__ import annotations

from sopt.evaluation.tiny.analysis import analyse
from sopt.evaluation.tiny.lines import read_lines
from sopt.evaluation.tiny.table import basis, methods, observations

from .generated import RESULTS, rewrite


def content() -> str:
    analysis = analyse(read_lines(RESULTS / "tiny.jsonl"))
    return "\n".join([basis(analysis), methods(analysis), observations(analysis)])


if __name__ == "__main__":
    rewrite("README.md", "bench.tiny_table", content(), __doc__)
