"""Intervals, verdicts and the table of ``sopt benchmark tiny``."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_lines import line

from sopt.evaluation.tiny.analysis import analyse, contrast
from sopt.evaluation.tiny.intervals import interval, t_quantile
from sopt.evaluation.tiny.methods import CEILING, FLOOR, METHODS
from sopt.evaluation.tiny.observations import OBSERVATIONS, Observation
from sopt.evaluation.tiny.table import markdown


@pytest.mark.parametrize("degrees, t", [(1, 12.706), (2, 4.303), (5, 2.571), (9, 2.262)])
def test_t_quantiles_are_those_of_tables(degrees, t):
    assert t_quantile(degrees) == pytest.approx(t, abs=5e-4)


def test_seeds_are_averaged_before_subjects_are_counted():
    found = interval({(0, 0): 1.0, (0, 1): 3.0, (1, 0): 4.0, (2, 0): 6.0})
    # Means 2, 4, 6: mean 4, standard error 2 / sqrt(3).
    assert found.mean == pytest.approx(4)
    assert found.high - found.mean == pytest.approx(4.3027 * 2 / 3**0.5, rel=1e-4)
    assert (found.subjects, found.seeds) == (3, 2)
    assert interval({(0, 0): 1.0}).low is None
    assert interval({}) is None


def test_a_contrast_is_paired():
    values = {"a": {(0, 0): 5.0, (1, 0): 9.0, (2, 0): 0.0}, "b": {(0, 0): 1.0, (1, 0): 3.0}}
    found = contrast({"a": 1, "b": -1}, values)
    assert (found.mean, found.subjects) == (5.0, 2)


def test_a_verdict_between_unequal_rates_says_so():
    def unequal(text, chosen):
        lines = [
            line(name, subject, 0, 0.5, own) for name, own in chosen.items() for subject in (0, 1)
        ]
        found = analyse([line(end, 0, 0, x) for end, x in ((FLOOR, 0.2), (CEILING, 0.8))] + lines)
        (row,) = [each for each in found["observations"] if each["text"] == text]
        return row["unequal"]

    rates = {"lr": 1e-3, "zo_lr": 0.01}
    for text, other, own in [
        ("DTAP is better than tap", "tap", rates),
        # The average's zo_lr is not searched: it is 0.01 in all of its trials.
        (
            "The mean of the adapter over the last steps has a better subject score",
            "dtap-average",
            {"lr": 1e-3, "average": 0.5},
        ),
    ]:
        for change, expected in [
            ({}, []),
            ({"lr": 2e-3}, ["lr"]),
            ({"lr": 2e-3, "zo_lr": 0.05}, ["lr", "zo_lr"]),
        ]:
            assert unequal(text, {other: own, "dtap-0.75": rates | change}) == expected


def test_a_verdict_is_where_the_whole_interval_lies():
    high, low, both = (
        interval({(0, 0): first, (1, 0): second})
        for first, second in ((0.4, 0.401), (-0.4, -0.401), (0.4, -0.4))
    )
    rule = Observation("x", "y", "training", {"none": 1.0})
    assert rule.verdict(high, None) == "holds"
    assert rule.verdict(low, None) == "does not hold"
    assert rule.verdict(both, None) == "undecided"
    assert rule.verdict(interval({(0, 0): 0.4}), None) == "undecided: one subject"
    assert rule.verdict(None, None) == "no runs in common"
    # Half of a gain, where there is none, says nothing.
    rule = replace(rule, gain={"backprop-high": 1.0, "none": -1.0})
    assert rule.verdict(high, high) == "holds"
    for gain in (None, low, both):
        assert rule.verdict(high, gain).startswith("undecided: what it is compared with")
    for each in OBSERVATIONS:
        assert set(each.weights) <= set(METHODS)


def test_the_analysis_is_by_hand_and_says_what_it_rests_on():
    lines = []
    for subject in (0, 1):
        lines += [line(FLOOR, subject, 0, 0.2), line(CEILING, subject, 0, 0.8)]
        lines.append(line("none", subject, 0, 0.3))
        lines.append(line("backprop-high", subject, 0, 0.5, peak=2**20))
        lines.append(line("dtap-0.75", subject, 0, 0.56 + 0.006 * subject, peak=3 * 2**19))
    found = analyse(lines)
    assert found["floor"]["structure"] == pytest.approx(0.2)
    assert list(found["methods"]) == ["none", "backprop-high", "dtap-0.75"]
    assert found["methods"]["backprop-high"]["fraction"]["prompt"]["mean"] == pytest.approx(0.5)
    difference = found["methods"]["dtap-0.75"]["difference"]["subject"]
    # 0.1 and 0.11: mean 0.105, standard error 0.005.
    assert difference["mean"] == pytest.approx(0.105)
    assert difference["high"] == pytest.approx(0.105 + 12.706 * 0.005, rel=1e-4)
    verdicts = {each["text"]: each["verdict"] for each in found["observations"]}
    as_good = found["observations"][6]
    assert as_good["text"] == "DTAP is about as good as backprop-high"
    # 0.605 - 0.75 x 0.5 - 0.25 / 6, as fractions
    # The gain of backprop-high, 0.5 - 1 / 6, is above 0 in both subjects.
    assert as_good["gain"]["low"] == pytest.approx(0.5 - 1 / 6)
    assert as_good["interval"]["mean"] == pytest.approx(0.605 - 0.375 - 0.25 / 6)
    assert as_good["verdict"] == "holds"
    assert verdicts["DTAP is better than tap"] == "no runs in common"
    page = markdown(found)
    assert "2 subjects and 1 seed" in page
    assert "the methods are not tuned" in page
    assert "not all runs" not in page
    assert "not all runs" in markdown(analyse(lines[:-1]))
    assert "+0.11 (+0.04 to +0.17)" in page
    assert "class 100%" in page  # of the judge, 0.9979
    old = line("tap", 0, 0, 0.5) | {"protocol": {}}
    replaced = line("dtap-0.75", 0, 0, 0.99)
    assert analyse([old, replaced, *lines]) == found
    mixed = [lines[0] | {"commit": "0123456789+"}, lines[1] | {"commit": None}, *lines[2:]]
    assert "commits 0123456+, unknown, abc." in markdown(analyse(mixed))
    one = markdown(analyse([each for each in lines if each["subject"] == 0]))
    assert "one subject gives no intervals" in one
    assert markdown(analyse([])).startswith("There are no results yet.")


def test_lines_of_other_settings_are_not_averaged():
    tuned = {"lr": 1.0}
    lines = [line("tap", subject, 0, 0.2) for subject in range(3)]
    lines += [line("tap", subject, 0, 0.9, tuned) for subject in (0, 1)]
    lines[-1]["failed"] = "not finite"
    found = analyse(lines)["methods"]["tap"]
    assert found["raw"]["prompt"]["mean"] == pytest.approx(0.9)
    assert (found["runs"], found["failed"]) == (2, 1)
    assert "| 2, 2 (**1 diverged**, raw scores of 0) |" in markdown(analyse(lines))
