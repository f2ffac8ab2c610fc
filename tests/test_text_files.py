"""Text and JSON of others: whatever the bytes are, one sentence that names the file."""

import re

import pytest

from sopt.errors import InputError
from sopt.text_files import parse_json, read_json, read_object, read_text

UNREADABLE = {
    "no JSON": (b"{", "is not JSON: "),
    "empty": (b"", "is not JSON: "),
    "no UTF-8": (b'"\xff"', "is not UTF-8 text"),
    "deep": (b"[" * 200_000, "is not JSON: "),
    "digits": (b"9" * 5000, "is not JSON: "),
}


@pytest.mark.parametrize(("content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_wrong_is_said_of_the_file(tmp_path, content, message):
    file = tmp_path / "settings.json"
    file.write_bytes(content)
    for read in (read_json, read_object):
        with pytest.raises(InputError, match=f"^data: {re.escape(str(file))} {message}") as caught:
            read(file, "data: ")
        assert "\n" not in str(caught.value)


def test_a_value_is_no_object(tmp_path):
    file = tmp_path / "settings.json"
    file.write_text("[1, 2]")
    assert read_json(file) == [1, 2]
    with pytest.raises(InputError, match=r"must be a JSON object, got \[1, 2\]"):
        read_object(file)


def test_a_byte_order_mark_is_no_text(tmp_path):
    file = tmp_path / "settings.json"
    file.write_bytes(b'\xef\xbb\xbf{"steps": 2}')
    assert read_object(file) == {"steps": 2}


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_cannot_be_read(tmp_path, name):
    message = r"^prompts: cannot read .*: (No such file|Is a directory)"
    with pytest.raises(InputError, match=message):
        read_text(tmp_path / name, "prompts: ")


def test_bytes_that_are_no_text():
    with pytest.raises(InputError, match=r"^line 3 is not JSON"):
        parse_json(b"\xff\xfe\xff", "line 3")
