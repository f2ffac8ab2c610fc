"""The analysis as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...tiny.prompts import GROUPS
from .analysis import COLUMNS, REFERENCE

MIB = 2**20


def markdown(analysis: Mapping[str, Any]) -> str:
    """What the figures rest on, the table of methods, that of groups, the observations."""
    parts = [basis(analysis), methods(analysis), groups(analysis), observations(analysis)]
    return "\n".join(parts)


def basis(analysis: Mapping[str, Any]) -> str:
    """One paragraph: how many subjects and seeds, tuned or not, floor, ceiling, judges."""
    protocol = analysis["protocol"]
    if protocol is None:
        return "There are no results yet.\n"
    counts = f"{_count(analysis['subjects'], 'subject')} and {_count(analysis['seeds'], 'seed')}"
    notes = [
        f"{counts}, {protocol['steps']} steps, {protocol['images_per_prompt']} pictures a prompt "
        f"in {protocol['sampling_steps']} steps"
    ]
    if not analysis["tuned"]:
        notes.append("**the methods are not tuned**, or not all of them")
    everything = analysis["subjects"] * analysis["seeds"]
    if any(each["runs"] < everything for each in analysis["methods"].values()):
        notes.append("**not all runs of these are done**, the last column has their number")
    if analysis["subjects"] < 2:
        notes.append("**one subject gives no intervals**")
    ends = [
        f"{column} {_number(analysis['floor'][column])} to {_number(analysis['ceiling'][column])}"
        for column in COLUMNS
    ]
    read, overlap = (
        ", ".join(f"{name} {value:.0%}" for name, value in analysis["judges"][judge].items())
        for judge in ("judge", "segmenter")
    )
    commits = ", ".join(_short(commit) for commit in analysis["commits"])
    return (
        f"{'; '.join(notes)}; commits {commits}. Floor to ceiling: {', '.join(ends)}. Of drawings "
        f"they have not seen the judge reads right: {read} (of four individuals alike in all else; "
        f"chance 20%). What the segmenter marks and what is there, intersection over union: "
        f"{overlap}.\n"
    )


def methods(analysis: Mapping[str, Any]) -> str:
    """A row a method: fractions between floor and ceiling, difference, memory, work."""
    heads = [
        "method", "chosen", "subject", f"difference from {REFERENCE}", "subject, training prompt",
        "prompt", "structure", "diversity (raw)", "peak, MiB", "core-s", "forwards + backwards",
        "runs, subjects",
    ]  # fmt: skip
    rows = []
    for name, each in analysis["methods"].items():
        fraction = each["fraction"]
        runs = f"{each['runs']}, {each['raw']['subject']['subjects']}"
        if each["failed"]:
            runs += f" (**{each['failed']} diverged**, raw scores of 0)"
        difference = None if name == REFERENCE else each["difference"]["subject"]
        peak = each["peak_bytes"]
        work = "-"
        if each["forwards"] is not None:
            work = f"{each['forwards']:.0f} + {each['backwards']:.0f}"
        rows.append(
            [
                name,
                ", ".join(f"{key} {value:g}" for key, value in each["chosen"].items()) or "-",
                _mean(fraction["subject"]),
                _interval(difference, signed=True),
                *(_mean(fraction[column]) for column in ("training", "prompt", "structure")),
                _mean(each["raw"]["diversity"]),  # which has no best value
                "-" if peak is None else f"{peak / MIB:.1f}",
                f"{each['core_seconds']:.0f}",
                work,
                runs,
            ]
        )
    return _table(heads, rows)


def groups(analysis: Mapping[str, Any]) -> str:
    """Subject, prompt and structure scores, raw, of each group of prompts."""
    rows = [
        [
            name,
            *(
                " / ".join(
                    _number(each["groups"][group][score])
                    for score in ("subject", "prompt", "structure")
                )
                for group in GROUPS
            ),
        ]
        for name, each in analysis["methods"].items()
    ]
    return _table(["subject / prompt / structure", *GROUPS], rows)


def observations(analysis: Mapping[str, Any]) -> str:
    """A row an observation: the sum that decides, its interval, the verdict."""
    rows = []
    for each in analysis["observations"]:
        terms = [f"{weight:+g} {name}" for name, weight in each["weights"].items()]
        rule = f"{each['column']}: {' '.join(terms)} > 0"
        row = [each["text"], each["source"], rule, _interval(each["interval"], signed=True)]
        verdict = each["verdict"]
        if each["unequal"] and each["interval"] is not None:
            verdict += f" (unequal {' and '.join(each['unequal'])})"
        rows.append([*row, verdict])
    return _table(["observation", "of", "holds if", "found", "verdict"], rows)


def _short(commit: str | None) -> str:
    """A plus says that files differed from the commit's."""
    return "unknown" if commit is None else commit[:7] + "+" * commit.endswith("+")


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _mean(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None else _number(found["mean"])


def _interval(found: Mapping[str, Any] | None, signed: bool = False) -> str:
    if found is None:
        return "-"
    form = "+.2f" if signed else ".2f"
    if found["low"] is None:
        return f"{found['mean']:{form}}"
    return f"{found['mean']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
