import numpy as np
import pytest
from PIL import Image

from jaxnas.base import InputError
from jaxnas.plots import plot_images, save


def test_grid_shows_every_pixel_where_it_belongs():
    images = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5, 1)
    figure = plot_images(images, title="t", row_names="ab", column_names="xyz")
    (axes,) = figure.axes
    (shown,) = axes.get_images()
    whole = shown.get_array()
    for row in range(2):
        for column in range(3):
            tile = whole[row * 5 : row * 5 + 4, column * 6 : column * 6 + 5]
            np.testing.assert_array_equal(tile, np.repeat(images[row, column], 3, -1))
    assert [text.get_text() for text in axes.get_xticklabels()] == [*"xyz"]
    assert [text.get_text() for text in axes.get_yticklabels()] == [*"ab"]
    np.testing.assert_array_equal(axes.get_xticks(), [2, 8, 14])
    np.testing.assert_array_equal(axes.get_yticks(), [1.5, 6.5])


def test_grid_of_one_tall_image_is_saved(tmp_path):
    images = np.full((1, 1, 9, 3, 3), (200, 0, 0), np.uint8)
    save(plot_images(images, title="one"), tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(99999)}
    assert (200, 0, 0) in colours


@pytest.mark.parametrize(
    ("images", "names", "says"),
    [
        (np.zeros((1, 1, 4, 4, 2), np.uint8), (), "1 or 3"),
        (np.zeros((1, 1, 4, 4, 1), np.float32), (), "float32"),
        (np.zeros((0, 1, 4, 4, 1), np.uint8), (), "none of them empty"),
        (np.zeros((2, 1, 4, 4, 1), np.uint8), ("a",), "expected 2 names or none"),
    ],
)
def test_wrong_images_are_one_line(images, names, says):
    with pytest.raises(InputError, match=says):
        plot_images(images, title="t", row_names=names)
