"""Pictures of the subject are in a report only if they are provably the run's."""

import base64
import io
import os
import shutil

import pytest
from PIL import Image
from reports import PROMPT, page_of, save_checkpoint, save_run

from sopt import InputError
from sopt.data import load_pictures
from sopt.report import write_report

LEFT_OUT = "No pictures of the subject: they are not where the run found them, or have changed"


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "here" / "photos <&>"
    save_photos(folder)
    return folder


def save_photos(folder, red=0):
    folder.mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (300, 200), (red + number, 0, 0)).save(folder / f"{number}.png")


def save(folder, photos, images=None):
    """A run that learned from the photos."""
    run = save_run(folder, images=str(photos) if images is None else images)
    save_checkpoint(run, load_pictures(str(photos), PROMPT))
    return run


def subjects(page):
    return [image for image in page.all("img") if "The subject" in image["alt"]]


def test_the_subject_is_shown(tmp_path, photos):
    run = save(tmp_path / "dog", photos, [str(each) for each in sorted(photos.iterdir())])
    page = page_of(write_report([run]))
    assert [image["alt"] for image in subjects(page)] == [f"The subject: {n}.png" for n in range(6)]
    for number, image in enumerate(subjects(page)):
        content = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        small = Image.open(io.BytesIO(content))
        assert small.size == (128, 85)
        assert small.getpixel((0, 0)) == (number, 0, 0)
    assert "The first 6 of 8." in page.words
    assert f"8 pictures in {photos}" in page.words
    assert "No pictures of the subject" not in page.words


def test_the_pictures_of_another_folder_are_not_the_subject(tmp_path, photos, monkeypatch):
    run = save(tmp_path / "dog", photos, photos.name)
    save_photos(tmp_path / "there" / photos.name, red=100)
    monkeypatch.chdir(photos.parent)
    assert len(subjects(page_of(write_report([run])))) == 6
    for elsewhere in (tmp_path / "there", tmp_path):
        monkeypatch.chdir(elsewhere)
        page = page_of(write_report([run]))
        assert not subjects(page)
        assert LEFT_OUT in page.words


@pytest.mark.parametrize("change", ["gone", "added", "repainted"])
def test_pictures_that_changed_are_left_out(tmp_path, photos, change):
    run = save(tmp_path / "dog", photos)
    if change == "gone":
        shutil.rmtree(photos)
    else:
        name = "9.png" if change == "added" else "0.png"
        Image.new("RGB", (300, 200), "blue").save(photos / name)
    page = page_of(write_report([run]))
    assert not subjects(page)
    assert LEFT_OUT in page.words


def test_without_a_checkpoint_they_are_left_out(tmp_path, photos):
    page = page_of(write_report([save_run(tmp_path / "dog", images=str(photos))]))
    assert not subjects(page)
    assert "No pictures of the subject: without a checkpoint nothing says" in page.words


def test_of_objects_there_is_no_picture(tmp_path):
    folder = save_run(tmp_path / "dog", images=Image.new("RGB", (8, 8)))
    words = page_of(write_report([folder])).words
    assert "No pictures of the subject: they were given as objects." in words


def test_names_that_are_not_utf8_are_shown_as_far_as_they_can_be(tmp_path):
    photos = tmp_path / os.fsdecode(b"caf\xe9")
    save_photos(photos)
    (photos / "0.png").rename(photos / os.fsdecode(b"0\xe9.png"))
    page = page_of(write_report([save(tmp_path / "dog", photos)]))
    assert "The subject: 0\ufffd.png" in [image["alt"] for image in subjects(page)]
    assert "caf\ufffd" in page.words


def test_a_damaged_checkpoint_is_refused(tmp_path, photos):
    run = save(tmp_path / "dog", photos)
    file = run / "checkpoint" / "state.safetensors"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(InputError, match="is not a checkpoint of a run"):
        write_report([run])
