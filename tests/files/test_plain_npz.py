"""What is in an .npz of plain numbers, in a file or in memory."""

import io

import numpy as np
import pytest

from hesitant.files import npz_bytes, read_npz


def test_bytes_are_read_as_a_file_is() -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([], dtype=np.uint8)}
    content = npz_bytes(arrays)
    told: list[str] = []
    read = read_npz("the bytes", lambda headers: told.extend(headers), content=content)
    assert told == ["a", "b"]
    with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
            np.testing.assert_array_equal(loaded[name], array)
    with pytest.raises(ValueError, match=r"the bytes is no \.npz"):
        read_npz("the bytes", lambda headers: None, content=b"nothing")
