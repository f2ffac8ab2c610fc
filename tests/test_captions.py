"""Which pictures a folder of each layout gives, with which captions; and lists that do not fit."""

import json
import warnings

import pytest
from PIL import Image

from sopt.data import Picture, describe_pictures, load_pictures, weighted_index
from sopt.data.captions import fill_placeholders, subject_words
from sopt.errors import InputError
from sopt.run_folder import picture_fingerprint

PROMPT = "a sks dog"


def write(path, content=None):
    """A text, rows of JSON, or a small picture; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None:
        Image.new("RGB", (8, 8)).save(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    """A folder to fill: ``folder(names to contents)``."""
    root = tmp_path / "dog6"

    def fill(files):
        for name, content in files.items():
            write(root / name, content)
        return root

    return fill


def captions(root, prompt=PROMPT, **options):
    """(name, caption) of the pictures, which must be found without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return [(p.name, p.caption) for p in load_pictures(root, prompt, **options)]


ROWS = [{"file_name": "b.png", "text": "a dog, sitting"}, {"file_name": "a.png", "text": "lying"}]
CSV = 'file_name,text\nb.png,"a dog, sitting"\na.png,lying\n'
BOTH = [("a.png", "lying"), ("b.png", "a dog, sitting")]


@pytest.mark.parametrize(
    "files, expected",
    [
        ({"a.png": None, "b.JPG": None}, [("a.png", PROMPT), ("b.JPG", PROMPT)]),
        (
            {"a.png": None, "a.txt": "lying\n", "b.png": None, "b.caption": " a dog,  sitting "},
            BOTH,
        ),
        (
            {"a.png": None, "a.txt": b"\xef\xbb\xbflying", "b.png": None},
            [BOTH[0], ("b.png", PROMPT)],
        ),
        ({"a.png": None, "b.png": None, "metadata.jsonl": ROWS}, BOTH),
        ({"a.png": None, "b.png": None, "metadata.csv": CSV}, BOTH),
        ({"a.png": None, "b.png": None, "data.jsonl": ROWS}, BOTH),
        ({"train/a.png": None, "train/b.png": None, "train/metadata.jsonl": ROWS},
         [(f"train/{name}", caption) for name, caption in BOTH]),
        ({"train/a.png": None}, [("train/a.png", PROMPT)]),
        (
            {"train/a.png": None, "data.jsonl": [{"file_name": "train/a.png", "text": "lying"}]},
            [("train/a.png", "lying")],
        ),
        (
            {"in/b.png": None, "data.jsonl": [{"file_name": "in/b.png", "text": "sitting"}]},
            [("in/b.png", "sitting")],
        ),
        ({"a.png": None, "metadata.jsonl": []}, [("a.png", PROMPT)]),
        # the file beside the picture comes before the row, that before the prompt
        (
            {"a.png": None, "a.txt": "own", "b.png": None, "c.png": None, "metadata.jsonl": ROWS},
            [("a.png", "own"), BOTH[1], ("c.png", PROMPT)],
        ),
        # as ZOODiP has it, with the placeholder; other subjects in the file are not ours
        (
            {
                "00.jpg": None,
                "01.jpg": None,
                "cc.json": '{"dog6": {"00.jpg": "photo of a {} at night"}, "cat": {"9.jpg": "x"}}',
            },
            [("00.jpg", "photo of a sks dog at night"), ("01.jpg", PROMPT)],
        ),
        ({"a.png": None, "../cc.json": '{"dog6": {"a.png": "lying"}}'}, BOTH[:1]),
    ],
)  # fmt: skip
def test_layouts_are_recognised_and_captions_found(folder, files, expected):
    assert captions(folder(files)) == expected


def test_the_first_column_with_a_text_counts(folder):
    rows = [
        {"file_name": "a.png", "text": "text", "prompt": "prompt"},
        {"file_name": "b.png", "text": "", "prompt": "prompt", "caption": "caption"},
        {"file_name": "c.png", "text": None, "caption": "caption", "label": 3},
    ]
    root = folder({**{f"{name}.png": None for name in "abc"}, "metadata.jsonl": rows})
    assert [caption for _, caption in captions(root)] == ["text", "prompt", "caption"]


