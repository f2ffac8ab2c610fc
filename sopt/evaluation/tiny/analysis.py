"""What the lines say: scores between floor and ceiling, differences, what of the papers holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ...tiny import judge
from ...tiny.prompts import GROUPS
from .intervals import Interval, interval
from .methods import CEILING, FLOOR, METHODS, NAMES
from .observations import OBSERVATIONS, Observation
from .scores import SCORES, overall

# Columns: score, and the prompts it is a mean over.
COLUMNS = {
    "training": ("subject", "training"),
    "subject": ("subject", None),
    "prompt": ("prompt", None),
    "structure": ("structure", None),
    "diversity": ("diversity", None),
}
REFERENCE = "backprop-high"

Line = Mapping[str, Any]
Values = dict[tuple[int, int], float]  # by (subject, seed)


def analyse(lines: Sequence[Line]) -> dict[str, Any]:
    """All figures of the table.

    Args:
        lines: Of a file, in its order. Those of another protocol than the last one's are left out,
            and those with other settings than the last one of their method; of several lines
            of a run the last one counts.

    Returns:
        ``methods``: for each its ``settings``, those ``chosen`` among them, the interval of every
        column, raw and as a ``fraction`` of the way from floor to ceiling, by ``groups`` too, its
        ``difference`` from backprop-high on the same subjects and seeds, mean peak, seconds and
        passes; ``ceiling`` and ``floor``; ``observations`` with their verdicts, and the searched
        settings that are ``unequal`` in them; ``judges``, their figures on held-out drawings;
        ``subjects``, ``seeds``, ``commits``, ``protocol`` and ``tuned`` of the lines.
        Figures that the lines do not give are None.
    """
    protocol = lines[-1]["protocol"] if lines else None
    lines = [line for line in lines if line["protocol"] == protocol]
    settings = {line["method"]: line["settings"] for line in lines}
    last = {
        (line["method"], line["subject"], line["seed"]): line
        for line in lines
        if line["settings"] == settings[line["method"]]
    }
    lines = list(last.values())
    known = json.loads((judge.WEIGHTS.parent / "figures.json").read_text())
    by_method = {name: [line for line in lines if line["method"] == name] for name in NAMES}
    ends = {
        column: (_mean(by_method[FLOOR], column), _mean(by_method[CEILING], column))
        for column in COLUMNS
    }
    fractions = {
        name: {column: _fractions(by_method[name], column, ends[column]) for column in COLUMNS}
        for name in METHODS
    }
    methods = {
        name: _method(by_method[name], fractions[name], fractions[REFERENCE])
        for name in METHODS
        if by_method[name]
    }
    return {
        "methods": methods,
        "floor": {column: end[0] for column, end in ends.items()},
        "ceiling": {column: end[1] for column, end in ends.items()},
        "observations": [_verdict(each, fractions, methods) for each in OBSERVATIONS],
        "judges": {name: known[f"{name}_on_held_out_drawings"] for name in ("judge", "segmenter")},
        "subjects": len({line["subject"] for line in lines}),
        "seeds": len({line["seed"] for line in lines}),
        "commits": sorted({line["commit"] for line in lines}, key=str),
        "protocol": protocol,
        "tuned": all(
            bool(line["chosen"]) for line in lines if METHODS.get(line["method"], _NONE).trials
        ),
    }


def value(line: Line, column: str) -> float | None:
    """A column of a line: the score of one group of prompts, or its mean over the four."""
    name, group = COLUMNS[column]
    return overall(line["scores"], name) if group is None else line["scores"][group][name]


def _values(lines: Sequence[Line], column: str) -> Values:
    found = {(line["subject"], line["seed"]): value(line, column) for line in lines}
    return {key: each for key, each in found.items() if each is not None}


def _mean(lines: Sequence[Line], column: str) -> float | None:
    found = interval(_values(lines, column))
    return None if found is None else found.mean


def _fractions(
    lines: Sequence[Line], column: str, ends: tuple[float | None, float | None]
) -> Values:
    """Of the way from floor to ceiling, both means over all their lines."""
    floor, ceiling = ends
    if floor is None or ceiling is None or ceiling <= floor:
        return {}
    return {key: (each - floor) / (ceiling - floor) for key, each in _values(lines, column).items()}


def contrast(weights: Mapping[str, float], values: Mapping[str, Values]) -> Interval | None:
    """The interval of a weighted sum of methods, over subjects and seeds that all of them have."""
    shared = set.intersection(*(set(values[name]) for name in weights))
    return interval(
        {key: sum(w * values[name][key] for name, w in weights.items()) for key in sorted(shared)}
    )


def _method(
    lines: Sequence[Line], own: Mapping[str, Values], reference: Mapping[str, Values]
) -> dict[str, Any]:
    costs = {
        name: _average([line.get(name) for line in lines])
        for name in ("peak_bytes", "forwards", "backwards", "core_seconds")
    }
    groups = {
        group: {name: _average([line["scores"][group][name] for line in lines]) for name in SCORES}
        for group in ("training", *GROUPS)
    }
    return {
        "raw": {column: _plain(interval(_values(lines, column))) for column in COLUMNS},
        "fraction": {column: _plain(interval(own[column])) for column in COLUMNS},
        "difference": {
            column: _plain(
                contrast({"own": 1, "other": -1}, {"own": own[column], "other": reference[column]})
            )
            for column in COLUMNS
        },
        "groups": groups,
        "chosen": lines[-1]["chosen"],
        "settings": lines[-1]["settings"],
        "runs": len(lines),
        "failed": sum("failed" in line for line in lines),
        "train_seconds": _average([line["seconds"]["train"] for line in lines]),
        **costs,
    }


def _verdict(
    observation: Observation,
    fractions: Mapping[str, Mapping[str, Values]],
    methods: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    values = {name: fractions[name][observation.column] for name in observation.weights}
    found = contrast(observation.weights, values)
    gain = None
    if observation.gain is not None:
        gains = {name: fractions[name][observation.column] for name in observation.gain}
        gain = contrast(observation.gain, gains)
    return {
        "text": observation.text,
        "source": observation.source,
        "column": observation.column,
        "weights": dict(observation.weights),
        "interval": _plain(found),
        "gain": _plain(gain),
        "verdict": observation.verdict(found, gain),
        "unequal": _unequal([methods[name] for name in values if name in methods]),
    }


def _unequal(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that the search chose for a method, and that others have otherwise."""
    settings = [each["settings"] for each in methods]
    names = dict.fromkeys(name for each in methods for name in each["chosen"])
    found = {name: {each[name] for each in settings if name in each} for name in names}
    return [name for name, values in found.items() if len(values) > 1]


def _average(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return sum(known) / len(known) if known else None


def _plain(found: Interval | None) -> dict[str, Any] | None:
    return None if found is None else found.to_dict()


_NONE = METHODS["none"]
