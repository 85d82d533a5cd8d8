"""Every kind of image file against Pillow's own reading of it, and every way one may be bad."""

import io
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxptft.data import image_files
from jaxptft.data.image_files import Decoding, decode, decode_all
from jaxptft.data.validate import Refused

RANDOM = np.random.default_rng(0)
COLOUR = RANDOM.integers(0, 256, (9, 7, 3), np.uint8)
GREY = COLOUR[..., 0]
RGB, L = Decoding(channels=3), Decoding(channels=1)


def saved(image, kind="PNG", **options) -> bytes:
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def luma(pixels):
    """ITU-R 601-2, as Pillow's documentation of `convert` gives it."""
    return pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP"])
def test_lossless_kinds(kind):
    pixels = COLOUR if kind != "GIF" else np.repeat(GREY[..., None], 3, axis=-1)
    content = saved(pixels if kind != "GIF" else GREY, kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode(content, RGB), pixels)
    np.testing.assert_allclose(decode(content, L)[..., 0], luma(pixels), atol=1)


def test_jpeg_is_what_pillow_makes_of_it():
    content = saved(COLOUR, "JPEG", quality=80)
    np.testing.assert_array_equal(decode(content, Decoding()), np.asarray(Image.open(io.BytesIO(content))))


def test_file_and_bytes_are_read_alike(tmp_path):
    path = tmp_path / "no suffix"
    path.write_bytes(saved(COLOUR))
    np.testing.assert_array_equal(decode(path, RGB), COLOUR)


def test_channels_are_the_files_own_unless_asked_for():
    assert decode(saved(GREY), Decoding()).shape == (9, 7, 1)
    assert decode(saved(COLOUR), Decoding()).shape == (9, 7, 3)
    np.testing.assert_array_equal(decode(saved(GREY), RGB), np.repeat(GREY[..., None], 3, axis=-1))


def test_one_bit():
    bits = Image.fromarray(GREY > 127)
    assert bits.mode == "1"
    np.testing.assert_array_equal(decode(saved(bits), Decoding())[..., 0], np.where(GREY > 127, 255, 0))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_become_the_upper_eight(kind):
    deep = RANDOM.integers(0, 1 << 16, (5, 4)).astype(np.uint16)
    np.testing.assert_array_equal(decode(saved(deep, kind), Decoding())[..., 0], deep >> 8)


def test_what_is_transparent_lies_on_the_background():
    alpha = RANDOM.integers(0, 256, (9, 7), np.uint8)
    content = saved(np.dstack([COLOUR, alpha]))
    share = alpha[..., None] / 255
    for ground in (255, 0, 40):
        expected = COLOUR * share + ground * (1 - share)  # "over", Porter and Duff 1984
        found = decode(content, Decoding(channels=3, background=ground))
        np.testing.assert_allclose(found, expected, atol=1)
    grey = decode(saved(np.dstack([GREY, alpha])), Decoding())
    np.testing.assert_allclose(grey[..., 0], GREY * share[..., 0] + 255 * (1 - share[..., 0]), atol=1)


def test_a_colour_that_is_transparent():
    clear = tuple(COLOUR[2, 3].tolist())
    found = decode(saved(COLOUR, transparency=clear), RGB)
    np.testing.assert_array_equal(found, np.where((np.array(clear) == COLOUR).all(-1)[..., None], 255, COLOUR))
    grey = decode(saved(GREY, transparency=int(GREY[0, 0])), Decoding(background=9))
    np.testing.assert_array_equal(grey[..., 0], np.where(GREY[0, 0] == GREY, 9, GREY))
    deep = np.array([[256, 700], [700, 65535]], np.uint16)
    found = decode(saved(deep, transparency=700), Decoding())
    np.testing.assert_array_equal(found[..., 0], [[1, 255], [255, 255]])  # by hand: 256 >> 8, background, 65535 >> 8


def test_palette_with_and_without_transparency():
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    expected = colours[[[0, 1], [2, 1]]]
    np.testing.assert_array_equal(decode(saved(image), Decoding()), expected)
    for kind in ("PNG", "GIF"):
        found = decode(saved(image, kind, transparency=1), Decoding(background=0))
        np.testing.assert_array_equal(found, np.where([[[False], [True]], [[False], [True]]], 0, expected))


def test_cmyk():
    flat = np.zeros((8, 8, 4), np.uint8)
    flat[...] = (255, 0, 0, 0)  # cyan
    for kind in ("JPEG", "TIFF"):
        found = decode(saved(Image.fromarray(flat, "CMYK"), kind), Decoding())
        np.testing.assert_allclose(found, np.broadcast_to([0, 255, 255], (8, 8, 3)), atol=3)


