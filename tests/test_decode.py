"""Image files as people have them: each is read as a viewer shows it, or refused in one line.

Without this a photograph lies on its side when it comes from PIL, an image with a long text is
called damaged, and one broken file ends a training run with a traceback.
"""

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from hebm_sample.data.dataset import load_images
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.io import decode
from hebm_sample.io.images import open_image, prepare, upright

SIZE = 16


def noise(width=24, height=16, mode="RGB", seed=0):
    shape = (height, width, len(mode)) if len(mode) > 1 else (height, width)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), mode)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def png(width, height, depth, colour, rows, chunks=()):
    """A PNG of these bytes per row, with right checksums."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    packed = zlib.compress(b"".join(b"\0" + row for row in rows))
    body = [chunk(b"IHDR", head), *(chunk(k, b) for k, b in chunks), chunk(b"IDAT", packed)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + chunk(b"IEND", b"")


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
    def test_an_opened_image_is_read_as_its_file(self, orientation, mode):
        data = encoded(noise(mode=mode), exif=turned(orientation))
        with Image.open(io.BytesIO(data)) as opened:
            expected = prepare(ImageOps.exif_transpose(opened), SIZE)
            assert (prepare(opened, SIZE) == expected).all()
        assert (prepare(io.BytesIO(data), SIZE) == expected).all()
        # What is upright already is not turned once more.
        assert (prepare(open_image(io.BytesIO(data)), SIZE) == expected).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_upright_is_idempotent(self, orientation):
        with Image.open(io.BytesIO(encoded(noise(), exif=turned(orientation)))) as opened:
            once = upright(opened)
            assert upright(once).tobytes() == once.tobytes()
            assert once.tobytes() == ImageOps.exif_transpose(opened).tobytes()


class TestTransparency:
    @pytest.mark.parametrize("depth", [8, 16])
    def test_one_grey_value(self, depth):
        code, low, high = (">B", 0, 100) if depth == 8 else (">H", 257, 257 * 100)
        row = struct.pack(code, low) + struct.pack(code, high)
        data = png(2, 1, depth, 0, [row], [(b"tRNS", struct.pack(">H", low))])
        image = open_image(io.BytesIO(data))
        assert [image.getpixel((x, 0))[0] for x in (0, 1)] == [255, 100]
        with Image.open(io.BytesIO(data)) as opened:
            assert (prepare(opened, 1) == prepare(image, 1)).all()

    @pytest.mark.parametrize("depth", [8, 16])
    def test_one_colour(self, depth):
        scale, code = (1, ">3B") if depth == 8 else (257, ">3H")
        clear, other = (10, 20, 30), (200, 100, 50)
        row = b"".join(struct.pack(code, *(scale * v for v in c)) for c in (clear, other))
        chunk = struct.pack(">3H", *(scale * v for v in clear))
        image = open_image(io.BytesIO(png(2, 1, depth, 2, [row], [(b"tRNS", chunk)])))
        assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), other]


class TestExtras:
    """Texts and profiles are not read, so their size says nothing about the image."""

    def much_text(self, **options):
        info = PngImagePlugin.PngInfo()
        info.add_text("parameters", "x" * (3 << 20), **options)
        return {"pnginfo": info}

    def large_profile(self):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        return {"icc_profile": profile + b"\0" * (3 << 20)}

    @pytest.mark.parametrize("kind", ["zip", "plain", "profile", "both"])
    def test_an_image_like_any_other(self, kind):
        options = {
            "zip": self.much_text(zip=True),
            "plain": self.much_text(),
            "profile": self.large_profile(),
            "both": self.much_text(zip=True) | self.large_profile(),
        }[kind]
        image = noise()
        data = encoded(image, exif=turned(3), **options)
        assert (
            open_image(io.BytesIO(data)).tobytes()
            == ImageOps.flip(ImageOps.mirror(image)).tobytes()
        )

    def test_a_damaged_one_is_still_damaged(self):
        data = encoded(noise(200, 200), **self.much_text(zip=True))
        with pytest.raises(EnvironmentFailure, match="the file is damaged"):
            open_image(io.BytesIO(data[: len(data) // 2]))


class TestBroken:
    def test_a_palette_image_without_a_palette(self, tmp_path):
        data = png(4, 4, 8, 3, [bytes(4)] * 4)
        with pytest.raises(EnvironmentFailure, match="the file is damaged") as caught:
            open_image(io.BytesIO(data))
        assert "\n" not in str(caught.value)
        (tmp_path / "set").mkdir()
        noise().save(tmp_path / "set/a.png")
        (tmp_path / "set/b.png").write_bytes(data)
        with pytest.warns(UserWarning, match="1 of 2 images .* left out; row 1: .*damaged"):
            found = load_images(
                tmp_path / "set", size=8, cache_dir=tmp_path / "cache", progress=False
            )
        assert len(found) == 1 and found.left_out == {"that cannot be read": 1}

    @pytest.mark.parametrize(
        "error",
        [AssertionError(), IndexError("x"), KeyError(1), RuntimeError("a\nb"), TypeError()]
        + [OverflowError("big"), ZeroDivisionError(), RecursionError(), NotImplementedError("x")],
    )
    def test_whatever_a_decoder_raises(self, monkeypatch, error):
        def fails(*_, **__):
            raise error

        monkeypatch.setattr(Image.Image, "convert", fails)
        with pytest.raises(
            EnvironmentFailure, match="^cannot read the image: the file is dam"
        ) as caught:
            open_image(io.BytesIO(encoded(noise(mode="L"))))
        assert "\n" not in str(caught.value)

    def test_no_memory_is_not_damage(self, monkeypatch):
        def fails(*_, **__):
            raise MemoryError

        monkeypatch.setattr(Image.Image, "convert", fails)
        with pytest.raises(EnvironmentFailure, match="more memory than there is"):
            open_image(io.BytesIO(encoded(noise(mode="L"))))

    def test_a_failing_disk_is_not_damage(self, monkeypatch):
        def fails(*_, **__):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(Image, "open", fails)
        with pytest.raises(EnvironmentFailure, match="image: Input/output error$"):
            open_image(io.BytesIO(b""))


class Stream(io.RawIOBase):
    """Bytes that come once."""

    def __init__(self, data):
        self.file = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.file.readinto(buffer)


class TestStreams:
    def test_a_file_that_cannot_seek(self):
        image = noise()
        assert open_image(io.BufferedReader(Stream(encoded(image)))).tobytes() == image.tobytes()

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names there")
    @pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
    def test_a_pipe(self, tmp_path, kind):
        path, image = tmp_path / "pipe", noise(8, 8)
        os.mkfifo(path)
        data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
        writer = threading.Thread(target=path.write_bytes, args=(data,), daemon=True)
        writer.start()
        assert open_image(path).tobytes() == image.tobytes()
        writer.join(10)

    def test_an_endless_one_is_refused(self, monkeypatch):
        monkeypatch.setattr(decode, "MAX_STREAM_BYTES", 100)
        with pytest.raises(UserInputError, match="more than 100 bytes; save it as a file"):
            open_image(io.BufferedReader(Stream(bytes(1000))))


class TestMemory:
    @pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "grey16"])
    def test_strips_make_the_same_image(self, kind, monkeypatch):
        image = noise(9, 7, "RGBA")
        if kind == "P":
            image = image.convert("L").quantize(8)
        elif kind == "grey16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 251)
        else:
            image = image.convert(kind)
        data = encoded(image, **({"transparency": 3} if kind == "P" else {}))
        whole = open_image(io.BytesIO(data))
        for pixels in (1, 20):
            monkeypatch.setattr(decode, "_STRIP_PIXELS", pixels)
            assert open_image(io.BytesIO(data)).tobytes() == whole.tobytes()

    def test_large_images_are_decoded_one_at_a_time(self, monkeypatch):
        monkeypatch.setattr(decode, "_LARGE_PIXELS", 100)
        real, at_once, most = Image.Image.convert, [], []

        def watched(image, *args, **options):
            at_once.append(1)
            most.append(len(at_once))
            threading.Event().wait(0.02)
            at_once.pop()
            return real(image, *args, **options)

        monkeypatch.setattr(Image.Image, "convert", watched)
        for size, alone in ((20, True), (4, False)):
            most.clear()
            data = encoded(noise(size, size, "L"))
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(open_image, [io.BytesIO(data) for _ in range(8)]))
            assert (max(most) == 1) is alone

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["RGBA", "I;16"])
    def test_the_largest_takes_less_than_a_gibibyte(self, mode, tmp_path):
        pytest.importorskip("resource")
        path = tmp_path / "a.png"
        whole = Image.new("L", (8192, 8192), 77)
        if mode == "I;16":
            whole = Image.fromarray(np.full((8192, 8192), 777, np.uint16))
        whole = whole.convert(mode)
        whole.save(path, compress_level=1)
        lines = (
            "import resource, sys\n"
            "from hebm_sample.data.decoding import decode_square\n"
            "from pathlib import Path\n"
            "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "before, square = peak(), decode_square(Path(sys.argv[1]), 64)\n"
            "assert square.shape == (3, 64, 64), square\n"
            "print((peak() - before) * (1 if sys.platform == 'darwin' else 1024))\n"
        )
        words = [sys.executable, "-c", lines, str(path)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 2**30


def tiff(values, **tags):
    """A TIFF of grey numbers, with these values of its tags in place of Pillow's."""
    data = bytearray(encoded(Image.fromarray(values), "TIFF", tiffinfo={274: 1}))
    start = struct.unpack("<I", data[4:8])[0]
    for i in range(struct.unpack("<H", data[start : start + 2])[0]):
        entry = start + 2 + 12 * i
        (tag,) = struct.unpack("<H", data[entry : entry + 2])
        if f"tag{tag}" in tags:
            data[entry + 8 : entry + 10] = struct.pack("<H", tags[f"tag{tag}"])
    return bytes(data)


