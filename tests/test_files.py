"""Files appear whole or not at all, and safetensors bytes depend on content only."""

import errno
import json
import os

import pytest
import torch
from safetensors import safe_open

from sopt import InputError
from sopt.files import (
    check_writable,
    load_tensors,
    save_tensors,
    write_bytes,
    write_json,
    write_text,
)

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def tensors_of_every_kind():
    tensors = {
        str(dtype): torch.arange(7).remainder(2).to(dtype).view(7, 1).expand(7, 3)[::3]
        for dtype in DTYPES
    }
    return tensors | {"scalar": torch.tensor(1.5), "empty": torch.empty(0, 4)}


def test_the_library_reads_back_every_kind_of_tensor(tmp_path):
    tensors, metadata = tensors_of_every_kind(), {"format": "pt", "note": "ä"}
    save_tensors(tmp_path / "a.safetensors", tensors, metadata)
    with safe_open(str(tmp_path / "a.safetensors"), framework="pt") as file:
        assert file.metadata() == metadata
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert file.get_tensor(name).dtype == tensor.dtype
            assert torch.equal(file.get_tensor(name), tensor)
    loaded, found = load_tensors(tmp_path / "a.safetensors")
    assert found == metadata
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_same_content_in_another_order_gives_the_same_bytes(tmp_path):
    tensors, metadata = tensors_of_every_kind(), {"b": "1", "a": "2", "c": "3"}
    save_tensors(tmp_path / "a", tensors, metadata)
    reordered = dict(reversed(tensors.items())), dict(reversed(metadata.items()))
    save_tensors(tmp_path / "b", *reordered)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_tensor_is_aligned_to_its_element_size(tmp_path):
    tensors = tensors_of_every_kind()
    save_tensors(tmp_path / "a", tensors, {})
    data = (tmp_path / "a").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    entries = json.loads(data[8:header])
    for name, tensor in tensors.items():
        assert (header + entries[name]["data_offsets"][0]) % tensor.element_size() == 0


def test_a_file_cut_off_anywhere_is_an_input_error_that_names_it(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_tensors(path, {"weight": torch.ones(10)}, {"format": "pt"})
    data = path.read_bytes()
    for length in [0, 4, 8, 30, len(data) - 40, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=r"cut\.safetensors"):
            load_tensors(path)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"no file .*missing"):
        load_tensors(tmp_path / "missing")


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_failing_system_call_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_text(path, "old")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="no space left"):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    write_bytes(tmp_path / "new" / "file", b"0123456789")
    assert (tmp_path / "new" / "file").read_bytes() == b"0123456789"


def test_json_refuses_what_json_does_not_have(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert os.listdir(tmp_path) == []


def test_check_writable_leaves_no_trace(tmp_path):
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("inside", ["", "/deeper"])
def test_check_writable_refuses_a_file_in_the_way(tmp_path, inside):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        check_writable(f"{tmp_path}/file{inside}")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder nobody can write to")
def test_check_writable_refuses_a_read_only_folder():
    with pytest.raises(InputError, match="must be writable"):
        check_writable("/proc/self/run")
