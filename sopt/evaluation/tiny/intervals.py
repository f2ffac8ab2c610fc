"""Confidence intervals of paired differences over subjects and seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean, and the bounds of its interval, None with fewer than two subjects."""

    mean: float
    low: float | None
    high: float | None
    subjects: int
    seeds: int  # of the subject with the most

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def interval(values: Mapping[tuple[int, int], float]) -> Interval | None:
    r"""The mean over subjects of the means over their seeds, with Student's t interval.

    .. math:: \bar d \pm t_{0.975, n-1} \sqrt{\frac1{n(n-1)} \sum_i (\bar d_i - \bar d)^2}

    Subjects are what the table is a sample of; seeds of one subject are not independent of each
    other, so they are averaged first. With ten subjects a percentile bootstrap would give intervals
    that are too narrow (its coverage is about 0.9), t needs only means that are roughly normal.

    Args:
        values: By (subject, seed), such as the difference of two methods on the same photos, with
            the same seed.

    Returns:
        None without values.

    Example:
        >>> found = interval({(0, 0): 1.0, (1, 0): 2.0, (1, 1): 4.0})
        >>> found.mean, round(found.high, 2)
        (2.0, 14.71)
    """
    by_subject: dict[int, list[float]] = {}
    for (subject, _), value in values.items():
        by_subject.setdefault(subject, []).append(value)
    if not by_subject:
        return None
    means = [sum(each) / len(each) for each in by_subject.values()]
    n, seeds = len(means), max(len(each) for each in by_subject.values())
    mean = sum(means) / n
    if n < 2:
        return Interval(mean, None, None, n, seeds)
    deviation = math.sqrt(sum((each - mean) ** 2 for each in means) / (n * (n - 1)))
    reach = t_quantile(n - 1) * deviation
    return Interval(mean, mean - reach, mean + reach, n, seeds)


def t_quantile(degrees: int) -> float:
    """The t that Student's distribution exceeds in absolute value with 5 % of chance.

    Example:
        >>> round(t_quantile(9), 3)
        2.262
    """
    low, high = 0.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < CONFIDENCE else (low, middle)
    return low


def _within(t: float, degrees: int) -> float:
    """P(|T| <= t), by the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term = total = (cosine if odd else 1.0) if degrees > 1 else 0.0
    for k in range(3 + odd, degrees, 2):
        term *= (k - 2) / (k - 1) * cosine**2
        total += term
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
