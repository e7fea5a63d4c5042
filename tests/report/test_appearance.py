import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from hesitant.report.appearance import appearance


def pixels(shown):
    assert shown.kind == "picture"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.picture.partition(",")[2]))))


RAMP = np.linspace(0, 1, 20).reshape(4, 5)
EXPECTED = np.rint(255 * RAMP)


@pytest.mark.parametrize(
    "value",
    [
        RAMP, torch.tensor(RAMP), RAMP[None], RAMP[..., None], EXPECTED.astype(np.uint8), EXPECTED.astype(np.int64),
        7 * RAMP - 3, torch.tensor(RAMP).bfloat16(), Image.fromarray(EXPECTED.astype(np.uint8)),
    ],
    ids=["(H, W)", "tensor", "(1, H, W)", "(H, W, 1)", "uint8", "int64", "normalised", "bfloat16", "Pillow"],
)  # fmt: skip
def test_grey_pictures_of_any_range(value):
    np.testing.assert_allclose(pixels(appearance(value)), EXPECTED, atol=1)


def test_colours_come_first_or_last_and_flat_vectors_are_given_their_shape():
    colours = np.random.default_rng(0).random((3, 6, 7))
    expected = np.rint(255 * np.moveaxis(colours, 0, 2))
    np.testing.assert_allclose(pixels(appearance(colours)), expected, atol=1)
    np.testing.assert_allclose(pixels(appearance(np.moveaxis(colours, 0, 2))), expected, atol=1)
    np.testing.assert_allclose(pixels(appearance(colours.ravel(), (3, 6, 7))), expected, atol=1)


def test_large_pictures_are_made_smaller_and_strange_pixels_do_no_harm():
    assert pixels(appearance(np.zeros((3, 900, 600)))).shape == (224, 149, 3)
    strange = np.array([[0.0, np.nan], [np.inf, 1.0]])
    np.testing.assert_array_equal(pixels(appearance(strange)), [[0, 0], [255, 255]])
    np.testing.assert_array_equal(pixels(appearance(np.full((2, 2), 5.0))), np.zeros((2, 2)))


def test_texts_rows_and_dicts():
    assert appearance("a text").text == "a text"
    assert appearance("word " * 1000).text.endswith("word …")
    row = appearance(torch.tensor([1.0, 0.00012345]))
    assert (row.cells, row.headings) == (("1", "0.000123"), ("x0", "x1"))
    assert appearance([3, 4], feature_names=["a", "b"]).headings == ("a", "b")
    long = appearance(np.arange(30))
    assert long.cells[-2:] == ("7", "…")
    assert long.headings[-1] == "22 more"
    assert appearance({"input_ids": torch.arange(9), "text": "what it says"}).text == "what it says"
    assert appearance({"age": 4, "height": torch.tensor(1.5)}).headings == ("age", "height")
    assert appearance({"input_ids": torch.arange(3)}).text == "input_ids: [0, 1, 2]"
    assert "show=" in appearance(np.zeros((2, 9, 9, 9))).text