def test_kohya_folders_give_repeats_captions_and_prior_pictures(folder):
    root = folder(
        {
            "img/10_sks dog/a.png": None,
            "img/10_sks dog/b.png": None,
            "img/10_sks dog/b.txt": "[trigger] at night",
            "img/2_sks_dog toy/c.png": None,
            "img/2_sks_dog toy/d.png": None,
            "img/2_sks_dog toy/metadata.csv": "file_name,text\nd.png,a {}\n",
            "reg/1_dog/d.png": None,
        }
    )
    expected = [
        ("10_sks dog/a.png", "sks dog", 10, False),
        ("10_sks dog/b.png", "sks dog at night", 10, False),
        ("2_sks_dog toy/c.png", "sks_dog toy", 2, False),
        ("2_sks_dog toy/d.png", "a sks_dog toy", 2, False),
        ("1_dog/d.png", "dog", 1, True),
    ]

    def found(path, **options):
        return [
            (
                p.name.removeprefix("img/").removeprefix("reg/"),
                p.caption,
                p.repeats,
                p.regularization,
            )
            for p in load_pictures(path, **options)
        ]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found(root, prompt=PROMPT) == expected
        assert found(root / "img", prompt=PROMPT) == expected[:4]
        assert found(root / "reg", prompt=None, regularization=True) == expected[4:]


def test_captions_of_files_named_by_themselves(folder):
    root = folder(
        {"a.png": None, "b.png": None, "c.png": None, "c.txt": "own", "metadata.jsonl": ROWS}
    )
    files = [root / "c.png", str(root / "b.png"), Image.new("RGB", (4, 4))]
    assert captions(files) == [("c.png", "own"), BOTH[1], ("image-3", PROMPT)]


def test_a_list_may_name_pictures_anywhere(folder, tmp_path):
    write(tmp_path / "elsewhere.png")
    write(tmp_path / "absolute.png")
    root = folder(
        {
            "a.png": None,
            "data.jsonl": [
                {"file_name": "../elsewhere.png", "text": "one"},
                {"file_name": str(tmp_path / "absolute.png"), "text": "two"},
                {"file_name": "./a.png", "text": "three"},
            ],
        }
    )
    assert [caption for _, caption in captions(root)] == ["three", "one", "two"]


def test_caches_and_strangers_are_named_in_one_warning(folder):
    names = [".hidden.png", "a_sd.npz", "notes.txt", "metadata.csv.bak"]
    root = folder(
        {
            **{f"img/3_dog/{name}": "x" for name in names},
            "img/3_dog/a.png": None,
            "img/stray.png": None,
            "log/events": "x",
        }
    )
    with pytest.warns(UserWarning, match="images: skipped in ") as caught:
        (picture,) = load_pictures(root, PROMPT)
    assert (picture.caption, len(caught)) == ("dog", 1)
    for name in [*(f"img/3_dog/{name}" for name in names), "img/stray.png", "log"]:
        assert name in str(caught[0].message)


def test_masks_are_said_once_and_are_no_pictures(folder):
    rows = [{"file_name": f"{n}.png", "text": "x", "mask": f"{n}_mask.png"} for n in "ab"]
    root = folder({f"{n}{m}.png": None for n in "ab" for m in ("", "_mask")} | {"data.jsonl": rows})
    with pytest.warns(UserWarning, match="masks are not supported") as caught:
        pictures = load_pictures(root, PROMPT)
    assert [picture.name for picture in pictures] == ["a.png", "b.png"]
    assert len(caught) == 1
    root.rename(root.with_name("1_dog"))
    with pytest.warns(UserWarning, match="masks are not supported") as caught:
        load_pictures(root.parent, PROMPT)
    assert len(caught) == 1
    root = root.with_name("1_dog")
    with pytest.warns(UserWarning, match="masks are not supported") as caught:
        load_pictures([root / "a.png", root / "b.png"], PROMPT)
    assert len(caught) == 1


def row(**changes):
    return {"metadata.jsonl": [{"file_name": "a.png", "text": "x"} | changes]}


