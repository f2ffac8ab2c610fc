"""The parts of a report about one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..budget import Budget, readable
from ..config import SCHEDULES
from ..schedules import make_schedule
from .charts import Axis, Frame, Point, bars, key
from .markup import Markup, element, join
from .pictures import data_uri, photos, pictures
from .reading import RunFiles
from .repeating import repeat

BRANCHES = ("bp", "zo")
CHANGING = ("dtap", "reversed")  # schedules that are others early and late in a run
ONE_BRANCH = (0, 1)  # those that leave no choice
MOST_POINTS = 2000  # of a branch in a chart; more would be a file of megabytes and a solid area
MOST_OF_A_LINE = 200
SURFACE = (120, 80)  # columns and rows of the schedule's picture
TINT = (250, 206, 150)  # of a chance of 1


def about(run: RunFiles) -> Markup:
    """The whole run: key figures, pictures, charts, settings, versions, the command."""
    if run.finished:
        state = None
    else:
        done = f"This run is not finished: {len(run.history)} of {run.steps} steps are done."
        state = element("p", done, class_="note")
    return join(
        state,
        key_figures(run),
        photos(run),
        pictures(run),
        element("div", losses(run), choices(run), memory(run), time(run), class_="charts"),
        repeat(run),
        element("div", settings(run), versions(run), class_="charts"),
    )


def branch_names(*runs: RunFiles) -> dict[str, str]:
    """What the branches are called: by the pictures of their steps, where all runs agree on it."""
    reduced = {run.low_res_ratio < 1 for run in runs if run.losses("bp")}
    sizes = {True: ", reduced pictures", False: ", full size"}
    size = sizes[reduced.pop()] if len(reduced) == 1 else ""
    return {"bp": f"backprop{size}", "zo": "zeroth-order, full size"}


def key_figures(run: RunFiles) -> Markup:
    counts = {b: sum(each["branch"] == b for each in run.history) for b in BRANCHES}
    figures = [
        ("method", str(run.settings.get("method", "?"))),
        ("steps", f"{counts['bp']} backprop, {counts['zo']} zeroth-order"),
        ("time", duration(sum(run.seconds.values()))),
    ]
    if run.peaks:
        figures.insert(1, ("peak of tensors", readable(max(run.peaks.values()))))
    if run.skipped:
        figures.append(("skipped, loss not finite", str(run.skipped)))
    items = [element("div", element("dt", name), element("dd", text)) for name, text in figures]
    return element("dl", *items, class_="figures")


def losses(run: RunFiles) -> Markup | None:
    """Loss over steps, a mark a step and the running mean of each branch."""
    by_branch = {b: [(s, x) for s, x in run.losses(b) if x > 0] for b in BRANCHES}
    values = [loss for points in by_branch.values() for _, loss in points]
    if not values:
        return None
    x = Axis("step", 0, max(run.steps, len(run.history)))
    y = Axis("loss", min(values) * 0.9, max(values) * 1.1, log=True)
    frame = Frame(x, y)
    names = branch_names(run)
    marks, words, keys = [], [], []
    for branch, points in by_branch.items():
        if points:
            smooth = running_mean(points)
            marks += [frame.dots(thinned(points, MOST_POINTS), branch)]
            marks += [frame.line(thinned(smooth, MOST_OF_A_LINE), branch)]
            words.append(
                f"{names[branch]}, {len(points)} of all steps: mean of the first tenth "
                f"{mean_of_tenth(points, 0):.4g}, of the last {mean_of_tenth(points, -1):.4g}"
            )
            keys.append(key(branch, names[branch]))
    drawn = frame.drawing("Loss by branch", "; ".join(words), *marks)
    note = ". Lines: running means. A step's loss depends on its timestep"
    if run.schedule in CHANGING:
        note += ", and the schedule gives the branches others as the run goes on"
    return chart("Loss", drawn, keys, "; ".join(words) + f"{note}.")


def choices(run: RunFiles) -> Markup | None:
    """Which branch each step took, by step and timestep, over the schedule's probability."""
    if not run.history or run.schedule in ONE_BRANCH:
        return None
    steps, timesteps = max(run.steps, len(run.history)), run.num_train_timesteps
    frame = Frame(Axis("step", 0, steps), Axis("timestep", 0, timesteps))
    schedule = run.schedule
    known = schedule in SCHEDULES or isinstance(schedule, (int, float))
    marks = [frame.picture(surface(schedule, steps, timesteps))] if known else []
    words, keys = [], []
    for branch, name in branch_names(run).items():
        points: list[Point] = [
            (each["step"], each["timestep"]) for each in run.history if each["branch"] == branch
        ]
        if points:
            marks.append(frame.dots(thinned(points, MOST_POINTS), branch))
            mean = sum(timestep for _, timestep in points) / len(points)
            words.append(f"{len(points)} {name}, at a mean timestep of {mean:.0f}")
            keys.append(key(branch, name))
    expected = sum(each["p_zo"] for each in run.history)
    note = "; ".join(words) + f". The schedule {schedule} expected {expected:.0f} zeroth-order."
    if known:
        note += " Tint: its probability of a zeroth-order step, white 0, full 1."
    return chart("Which steps", frame.drawing("Choices of the branch", note, *marks), keys, note)


