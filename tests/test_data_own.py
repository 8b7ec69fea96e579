"""One's own images, from an `.npz` and from a folder, and what is wrong with them."""

import io
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxnas import data
from jaxnas.base import InputError
from jaxnas.data import own

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (12, 4, 5), np.uint8)
RGB = RNG.integers(0, 256, (12, 4, 5, 3), np.uint8)
LABELS = np.array([0, 1] * 6)


def refusal(path, **how):
    with pytest.raises(InputError) as error:
        data.load(path, **how)
    message = str(error.value)
    assert "\n" not in message
    assert "pickle" not in message
    return message


def assert_refused(path, *parts, **how):
    message = refusal(path, **how)
    for part in (path.name, *parts):
        assert part in message


def assert_datasets_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# Which examples are held out


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_hold_out_takes_a_fifth_of_each_class_and_one_at_least(labels):
    labels = np.array(labels)
    is_test = own.hold_out(labels)
    for label in np.unique(labels):
        of_class = is_test[labels == label]
        assert of_class.sum() == max(len(of_class) // 5, 1)
        np.testing.assert_array_equal(np.flatnonzero(of_class)[1:] % 5, 4)


# An .npz


@pytest.fixture
def npz(tmp_path):
    """Writes `mine.npz` of arrays; returns its path."""

    def write(**arrays):
        np.savez(tmp_path / "mine.npz", **arrays)
        return tmp_path / "mine.npz"

    return write


@pytest.mark.parametrize("images", [GREY, RGB, RGB[..., :1], RGB[..., :2]])
def test_npz_gives_its_images_and_holds_a_fifth_out(images, npz):
    dataset = data.load(npz(images=images, labels=LABELS))
    is_test = np.isin(np.arange(12), [8, 9])  # the fifth image of each class
    images = images.reshape(12, 4, 5, -1)
    expected = (images[~is_test], LABELS[~is_test], images[is_test], LABELS[is_test])
    assert_datasets_equal(dataset, ("mine", *expected, ("0", "1")))
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, ">i8"])
def test_npz_gives_its_own_test_set_and_names(dtype, npz):
    path = npz(
        images=GREY,
        labels=LABELS.astype(dtype),
        test_images=GREY[:3] + 1,
        test_labels=LABELS[:3].astype(dtype),
        class_names=["cat", "dög"],
        ids=np.arange(12),
    )
    arrays = GREY[..., None], LABELS, GREY[:3, ..., None] + 1, LABELS[:3]
    assert_datasets_equal(data.load(str(path)), ("mine", *arrays, ("cat", "dög")))


def test_npz_of_256_classes_in_uint8_names_each(npz):
    labels = np.repeat(np.arange(256, dtype=np.uint8), 2)
    dataset = data.load(npz(images=np.zeros((512, 1, 1), np.uint8), labels=labels))
    assert dataset.class_names == tuple(map(str, range(256)))
    assert len(dataset.train_labels) == len(dataset.test_labels) == 256


