"""mmsmlp.web_demo.uploads: which files are taken for photographs, and what becomes of them."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmsmlp.web_demo.uploads import MAX_BYTES, RefusedUploadError, read_upload


@pytest.fixture(scope="module")
def cat() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.cat()[:60, :90])


def bomb(width: int, height: int) -> bytes:
    """A PNG whose few bytes say that it has these pixels; all are black."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    row = zlib.compressobj(9)
    rows = row.compress(bytes((width + 7) // 8 + 1) * min(height, 1000)) + row.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr", "LA", "RGBA", "PA"])
def test_every_mode_becomes_rgb(cat, tmp_path, mode):
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    if mode == "PA":
        image = cat.convert("P")
        image.info["transparency"] = 0
    else:
        image = cat.convert(mode)
    image.save(tmp_path / f"photo.{suffix}")
    read = read_upload(tmp_path / f"photo.{suffix}")
    assert (read.mode, read.size) == ("RGB", cat.size)
    grey = [np.asarray(picture.convert("L"), float) for picture in (read, cat)]
    assert abs(grey[0].mean() - grey[1].mean()) < 12


def test_sixteen_bit_greys_are_scaled_and_not_cut_off(cat, tmp_path):
    grey = np.asarray(cat.convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "photo.png")
    assert np.array_equal(np.asarray(read_upload(tmp_path / "photo.png"))[..., 0], grey)


def test_transparent_pixels_are_white(cat, tmp_path):
    image = cat.convert("RGBA")
    image.putalpha(0)
    image.save(tmp_path / "photo.png")
    assert np.asarray(read_upload(tmp_path / "photo.png")).min() == 255


def test_a_photograph_taken_upright_is_upright(cat, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise
    cat.save(tmp_path / "photo.png", exif=exif)
    read = read_upload(tmp_path / "photo.png")
    assert np.array_equal(np.asarray(read), np.rot90(np.asarray(cat), -1))


@pytest.mark.parametrize("size", [(8000, 5001), (30_000, 30_000), (100_000, 100_000)])
def test_too_many_pixels_are_refused_by_the_header_alone(tmp_path, size):
    (tmp_path / "photo.png").write_bytes(bomb(*size))
    with pytest.raises(RefusedUploadError, match="at most 40 million are taken"):
        read_upload(tmp_path / "photo.png")


def test_a_file_of_too_many_bytes_is_refused(tmp_path):
    with open(tmp_path / "photo.png", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(RefusedUploadError, match="larger than 20 MB"):
        read_upload(tmp_path / "photo.png")


@pytest.mark.parametrize("size", [(401, 100), (100, 401)])
def test_a_strip_is_refused_whose_longer_side_would_explode(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "photo.png")
    with pytest.raises(RefusedUploadError, match="more than 4 times the other"):
        read_upload(tmp_path / "photo.png")


def test_a_speck_is_refused(tmp_path):
    Image.new("RGB", (15, 20)).save(tmp_path / "photo.png")
    with pytest.raises(RefusedUploadError, match="no side may be below 16"):
        read_upload(tmp_path / "photo.png")


@pytest.mark.parametrize("content", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n"])
def test_what_is_no_image_is_refused_whatever_its_name(tmp_path, content):
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(RefusedUploadError, match="no image that can be read here"):
        read_upload(tmp_path / "photo.png")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp"])
def test_a_truncated_image_is_refused(cat, tmp_path, suffix):
    cat.save(tmp_path / f"photo.{suffix}")
    content = (tmp_path / f"photo.{suffix}").read_bytes()
    (tmp_path / f"photo.{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(RefusedUploadError, match="damaged or was not uploaded to its end"):
        read_upload(tmp_path / f"photo.{suffix}")


def test_a_photograph_that_was_deleted_is_asked_for_again(tmp_path):
    with pytest.raises(RefusedUploadError, match="upload it again"):
        read_upload(tmp_path / "photo.png")
