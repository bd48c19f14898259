"""Pictures in folders by class become arrays of one size; what cannot be read is named."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockstep.common.data.source import load
from lockstep.common.errors import DataError
from lockstep.packing.options import Packed, PackOptions
from lockstep.packing.pack import pack
from tests.lockstep.packing.test_arrays import sizes

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")

from lockstep.packing.pictures import PictureReader  # noqa: E402  # what may be missing


def picture(path: Path, colour: Any = (200, 10, 30), size: tuple[int, int] = (8, 6), mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures of each of two classes, 8 wide and 6 high."""
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        for number in range(10):
            picture(tmp_path / "pictures" / name / f"{number}.png", colour)
    (tmp_path / "pictures" / "red" / ".DS_Store").write_bytes(b"left by a system")
    return tmp_path / "pictures"


def packed(folder: Path, **options: Any) -> Packed:
    return pack(str(folder), folder.parent / "new", PackOptions(**options))


def test_each_folder_is_a_class_by_name(folder: Path) -> None:
    found = packed(folder)
    assert sizes(found) == (16, 4)
    assert next(iter(found.lines())) == f"packed 16 samples to train on and 4 to test with into {found.folder}"
    assert list(found.lines())[1] == "each is 3 x 6 x 8 of uint8; 2 classes: blue, red"
    data = load(str(found.folder))
    assert data.class_names == ("blue", "red")
    for part in (data.train, data.test):
        blue = part.images[:][part.labels == 0]
        assert (blue[:, 2] == 255).all()
        assert (blue[:, 0] == 0).all()
        assert len(blue) in (8, 2, 7, 9, 1, 3)


def test_a_table_next_to_the_classes_is_not_the_data(folder: Path) -> None:
    (folder / "labels.csv").write_text("file,label\n0.png,red\n")
    assert sizes(packed(folder)) == (16, 4)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"target": ("y",)}, "--target is for tables, and "),
        ({"one_hot": ("y",), "grayscale": True}, "--one-hot is for tables"),
        ({"labels": Path("y.npy")}, "--labels is for arrays"),
    ],
)
def test_options_of_other_data_are_refused(folder: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=re.escape(text)):
        pack(str(folder), folder.parent / "new", PackOptions(**options))
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_set_to_test_with_lies_next_to_train(folder: Path) -> None:
    for name in ("red", "blue"):
        picture(folder / "val" / name / "1.png")
    train = folder / "train"
    train.mkdir()
    for name in ("red", "blue"):
        (folder / name).rename(train / name)
    found = packed(folder)
    assert (sizes(found), found.notes) == ((20, 2), ())
    picture(folder / "val" / "green" / "1.png")
    with pytest.raises(DataError, match="val/green: is not a class of the training set: expected one of blue, red"):
        pack(str(folder), folder.parent / "newer", PackOptions())


def test_sizes_and_grays_are_brought_to_one(folder: Path) -> None:
    picture(folder / "red" / "large.jpg", (255, 0, 0), (640, 480))
    picture(folder / "red" / "gray.png", 9, (10, 10), "L")
    picture(folder / "red" / "deep.png", 40_000, (4, 4), "I;16")
    picture(folder / "red" / "clear.png", (0, 0, 0, 0), (5, 5), "RGBA")
    found = packed(folder, size=(4, 5), grayscale=True, test_split=0.1)
    assert found.manifest.train.info.sample_shape == (1, 4, 5)
    data = load(str(found.folder))
    values = {int(image[0, 2, 2]) for image in [*data.train.images[:], *data.test.images[:]]}
    assert {29, 76, 9, 156, 255} <= {value + 1 if value in (75, 155) else value for value in values}


def test_a_picture_that_lies_on_its_side_stands_up(folder: Path) -> None:
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "red" / "turned.jpg", exif=exif)
    assert packed(folder).manifest.train.info.sample_shape == (3, 6, 8)


@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
def test_a_turned_picture_loses_nothing_before_it_is_turned(folder: Path, orientation: int) -> None:
    # Stripes of two pixels, which are there only if all 200 rows of the file are decoded: upright, they are columns.
    rows = np.where(np.arange(200) // 2 % 2 == 0, 255, 0).astype(np.uint8)
    image = Image.fromarray(np.repeat(rows[:, np.newaxis], 800, axis=1)).convert("RGB")
    exif = image.getexif()
    exif[0x0112] = orientation
    path = folder / "red" / "turned.jpg"
    image.save(path, exif=exif, quality=95)
    (sample,) = next(iter(PictureReader(PackOptions(size=(20, 200))).read([path])))
    upright = ImageOps.exif_transpose(Image.open(path)).resize((200, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(sample.transpose(1, 2, 0), np.asarray(upright))
    assert orientation == 3 or np.ptp(sample) > 200


def test_mixed_sizes_need_a_size(folder: Path) -> None:
    picture(folder / "red" / "large.png", size=(9, 6))
    first, odd = folder / "blue" / "0.png", folder / "red" / "large.png"
    text = f"{odd}: is 9 pixels wide and 6 high, and {first} is 8 by 6: expected one size; bring all to one with --size"
    with pytest.raises(DataError, match=re.escape(text)):
        packed(folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["pictures"]


BROKEN = {"text": b"this is a text", "empty": b"", "cut off": None, "two bytes": b"\xff\xd8"}


@pytest.mark.parametrize("contents", BROKEN.values(), ids=BROKEN)
def test_a_broken_picture_is_named(folder: Path, contents: bytes | None) -> None:
    path = folder / "red" / "5.png"
    path.write_bytes(path.read_bytes()[:45] if contents is None else contents)
    with pytest.raises(DataError, match=re.escape(f"{path}: is not a picture that can be read (")) as raised:
        packed(folder)
    assert str(raised.value).isprintable()
    assert sorted(each.name for each in folder.parent.iterdir()) == ["pictures"]


def test_one_class_only_is_refused(folder: Path) -> None:
    for path in (folder / "red").iterdir():
        path.unlink()
    with pytest.raises(
        DataError, match="has one class only, 'blue': expected a folder of pictures for each of at least"
    ):
        packed(folder)


def test_an_empty_test_set_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="the test set is empty: expected samples to test with"):
        packed(folder, test_split=0.01)


def test_of_a_picture_with_several_frames_the_first_is_read(folder: Path) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    for name in ("0.gif", "1.webp", "2.tiff"):
        frames[0].save(folder / "red" / name, save_all=True, append_images=frames[1:], lossless=True)
    found = packed(folder, test_split=0.5)
    assert (
        found.notes[0]
        == f"3 of the pictures have several frames, such as {folder / 'red' / '0.gif'}: the first one is read"
    )
    data = load(str(found.folder))
    for part in (data.train, data.test):
        red = part.images[:][part.labels == 1].astype(np.int64)
        assert (red[:, 0] > 200).all()
        assert (red[:, 2] < 50).all()


def test_a_picture_of_another_size_is_named_once(folder: Path) -> None:
    picture(folder / "red" / "9.png", size=(9, 9))
    with pytest.raises(DataError) as raised:
        packed(folder)
    assert str(raised.value).count("9.png") == 1
    assert str(raised.value).startswith(f"{folder / 'red' / '9.png'}: is 9 pixels wide and 9 high, and ")