class TestGrey:
    """Of more than 8 bits: the range is known, or the image is refused."""

    @pytest.mark.parametrize(("photometric", "light"), [(0, 255 - 233), (1, 233)])
    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    def test_white_is_zero(self, kind, photometric, light):
        values = np.full((4, 4), 233 * (257 if kind == np.uint16 else 1), kind)
        data = tiff(values, tag262=photometric)
        assert open_image(io.BytesIO(data)).getpixel((1, 1)) == (light,) * 3
        with Image.open(io.BytesIO(data)) as opened:
            assert (prepare(opened, 4) == prepare(io.BytesIO(data), 4)).all()

    @pytest.mark.parametrize("kind", [np.uint8, np.uint16])
    def test_on_its_side(self, kind):
        values = np.arange(16, dtype=kind).reshape(4, 4) * (4000 if kind == np.uint16 else 16)
        data = tiff(values, tag262=0, tag274=6)
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.getexif()[274] == 6
            assert (prepare(opened, 4) == prepare(io.BytesIO(data), 4)).all()
        corners = open_image(io.BytesIO(data)).getchannel(0)
        assert corners.getpixel((3, 0)) == 255 and corners.getpixel((3, 3)) > 200

    @pytest.mark.parametrize("value", [200, 2**30, -5])
    def test_numbers_of_32_bits_are_refused(self, value):
        data = tiff(np.full((4, 4), value, np.int32))
        with pytest.raises(UserInputError, match="whole numbers of 32 bits, or negative ones"):
            open_image(io.BytesIO(data))

    def test_an_image_in_memory(self):
        assert (prepare(Image.fromarray(np.full((4, 4), 65535, np.int32)), 4) == 1).all()
        for value in (-1, 65536):
            with pytest.raises(UserInputError, match="convert it to 8-bit RGB first"):
                prepare(Image.fromarray(np.full((4, 4), value, np.int32)), 4)

    def test_twelve_bits(self):
        row = bytes([0xFF, 0xF0, 0x00])  # 4095, 0
        head = struct.pack("<2sHI", b"II", 42, 8)
        tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1)]
        tags.append((279, 3))
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        data = head + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + row
        image = open_image(io.BytesIO(data))
        assert [image.getpixel((x, 0))[0] for x in (0, 1)] == [255, 0]
