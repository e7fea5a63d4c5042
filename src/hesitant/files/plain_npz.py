"""NumPy's `.npz` of plain numbers: what is in it is known, and checked, before any of it is unpacked."""

import io
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from hesitant.files.whole_files import replacing

__all__ = ["ArrayHeader", "npz_bytes", "read_npz", "write_npz"]

_WRITE: Final = "write it with numpy.savez(path, probs=..., targets=...)"
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those that NumPy writes
_MOST_DEFLATED: Final = 1040  # the bytes that one byte can be unpacked to are 1032
_MOST_HEADER: Final = 10_000  # characters
_ENCRYPTED: Final = 0x1
# What zipfile, zlib and NumPy raise of a file that somebody has changed.
_DAMAGED: Final = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError, TypeError,
    LookupError, OverflowError, SyntaxError, MemoryError, AttributeError, AssertionError, OSError, tokenize.TokenError,
)  # fmt: skip


@dataclass(frozen=True)
class ArrayHeader:
    """What a file says of an array in it.

    Attributes:
        shape: its axes.
        dtype: of numbers, complex ones included, or booleans.
    """

    shape: tuple[int, ...]
    dtype: "np.dtype[Any]"


def read_npz(
    path: str | Path, check: Callable[[Mapping[str, ArrayHeader]], None], *, content: bytes | None = None
) -> dict[str, NDArray[Any]]:
    """All arrays of the file, by name. No pickle is loaded.

    Args:
        path: of the file.
        check: is told of all arrays before one of them is unpacked; whatever it raises ends the reading.
        content: what would be in the file; then the path is but its name in errors.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no `.npz`, an array is no array of plain numbers, what the file says of itself is
            contradictory, or it is damaged; the error names the file, and the array if there is one.
    """
    with Path(path).open("rb") if content is None else io.BytesIO(content) as file:
        size = file.seek(0, 2)
        try:
            archive = zipfile.ZipFile(file)
        except _DAMAGED as error:
            raise ValueError(f"{path} is no .npz of plain arrays, expected a zip of them: {_WRITE}") from error
        with archive:
            members = _members(path, archive, size)
            headers = {name: _header(path, name, archive, member) for name, member in members.items()}
            check(headers)
            return {name: _array(path, name, archive, member) for name, member in members.items()}


def write_npz(path: str | Path, arrays: Mapping[str, NDArray[Any]]) -> Path:
    """Writes arrays as a compressed `.npz`, whole or not at all, and answers with its path.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED) as archive:
        _write(archive, arrays)
    return Path(path)


def npz_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """What would be in an uncompressed `.npz` of the arrays."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        _write(archive, arrays)
    return content.getvalue()


def _write(archive: zipfile.ZipFile, arrays: Mapping[str, NDArray[Any]]) -> None:
    # Not by numpy.savez: of the older versions allow_pickle=False is one more array.
    for name, array in arrays.items():
        with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array(member, array, allow_pickle=False)


def _members(path: str | Path, archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            raise ValueError(f"{path}: {name} is no array of plain numbers, expected names that end in .npy: {_WRITE}")
        if name in members:
            raise ValueError(f"{path} holds {name} twice, expected every array once: {_WRITE}")
        if member.flag_bits & _ENCRYPTED:
            raise ValueError(f"{path}: {name} is encrypted, expected it in the open: {_WRITE}")
        if member.compress_type not in _METHODS:
            raise ValueError(f"{path}: {name} is compressed in a way that NumPy does not write: {_WRITE}")
        most = member.compress_size * (1 if member.compress_type == zipfile.ZIP_STORED else _MOST_DEFLATED)
        if not 0 <= member.file_size <= most:
            raise ValueError(
                f"{path}: {name} is damaged, for {member.compress_size} bytes cannot hold {member.file_size}: {_WRITE}"
            )
        members[name] = member
    packed = sum(member.compress_size for member in members.values())
    if packed > size:
        raise ValueError(f"{path} is damaged, for its {size} bytes cannot hold arrays of {packed}: {_WRITE}")
    return members


def _header(path: str | Path, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
    try:
        with archive.open(member) as content:
            shape, dtype, length = _read_header(content)
    except _DAMAGED as error:
        raise ValueError(f"{path}: {name} is no array of plain numbers, or damaged: {_WRITE}") from error
    if dtype.hasobject:
        raise ValueError(
            f"{path}: {name} is no array of plain numbers, but of Python objects: give it a dtype of numbers before "
            "numpy.savez"
        )
    if dtype.kind not in "biufc":
        raise ValueError(f"{path}: {name} has dtype {dtype}, expected numbers: number classes from 0 on")
    if dtype.kind in "iuf" and dtype.itemsize > 8:
        raise ValueError(f"{path}: {name} has dtype {dtype}, expected 64 bits at most: save {name}.astype('float64')")
    if any(type(axis) is not int or axis < 0 for axis in shape):
        raise ValueError(f"{path}: {name} is damaged, for its shape is {shape}: {_WRITE}")
    expected = length + math.prod(shape) * dtype.itemsize
    if expected != member.file_size:
        raise ValueError(
            f"{path}: {name} is damaged, for it has {member.file_size} bytes, and its shape {_short(shape)} of {dtype} "
            f"takes {expected:.6g}: {_WRITE}"
        )
    return ArrayHeader(shape, dtype)


def _read_header(content: IO[bytes]) -> tuple[tuple[int, ...], "np.dtype[Any]", int]:
    version = np.lib.format.read_magic(content)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(content, max_header_size=_MOST_HEADER)
    elif version == (2, 0):
        if struct.unpack("<I", content.read(4))[0] > _MOST_HEADER:  # NumPy reads it all before it looks at its length
            raise ValueError("a header too long")
        content.seek(-4, 1)
        shape, _, dtype = np.lib.format.read_array_header_2_0(content, max_header_size=_MOST_HEADER)
    else:  # of names of fields, which numbers do not have
        raise ValueError(f"version {version}")
    return shape, dtype, content.tell()


def _array(path: str | Path, name: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    try:
        with archive.open(member) as content:
            array: NDArray[Any] = np.lib.format.read_array(content, allow_pickle=False, max_header_size=_MOST_HEADER)
            if content.read(1):  # the end, at which the check sum is looked at
                raise ValueError("it goes on")
    except _DAMAGED as error:
        raise ValueError(f"{path}: {name} is damaged, or too large for the memory: {_WRITE}") from error
    # torch takes no array of another byte order.
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)


def _short(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) <= 80 else f"{text[:80]} …"
