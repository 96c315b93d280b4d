"""Guards: images keep their values both ways, hostile files are refused before they are decoded,
and a file is either whole or not there.

Without it colours would drift by a level a round trip, one image could take all memory, and an
interrupted run would leave half a PNG.
"""

import errno
import io
import os
import stat
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.io import images as module
from hebm_sample.io.images import (
    MAX_PIXELS,
    check_folder,
    check_writable,
    grid,
    grid_size,
    open_image,
    prepare,
    save_png,
    to_pil,
    to_rgb,
    to_square_tensor,
    to_uint8,
)


def plain(colour=(10, 20, 30), size=(4, 4)):
    return Image.new("RGB", size, colour)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bits, colour_type, rows):
    """A PNG by hand: header, one data chunk, end."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    data = zlib.compress(rows)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [png_chunk(b"IHDR", header), png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")]
    )


def noise(height=8, width=8):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


# Floats and bytes


def test_every_byte_survives_the_round_trip():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([every, every.T, 255 - every], axis=-1))
    x = to_square_tensor(image, 16)
    assert x.shape == (3, 16, 16)
    assert x.dtype == torch.float32
    assert float(x.min()) == -1.0 and float(x.max()) == 1.0
    assert np.array_equal(to_uint8(x[None])[0], np.asarray(image))
    assert np.array_equal(np.asarray(to_pil(x[None])[0]), np.asarray(image))


@given(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3))
def test_bytes_are_rounded_and_clamped(values):
    got = to_uint8(torch.tensor(values).reshape(1, 3, 1, 1)).reshape(3)
    expected = [(min(max(v, -1.0), 1.0) + 1.0) * 127.5 for v in values]
    assert all(abs(int(g) - e) <= 0.5 + 1e-4 for g, e in zip(got, expected, strict=True))


def test_bfloat16_and_grey_become_bytes():
    assert to_uint8(torch.zeros(2, 1, 4, 5, dtype=torch.bfloat16)).shape == (2, 4, 5, 3)


def test_bad_tensors_are_refused():
    with pytest.raises(UserInputError, match=r"shape \(3, 4, 4\); they must be \(B, 3, H, W\)"):
        to_uint8(torch.zeros(3, 4, 4))
    with pytest.raises(UserInputError, match="not finite"):
        to_uint8(torch.full((1, 3, 2, 2), float("nan")))


def test_reduction_is_lanczos_whatever_the_ratio():
    image = noise(8, 8)
    for side in (4, 5):
        wanted = np.asarray(image.resize((side, side), Image.Resampling.LANCZOS))
        assert (to_uint8(to_square_tensor(image, side)[None])[0] == wanted).all()


def test_the_centre_is_kept():
    image = plain((255, 0, 0), (12, 4))
    image.paste((0, 255, 0), (4, 0, 8, 4))
    assert (to_square_tensor(image, 4)[1] == 1.0).all()
    assert (to_square_tensor(image.rotate(90, expand=True), 4)[1] == 1.0).all()
    assert to_square_tensor(image, 7).shape == (3, 7, 7)


def test_prepare_takes_images_paths_and_files(tmp_path):
    image = noise()
    image.save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    batch = prepare([image, path, str(path), io.BytesIO(path.read_bytes())], 8)
    assert batch.shape == (4, 3, 8, 8)
    assert (batch == batch[:1]).all()
    assert torch.equal(prepare(image, 8), batch[:1])
    assert torch.equal(prepare(path, 8), batch[:1])
    with pytest.raises(UserInputError, match="images is empty"):
        prepare([], 8)
    with pytest.raises(UserInputError, match="of type int; give PIL images or their paths"):
        prepare([3], 8)


# Grids


@pytest.mark.parametrize(
    ("count", "columns", "shape"),
    [(1, None, (1, 1)), (2, None, (2, 1)), (8, None, (3, 3)), (16, None, (4, 4)), (6, 3, (3, 2))],
)
def test_grid_shape(count, columns, shape):
    across, down = shape
    assert grid_size(count, 5, 3, columns) == (across * 7 - 2, down * 5 - 2)
    assert grid([plain(size=(5, 3))] * count, columns).size == grid_size(count, 5, 3, columns)


def test_grid_runs_row_by_row():
    canvas = grid([plain((i, i, i)) for i in range(3)], columns=2)
    assert [canvas.getpixel(p) for p in [(0, 0), (6, 0), (0, 6)]] == [(i, i, i) for i in range(3)]
    assert canvas.getpixel((4, 0)) == canvas.getpixel((6, 6)) == (255, 255, 255)


def test_bad_grids_are_refused():
    with pytest.raises(UserInputError, match="at least one image"):
        grid([])
    with pytest.raises(UserInputError, match="columns is 0"):
        grid([plain()], columns=0)
    with pytest.raises(UserInputError, match="different sizes"):
        grid([plain(), plain(size=(5, 5))])


# Writing


def test_text_and_pixels_come_back(tmp_path):
    save_png(noise(), tmp_path / "a.png", {"seed": "7", "model": "Köln ☃"})
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"seed": "7", "model": "Köln ☃"}  # type: ignore[attr-defined]
        assert np.array_equal(np.asarray(image), np.asarray(noise()))
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.skipif(os.name == "nt", reason="modes are a POSIX matter")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save_png(plain(), tmp_path / "a.png")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == mode


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("kind", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_alone(tmp_path, monkeypatch, function, kind):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_):
        raise kind

    monkeypatch.setattr(module.os, function, fail)
    expected = KeyboardInterrupt if isinstance(kind, KeyboardInterrupt) else EnvironmentFailure
    match = None if expected is KeyboardInterrupt else "cannot write .*a.png: No space left"
    with pytest.raises(expected, match=match):
        save_png(plain(), path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("attempt", [check_writable, lambda path: save_png(plain(), path)])
def test_impossible_paths_are_refused(tmp_path, attempt):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserInputError, match="not a possible path"):
        attempt(tmp_path / "file" / "missing" / "a.png")
    with pytest.raises(UserInputError, match="it is a folder; give a file name"):
        attempt(tmp_path)
    with pytest.raises(UserInputError, match="not a possible path"):
        attempt(tmp_path / "file" / "a.png")
    with pytest.raises(UserInputError, match="file name is too long"):
        attempt(tmp_path / ("a" * 300 + ".png"))
    with pytest.raises(UserInputError, match="not a possible path"):
        attempt(tmp_path / "a\0.png")
    if os.name != "nt":
        with pytest.raises(UserInputError, match="not a regular file"):
            attempt("/dev/null")
    assert os.listdir(tmp_path) == ["file"]


def test_a_forbidden_folder_is_the_surroundings_fault(tmp_path, monkeypatch):
    # The tests may run as root, whom no mode stops: the system's refusal is played.
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.Path, "open", refuse)
    for attempt in (check_writable, lambda path: save_png(plain(), path)):
        with pytest.raises(EnvironmentFailure, match=r"cannot write .*a\.png: Permission denied"):
            attempt(tmp_path / "a.png")


def test_check_writable_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "a.png")
    check_folder(tmp_path / "new" / "deeper")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserInputError, match="file is not a folder"):
        check_folder(tmp_path / "file")
    with pytest.raises(UserInputError, match="file is not a folder"):
        check_folder(tmp_path / "file" / "below")


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(module, "_temporary", refuse)
    with pytest.raises(EnvironmentFailure) as caught:
        check_folder(tmp_path / "run")
    told = f"cannot write to the folder {tmp_path / 'run'}: Read-only file system; choose another"
    assert str(caught.value).startswith(told)


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_is_written_through(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    save_png(plain(), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink()
    assert open_image(tmp_path / "real.png").size == (4, 4)


# Reading


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    for width, height in [(14000, 14000), (12000, 8000), (9000, 9000)]:
        with pytest.raises(UserInputError, match=f"more than {MAX_PIXELS} pixels"):
            open_image(io.BytesIO(png(width, height, 8, 2, b"")))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_files_are_damaged(kind):
    data = encoded(noise(64, 64), kind)
    with pytest.raises(EnvironmentFailure, match="cannot read the image: the file is damaged"):
        open_image(io.BytesIO(data[: len(data) // 2]))


def test_a_flipped_bit_in_a_png_is_noticed():
    data = bytearray(encoded(noise(32, 32)))
    data[len(data) // 2] ^= 1
    with pytest.raises(EnvironmentFailure, match="the file is damaged"):
        open_image(io.BytesIO(data))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "PPM"])
def test_other_formats_are_read(kind):
    got = open_image(io.BytesIO(encoded(plain((255, 0, 0)), kind)))
    assert got.mode == "RGB" and got.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["ICO", "PDF", "EPS", "TGA", "JPEG2000"])
def test_formats_beyond_those_are_refused(kind):
    with pytest.raises(UserInputError, match="not a PNG, JPEG, .* or TIFF image; convert it"):
        open_image(io.BytesIO(encoded(plain(), kind)))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(tmp_path, data):
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(UserInputError, match=r"cannot read .*x\.png: it is not a PNG"):
        open_image(tmp_path / "x.png")


def test_missing_and_unreadable_files(tmp_path, monkeypatch):
    with pytest.raises(UserInputError, match="No such file or directory"):
        open_image(tmp_path / "none.png")
    with pytest.raises(UserInputError, match="Is a directory"):
        open_image(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    save_png(plain(), tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(EnvironmentFailure, match="Permission denied"):
        open_image(tmp_path / "a.png")


def test_sixteen_bit_grey_is_scaled():
    rows = b"\0" + struct.pack(">4H", 0, 257 * 100, 257 * 200, 65535)
    image = open_image(io.BytesIO(png(4, 1, 16, 0, rows)))
    assert image.mode == "RGB"
    assert np.asarray(image)[0, :, 0].tolist() == [0, 100, 200, 255]


def test_sixteen_bit_colour_keeps_its_high_bytes():
    rows = b"\0" + struct.pack(">6H", 0, 257 * 100, 65535, 257, 257 * 7, 257 * 255)
    image = open_image(io.BytesIO(png(2, 1, 16, 2, rows)))
    assert np.asarray(image).tolist() == [[[0, 100, 255], [1, 7, 255]]]


def test_palettes_grey_and_cmyk_are_converted():
    red = plain((255, 0, 0))
    assert open_image(io.BytesIO(encoded(red.convert("P")))).getpixel((0, 0)) == (255, 0, 0)
    grey = open_image(io.BytesIO(encoded(Image.new("L", (4, 4), 77))))
    assert grey.mode == "RGB" and grey.getpixel((0, 0)) == (77, 77, 77)
    one_bit = open_image(io.BytesIO(encoded(Image.new("1", (4, 4), 1))))
    assert one_bit.getpixel((0, 0)) == (255, 255, 255)
    assert open_image(io.BytesIO(encoded(Image.new("CMYK", (8, 8)), "JPEG"))).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_laid_on_white(kind):
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    image.putpixel((1, 0), (200, 0, 0, 255))
    # PNG ignores the option, WebP's colours need it.
    got = open_image(io.BytesIO(encoded(image, kind, lossless=True)))
    assert [got.getpixel((0, 0)), got.getpixel((1, 0))] == [(255, 255, 255), (200, 0, 0)]


def test_transparent_colours_are_laid_on_white():
    half = Image.new("LA", (1, 1), (0, 128))
    assert to_rgb(half).getpixel((0, 0)) == (127, 127, 127)
    palette = plain((255, 0, 0)).convert("P")
    data = encoded(palette, transparency=palette.getpixel((0, 0)))
    assert open_image(io.BytesIO(data)).getpixel((0, 0)) == (255, 255, 255)
    keyed = open_image(io.BytesIO(encoded(plain((1, 2, 3)), transparency=(1, 2, 3))))
    assert keyed.getpixel((0, 0)) == (255, 255, 255)


def test_floating_point_is_refused():
    with pytest.raises(UserInputError, match="floating point"):
        to_rgb(Image.new("F", (2, 2)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    # The reference is Pillow's own reading of the tag.
    from PIL import ImageOps

    image = noise(4, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, exif=exif)
    with Image.open(io.BytesIO(data)) as tagged:
        expected = np.asarray(ImageOps.exif_transpose(tagged))
    assert np.array_equal(np.asarray(open_image(io.BytesIO(data))), expected)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"])
def test_broken_exif_is_ignored(exif):
    image = noise()
    assert open_image(io.BytesIO(encoded(image, exif=exif))).size == image.size


def test_animations_give_their_first_frame():
    data = encoded(plain((9, 9, 9)), save_all=True, append_images=[plain((90, 90, 90))])
    assert open_image(io.BytesIO(data)).getpixel((0, 0)) == (9, 9, 9)
