"""Pictures as people have them: rotated, transparent, 16-bit, damaged, beside other files."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from sopt.data import Picture, load_pictures, to_pixels
from sopt.data.picture import FORMATS, SUFFIXES
from sopt.errors import InputError

PROMPT = "a sks dog"
SAVED_AS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}


def noise_image(width=24, height=16, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def values_of(image):
    return np.asarray(image).astype(int)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "dog"
    path.mkdir()
    return path


def test_a_folder_gives_its_pictures_in_order_of_their_names(folder):
    for position, suffix in enumerate(reversed(SUFFIXES)):
        noise_image(seed=position).save(
            folder / f"{9 - position}{suffix.upper()}", SAVED_AS[suffix]
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures = load_pictures(folder, PROMPT)
    assert [picture.name for picture in pictures] == [
        "5.JPG", "6.JPEG", "7.PNG", "8.WEBP", "9.BMP",
    ]  # fmt: skip
    assert {picture.image.mode for picture in pictures} == {"RGB"}
    np.testing.assert_array_equal(values_of(pictures[4].image), values_of(noise_image(seed=0)))
    np.testing.assert_array_equal(values_of(pictures[2].image), values_of(noise_image(seed=2)))


def test_files_and_pil_images_keep_the_order_given(folder):
    noise_image().save(folder / "b.png")
    noise_image().save(folder / "a.png")
    given = [folder / "b.png", noise_image(), str(folder / "a.png")]
    assert [picture.name for picture in load_pictures(given, PROMPT)] == [
        "b.png",
        "image-2",
        "a.png",
    ]
    assert (
        len(load_pictures(noise_image(), PROMPT))
        == len(load_pictures(str(folder / "a.png"), PROMPT))
        == 1
    )


def test_stray_and_hidden_files_are_named_in_one_warning(folder):
    noise_image().save(folder / "dog.png")
    noise_image().save(folder / ".hidden.png")
    (folder / "notes.txt").write_text("a dog")
    (folder / ".DS_Store").write_bytes(b"\0")
    (folder / "folder.png").mkdir()
    with pytest.warns(UserWarning, match="skipped") as caught:
        pictures = load_pictures(folder, PROMPT)
    assert [picture.name for picture in pictures] == ["dog.png"]
    assert len(caught) == 1
    for name in ["notes.txt", ".DS_Store", ".hidden.png", "folder.png"]:
        assert name in str(caught[0].message)
    assert caught[0].filename == __file__  # it points at the caller


def test_a_long_list_of_stray_files_is_cut(folder):
    noise_image().save(folder / "dog.png")
    for number in range(25):
        (folder / f"{number:02}.txt").touch()
    with pytest.warns(UserWarning, match=r"09\.txt and 15 more \(pictures are "):
        load_pictures(folder, PROMPT)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_rotation_gives_the_upright_picture(folder, orientation, suffix):
    upright = Image.new("RGB", (32, 16), "black")
    upright.paste("white", (0, 0, 16, 8))  # the top left quarter
    to_sensor = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = upright if to_sensor is None else upright.transpose(to_sensor)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(folder / f"phone{suffix}", exif=exif, quality=95)
    image = load_pictures(folder, PROMPT)[0].image
    assert image.size == (32, 16)
    # JPEG and WebP store 8 x 8 and 4 x 4 blocks, none of which crosses an edge of the quarter
    assert abs(values_of(image) - values_of(upright)).max() <= 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_flattened_on_white(folder, mode):
    picture = Image.new("RGBA", (4, 2), (0, 0, 0, 0))  # black, wholly transparent
    picture.putpixel((0, 0), (90, 90, 90, 255))
    if mode == "P":
        picture.quantize(8).save(folder / "cut-out.png")
    else:
        picture.convert(mode).save(folder / "cut-out.png")
    values = values_of(load_pictures(folder, PROMPT)[0].image)
    np.testing.assert_array_equal(values[0, 0], [90, 90, 90])
    assert (values[:, 1:] == 255).all()
    assert (values[1] == 255).all()


def test_half_transparent_mixes_with_white(folder):
    Image.new("RGBA", (2, 2), (100, 0, 200, 128)).save(folder / "glass.png")
    expected = np.array([100, 0, 200]) * 128 / 255 + 255 * 127 / 255
    values = values_of(load_pictures(folder, PROMPT)[0].image)
    assert abs(values - expected).max() <= 1


def test_a_transparent_colour_of_a_png_is_transparent(folder):
    picture = Image.new("RGB", (2, 1), (10, 20, 30))
    picture.putpixel((0, 0), (1, 2, 3))
    picture.save(folder / "key.png", transparency=(1, 2, 3))
    np.testing.assert_array_equal(
        values_of(load_pictures(folder, PROMPT)[0].image)[0], [[255, 255, 255], [10, 20, 30]]
    )


def test_sixteen_bits_are_scaled_not_clipped(folder):
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).round().astype(np.uint16)
    Image.fromarray(ramp).save(folder / "scan.png")
    values = values_of(load_pictures(folder, PROMPT)[0].image)
    np.testing.assert_array_equal(values[..., 0].ravel(), np.arange(256))
    np.testing.assert_array_equal(values[..., 1], values[..., 2])


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_become_rgb(mode):
    grey = Image.new("L", (4, 4), 255).convert("RGB").convert(mode)
    assert abs(values_of(load_pictures(grey, PROMPT)[0].image) - 255).max() <= 1


def test_a_multi_picture_jpeg_gives_its_first_picture(folder):
    Image.new("RGB", (16, 16), "red").save(
        folder / "phone.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))]
    )
    assert values_of(load_pictures(folder, PROMPT)[0].image)[8, 8, 0] > 240


def text_named_png(folder):
    (folder / "dog.png").write_text("this is a text")


def empty_file(folder):
    (folder / "dog.png").touch()


def other_format_named_png(folder):
    noise_image().save(folder / "dog.png", "TIFF")


def broken_link(folder):
    (folder / "dog.png").symlink_to(folder / "nowhere.png")


@pytest.mark.parametrize("make", [text_named_png, empty_file, other_format_named_png, broken_link])
def test_what_is_no_picture_is_refused(folder, make):
    make(folder)
    noise_image().save(folder / "another.png")
    with pytest.raises(InputError, match=r"images: .*dog\.png") as caught:
        load_pictures(folder, PROMPT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kept", [0.02, 0.1, 0.5, 0.9])
def test_a_cut_off_picture_is_refused_before_anything_else(folder, format, kept):
    suffix = next(suffix for suffix in SUFFIXES if SAVED_AS[suffix] == format)
    noise_image(64, 64).save(folder / f"dog{suffix}", format)
    whole = (folder / f"dog{suffix}").read_bytes()
    (folder / f"dog{suffix}").write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(InputError, match=f"images: .*dog{suffix}"):
        load_pictures(folder, PROMPT)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("format", FORMATS)
def test_damage_anywhere_is_harmless_or_an_input_error(folder, format):
    file = folder / "dog"
    noise_image().save(file, format, exif=Image.Exif())
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.integers(0, 4)  # small: a size of gigapixels would take long
        file.write_bytes(damaged)
        try:
            assert Picture("dog", file, PROMPT).image.mode == "RGB"
        except InputError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none", "there is no folder or file"),
        (lambda folder: folder, "it is empty"),
        (lambda folder: str(folder / "notes.txt"), "there is no folder or file"),
        (lambda folder: [], "at least one"),
        (lambda folder: None, "at least one"),
        (lambda folder: 3, "at least one"),
        (lambda folder: [3], "expected a path or a PIL image"),
        (lambda folder: [noise_image(), folder / "none"], "there is no folder or file"),
        (lambda folder: Image.new("RGB", (0, 4)), "must have pixels"),
        (lambda folder: Image.new("F", (4, 4)), "mode F"),
    ],
)
def test_bad_input_is_one_sentence(folder, make, message):
    with pytest.raises(InputError, match=message) as caught:
        load_pictures(make(folder), PROMPT)
    assert str(caught.value).startswith("images: ")


def test_a_folder_of_other_files_says_what_it_holds(folder):
    (folder / "notes.txt").touch()
    with pytest.raises(InputError, match=r"it holds notes\.txt"):
        load_pictures(folder, PROMPT)
    with pytest.raises(InputError, match=r"notes\.txt is not a \.jpg"):
        load_pictures(folder / "notes.txt", PROMPT)


def test_pixels_of_the_wanted_size_are_exact():
    image = noise_image(16, 16)
    expected = torch.from_numpy(values_of(image)).permute(2, 0, 1)[None].double() / 127.5 - 1
    pixels = to_pixels(image, 16)
    assert (pixels.shape, pixels.dtype) == ((1, 3, 16, 16), torch.float32)
    assert pixels.is_contiguous()
    assert pixels.abs().max() <= 1
    # one division and one subtraction in float32, each within half an ulp of numbers up to 2
    assert (pixels.double() - expected).abs().max() <= 2 * 2**-24 * 2


@pytest.mark.parametrize("size", [(48, 16), (16, 48), (17, 16), (47, 16)])
def test_the_crop_is_central(size):
    image = Image.new("RGB", size, "black")
    left, top = (size[0] - 16) // 2, (size[1] - 16) // 2
    image.paste(noise_image(16, 16), (left, top))
    assert torch.equal(to_pixels(image, 16), to_pixels(noise_image(16, 16), 16))


def test_the_resize_is_antialiased():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: without antialiasing, all black or all white
    pixels = to_pixels(Image.fromarray(stripes), 8)
    assert pixels.abs().max() < 0.1  # grey; Lanczos rings at the border
