"""idx: the format of the MNIST files, a header and then bytes, plain or compressed with gzip."""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNSIGNED_BYTES = 0x08
GZIP_START = b"\x1f\x8b"


def read_idx(path: Path, *, shape: tuple[int, ...], sha256: str) -> NDArray[np.uint8]:
    """Answers with the bytes of a known idx file as a read-only array of `shape`.

    The file is: two zero bytes, the type 0x08, the number of dimensions, each dimension in four bytes (the highest
    first), then the values in rows. It may be compressed: its first bytes tell, not its name. No more of it is read
    than `shape` calls for.

    Args:
        path: the file.
        shape: the dimensions that it must have.
        sha256: the hexadecimal SHA-256 that it must have, uncompressed.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not that file to the last byte: another format, other dimensions, bytes missing, too many
            or changed.
    """
    header_size, num_values = 4 + 4 * len(shape), math.prod(shape)
    size = header_size + num_values
    with path.open("rb") as file:
        compressed = file.read(len(GZIP_START)) == GZIP_START
    try:
        with gzip.open(path) if compressed else path.open("rb") as file:
            header = file.read(header_size)
            # Asking for one value too many brings trailing bytes to light, and gzip to check its own sum.
            values = file.read(num_values + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _wrong(path, f"its gzip compression is damaged ({error})") from error

    start = bytes([0, 0, UNSIGNED_BYTES, len(shape)])
    if header[:4] != start:
        raise _wrong(
            path,
            f"it starts with the bytes {header[:4].hex(' ') or '(none)'}, where an idx file of unsigned bytes in "
            f"{len(shape)} dimensions starts with {start.hex(' ')}",
        )
    if len(header) == header_size and (found := struct.unpack(f">{len(shape)}I", header[4:])) != shape:
        raise _wrong(path, f"its dimensions are {found}, expected {shape}")
    if len(values) < num_values:
        raise _wrong(path, f"it ends after {len(header) + len(values):,} of {size:,} bytes, uncompressed")
    if len(values) > num_values:
        raise _wrong(path, f"it goes on after the {size:,} bytes, uncompressed, that it should have")
    digest = hashlib.sha256(header)
    digest.update(values)
    if digest.hexdigest() != sha256:
        raise _wrong(path, f"its SHA-256, uncompressed, is {digest.hexdigest()}, expected {sha256}")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _wrong(path: Path, finding: str) -> ValueError:
    return ValueError(f"{path} is not the original file: {finding}. Remove it, and fetch it again.")
