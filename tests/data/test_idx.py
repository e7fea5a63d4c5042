import gzip
import hashlib
import struct
import tracemalloc

import numpy as np
import pytest

from hesitant.data.idx import read_idx

VALUES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
# Written out by hand, so that the format is stated here and not by the code under test.
FILE = b"\x00\x00\x08\x03" + b"\x00\x00\x00\x02" + b"\x00\x00\x00\x03" + b"\x00\x00\x00\x04" + bytes(range(24))


def read(path, shape=(2, 3, 4), content=FILE):
    return read_idx(path, shape=shape, sha256=hashlib.sha256(content).hexdigest())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "train-images-idx3-ubyte"


def test_plain_and_compressed_files_hold_the_same_values_in_rows(path):
    path.write_bytes(FILE)
    np.testing.assert_array_equal(read(path), VALUES, strict=True)
    path.write_bytes(gzip.compress(FILE))
    np.testing.assert_array_equal(read(path), VALUES, strict=True)


def test_the_content_tells_compression_not_the_name(tmp_path):
    path = tmp_path / "unpacked-on-the-way.gz"
    path.write_bytes(FILE)
    np.testing.assert_array_equal(read(path), VALUES, strict=True)


def test_dimensions_of_more_than_a_byte_have_the_highest_first(path):
    content = b"\x00\x00\x08\x01" + b"\x00\x00\x01\x02" + bytes(258)
    path.write_bytes(content)
    assert read(path, (258,), content).shape == (258,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with the bytes \\(none\\)"),
        (FILE[:3], "starts with the bytes 00 00 08, where"),
        (FILE[:4], "ends after 4 of 40 bytes"),
        (FILE[:15], "ends after 15 of 40 bytes"),
        (FILE[:-1], "ends after 39 of 40 bytes"),
        (FILE + b"\x00", "goes on after the 40 bytes"),
        (b"<html>" + FILE, "starts with the bytes 3c 68 74 6d, where .* starts with 00 00 08 03"),
        (b"\x00\x00\x0d\x03" + FILE[4:], "starts with the bytes 00 00 0d 03"),
        (b"\x00\x00\x08\x01" + FILE[4:], "starts with the bytes 00 00 08 01"),
        (FILE[:4] + struct.pack(">3I", 2, 4, 3) + FILE[16:], r"dimensions are \(2, 4, 3\), expected \(2, 3, 4\)"),
        (FILE[:4] + struct.pack("<3I", 2, 3, 4) + FILE[16:], r"dimensions are \(33554432, 50331648, 67108864\)"),
        (FILE[:-1] + b"\x00", "SHA-256, uncompressed, is [0-9a-f]{64}, expected " + hashlib.sha256(FILE).hexdigest()),
    ],
)
def test_another_file_is_refused_by_name_with_what_is_wrong(path, content, message):
    for pack in (bytes, gzip.compress):
        path.write_bytes(pack(content))
        with pytest.raises(ValueError, match=rf"(?s)train-images-idx3-ubyte is not .*{message}.* fetch it again"):
            read(path)


PACKED = gzip.compress(FILE, mtime=0)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(PACKED[:5], id="cut in gzip's header"),
        pytest.param(PACKED[:-10], id="cut in the values"),
        pytest.param(PACKED[:-1], id="cut in gzip's own sum"),
        pytest.param(PACKED[:-8] + bytes(8), id="another sum"),
        pytest.param(PACKED[:12] + b"\xff\xff\xff" + PACKED[15:], id="changed values"),
        pytest.param(PACKED + b"more", id="something after it"),
    ],
)
def test_damaged_compression_is_refused_by_name(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte is not .*gzip compression is damaged"):
        read(path)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_no_more_is_read_than_the_shape_calls_for(path, pack):
    path.write_bytes(pack(FILE + bytes(50_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="goes on after the 40 bytes"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_missing_file_is_the_systems_error(path):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        read(path)