@pytest.mark.parametrize(
    "files, message",
    [
        ({"a.txt": ""}, r"a\.txt is empty"),
        ({"a.txt": " \n"}, r"a\.txt is empty"),
        ({"a.caption": b"\xff\xfe"}, r"a\.caption is not UTF-8 text"),
        ({"a.txt": "one\ntwo"}, r"a\.txt must be one line, got 2"),
        ({"a.txt": "x", "a.caption": "x"}, r"two caption files, a\.txt and a\.caption: keep one"),
        (row(file_name="z.png"), r"has a row for .*z\.png, which is not there"),
        (row(file_name="notes.md") | {"notes.md": "x"}, r"notes\.md, not a \.jpg"),
        (row(file_name=3), r"line 1: a row must have a file_name, got 3"),
        ({"metadata.jsonl": [{"text": "x"}]}, r"must have a file_name, got None"),
        ({"metadata.csv": "name,text\na.png,x\n"}, r"csv, line 2: a row must have a file_name"),
        ({"metadata.jsonl": [{"file_name": "a.png"}]}, r"must have a text, prompt, caption column"),
        (row(text=""), r"must have a text, prompt, caption column"),
        (row(text=" "), r"the caption of a\.png is empty"),
        (row(text=3), r"the caption of a\.png must be a text, got 3"),
        (row(text="\ud800"), r"the caption of a\.png is not a valid text"),
        ({"metadata.jsonl": "[1]\n"}, r"a row must be an object, got \[1\]"),
        ({"metadata.jsonl": '\n{"file_name"'}, r"metadata\.jsonl, line 2 is not JSON"),
        ({"metadata.jsonl": b"\xff"}, r"metadata\.jsonl is not UTF-8"),
        ({"metadata.csv": "file_name,text\na.png," + "x" * 200_000}, r"csv is not a CSV file"),
        (
            {"data.jsonl": [{"file_name": name, "text": "x"} for name in ("a.png", "b/../a.png")]},
            r"data\.jsonl, line 2: there are two rows for b/\.\./a\.png",
        ),
        (
            {**row(), "metadata.csv": "file_name,text\n"},
            r"two lists of captions, .*jsonl and .*csv",
        ),
        ({"metadata.parquet": b"PAR1"}, r"parquet is not read: write its rows as metadata\.jsonl"),
        (row(mask="a.png"), r"a\.png both as a picture and as a mask"),
        ({"cc.json": '{"dog6": {"z.png": "x"}}'}, r"a row for .*z\.png, which is not there"),
        ({"cc.json": "{"}, r"cc\.json is not JSON"),
    ],
)
def test_captions_that_do_not_fit_are_one_sentence(folder, files, message):
    root = folder({"a.png": None, **files})
    with pytest.raises(InputError, match=message) as caught:
        load_pictures(root, PROMPT)
    assert str(caught.value).startswith("images: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("repeats", ["0", "20240131"])
def test_repeats_have_a_range(folder, repeats):
    root = folder({f"img/{repeats}_dog/a.png": None})
    with pytest.raises(InputError, match=rf"\[1, 10000\), got {repeats}"):
        load_pictures(root, PROMPT)


def test_an_empty_kohya_folder_is_refused(folder):
    root = folder({"img/1_dog/a.png": None, "img/2_cat/notes.md": "x"})
    with pytest.raises(InputError, match=r"2_cat has no \.jpg"):
        load_pictures(root, PROMPT)


def test_prior_pictures_need_a_caption(folder):
    root = folder({"a.png": None, "a.txt": "a dog", "b.png": None})
    with pytest.raises(InputError, match=r"prior_images: .*b\.png has no caption.*prior_prompt"):
        load_pictures(root, None, regularization=True)
    assert captions(root, "a cat", regularization=True) == [("a.png", "a dog"), ("b.png", "a cat")]
    assert all(p.regularization for p in load_pictures(root, "a cat", regularization=True))


@pytest.mark.parametrize(
    "caption, subject, expected",
    [
        ("a dog", None, "a dog"),
        ("[trigger] on a [trigger]", "sks dog", "sks dog on a sks dog"),
        ("a {} dog, a {}", "sks dog", "a sks dog, a sks dog"),
        ("{} dogs", "sks dog", "sks dog dogs"),
        ("a [trigger]!", "sks", "a sks!"),
        ("{} x", r"\1 [a", r"\1 [a x"),
    ],
)
def test_placeholders_become_the_words_of_the_subject(caption, subject, expected):
    assert fill_placeholders(caption, subject, "") == expected


@pytest.mark.parametrize(
    "prompt, words",
    [
        ("a sks dog", "sks dog"), ("An  sks dog", "sks dog"), ("sks", "sks"), ("the sks", "sks"),
        ("a photo of sks dog", None), ("a sks stuffed animal", None), ("a", None), (None, None),
    ],
)  # fmt: skip
def test_words_of_the_subject_are_known_or_not(prompt, words):
    assert subject_words(prompt) == words


def test_a_placeholder_that_would_be_guessed_is_an_error(folder):
    root = folder({"a.png": None, "a.txt": "photo of [trigger]"})
    with pytest.raises(
        InputError, match=r"the caption of .*a\.png has the placeholder \[trigger\]"
    ):
        load_pictures(root, "a photo of sks dog")
    assert captions(root) == [("a.png", "photo of sks dog")]


def test_a_picture_of_n_repeats_has_n_tickets():
    pictures = [Picture(str(n), Image.new("RGB", (1, 1)), "x", n) for n in (2, 1, 3)]
    assert [weighted_index(draw, pictures) for draw in range(6)] == [0, 0, 1, 2, 2, 2]


def test_the_table_has_every_picture_once(folder):
    root = folder(
        {"img/10_sks dog/a.png": None, "reg/1_dog/b.png": None, "reg/1_dog/b.txt": "w " * 99}
    )
    lines = describe_pictures(load_pictures(root, PROMPT)).splitlines()
    assert [line.split()[0] for line in lines] == [
        "picture",
        "img/10_sks",
        "for",
        "reg/1_dog/b.png",
    ]
    assert lines[1].endswith("       10  sks dog")
    assert lines[3].endswith(" w w ...")
    assert max(map(len, lines)) <= 100


def test_the_fingerprint_covers_captions_and_repeats(folder):
    root = folder({"img/2_sks dog/a.png": None})

    def now():
        return picture_fingerprint(load_pictures(root, PROMPT))

    first = now()
    write(root / "img/2_sks dog/a.txt", "sks dog")
    assert now() == first  # the same caption from elsewhere
    write(root / "img/2_sks dog/a.txt", "a sks dog")
    second = now()
    (root / "img/2_sks dog").rename(root / "img/3_sks dog")
    assert len({first, second, now()}) == 3


TOML = """
[general]
num_repeats = 2
[[datasets]]
resolution = 512
[[datasets.subsets]]
image_dir = "dog"
class_tokens = "sks  dog"
[[datasets.subsets]]
image_dir = "others"
class_tokens = "dog"
is_reg = true
num_repeats = 1
"""


def test_dataset_file_of_kohya(folder):
    root = folder(
        {"set.toml": TOML, "dog/a.png": None, "dog/b.png": None, "dog/b.txt": "[trigger] at night",
         "others/c.png": None}
    )  # fmt: skip
    found = load_pictures(root / "set.toml", PROMPT)
    assert [(p.name, p.caption, p.repeats, p.regularization) for p in found] == [
        ("dog/a.png", "sks dog", 2, False),
        ("dog/b.png", "sks dog at night", 2, False),
        ("others/c.png", "dog", 1, True),
    ]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("[general]", "[general", "is not a TOML file"),
        ("[[datasets]]", "[datasets]", r"datasets must be tables, \[\[datasets\]\]"),
        ('"others"', '"nowhere"', "subset 2: image_dir must be a folder that is there"),
        ("num_repeats = 2", "num_repeats = 0", r"subset 1: num_repeats must be in \[1, 10000\)"),
        ('"dog"\nis_reg', '" "\nis_reg', "subset 2: class_tokens must be a text"),
        ("is_reg = true", "is_reg = 1", "subset 2: is_reg must be true or false, got 1"),
        ("resolution = 512", 'caption_extension = ".md"', "caption_extension must be .txt or"),
        (TOML, "", r"must have \[\[datasets.subsets\]\]"),
    ],
)
def test_dataset_file_that_will_not_do(folder, old, new, message):
    assert old in TOML
    root = folder({"set.toml": TOML.replace(old, new), "dog/a.png": None, "others/c.png": None})
    with pytest.raises(InputError, match=message):
        load_pictures(root / "set.toml", PROMPT)
