"""Pages of runs as a browser shows them."""

import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from reports import save_run

from sopt.report import write_report

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt-get install chromium"
)


def pixels_of(file, width):
    """A screenshot of a page."""
    shot = file.with_suffix(".png")
    subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--user-data-dir={file.parent / 'profile'}", f"--window-size={width},3000",
         f"--screenshot={shot}", file.as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    return np.asarray(Image.open(shot).convert("RGB"))


@needs_chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_it_looks_right_in_a_browser(tmp_path, width):
    long = {"model": "a/" + "very-long-name" * 12, "prompt": "a sks dog " + "wag" * 60}
    runs = [save_run(tmp_path / name, memory_budget="16MiB", **long) for name in ("dog", "cat")]
    whole = tmp_path / "comparison.html"
    write_report(runs, whole)
    for file in (write_report(runs[:1]), whole):
        pixels = pixels_of(file, width)
        assert pixels.shape[1] == width
        # Nothing is wider than the page: the margins are white from top to bottom.
        assert (pixels[:, :12] == 255).all()
        assert (pixels[:, -12:] == 255).all()
        for name, colour in {"backprop": (0x24, 0x57, 0xC5), "zeroth-order": (0xC2, 0x57, 0x0C),
                             "before": (255, 0, 0), "after": (0, 128, 0)}.items():  # fmt: skip
            assert (pixels == colour).all(axis=2).sum() > 50, name


@needs_chromium
@pytest.mark.parametrize(
    ("count", "width", "medium"),
    [
        pytest.param(2, 390, "screen", id="telephone"),
        pytest.param(8, 700, "print", id="paper"),
    ],
)
def test_the_figures_of_every_run_are_seen(tmp_path, count, width, medium):
    runs = [save_run(tmp_path / f"subject-dog-{n}", lr=1e-3 * n) for n in range(1, count + 1)]
    file = write_report(runs, tmp_path / "comparison.html")
    colours = [(255, 0, 255 - number) for number in range(count)]  # of the runs' values
    style = "".join(
        f".wide td:nth-child({number}) {{background: rgb{colour}}}"
        for number, colour in enumerate(colours, start=2)
    )
    text = file.read_text().replace("</style>", f"{style}</style>")
    file.write_text(text.replace(f"@media {medium}", "@media all"))
    pixels = pixels_of(file, width)
    for colour in colours:
        columns = np.flatnonzero((pixels == colour).all(axis=2).sum(axis=0) > 50)
        assert columns.size > 60, colour  # beyond the page nothing is seen
