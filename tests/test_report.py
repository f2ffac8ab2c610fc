"""``report.html``: whole, escaped, self-contained; of finished, half-written and several runs."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from reports import PROMPT, STEPS, page_of, save_run

import sopt
from sopt import InputError, cli
from sopt.report import write_report
from sopt.report.charts import Axis, Frame, bars, linear_ticks, log_ticks
from sopt.report.markup import element
from sopt.report.sections import TINT, duration, running_mean, surface, thinned
from sopt.schedules import dtap


@pytest.fixture
def run_folder(tmp_path):
    return save_run(tmp_path / "dog", memory_budget="16MiB")


def test_a_report_is_one_file_that_asks_for_nothing(run_folder):
    file = write_report([run_folder])
    assert file == run_folder / "report.html"
    page = page_of(file)
    for tag, attributes in page.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "form", "base", "a"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "action", "data"):
                assert value.startswith("data:image/"), value
    (style,) = re.findall(r"<style>(.*?)</style>", file.read_text(), flags=re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    policies = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert "http" not in file.read_text().replace("http-equiv", "")


def test_everything_is_escaped_and_pictures_have_words(run_folder):
    page = page_of(write_report([run_folder]))
    assert PROMPT in page.words  # as text, not as elements
    images = page.all("img")
    assert len(images) == 2
    for image, when in zip(images, ("before", "after"), strict=True):
        assert PROMPT in image["alt"]
        assert when in image["alt"]
    charts = page.all("svg")
    assert len(charts) == 5  # loss, choices, memory twice, time
    assert all(chart["role"] == "img" and len(chart["aria-label"]) > 20 for chart in charts)
    assert page.all("html") == [{"lang": "en"}]
    assert any(m.get("name") == "viewport" for m in page.all("meta"))


def test_the_samples_are_in_the_page(run_folder):
    sources = [image["src"] for image in page_of(write_report([run_folder])).all("img")]
    for source, name in zip(sources, ("before", "after"), strict=True):
        content = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        expected = Image.open(run_folder / "samples" / f"{name}.png")
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), expected)


def test_figures_are_those_of_the_files(run_folder):
    words = page_of(write_report([run_folder])).words
    history = [json.loads(each) for each in (run_folder / "history.jsonl").open()]
    zo = [entry for entry in history if entry["branch"] == "zo"]
    assert 0 < len(zo) < STEPS
    assert f"{STEPS - len(zo)} backprop, {len(zo)} zeroth-order" in words
    assert "the schedule gives the branches others as the run goes on" in words
    assert f"expected {sum(entry['p_zo'] for entry in history):.0f} zeroth-order" in words
    last = [entry["loss"] for entry in zo][-max(1, len(zo) // 10) :]
    assert f"of the last {sum(last) / len(last):.4g}" in words
    # Time: 3 s to load; training by its steps (0.5 s each), not by the record of the last process.
    assert duration(3 + STEPS * 0.5) in words
    for text in ("9 MiB", "budget 16MiB", "torch", "9.9", "–"):
        assert text in words


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("backprop-high", "backprop, full size, 40 of all steps: mean"),
        ("hollowed", "backprop, full size, 40 of all steps: mean"),
        ("backprop-low", "backprop, reduced pictures, 40 of all steps: mean"),
        ("zeroth-order", "zeroth-order, full size, 40 of all steps: mean"),
    ],
)
def test_runs_of_one_branch_are_called_what_they_are(tmp_path, method, expected):
    page = page_of(write_report([save_run(tmp_path / "dog", method=method)]))
    assert expected in page.words
    assert ("reduced" in page.words) == (method == "backprop-low")
    assert "Which steps" not in page.words  # there was no choice
    assert "the schedule gives" not in page.words
    assert "The schedule" not in page.words


def test_a_schedule_that_stays_the_same_gives_the_branches_the_same_timesteps(tmp_path):
    page = page_of(write_report([save_run(tmp_path / "dog", schedule=0.5)]))
    assert "Which steps" in page.words
    assert "The schedule 0.5 expected 20 zeroth-order" in page.words
    assert "the schedule gives" not in page.words


@pytest.mark.parametrize(
    ("methods", "row"),
    [
        (("backprop-high", "hollowed"), "backprop, full size"),
        (("backprop-high", "zeroth-order"), "backprop, full size"),
        (("backprop-low", "backprop-low"), "backprop, reduced pictures"),
        (("backprop-high", "backprop-low"), "backprop"),
    ],
)
def test_a_comparison_calls_branches_what_they_are_in_all_runs(tmp_path, methods, row):
    runs = [save_run(tmp_path / str(n), method=each) for n, each in enumerate(methods)]
    page = page_of(write_report(runs, tmp_path / "both.html"))
    assert f"loss of the last tenth, {row}" in page.text


def test_marks_lie_where_the_numbers_are():
    frame = Frame(Axis("step", 0, 100), Axis("loss", 0.01, 1, log=True))
    assert frame.place((0, 1)) == (54, 12)
    assert frame.place((100, 0.01)) == (466, 238)
    assert frame.place((50, 0.1)) == pytest.approx((260, 125))  # half way up the decades
    assert 'd="M260.0 125.0h0"' in frame.dots([(50, 0.1)], "bp")
    drawn = bars([("load", 1.0, "1"), ("train-bp", 4.0, "4")], "t", "d", limit=(8.0, "budget"))
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn)]
    full = 480 - 108 - 84
    assert widths == [full / 8, full / 2]
    assert re.search(rf'<line [^>]*x1="{108 + full}\.0"', drawn)


def test_ticks_are_round():
    assert linear_ticks(0, 600) == [0, 200, 400, 600]
    assert linear_ticks(0, 3) == [0, 1, 2, 3]
    assert log_ticks(0.02, 1) == [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    assert log_ticks(0.21, 0.49) == [0.3, 0.4]
    assert log_ticks(0.55, 0.95) == [0.6, 0.7, 0.8, 0.9]
    assert log_ticks(1e-5, 10) == [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10]


def test_the_surface_is_the_schedule():
    content = base64.b64decode(surface("dtap", 1000, 1000).removeprefix("data:image/png;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(content)), dtype=float)
    rows, columns, _ = pixels.shape
    for row, column in [(0, 0), (0, columns - 1), (rows // 2, columns - 1), (rows - 1, 5)]:
        step, timestep = (column + 0.5) / columns * 1000, int((rows - row - 0.5) / rows * 1000)
        chance = dtap(round(step), timestep, 1000)
        expected = 255 - chance * (255 - np.array(TINT))
        np.testing.assert_allclose(pixels[row, column], expected, atol=0.51)  # rounding to a byte


def test_means_and_thinning():
    points = [(step, float(step)) for step in range(1, 11)]
    assert running_mean(points)[-1] == (10, 8.0)  # of 6 to 10
    assert running_mean(points)[1] == (2, 1.5)
    # What follows a loss that ran away is drawn on a scale of logarithms: it must not be 0.
    after = running_mean([(i, 1e18 if i == 10 else 0.1) for i in range(41)])[-1]
    assert after == (40, pytest.approx(0.1, rel=1e-15 * 20))
    assert thinned(points, 4) == [points[0], points[3], points[6], points[9]]
    assert thinned(points, 10) == points


def test_settings_that_a_command_cannot_give_are_named(tmp_path):
    picture = Image.new("RGB", (8, 8))
    folder = save_run(tmp_path / "dog", images=picture, schedule=lambda step, timestep: 0.5)
    page = page_of(write_report([folder]))
    assert "to be put in by hand: images, schedule" in page.words
    assert not page.all("image")  # nobody knows the callable's surface


def test_words_of_a_prompt_are_no_objects(tmp_path):
    folder = save_run(tmp_path / "dog", prompt="the callable dog, given as an object")
    assert "to be put in by hand" not in page_of(write_report([folder])).words


def test_other_peoples_files_are_not_overwritten(run_folder):
    file = run_folder / "report.html"
    file.write_text("mine")
    with pytest.raises(InputError, match="is not a report, and is not overwritten"):
        write_report([run_folder])
    assert file.read_text() == "mine"
    file.unlink()
    write_report([run_folder])
    write_report([run_folder])  # its own it replaces


def test_several_runs_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "one" / "dog", seed=1, lr=0.5)
    save_run(tmp_path / "two" / "dog", seed=2, lr=0.25)
    assert cli.main(["report", "one/dog", "two/dog"]) == 0
    assert capsys.readouterr().out == "comparison.html\n"
    page = page_of("comparison.html")
    for text in ("2 runs compared", "1: dog", "2: dog", "0.5", "0.25", "Peak memory by run"):
        assert text in page.words
    assert [article["id"] for article in page.all("article")] == ["run-1", "run-2"]
    assert len(page.all("img")) == 8  # side by side, and with each run
    with pytest.raises(InputError, match=r"output must be a \.html file, got 'both\.pdf'"):
        write_report(["one/dog", "two/dog"], "both.pdf")


def test_every_log_axis_has_two_ticks():
    for low in np.geomspace(1e-4, 1, 500):
        for factor in (1.2, 1.5, 2, 3, 10, 1000):
            ticks = log_ticks(low, low * factor)
            assert len(ticks) >= 2
            assert low <= min(ticks) < max(ticks) <= low * factor


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["subject-dog-seed-1", "subject-dog-seed-2"], ["subjec…seed-1", "subjec…seed-2"]),
        (["subject-1-of-dog-at-last", "subject-2-of-dog-at-last"], ["1: sub…t-last", "2: sub…"]),
    ],
)
def test_bars_of_different_runs_have_different_names(tmp_path, names, labels):
    runs = [save_run(tmp_path / name) for name in names]
    text = page_of(write_report(runs, tmp_path / "both.html")).text
    for label in labels:
        assert sum(each.startswith(label) for each in text) == 2, label  # of memory and of time


def test_peaks_that_are_not_known_yet_have_no_bar(tmp_path):
    runs = [save_run(tmp_path / "done"), save_run(tmp_path / "at-work", done=9)]
    page = page_of(write_report(runs, tmp_path / "both.html"))
    assert "Peak memory by run. done 9 MiB" in [each["aria-label"] for each in page.all("svg")]
    page = page_of(write_report(runs[1:] * 2, tmp_path / "both.html"))
    assert "Peak memory" not in page.words


def test_training_writes_the_report(settings, quick):
    run = sopt.train(**settings)
    page = page_of(run.output / "report.html")
    record = json.loads((run.output / "record.json").read_text())
    assert record["versions"]["torch"] in page.words
    assert {"load", "cache", "save", "sample"} <= record["seconds"].keys()
    assert all(seconds > 0 for seconds in record["seconds"].values())
    assert len(page.all("img")) == 3 + 2  # of the subject; before and after
    assert "This run is not finished" not in page.words


def test_without_samples_there_is_a_report_without_them(settings, quick):
    run = sopt.train(**settings | {"samples": False})
    page = page_of(run.output / "report.html")
    assert all("The subject" in image["alt"] for image in page.all("img"))
    assert "No sample pictures: samples=false." in page.words


def test_samples_that_fail_do_not_lose_the_run(settings, quick, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise InputError("no pictures today")

    monkeypatch.setattr("sopt.trainer.generate", fail)
    run = sopt.train(**settings)
    assert run.adapter.exists()
    assert "there are no sample pictures: no pictures today" in caplog.text
    assert "none was drawn" in page_of(run.output / "report.html").words


def test_an_element_escapes_what_is_not_markup():
    inner = element("b", "<")
    assert (
        element("p", inner, "&", None, class_='a"b') == '<p class="a&quot;b"><b>&lt;</b>&amp;</p>'
    )
