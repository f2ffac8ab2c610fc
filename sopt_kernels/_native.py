"""Loads libsopt_cpu and libsopt_cuda (csrc/) through ctypes, and says why when it cannot."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Callable, Sequence
from ctypes import c_char_p, c_float, c_int, c_int64, c_uint64, c_void_p
from functools import lru_cache
from operator import attrgetter
from pathlib import Path

import torch
from torch import Tensor

from ._arguments import check_ranges

ABI_VERSION = 6  # SOPT_ABI_VERSION in csrc/include/sopt.h
HOST, DEVICE = 0, 1  # sopt_memory
DTYPE_CODE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # sopt_dtype
# The C types of sopt.h. ctypes refuses arguments of a wrong kind, but wraps an integer that is
# out of range without a word: ranges are checked in Python before the call.
PTR, I64, U64, F32, ENUM = c_void_p, c_int64, c_uint64, c_float, c_int

_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"

LIBRARIES: dict[str, ctypes.CDLL] = {}  # device type -> loaded library
UNAVAILABLE: dict[str, str] = {}  # device type -> why there is none
SIGNATURES: dict[str, tuple] = {}  # C function -> argument types, for tests/test_c_library.py


class TensorEntry(ctypes.Structure):
    """``sopt_tensor`` of sopt.h."""

    _fields_ = [
        ("out", c_void_p),
        ("base", c_void_p),
        ("numel", c_int64),
        ("stream", c_uint64),
        ("dtype", c_int64),
    ]


class CodesEntry(ctypes.Structure):
    """``sopt_codes`` of sopt.h."""

    _fields_ = [
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("numel", c_int64),
        ("rows", c_int64),
        ("stream", c_uint64),
    ]


class RowsEntry(ctypes.Structure):
    """``sopt_rows`` of sopt.h."""

    _fields_ = [
        ("data", c_void_p),
        ("batch_stride", c_int64),
        ("head_stride", c_int64),
        ("row_stride", c_int64),
    ]


class Int8LayerEntry(ctypes.Structure):
    """``sopt_int8_layer`` of sopt.h."""

    _fields_ = [
        ("codes", c_void_p),
        ("scales", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
        ("kernel_height", c_int64),
        ("kernel_width", c_int64),
        ("stride", c_int64),
        ("padding", c_int64),
    ]


class ImageEntry(ctypes.Structure):
    """``sopt_image`` of sopt.h."""

    _fields_ = [
        ("data", c_void_p),
        ("batch", c_int64),
        ("height", c_int64),
        ("width", c_int64),
        ("batch_stride", c_int64),
        ("row_stride", c_int64),
        ("column_stride", c_int64),
        ("channel_stride", c_int64),
    ]


def bind(
    device_type: str, name: str, *argtypes: type, returns_bytes: bool = False
) -> Callable[..., int]:
    """The C function ``name``, typed and raising on error, also if its library is absent.

    ``returns_bytes``: it gives a number of bytes, -1 on error, instead of a status.
    """
    SIGNATURES[name] = argtypes
    if device_type not in LIBRARIES:

        def absent(*arguments: object) -> int:
            raise RuntimeError(f"{name}: {UNAVAILABLE[device_type]}")

        return absent
    function = getattr(LIBRARIES[device_type], name)
    function.argtypes, function.restype, function.errcheck = argtypes, c_int, _raise_on_error
    if returns_bytes:
        function.restype, function.errcheck = c_int64, _raise_below_zero
    return function


def pointer(x: Tensor) -> int:
    """Address of the first element: the last check before ``x`` becomes raw memory."""
    if not x.is_contiguous():
        raise ValueError(f"x must be contiguous, got shape {tuple(x.shape)}, strides {x.stride()}")
    return x.data_ptr()


def current_stream() -> int:
    """The CUDA stream that PyTorch would launch on now, on the current device."""
    return torch.cuda.current_stream().cuda_stream


def tensor_table(out: list[Tensor], base: list[Tensor], streams: list[int]) -> ctypes.Array:
    """The lists as an array of ``sopt_tensor``; kept while pointers, sizes and streams stay.

    Raises ValueError before anything is written where tensors overlap, as ``check_disjoint`` does.
    """
    return _tensor_table(
        _pointers(out),
        () if base is out else _pointers(base),
        tuple(map(Tensor.numel, out)),
        tuple(streams),
        tuple(map(attrgetter("dtype"), out)),
    )


def codes_table(codes: list[Tensor], scales: list[Tensor], streams: list[int]) -> ctypes.Array:
    """The lists as an array of ``sopt_codes``, kept in the same way."""
    return _codes_table(
        _pointers(codes),
        _pointers(scales),
        tuple(map(Tensor.numel, codes)),
        tuple(map(Tensor.numel, scales)),
        tuple(streams),
    )


def _pointers(tensors: list[Tensor]) -> tuple[int, ...]:
    """:func:`pointer` of each, without a loop in Python where all are contiguous."""
    each = Tensor.data_ptr if all(map(Tensor.is_contiguous, tensors)) else pointer
    return tuple(map(each, tensors))


# Pure functions of their arguments: an address that was freed and used again is no harm.
@lru_cache(maxsize=64)
def _tensor_table(
    out: tuple[int, ...],
    base: tuple[int, ...],  # empty where it is `out` itself
    numels: tuple[int, ...],
    streams: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
) -> ctypes.Array:
    sizes = [n * dtype.itemsize for n, dtype in zip(numels, dtypes, strict=True)]
    read = tuple(zip(base, sizes, strict=True)) if base else ()
    check_ranges(tuple(zip(out, sizes, strict=True)), read)
    return _table(TensorEntry, out, base or out, numels, streams, [DTYPE_CODE[d] for d in dtypes])


@lru_cache(maxsize=64)
def _codes_table(*columns: tuple[int, ...]) -> ctypes.Array:
    return _table(CodesEntry, *columns)


def _table(entry: type[ctypes.Structure], *columns: Sequence[int]) -> ctypes.Array:
    entries = [entry(*row) for row in zip(*columns, strict=True)]
    return (entry * len(entries))(*entries)


def rows(x: Tensor) -> ctypes.Array:
    """``x``, of 4 dimensions, as an array of one ``sopt_rows``."""
    *strides, step = x.stride()
    if step != 1:
        raise ValueError(f"x must have adjacent elements in its rows, got strides {x.stride()}")
    return (RowsEntry * 1)(RowsEntry(x.data_ptr(), *strides))


def int8_layer_entry(
    codes: Tensor, scales: Tensor, bias: Tensor | None, stride: int, padding: int
) -> ctypes.Array:
    """Codes ``(outputs, kernel height, kernel width, inputs)`` as one ``sopt_int8_layer``."""
    outputs, height, width, inputs = codes.shape
    pointers = pointer(codes), pointer(scales), None if bias is None else pointer(bias)
    entry = Int8LayerEntry(*pointers, outputs, inputs, height, width, stride, padding)
    return (Int8LayerEntry * 1)(entry)


def image_entry(x: Tensor) -> ctypes.Array:
    """``x`` of shape (batch, height, width, channels), of any strides, as one ``sopt_image``."""
    return (ImageEntry * 1)(ImageEntry(x.data_ptr(), *x.shape[:3], *x.stride()))


def int64_array(values: Sequence[int]) -> ctypes.Array:
    """``values`` as an array of ``int64_t``."""
    return (c_int64 * len(values))(*values)


def cpu_level() -> str:
    """Instruction-set level of libsopt_cpu on this processor; "" without the library."""
    return _cpu_level().decode() if "cpu" in LIBRARIES else ""


def _raise_on_error(status: int, function: Callable, arguments: tuple) -> int:
    if status:
        raise RuntimeError(_last_error().decode())
    return status


def _raise_below_zero(size: int, function: Callable, arguments: tuple) -> int:
    if size < 0:
        raise RuntimeError(_last_error().decode())
    return size


def library_path(device_type: str) -> Path:
    """Where setup.py installs the library of ``device_type``."""
    return Path(__file__).parent / "native" / "lib" / f"libsopt_{device_type}{_SUFFIX}"


def _check_abi(library: ctypes.CDLL, function: str, path: Path) -> None:
    """ImportError unless the library is of this version of the package."""
    found = getattr(library, function)() if hasattr(library, function) else "unknown"
    if found != ABI_VERSION:
        raise ImportError(f"{path.name} has ABI {found}, need {ABI_VERSION}: reinstall sopt")


def _load_cpu() -> None:
    path = library_path("cpu")
    if path.exists():  # one that is there and does not load is a broken install: OSError
        LIBRARIES["cpu"] = ctypes.CDLL(str(path))
        return
    UNAVAILABLE["cpu"] = (
        f"{path.name} is not installed: no C++ compiler was found then, or SOPT_BUILD was none"
    )
    warnings.warn(
        f"{UNAVAILABLE['cpu']}. The plain-PyTorch kernels give the same bits, slowly; reinstall "
        "where there is a C++ compiler for fast ones.",
        RuntimeWarning,
        stacklevel=2,
    )


def _load_cuda() -> None:
    path = library_path("cuda")
    if torch.version.cuda is None:
        UNAVAILABLE["cuda"] = "this PyTorch was built without CUDA"
    elif "cpu" not in LIBRARIES:
        UNAVAILABLE["cuda"] = UNAVAILABLE["cpu"]  # libsopt_cuda needs libsopt_cpu
    elif not path.exists():
        UNAVAILABLE["cuda"] = (
            f"{path.name} is not installed: no nvcc was found then, or SOPT_BUILD was cpu"
        )
    else:  # as above, OSError for one that does not load
        library = ctypes.CDLL(str(path))
        _check_abi(library, "sopt_cuda_abi_version", path)
        if library.sopt_cuda_check():
            UNAVAILABLE["cuda"] = _last_error().decode()
        else:
            LIBRARIES["cuda"] = library


def _use_torch_threads() -> None:
    """Run libsopt_cpu on PyTorch's threads: a pool of its own would compete with them.

    ``torch_parallel_for`` is in PyTorch's stable C interface since 2.10.
    """
    libtorch = ctypes.CDLL(torch._C.__file__)  # symbols of all it depends on, wherever installed
    set_parallel_for = bind("cpu", "sopt_set_parallel_for", PTR)
    set_parallel_for(ctypes.cast(libtorch.torch_parallel_for, PTR))


def _text(name: str) -> Callable[[], bytes]:
    function = getattr(LIBRARIES["cpu"], name)
    function.argtypes, function.restype = (), c_char_p
    return function


_load_cpu()
if "cpu" in LIBRARIES:
    _last_error, _cpu_level = _text("sopt_last_error"), _text("sopt_cpu_level")
    _check_abi(LIBRARIES["cpu"], "sopt_abi_version", library_path("cpu"))
    _use_torch_threads()
_load_cuda()