TEST = {"test_images": GREY, "test_labels": LABELS}
WRONG = {
    "floats": ({"images": GREY / 255}, ["images", "uint8", "float64"]),
    "wide integers": ({"images": GREY.astype(int)}, ["uint8", "int64"]),
    "flat images": ({"images": GREY[:, 0]}, ["[N, height, width", "[12, 5]"]),
    "volumes": ({"images": RGB[..., None]}, ["colours]", "[12, 4, 5, 3, 1]"]),
    "no images": ({"images": GREY[:0], "labels": LABELS[:0]}, ["[0, 4, 5]"]),
    "no pixels": ({"images": GREY[:, :0]}, ["[12, 0, 5]"]),
    "colours first": (
        {"images": np.zeros((12, 3, 8, 8), np.uint8)},
        ["colours to the end", "[12, 3, 8, 8]"],
    ),
    "real labels": ({"labels": LABELS / 1}, ["int[12]", "float64[12]"]),
    "boolean labels": ({"labels": LABELS > 0}, ["int[12]", "bool[12]"]),
    "text labels": ({"labels": LABELS.astype(str)}, ["int[12]", "<U21[12]"]),
    "one-hot labels": ({"labels": np.eye(2, dtype=int)[LABELS]}, ["int64[12, 2]"]),
    "fewer labels": ({"labels": LABELS[:11]}, ["int[12]", "int64[11]"]),
    "more labels": ({"labels": np.zeros(13, int)}, ["int[12]", "int64[13]"]),
    "negative labels": ({"labels": LABELS - 1}, ["0 or more", "-1"]),
    "one class": ({"labels": LABELS * 0}, ["two classes", "1"]),
    "counting from 1": ({"labels": LABELS + 1}, ["0 of class 0", "from 0"]),
    "a gap": ({"labels": LABELS * 2}, ["0 of class 1"]),
    "huge label": ({"labels": LABELS * 2**62}, ["below 13", str(2**62), "from 0"]),
    "one of a class": (
        {"labels": np.arange(12) // 11},
        ["2 or more images to train and test", "1 of class 1"],
    ),
    "two names of three": (
        {"labels": np.arange(12) % 3, "class_names": ["a", "b"]},
        ["below 2", "2"],
    ),
    "a name too many": ({"class_names": ["a", "b", "wolf"]}, ["0 of class wolf"]),
    "names as numbers": ({"class_names": [1, 2]}, ["str[C]", "int64[2]"]),
    "a table of names": ({"class_names": [["a", "b"]]}, ["str[C]", "[1, 2]"]),
    "object names": ({"class_names": np.array(["a", "b"], object)}, ["class_names"]),
    "object images": ({"images": np.array([None] * 12)}, ["images", "objects"]),
    "test images alone": ({"test_images": GREY}, ["test_labels"]),
    "test labels alone": ({"test_labels": LABELS}, ["test_images"]),
    "float test images": (TEST | {"test_images": GREY / 1}, ["test_images"]),
    "negative test labels": (TEST | {"test_labels": LABELS - 1}, ["test_labels"]),
    "fewer test labels": (TEST | {"test_labels": LABELS[1:]}, ["test_labels"]),
    "an unknown test class": (
        TEST | {"test_labels": LABELS * 2},
        ["labels to test with below 2", "got 2"],
    ),
    "a class untested": (
        TEST | {"test_labels": LABELS * 0},
        ["1 or more images to test", "0 of class 1"],
    ),
    "test images of another size": (
        TEST | {"test_images": GREY[:, :3]},
        ["4x5x1 in images", "3x5x1 in test_images", "image size"],
    ),
    "test images of other colours": (
        TEST | {"test_images": RGB},
        ["4x5x3 in test_images", "RGB"],
    ),
}


@pytest.mark.parametrize(("changes", "parts"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arrays_are_one_line(changes, parts, npz):
    assert_refused(npz(**{"images": GREY, "labels": LABELS} | changes), *parts)


@pytest.mark.parametrize("missing", ["images", "labels"])
def test_a_missing_array_is_one_line(missing, npz):
    arrays = {"images": GREY, "labels": LABELS}
    del arrays[missing]
    (left,) = arrays
    assert_refused(npz(**arrays), f"array {missing}", f"only {left}")
    assert_refused(npz(x_train=GREY, y_train=LABELS), "array images", "only others")


@pytest.mark.parametrize("damage", ["truncate", "text", "empty", "bytes", "no npy"])
def test_a_damaged_npz_is_one_line(damage, npz):
    path = npz(images=GREY, labels=LABELS)
    content = path.read_bytes()
    if damage == "truncate":
        os.truncate(path, len(content) // 2)
    elif damage == "bytes":  # the checksum of the zip notices
        path.write_bytes(content.replace(GREY[3].tobytes(), bytes(20)))
    elif damage == "no npy":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images", b"nothing of numpy's")
            archive.writestr("labels", b"nothing of numpy's")
    else:
        path.write_text("images,labels\n" if damage == "text" else "")
    assert_refused(path)


def test_an_npz_larger_than_memory_is_one_line(npz):
    path = npz(labels=LABELS)
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (2**50, 8, 8)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("images.npy", header.getvalue())
    assert_refused(path, "MemoryError", "smaller images")


# A folder


@pytest.fixture
def folder(tmp_path):
    """Writes images into `pets`, by their paths there; returns that folder."""

    def write(images):
        for name, image in images.items():
            path = tmp_path / "pets" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(image, np.ndarray):
                image = Image.fromarray(image)
            if isinstance(image, Image.Image):
                image.save(path)
            else:
                path.write_bytes(image)
        return tmp_path / "pets"

    return write


def of_classes(images, names=("cat", "dog"), suffix="png", prefix=""):
    """Names images in turn after the classes: `cat/00.png`, `dog/01.png`, ..."""
    return {
        f"{prefix}{names[i % len(names)]}/{i:02}.{suffix}": image
        for i, image in enumerate(images)
    }


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "TIFF", "PNG"])
@pytest.mark.parametrize("images", [GREY, RGB], ids=["grey", "rgb"])
def test_folder_gives_its_images_by_class(images, suffix, folder):
    dataset = data.load(folder(of_classes(images, suffix=suffix)))
    images = images.reshape(12, 4, 5, -1)
    train = images[[0, 2, 4, 6, 10, 1, 3, 5, 7, 11]]
    expected = train, [0] * 5 + [1] * 5, images[8:10], [0, 1]
    assert_datasets_equal(dataset, ("pets", *expected, ("cat", "dog")))
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32


def test_folder_gives_its_own_test_set(folder):
    files = of_classes(RGB[:4], prefix="train/") | of_classes(RGB[4:6], prefix="test/")
    dataset = data.load(folder(files))
    expected = RGB[[0, 2, 1, 3]], [0, 0, 1, 1], RGB[4:6], [0, 1]
    assert_datasets_equal(dataset, ("pets", *expected, ("cat", "dog")))


def test_folder_named_by_a_dot_has_its_name(folder, monkeypatch):
    monkeypatch.chdir(folder(of_classes(GREY)))
    assert data.load(".").name == "pets"


def test_other_and_hidden_files_are_passed_over(folder):
    plain = data.load(folder(of_classes(GREY)))
    others = {
        "README.txt": b"photographs",
        "cat/Thumbs.db": b"\0",
        "cat/.hidden.png": b"no image",
        "dog/._00.png": b"no image",
        ".cache/thing.png": b"no image",
        "dog/puppies/00.png": GREY[0],
    }
    assert_datasets_equal(data.load(folder(others)), plain)


def test_every_format_is_read_as_pillow_does(folder):
    smooth = np.linspace(0, 255, 8 * 8 * 3).reshape(8, 8, 3).astype(np.uint8)
    for suffix in own.SUFFIXES:
        is_grey = suffix == ".pgm"
        image = Image.fromarray(smooth).convert("L" if is_grey else "RGB")
        path = folder({f"{suffix[1:]}{suffix}": image}) / f"{suffix[1:]}{suffix}"
        read = own._read_image(path, None)
        assert read.shape == (8, 8, 1 if is_grey else 3)
        with Image.open(path) as file:
            pixels = np.asarray(file if is_grey else file.convert("RGB"))
        np.testing.assert_array_equal(read, pixels.reshape(read.shape))
        assert np.abs(read - np.asarray(image, int).reshape(read.shape)).max() < 60


def test_palette_alpha_and_bilevel_become_rgb_or_grey(folder):
    levels = np.where(GREY > 127, 255, 0).astype(np.uint8)
    colours = Image.fromarray(RGB[0]).quantize(20)
    see_through = Image.fromarray(np.dstack([RGB[0], GREY[0]]))
    for image, expected in (
        (Image.fromarray(levels[0]).convert("1"), levels[0][..., None]),
        (colours, np.asarray(colours.convert("RGB"))),
        (see_through, RGB[0]),
        (see_through.getchannel("A").convert("LA"), np.dstack([GREY[0]] * 3)),
        (Image.fromarray(255 - RGB[0], "RGB").convert("CMYK"), 255 - RGB[0]),
    ):
        suffix = "tif" if image.mode == "CMYK" else "png"
        path = folder({f"one.{suffix}": image}) / f"one.{suffix}"
        np.testing.assert_array_equal(own._read_image(path, None), expected)


def test_a_palette_with_transparency_gives_no_warning(folder):
    image = Image.fromarray(RGB[0]).quantize(20)
    path = folder({}).parent / "one.png"
    image.save(path, transparency=bytes(range(20)))
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(own._read_image(path, None), expected)


def test_an_image_is_turned_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: taken with the camera turned to the right
    Image.fromarray(RGB[0]).save(tmp_path / "one.png", exif=exif)
    read = own._read_image(tmp_path / "one.png", None)
    np.testing.assert_array_equal(read, np.rot90(RGB[0], -1))


BAD_FOLDERS = {
    "text": ({"cat/x.jpg": b"no image"}, ["cat", "x.jpg", "UnidentifiedImageError"]),
    "empty": ({"dog/x.png": b""}, ["dog", "x.png"]),
    "one class": ({}, ["two classes", "1"]),
    "another size": (
        {"dog/x.png": GREY[0, :3]},
        ["4x5x1 in cat", "00.png", "3x5x1 in dog", "x.png", "image size"],
    ),
    "turned": ({"dog/x.png": GREY[0].T}, ["4x5x1", "5x4x1", "image size"]),
    "other colours": (
        {"dog/x.png": RGB[0]},
        ["4x5x1 in cat", "00.png", "4x5x3 in dog", "x.png", "RGB"],
    ),
    "16 bits": (
        {"dog/x.png": Image.fromarray(GREY[0].astype(np.uint16) * 9)},
        ["dog", "x.png", "8 bits"],
    ),
    "no image in a class": ({"wolf/notes.txt": b""}, ["wolf", ".png", "none"]),
    "one of a class": ({"wolf/x.png": GREY[0]}, ["2 or more", "1 of class wolf"]),
}


@pytest.mark.parametrize(
    ("files", "parts"), BAD_FOLDERS.values(), ids=BAD_FOLDERS.keys()
)
def test_a_wrong_folder_is_one_line(files, parts, folder):
    names = ("cat", "dog") if files else ("cat",)
    assert_refused(folder(of_classes(GREY, names) | files), *parts)


def test_a_truncated_image_is_refused_by_name(folder):
    path = folder(of_classes(RGB))
    damaged = path / "dog" / "03.png"
    os.truncate(damaged, damaged.stat().st_size // 2)
    assert_refused(path, "dog", "03.png")


def test_a_decompression_bomb_is_refused_by_name(folder, monkeypatch):
    path = folder(of_classes(RGB))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    assert_refused(path, "cat", "00.png", "DecompressionBombError")


def test_a_folder_without_classes_is_one_line(folder):
    files = {f"{i}.png": image for i, image in enumerate(GREY)}
    assert_refused(folder(files), "two classes", "0")


def test_images_of_train_and_test_must_agree(folder):
    train = of_classes(GREY[:4], prefix="train/")
    path = folder(train | of_classes(GREY[:2, 1:], prefix="test/"))
    assert_refused(path, "4x5x1 in train", "3x5x1 in test")
    folder(of_classes(GREY[:2], ("cat", "wolf"), prefix="test/"))
    assert_refused(path, "wolf", "train", "test")


def test_a_folder_that_may_not_be_read_is_one_line(folder, monkeypatch):
    path = folder(of_classes(GREY))

    def deny(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(own.Path, "iterdir", deny)
    assert_refused(path, "Permission denied", "permissions")


# Sizes and names


def test_mixed_sizes_are_resized_on_request(folder):
    files = of_classes(RGB[:4]) | {"dog/x.png": RGB[5, :3], "cat/x.png": RGB[6, :, :2]}
    dataset = data.load(folder(files), image_size=4)
    assert dataset.train_images.shape == (4, 4, 4, 3)
    first = Image.fromarray(RGB[0]).resize((4, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(dataset.train_images[0], np.asarray(first))


def test_npz_and_folder_are_resized_alike(npz, folder):
    labels = np.arange(12) % 2
    order = np.argsort(labels, kind="stable")
    first = data.load(npz(images=RGB[order], labels=labels[order]), image_size=3)
    second = data.load(folder(of_classes(RGB)), image_size=3)
    assert first.train_images.shape == (10, 3, 3, 3)
    assert_datasets_equal(first[1:5], second[1:5])


def test_test_images_of_another_size_are_resized_on_request(npz):
    tests = {"test_images": GREY[:, :3], "test_labels": LABELS}
    path = npz(images=GREY, labels=LABELS, **tests)
    dataset = data.load(path, image_size=6)
    assert dataset.train_images.shape == dataset.test_images.shape == (12, 6, 6, 1)


def test_a_large_jpeg_read_small_is_the_whole_one_resized(folder):
    smooth = Image.fromarray(RGB[0]).resize((640, 480), Image.Resampling.BICUBIC)
    path = folder({"one.jpg": smooth}) / "one.jpg"
    whole = own.resize(own._read_image(path, None)[None], 16)[0]
    np.testing.assert_allclose(own._read_image(path, 16).astype(int), whole, atol=3)


def test_resizing_keeps_what_is_constant_and_averages_the_rest():
    image = np.array([[0, 0, 100, 100], [0, 0, 200, 200]], np.uint8)
    images = np.stack([image, np.full_like(image, 7)], -1)[None]
    resized = own.resize(images, 1)
    np.testing.assert_allclose(resized, [[[[75, 7]]]], atol=1)
    assert resized.dtype == np.uint8


def test_digits_are_resized_too():
    dataset = data.load("digits", image_size=4)
    assert dataset.train_images.shape == (1442, 4, 4, 1)
    assert dataset.test_images.shape == (355, 4, 4, 1)
    assert_datasets_equal(data.load("digits", image_size=8), data.load("digits"))


@pytest.mark.parametrize("image_size", [0, -3])
def test_an_image_size_below_one_is_one_line(image_size):
    assert str(image_size) in refusal("digits", image_size=image_size)


@pytest.mark.parametrize("name", ["nowhere.npz", "images.zip", "x" * 5000, "a\0b"])
def test_a_path_of_nothing_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images.zip").write_bytes(b"PK")
    message = refusal(name)
    assert ".npz" in message
    assert "folder" in message


def test_a_folder_of_a_known_name_is_read_by_its_path(folder, monkeypatch):
    path = folder(of_classes(GREY)).rename(folder({}).with_name("digits"))
    monkeypatch.chdir(path.parent)
    assert data.load("digits").train_images.shape[1:] == (8, 8, 1)
    assert data.load("./digits").train_images.shape[1:] == (4, 5, 1)