def memory(run: RunFiles) -> Markup | None:
    """Peaks by phase, with the budget."""
    if not run.peaks:
        return None
    given = run.settings.get("memory_budget")
    budget = None if given is None else Budget.parse(given)
    limit = None if budget is None else (float(budget.bytes), f"budget {given}")
    of_process = budget is not None and budget.of_process
    peaks = [(phase, size, readable(size)) for phase, size in run.peaks.items()]
    tensors = bars(
        peaks, "Peak memory of tensors by phase", listed(peaks), None if of_process else limit
    )
    process = [(phase, size, readable(size)) for phase, size in run.process.items()]
    whole = (
        join(
            element("h3", "of the whole process"),
            bars(process, "Memory of the process by phase", listed(process),
                 limit if of_process else None),
        )
        if process
        else None
    )  # fmt: skip
    note = "Most bytes of tensors alive at once; anonymous resident memory of the process."
    return chart("Memory", join(element("h3", "of tensors"), tensors, whole), [], note)


def time(run: RunFiles) -> Markup | None:
    rows = [(phase, seconds, duration(seconds)) for phase, seconds in run.seconds.items()]
    if not rows:
        return None
    drawn = bars(rows, "Time by phase", listed(rows))
    counts = {b: sum(each["branch"] == b for each in run.history) for b in BRANCHES}
    each = [
        f"a {branch} step {duration(run.seconds[f'train-{branch}'] / count)}"
        for branch, count in counts.items()
        if count
    ]
    return chart("Time", drawn, [], f"On average {' and '.join(each)}." if each else "")


def settings(run: RunFiles) -> Markup:
    return element("section", element("h2", "Settings"), table(run.settings.items()))


def versions(run: RunFiles) -> Markup | None:
    made = [*run.record.get("versions", {}).items(), *run.record.get("machine", {}).items()]
    return element("section", element("h2", "Made with"), table(made)) if made else None


def table(rows: Any) -> Markup:
    return element(
        "table",
        *(
            element("tr", element("th", str(name), scope="row"), element("td", _words(value)))
            for name, value in rows
        ),
    )


def surface(schedule: Any, steps: int, timesteps: int) -> str:
    """The schedule's probability over step and timestep as a picture: tint is the probability."""
    chance = make_schedule(schedule, steps, timesteps)
    columns, rows = SURFACE
    values = np.array(
        [
            [
                chance(round((column + 0.5) / columns * steps), int((row + 0.5) / rows * timesteps))
                for column in range(columns)
            ]
            for row in reversed(range(rows))  # high timesteps on top
        ]
    )[..., None]
    colours = 255 - values * (255 - np.array(TINT))
    return data_uri(Image.fromarray(colours.round().astype(np.uint8)))


def running_mean(points: Sequence[Point]) -> list[Point]:
    """The mean of each point's value and those before it, up to a twentieth of all."""
    window = max(5, len(points) // 20)
    values = np.array([value for _, value in points])
    return [  # not by differences of sums: beside 1e18, which a loss may be, 0.1 is nothing
        (x, float(values[max(0, i + 1 - window) : i + 1].mean())) for i, (x, _) in enumerate(points)
    ]


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many of the points, spread evenly, the last one among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(0.0123), duration(75), duration(7300)
        ('12 ms', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def mean_of_tenth(points: Sequence[Point], which: int) -> float:
    """The mean value of the first (``which`` 0) or the last (-1) tenth of the points."""
    count = max(1, len(points) // 10)
    tenth = points[:count] if which == 0 else points[-count:]
    return sum(value for _, value in tenth) / count


def chart(heading: str, drawn: Markup, keys: Sequence[Markup] = (), note: str = "") -> Markup:
    """A section with a chart, its legend and a note."""
    legend = [element("span", each, class_="key") for each in keys]
    caption = element("figcaption", *legend, element("span", note)) if legend or note else None
    return element("section", element("h2", heading), element("figure", drawn, caption))


def listed(rows: Sequence[tuple[str, float, str]]) -> str:
    """The rows of a chart in words."""
    return ", ".join(f"{name} {words}" for name, _, words in rows)


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