@pytest.mark.parametrize(
    "orientation, expected",
    [
        # From the EXIF standard's table of which side the first row and the first column are: [[1, 2], [3, 4]] stored.
        (1, [[1, 2], [3, 4]]),
        (2, [[2, 1], [4, 3]]),
        (3, [[4, 3], [2, 1]]),
        (4, [[3, 4], [1, 2]]),
        (5, [[1, 3], [2, 4]]),
        (6, [[3, 1], [4, 2]]),
        (7, [[4, 2], [3, 1]]),
        (8, [[2, 4], [1, 3]]),
        (9, [[1, 2], [3, 4]]),
    ],
)
def test_exif_orientation(orientation, expected):
    blocks = np.kron(np.array([[1, 2], [3, 4]], np.uint8) * 60, np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        found = decode(saved(blocks, kind, exif=exif, **options), L)[4::8, 4::8, 0]
        np.testing.assert_allclose(found / 60, expected, atol=0.05)


def test_shape_after_turning_is_what_people_see():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(saved(COLOUR, exif=exif), Decoding()).shape == (7, 9, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_spoils_no_pixel():
    content = saved(COLOUR, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode(content, RGB), COLOUR)


@pytest.mark.parametrize("kind", ["GIF", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (200, 100, 0)]
    content = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(content)).n_frames == 3
    np.testing.assert_array_equal(decode(content, L), np.full((4, 4, 1), 200))


def test_one_pixel():
    content = saved(np.array([[[9, 8, 7]]], np.uint8))
    np.testing.assert_array_equal(decode(content, RGB), [[[9, 8, 7]]])
    np.testing.assert_array_equal(decode(content, Decoding((3, 5), 3)), np.broadcast_to([9, 8, 7], (3, 5, 3)))


SHAPES = [(64, 48), (48, 64), (50, 50), (200, 3), (3, 200)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [(16, 16), (12, 20), (70, 70)])
def test_sizes(shape, size):
    pixels = RANDOM.integers(0, 256, (*shape, 3), np.uint8)
    image = Image.fromarray(pixels)
    squashed = decode(saved(pixels), Decoding(size, 3, fit="squash"))
    np.testing.assert_array_equal(squashed, image.resize(size[::-1], Image.Resampling.BICUBIC))
    assert decode(saved(pixels), Decoding(size, 3)).shape == (*size, 3)


def test_crop_is_the_middle_at_full_height_or_width():
    # Columns of one grey each: the middle 8 of 16 stay, as they are.
    columns = np.broadcast_to(np.arange(16, dtype=np.uint8) * 10, (8, 16))
    np.testing.assert_array_equal(decode(saved(columns), Decoding((8, 8), 1))[..., 0], columns[:, 4:12])
    np.testing.assert_array_equal(decode(saved(columns.T.copy()), Decoding((8, 8), 1))[..., 0], columns.T[4:12])
    # And with another size, as Pillow's own fit-and-crop does.
    from PIL import ImageOps

    pixels = RANDOM.integers(0, 256, (40, 60, 3), np.uint8)
    expected = ImageOps.fit(Image.fromarray(pixels), (12, 12), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode(saved(pixels), Decoding((12, 12), 3, resample="bilinear")), expected)


def test_resizing_is_antialiased():
    # A checkerboard of single pixels is a plain grey from afar; nearest or plain bilinear would keep black or white.
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    found = decode(saved(board.astype(np.uint8)), Decoding((8, 8), 1)).astype(int)
    assert np.abs(found - 127.5).max() < 8


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


NOISE = RANDOM.integers(0, 256, (64, 64, 3), np.uint8)
PNG, JPEG = saved(NOISE), saved(NOISE, "JPEG")
BAD = {
    "0 bytes": (b"", "empty file", "is empty"),
    "text": (b"not an image\n" * 9, "not an image", "is no image"),
    "html": (b"<!DOCTYPE html><html>", "not an image", "is no image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image", "is no image"),
    "postscript, which Pillow would run": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "not an image",
        "is no",
    ),
    "pickle": (b"\x80\x04\x95", "not an image", "is no image"),
    "png of 8 bytes": (PNG[:8], "not an image", "its beginning is damaged"),
    "png cut in its header": (PNG[:20], "truncated image", "is cut short"),
    "png cut at half": (PNG[: len(PNG) // 2], "truncated image", "is cut short"),
    "png cut at its end": (PNG[:-30], "truncated image", "is cut short"),
    "jpeg cut in its header": (JPEG[:100], "", ""),
    "jpeg cut at half": (JPEG[: len(JPEG) // 2], "truncated image", "is cut short"),
    "jpeg cut at its end": (JPEG[:-60], "truncated image", "is cut short"),
    "png with damaged data": (PNG[:60] + bytes(100) + PNG[160:], "", ""),
    "gif cut": (saved(NOISE[..., 0], "GIF")[:900], "truncated image", "is cut short"),
    "bmp cut": (saved(NOISE, "BMP")[:900], "truncated image", "is cut short"),
    "tiff cut": (saved(NOISE, "TIFF")[:900], "", ""),
    "webp cut": (saved(NOISE, "WEBP")[:900], "", ""),
    "ppm cut": (saved(NOISE, "PPM")[:900], "truncated image", "is cut short"),
    "100 million pixels": (png_header(10_000, 10_000), "too large", "is 10000 x 10000 pixels, more than max_pixels"),
    "4 billion pixels": (png_header(65_535, 65_535), "too large", "is too large for Pillow"),
    "giant bmp": (
        saved(NOISE, "BMP")[:18] + struct.pack("<iihh", 9000, 9000, 1, 24) + bytes(99),
        "too large",
        "9000 x 9000",
    ),
    "no width": (png_header(0, 5), "", ""),
    "real numbers": (saved(np.ones((3, 3), np.float32), "TIFF"), "wrong type", r"32 bits \(real numbers\)"),
    "32 bits": (saved(np.ones((3, 3), np.int32), "TIFF"), "wrong type", r"32 bits \(whole numbers\)"),
}


@pytest.mark.parametrize("content, reason, said", BAD.values(), ids=BAD)
def test_bad_file(content, reason, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Refused, match=said) as caught:
            decode(content, RGB)
    assert caught.value.reason == reason or (not reason and caught.value.reason in KINDS)
    assert "\n" not in caught.value.detail


KINDS = ("not an image", "truncated image", "damaged image")


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(Refused, match="is not there"):
        decode(tmp_path / "x.png", RGB)
    with pytest.raises(Refused, match="is no file"):
        decode(tmp_path, RGB)
    with pytest.raises(Refused, match="cannot be opened"):
        decode(tmp_path / ("x" * 5000), RGB)


def test_the_size_is_looked_at_before_anything_is_decoded(monkeypatch):
    from PIL.PngImagePlugin import PngImageFile

    monkeypatch.setattr(PngImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(Refused, match=r"is 7 x 9 pixels, more than max_pixels=62; raise max_pixels"):
        decode(saved(COLOUR), Decoding(max_pixels=62))


def test_limit_is_met_exactly():
    assert decode(saved(COLOUR), Decoding(max_pixels=63)).shape == (9, 7, 3)


def test_memory_that_runs_out_is_said_of_the_image(monkeypatch):
    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr(image_files, "shaped", exhausted)
    with pytest.raises(Refused, match="is 7 x 9 pixels, more than there is memory for"):
        decode(saved(COLOUR), RGB)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"size": (0, 4)}, r"size is \(0, 4\), expected a height and a width of 1 pixel or more"),
        ({"channels": 4}, r"channels is 4, expected 1 \(grey\) or 3 \(colour\)"),
        ({"fit": "stretch"}, "fit is 'stretch'; choose 'crop' or 'squash'"),
        ({"resample": "nearest"}, "resample is 'nearest'; choose 'bilinear' or 'bicubic'"),
        ({"background": 256}, r"background is 256, expected a grey from 0 \(black\) to 255"),
        ({"max_pixels": 0}, "max_pixels is 0, expected at least 1"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ValueError, match=said):
        Decoding(**options)


def test_threads_decode_in_order_off_the_main_thread(monkeypatch):
    names = set()
    own = image_files.decode

    def watched(content, how):
        names.add(threading.current_thread().name)
        return own(content, how)

    monkeypatch.setattr(image_files, "decode", watched)
    files = [saved(np.full((2, 2), value, np.uint8)) for value in range(60)]
    files[17] = b""
    found = list(decode_all(enumerate(files), L, threads=3))
    assert [place for place, _ in found] == list(range(60))
    assert [pixels[0, 0, 0] for _, pixels in found if not isinstance(pixels, Refused)] == [*range(17), *range(18, 60)]
    assert found[17][1].reason == "empty file"
    assert threading.main_thread().name not in names
    with pytest.raises(ValueError, match="threads is 0, expected at least 1"):
        next(decode_all([], L, threads=0))


def test_threads_read_only_a_few_ahead():
    taken = []

    def items():
        for number in range(1000):
            taken.append(number)
            yield number, saved(GREY)

    reader = decode_all(items(), L, threads=2)
    next(reader)
    assert len(taken) <= 4 * 2 + 1
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
