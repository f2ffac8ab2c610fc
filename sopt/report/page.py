"""``write_report``: one self-contained HTML file about a run, or about several side by side."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..budget import readable
from ..errors import InputError
from ..files import write_json, write_text
from . import sections
from .charts import bars, shortened
from .markup import Markup, element, join
from .pictures import picture
from .reading import RECORD, RunFiles, read_run

REPORT = "report.html"
GENERATOR = "sopt report"  # how a report of ours is known from other people's files
# The browser itself sees to it that nothing is fetched and that no script runs.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SURROGATES = re.compile("[\ud800-\udfff]")
PATH_ERRORS = (FileExistsError, NotADirectoryError, PermissionError)


def write_report(runs: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write the report of a run, or of several beside each other.

    Args:
        runs: Run folders; a run that is not finished is shown as far as it got.
        output: File to write; if not given ``report.html`` in the run's folder, or
            ``comparison.html`` in the current folder for several runs; ``.html``. A file of that
            name is replaced if it is a report, and refused otherwise.

    Returns:
        The file: no script, no address but those of pictures inside it.

    Raises:
        InputError: No run in a folder, a damaged file of one, or ``output`` is something else or
            cannot be written.

    Example:
        >>> write_report(["runs/dog"])
        PosixPath('runs/dog/report.html')
    """
    if not runs:
        raise InputError("report needs at least one run folder")
    read = [read_run(path) for path in runs]
    if output is None:
        output = read[0].path / REPORT if len(read) == 1 else Path("comparison.html")
    file = Path(output)
    if file.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"output must be a .html file, got {str(file)!r}")
    text = page(read)
    try:
        if file.is_dir() or (file.exists() and not is_report(file)):
            raise InputError(f"output {str(file)!r} is not a report, and is not overwritten")
        write_text(file, text)
    except PATH_ERRORS as error:  # a disk that fails is no wrong argument
        raise InputError(f"output {str(file)!r} must be writable: {error.strerror}") from error
    return file


def record_run(folder: Path, seconds: Mapping[str, float], num_train_timesteps: int) -> None:
    """Write down what no other file of a finished run says, and its report.

    Args:
        seconds: Of each phase.
        num_train_timesteps: Noise levels of the model.
    """
    from ..doctor import examine

    findings = examine()
    record = {
        "versions": findings["versions"],
        "machine": {each["name"]: each["description"] for each in findings["devices"]}
        | {"system": platform.platform()},
        "seconds": dict(seconds),
        "num_train_timesteps": num_train_timesteps,
    }
    write_json(folder / RECORD, record)
    write_report([folder])


def is_report(file: Path) -> bool:
    with file.open("rb") as opened:
        return f'content="{GENERATOR}"'.encode() in opened.read(2000)


def page(runs: Sequence[RunFiles]) -> str:
    """The report as HTML."""
    if len(runs) == 1:
        title = str(runs[0].settings.get("prompt", runs[0].name))
        body = join(_header(title, _described(runs[0])), sections.about(runs[0]))
    else:
        title = f"{len(runs)} runs compared"
        names = numbered(runs)
        body = join(
            _header(title, ", ".join(names)),
            comparison(runs, names),
            *(
                element("article", _heading(name, run), sections.about(run), id=f"run-{number}")
                for number, (name, run) in enumerate(zip(names, runs, strict=True), start=1)
            ),
        )
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="generator", content=GENERATOR),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", title),
        element("style", Markup(style)),
    )
    whole = element("html", head, element("body", element("main", body)), lang="en")
    # Names of files that are not UTF-8 have surrogates, which no file of text can hold.
    return SURROGATES.sub("\N{REPLACEMENT CHARACTER}", f"<!doctype html>\n{whole}\n")


def comparison(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup:
    """What differs between runs: pictures, settings, peaks, times, losses."""
    return join(
        _pictures(runs, names),
        element("section", element("h2", "Figures"), _figures(runs, names)),
        element("div", _peaks(runs, names), _times(runs, names), class_="charts"),
    )


def numbered(runs: Sequence[RunFiles]) -> list[str]:
    """The runs' names, with numbers where they are not enough to tell runs apart, cut as beside
    bars."""
    names = [run.name for run in runs]
    if len(set(map(shortened, names))) == len(names):
        return names
    return [f"{number}: {name}" for number, name in enumerate(names, start=1)]


def _pictures(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup | None:
    shown = []
    for name, run in zip(names, runs, strict=True):
        for when in ("before", "after"):
            file = run.picture(when)
            if file is not None:
                alt = f"{name}: drawn for “{run.settings.get('prompt')}” {when} training"
                shown.append(picture(file, f"{name}, {when}", alt))
    if not shown:
        return None
    return element("section", element("h2", "Samples"), element("div", *shown, class_="pictures"))


def _figures(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup:
    rows: dict[str, list[str]] = {
        "steps done": [f"{len(run.history)} of {run.steps}" for run in runs],
        "peak of tensors": [
            readable(max(run.peaks.values())) if run.peaks else "–" for run in runs
        ],
        "time": [
            sections.duration(sum(run.seconds.values())) if run.seconds else "–" for run in runs
        ],
    }
    for branch, words in sections.branch_names(*runs).items():
        rows[f"loss of the last tenth, {words}"] = [_last_loss(run, branch) for run in runs]
    known = dict.fromkeys(name for run in runs for name in run.settings if name != "output")
    for name in known:
        values = [str(run.settings.get(name, "–")) for run in runs]
        if len(set(values)) > 1:
            rows[name] = values
    head = element("tr", element("td"), *(element("th", name, scope="col") for name in names))
    lines = [
        element("tr", element("th", name, scope="row"), *(element("td", each) for each in values))
        for name, values in rows.items()
    ]
    note = "Losses of two branches or schedules cannot be compared: they are of other timesteps."
    return join(
        element("div", element("table", head, *lines), class_="wide"),
        element("p", note, class_="quiet"),
    )


def _last_loss(run: RunFiles, branch: str) -> str:
    points = run.losses(branch)
    return f"{sections.mean_of_tenth(points, -1):.4g}" if points else "–"


def _peaks(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup | None:
    peaks = [
        (name, max(run.peaks.values()))
        for name, run in zip(names, runs, strict=True)
        if run.peaks  # of a run that is at work they are not known yet
    ]
    if not peaks:
        return None
    rows = [(name, size, readable(size)) for name, size in peaks]
    return sections.chart(
        "Peak memory of tensors", bars(rows, "Peak memory by run", sections.listed(rows))
    )


def _times(runs: Sequence[RunFiles], names: Sequence[str]) -> Markup | None:
    totals = [(n, sum(run.seconds.values())) for n, run in zip(names, runs, strict=True)]
    rows = [(name, total, sections.duration(total)) for name, total in totals if total]
    if not rows:
        return None
    return sections.chart("Time", bars(rows, "Time by run", sections.listed(rows)))


def _header(title: str, subtitle: str) -> Markup:
    return element("header", element("h1", title), element("p", subtitle))


def _heading(name: str, run: RunFiles) -> Markup:
    return element("header", element("h2", name), element("p", _described(run)))


def _described(run: RunFiles) -> str:
    model, images = run.settings.get("model"), run.settings.get("images")
    if isinstance(images, list):
        folders = {str(Path(each).parent) for each in images}
        learned = f"{len(images)} pictures in {', '.join(sorted(folders))}"
    else:
        learned = f"pictures {images}"
    return f"{run.name}: model {model}, {learned}"
