"""The tables of docs/tiny.md, from bench/results/tiny_*: ``python -m bench.tiny_page``.

``--check`` fails if they would change. The figures come from ``python -m`` followed by
``bench.tiny_experiments``, ``bench.tiny_equal``, ``bench.tiny_variants`` and ``bench.zoodip_tiny``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from statistics import mean
from typing import Any

from sopt.evaluation.tiny.analysis import analyse
from sopt.evaluation.tiny.intervals import interval
from sopt.evaluation.tiny.lines import read_lines
from sopt.evaluation.tiny.scores import overall
from sopt.evaluation.tiny.table import methods, observations

from .generated import RESULTS, rewrite
from .tiny_experiments import LR, STEPS

Rows = Mapping[str, Any]


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [list(heads), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return [f"| {' | '.join(line)} |" for line in lines] + [""]


def blocks(rows: Rows) -> list[str]:
    found = list(rows.values())
    heads = ["block", "parameters", "change of the weights", "gain without it", "gain of it alone"]
    lines = []
    for name, first in found[0]["blocks"].items():
        own = [row["blocks"][name] for row in found]
        before = mean(row["before"] for row in found)
        gains = [before - mean(each[k] for each in own) for k in ("loss_without", "loss_alone")]
        change = f"{mean(each['change'] for each in own):.3f}"
        lines.append([name, str(first["parameters"]), change, *(f"{gain:+.5f}" for gain in gains)])
    whole = ", ".join(f"{row['before'] - row['after']:+.5f}" for row in found)
    run = f"Of {STEPS} steps of backprop-high at lr {LR:g}"
    return [f"{run}. Gain of all blocks, subject by subject: {whole}.", "", *table(heads, lines)]


def gain(rows: Rows) -> list[str]:
    found = list(rows.values())
    rates = list(found[0][0]["after"])
    heads = ["steps of backprop-low before", *(f"gain at zo_lr {rate}" for rate in rates)]
    lines = []
    gains: dict[tuple[float, str], dict[tuple[int, int], float]] = {}
    for key, each in rows.items():
        subject, seed = map(int, key.split(","))
        for row, rate in product(each, rates):
            change = row["before"]["all"] - row["after"][rate]["all"]
            gains.setdefault((row["share"], rate), {})[subject, seed] = change
    for row in found[0]:
        own = [with_interval(gains[row["share"], rate]) for rate in rates]
        lines.append([f"{row['share']:.0%}", *own])
    later = [
        with_interval({key: x - gains[0, rate][key] for key, x in gains[0.5, rate].items()})
        for rate in rates
    ]
    lines.append(["50 % less 0 %", *later])
    return table(heads, lines)


def with_interval(values: Mapping[tuple[int, int], float]) -> str:
    """The mean, and the interval where there is one."""
    found = interval(values)
    assert found is not None
    if found.low is None or found.high is None:
        return f"{found.mean:+.5f}"
    return f"{found.mean:+.5f} ({found.low:+.5f} to {found.high:+.5f})"


def timesteps(rows: Rows) -> list[str]:
    found = [row["by_timesteps"] for row in rows.values()]
    lines = [
        [name, *(f"{overall(each[name]['scores'], 'subject'):.3f}" for each in found)]
        for name in found[0]
    ]
    return table(["timesteps", *(f"subject {key.split(',')[0]}" for key in rows)], lines)


def fused(rows: Rows) -> list[str]:
    lines = []
    for subject, row in rows.items():
        alone = row["seconds"]["no adapter"]
        for name, seconds in row["seconds"].items():
            about = [subject.split(",")[0], str(row["pictures"]), name]
            lines.append([*about, f"{seconds:.2f}", f"{seconds / alone:.2f}"])
    return table(["subject", "pictures", "", "s", "times that without adapter"], lines)


def equal(rows: Rows) -> list[str]:
    """The methods that ran again, and what they decide, paired with the table's other lines."""
    again = {row["method"] for row in rows["runs"]}
    analysis = analyse([*read_lines(RESULTS / "tiny.jsonl"), *rows["runs"]])
    own = {name: each for name, each in analysis["methods"].items() if name in again}
    decided = [each for each in analysis["observations"] if again & each["weights"].keys()]
    return [methods({"methods": own}), observations({"observations": decided})]


