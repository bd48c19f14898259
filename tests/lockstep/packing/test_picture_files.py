"""Files and folders that somebody made to do harm: one line, nothing is run, and neither memory nor time is taken."""

import errno
import os
import shutil
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lockstep.common.data.source import load
from lockstep.common.errors import DataError
from lockstep.packing.cache import digest_of
from lockstep.packing.options import PackOptions
from lockstep.packing.pack import pack
from tests.lockstep.packing.peaks import MOST_KB, peak_of
from tests.lockstep.packing.test_pictures import picture

Image = pytest.importorskip("PIL.Image")

from lockstep.packing.pictures import (  # noqa: E402  # what may be missing
    MOST_KEPT,
    MOST_PIXELS,
    open_picture,
    read_image,
)

#: An EPS: Pillow starts Ghostscript for it, under whatever name.
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n%%EndComments\nshowpage\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("blue", "red"):
        for number in range(3):
            picture(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def saved(mode: str, side: int, ending: str = "png", **options: object) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        Image.new(mode, (side, side)).save(path, ending, **options)

    return make


def claiming(side: int) -> Callable[[Path], object]:
    """Write the beginning of a PNG, which says how large it is."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return written(content + struct.pack(">I", 9) + b"IDAT" + bytes(9))


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def many_scans(path: Path) -> None:
    """Repeat the last scan of a JPEG: each goes over all pixels again."""
    saved("RGB", 16, "jpeg", progressive=True)(path)
    content = path.read_bytes()
    path.write_bytes(content[:-2] + content[content.rindex(b"\xff\xda") : -2] * 200 + content[-2:])


def floats(values: object) -> Callable[[Path], object]:
    return lambda path: Image.fromarray(np.array(values, np.float32)).save(path, "tiff")


HARMFUL: dict[str, tuple[Callable[[Path], object], str]] = {
    "postscript": (written(POSTSCRIPT), "is not a picture that can be read (not a JPEG, PNG, WebP"),
    "a pipe": (os.mkfifo, "is not a regular file, but a named pipe: remove it"),
    "a socket": (a_socket, "is not a regular file, but a socket: remove it"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file, but a device: remove it"),
    "a link to itself": (lambda path: path.symlink_to(path.name), f"cannot be read ({os.strerror(errno.ELOOP)})"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), f"cannot be read ({os.strerror(errno.ENOENT)})"),
    "a bomb": (claiming(9000), f"has 9000 x 9000 pixels: expected at most {MOST_PIXELS:,}; make it smaller"),
    "a larger bomb": (claiming(14_000), f"has too many pixels: expected at most {MOST_PIXELS:,}; make it smaller"),
    "a slow BMP": (
        written(b"BM" + bytes(8) + b"\x36\4\0\0\x28\0\0\0\0\x08\0\0\0\x08\0\0\1\0\x08\0\1" + bytes(1100)),
        "has 2048 x 2048 pixels in a slow kind of BMP: save it as PNG",
    ),
    "many scans": (many_scans, "has more than 100 scans: save it again"),
    "bright floats": (
        floats([[0, 7.5]] * 3),
        "has floating-point pixels from 0 to 7.5: expected 0 (black) to 1 (white)",
    ),
    "not a number": (floats([[0, np.nan]]), "has floating-point pixels from nan to nan: expected 0 (black)"),
}


@pytest.mark.parametrize(("make", "text"), HARMFUL.values(), ids=HARMFUL)
def test_what_does_harm_is_named_on_one_line(
    folder: Path, make: Callable[[Path], object], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)  # the path of a socket has to be short
    odd = Path("pictures/blue/1.png")
    odd.unlink()
    make(odd)
    with pytest.raises(DataError) as raised:
        pack("pictures", folder.parent / "new", PackOptions(size=(6, 8)))
    assert str(raised.value).startswith(f"{odd}: {text}")
    assert str(raised.value).isprintable()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["pictures"]


def test_a_file_that_is_not_regular_has_no_digest(folder: Path) -> None:
    os.mkfifo(folder / "blue" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe.png: is not a regular file"):
        digest_of(folder, PackOptions())
    os.mkfifo(folder / "pipe.csv")
    with pytest.raises(DataError, match=r"pipe.csv: cannot be read \(it is not a regular file\)"):
        digest_of(folder / "pipe.csv", PackOptions())


@pytest.mark.parametrize("target", ["..", "../blue", "../../pictures/red/.."])
def test_a_loop_of_links_ends(folder: Path, target: str) -> None:
    (folder / "blue" / "zz").symlink_to(target)
    with pytest.raises(DataError, match="leads to a folder that was seen before: remove the link"):
        pack(str(folder), folder.parent / "new", PackOptions())


def test_links_to_folders_that_double_at_each_level_end(folder: Path) -> None:
    for level in range(25):
        (folder / f".level{level}").mkdir()
        for number in range(2):
            (folder / f".level{level}" / f"{number}").symlink_to(f"../.level{level + 1}")
    (folder / ".level25").mkdir()
    (folder / "blue" / "zz").symlink_to("../.level0")
    with pytest.raises(DataError, match="leads to a folder that was seen before"):
        pack(str(folder), folder.parent / "new", PackOptions())


def test_links_to_other_folders_are_followed(folder: Path) -> None:
    picture(folder.parent / "elsewhere" / "deeper" / "1.png")
    (folder / "blue" / "zz").symlink_to(folder.parent / "elsewhere")
    packed = pack(str(folder), folder.parent / "new", PackOptions())
    assert packed.manifest.train.info.samples + packed.manifest.test.info.samples == 7


def test_a_name_with_a_line_break_does_not_begin_a_line(folder: Path) -> None:
    (folder / "blue" / "1\nerror: all is lost\x1b[31m.png").write_text("no picture")
    with pytest.raises(DataError, match=r"1\\nerror: all is lost\\x1b\[31m.png: is not a picture") as raised:
        pack(str(folder), folder.parent / "new", PackOptions())
    assert str(raised.value).isprintable()


def test_a_sample_that_nobody_could_train_on_needs_a_size(folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        saved("1", 4000)(path)
    with pytest.raises(DataError, match=r"4000 x 4000 pixels are a sample of 48,000,000 bytes: .* with --size"):
        pack(str(folder), folder.parent / "new", PackOptions())


def test_a_large_jpeg_is_decoded_as_far_as_it_is_needed(folder: Path) -> None:
    path = folder / "blue" / "1.png"
    saved("L", 5200, "jpeg")(path)
    packed = pack(str(folder), folder.parent / "new", PackOptions(size=(6, 8)))
    assert packed.manifest.train.info.sample_shape == (3, 6, 8)
    saved("L", 5200, "jpeg", progressive=True)(path)
    with pytest.raises(DataError, match="has 5200 x 5200 pixels"):
        pack(str(folder), folder.parent / "newer", PackOptions(size=(6, 8)))


def test_floating_point_pixels_are_from_black_to_white(folder: Path) -> None:
    for path in folder.glob("*/*.png"):
        floats([[0, 0.25, 0.5, 1]])(path)
    packed = pack(str(folder), folder.parent / "new", PackOptions(grayscale=True))
    assert load(str(packed.folder)).train.images[0].tolist() == [[[0, 64, 128, 255]]]
    np.testing.assert_allclose(read_image(path)[1], [[0, 0.25, 0.5, 1]])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "F", "I;16"])
def test_a_picture_to_predict_from_is_made_smaller_if_it_is_large(tmp_path: Path, mode: str) -> None:
    saved(mode, 1500, "tiff" if mode == "F" else "png")(tmp_path / "large")
    image = read_image(tmp_path / "large")
    assert image.shape == (3, 750, 750)
    assert image[0].size <= MOST_KEPT
    picture(tmp_path / "small.png")
    assert read_image(tmp_path / "small.png").shape == (3, 6, 8)


def test_what_a_decoder_raises_is_an_error_of_the_file(tmp_path: Path) -> None:
    picture(tmp_path / "whole.png")
    with (
        pytest.raises(DataError, match=r"whole.png: is not a picture that can be read \(as a decoder says\)"),
        open_picture(tmp_path / "whole.png"),
    ):
        raise TypeError("as a decoder says")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory in other ways")
def test_the_largest_pictures_do_not_take_memory(folder: Path) -> None:
    # Two of each kind, since each thread keeps what it had at most.
    for name, mode, options in (("blue", "RGBA", {}), ("red", "F", {"compression": "tiff_deflate"})):
        saved(mode, 4900, "tiff" if options else "png", **options)(folder / name / "0.png")
        shutil.copy(folder / name / "0.png", folder / name / "1.png")
    told, peak = peak_of(folder.parent, "pack", "pictures", "new", "--size", "32")
    assert told.startswith("packed 5 samples")
    assert peak < MOST_KB
