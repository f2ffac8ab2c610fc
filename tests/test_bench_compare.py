"""``make bench-compare``: a planted loss is seen, noise that goes away is not one."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="benchmarks need pytest-benchmark")
import bench
from bench import compare

OLD = {"a": {"x mezo": 10.0, "of stream": 0.8}, "b": {"x mezo": 20.0}}


def never(names):
    raise AssertionError(f"nothing was lost, yet {names} were measured again")


def test_a_fifth_may_be_lost_and_no_more():
    new = {"a": {"x mezo": 8.0, "of stream": 0.65}, "b": {"x mezo": 15.9}}
    assert compare.lost(OLD, new) == [("b", "x mezo")]


def test_what_the_baseline_does_not_know_is_no_loss():
    new = {"a": {"x mezo": 10.0, "x new": 0.1}, "c": {"x mezo": 0.1}}
    assert compare.best_of(OLD, new, never) == new


def test_a_new_baseline_has_the_median_of_its_runs():
    runs = [{"a": {"x": x, "y": y}} for x, y in [(3.0, 1.0), (2.0, 4.0), (9.0, 2.0)]]
    assert compare.median_of(runs) == {"a": {"x": 3.0, "y": 2.0}}


def test_a_real_loss_stays_after_all_tries():
    asked = []

    def again(names):
        asked.append(names)
        return {"b": {"x mezo": 9.0 + len(asked)}}

    best = compare.best_of(OLD, {**OLD, "b": {"x mezo": 5.0}}, again)
    assert asked == [["b"]] * (compare.TRIES - 1)
    assert best["b"] == {"x mezo": 11.0}
    assert compare.lost(OLD, best) == [("b", "x mezo")]


def test_noise_that_goes_away_is_no_loss():
    """Each ratio keeps its best, also where another one of the same benchmark fell meanwhile."""
    runs = iter([{"a": {"x mezo": 3.0, "of stream": 0.9}}])
    first = {"a": {"x mezo": 11.0, "of stream": 0.1}}
    best = compare.best_of(OLD, first, lambda names: next(runs))
    assert best == {"a": {"x mezo": 11.0, "of stream": 0.9}}
    assert not compare.lost(OLD, best)


MODULES = sorted(file.stem for file in Path(bench.__path__[0]).glob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_what_a_measurement_imports_is_there(name):
    importlib.import_module(f"bench.{name}")