def variants(rows: Rows) -> list[str]:
    trials: dict[tuple[str, str], dict[str, list[float]]] = {}
    for key, row in rows["search"].items():
        name, lr, rate, _ = key.split(",")
        trials.setdefault((name, lr), {}).setdefault(rate, []).append(row["all"])
    lines = [
        [*which, ", ".join(f"{rate}: {mean(x):.5f}" for rate, x in rates.items() if len(x) == 2)]
        for which, rates in sorted(trials.items())
    ]
    subjects = len({key.split(",")[3] for key in rows["search"]})
    heads = ["variant", "lr", f"loss by zo_lr, mean over {subjects} subjects, one seed"]
    text = table(heads, lines)
    return text + verdict(rows["verdict"])


MEASURES = {
    "subject score, training prompt": lambda row: row["training"],
    "subject score": lambda row: row["subject"],
    "prompt score": lambda row: row["prompt"],
    "structure score": lambda row: row["structure"],
    "loss": lambda row: row["loss"]["all"],
}


def verdict(rows: Rows) -> list[str]:
    """Each variant less DTAP, by the judge and by the loss, both at their best rates."""
    found: dict[str, dict[tuple[int, int], Any]] = {}
    for key, row in rows.items():
        name, subject, seed = key.split(",")
        found.setdefault(name, {})[int(subject), int(seed)] = row
    lines = []
    for name in found:
        for measure, of in MEASURES.items() if name != "dtap" else ():
            pairs = {key: of(row) - of(found["dtap"][key]) for key, row in found[name].items()}
            each = interval(pairs)
            if each is not None and each.low is not None:
                means = " and ".join(
                    f"{mean(map(of, x.values())):.4f}" for x in (found[name], found["dtap"])
                )
                reach = f"{each.low:+.4f} to {each.high:+.4f}"
                size = f"{each.subjects} x {each.seeds}"
                lines.append([name, measure, means, f"{each.mean:+.4f}", reach, size])
    heads = ["variant", "", "its and DTAP's", "difference", "95 % interval", "subjects x seeds"]
    return table(heads, lines) if lines else []


def zoodip(rows: Rows) -> list[str]:
    found: dict[str, list[Rows]] = {}
    for row in rows["runs"]:
        found.setdefault(row["variant"], []).append(row)
    heads = [
        "variant",
        "seeds",
        "subject score before",
        "after",
        "gain of each",
        "change of the loss",
    ]
    lines = []
    for name, mine in found.items():
        before, after = (mean(row["score"][i] for row in mine) for i in range(2))
        gains = ", ".join(f"{row['score'][1] - row['score'][0]:+.3f}" for row in mine)
        losses = ", ".join(f"{row['held out'][1] / row['held out'][0] - 1:+.2%}" for row in mine)
        lines.append([name, str(len(mine)), f"{before:.3f}", f"{after:.3f}", gains, losses])
    return [*table(heads, lines), "![loss curves](zoodip_tiny.png)", ""]


TABLES: dict[str, tuple[str, Callable[[Rows], list[str]]]] = {
    "blocks": ("Which blocks matter", blocks),
    "gain": ("What 200 zeroth-order steps gain, and when", gain),
    "timesteps": ("ZOODiP's timesteps", timesteps),
    "zoodip": ("ZOODiP and its parts", zoodip),
    "fused": ("Sampling with a fused adapter", fused),
    "equal": ("The table's methods at one learning rate", equal),
    "variants": ("Variants of DTAP", variants),
}


def content() -> str:
    lines = []
    for name, (title, write) in TABLES.items():
        if (file := RESULTS / f"tiny_{name}.json").exists():
            lines += [f"## {title}", "", *write(json.loads(file.read_text()))]
        elif (file := file.with_suffix(".jsonl")).exists():
            rows = {"runs": [json.loads(line) for line in file.read_text().splitlines()]}
            lines += [f"## {title}", "", *write(rows)]
    return "\n".join(lines)


if __name__ == "__main__":
    rewrite("docs/tiny.md", "bench.tiny_page", content(), __doc__)
