"""Whatever lies in a data folder ends in images that are right, or in one line.

Images whose checksums were put right again, tables and parquet files are damaged at random places;
what could be read before must come out as it was, nothing ends in a traceback, and no file takes
memory out of proportion.

`HEBM_FUZZ_SECONDS` sets the length of the slow tests together, 60 if it is not set; with it the
examples are others at every run.
"""

import io
import json
import os
import struct
import sys
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from hebm_sample.data.dataset import load_images
from hebm_sample.errors import HebmError

SECONDS = float(os.environ.get("HEBM_FUZZ_SECONDS", "60"))
SEED = None if "HEBM_FUZZ_SECONDS" in os.environ else 0
MOST_MEMORY = 2**30  # bytes beyond what the process had before; what one large image may take
SIZE = 8


def encoded(kind, seed, mode="RGB", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(out, kind, **options)
    return out.getvalue()


GOOD = [encoded("PNG", i) for i in range(3)]
IMAGES = {
    ".png": [encoded("PNG", 5), encoded("PNG", 6, "P"), encoded("PNG", 7, "LA")],
    ".jpg": [encoded("JPEG", 8), encoded("JPEG", 9, "L", progressive=True)],
    ".webp": [encoded("WEBP", 10), encoded("WEBP", 11, lossless=True)],
    ".gif": [encoded("GIF", 12, "P")],
    ".bmp": [encoded("BMP", 13), encoded("BMP", 14, "1")],
    ".tiff": [encoded("TIFF", 15), encoded("TIFF", 16, compression="tiff_lzw")],
    ".ppm": [encoded("PPM", 17)],
}
TABLES = {
    "metadata.csv": b"file_name,a,b\n0.png,1,x\n1.png,2.0,y\n2.png,,z\n",
    "metadata.jsonl": b'{"file_name": "0.png", "a": 1, "b": "x"}\n'
    b'{"file_name": "1.png", "a": 2.0, "b": null}\n{"file_name": "2.png", "a": 3}\n',
    "dataset.json": b'{"labels": [["0.png", 1], ["1.png", 2], ["2.png", 0]]}',
    "list_attr_celeba.txt": b"3\nSmiling Male\n0.png -1 1\n1.png 1 1\n2.png -1 -1\n",
    "list_attr_celeba.csv": b"image_id,Smiling,Male\n0.png,-1,1\n1.png,1,1\n2.png,-1,-1\n",
}
# What tables are made of, and what they should not be.
PIECES = (
    *(
        b"",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r",
        b'"',
        b",",
        b"{",
        b"[",
        b"]",
        b"null",
    ),
    *(b"NaN", b"Infinity", b"1e999", b"-1", b"9" * 400, b"0.png", b"../0.png", b"\\", b"/", b"{}"),
    *(b"true", b"[" * 3000, b"\xe9", "\u2028".encode(), b"file_name", b"label"),
)


def damaged(random, data, pieces=()):
    """A few bytes taken out and others put in their place."""
    for _ in range(random.integers(1, 5)):
        at = int(random.integers(0, len(data) + 1))
        until = min(len(data), at + int(random.integers(0, 6)))
        new = random.bytes(int(random.integers(0, 6)))
        if pieces and random.random() < 0.8:
            new = pieces[random.integers(len(pieces))]
        data = data[:at] + new + data[until:]
    return data


def with_right_sums(data):
    """A PNG whose chunks have the checksums of what they hold: else the reader stops there."""
    out, at = data[:8], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunk = data[at + 4 : at + 8 + size]
        out += data[at : at + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + size
    return out


def write_images(random, folder):
    """Good images, and damaged ones beside them."""
    for i, data in enumerate(GOOD):
        (folder / f"{i}.png").write_bytes(data)
    for i in range(10):
        suffix = list(IMAGES)[random.integers(len(IMAGES))]
        data = damaged(random, IMAGES[suffix][random.integers(len(IMAGES[suffix]))])
        if suffix == ".png" and random.random() < 0.8:
            data = with_right_sums(data)
        (folder / f"x{i}{suffix}").write_bytes(data)


def write_tables(random, folder):
    """Good images with a damaged table."""
    for i, data in enumerate(GOOD):
        (folder / f"{i}.png").write_bytes(data)
    name = list(TABLES)[random.integers(len(TABLES))]
    (folder / name).write_bytes(damaged(random, TABLES[name], PIECES))


def write_parquet(random, folder):
    """A file whose header, pages or footer were damaged."""
    data = bytearray(_parquet())
    length = int.from_bytes(data[-8:-4], "little")
    places = [(0, 64), (len(data) - 8 - length, len(data)), (0, len(data))]
    low, high = places[random.integers(len(places))]
    for _ in range(random.integers(1, 4)):
        data[random.integers(low, high)] = random.integers(256)
    (folder / "a.parquet").write_bytes(bytes(data))


def _parquet(made=[]):  # noqa: B006
    if not made:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        features = {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}
        table = pa.table(
            {"image": [{"bytes": x, "path": None} for x in GOOD], "label": [0, 1, 0]}
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        out = io.BytesIO()
        pq.write_table(table, out)
        made.append(out.getvalue())
    return made[0]


def load(folder, cache):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_images(folder, size=SIZE, cache_dir=cache, progress=False)


def one_line(text):
    return text.isprintable() and len(text) < 3000


def check(folder, cache, good):
    """The set, or None where it is refused; good images are as they are alone."""
    try:
        found = load(folder, cache)
    except HebmError as error:
        assert one_line(str(error)), str(error)
        return None
    assert all(len(column) == len(found) for column in found.labels.values())
    if good is not None:
        assert np.array_equal(found.images[:3], good)
    return found


def memory():
    """The most bytes that this process has had."""
    resource = pytest.importorskip("resource")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


KINDS = {"images": write_images, "tables": write_tables, "parquet": write_parquet}


def fuzz(kind, home, seconds, rounds):
    """(rounds, how many of them were read) of at most so many rounds and seconds."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    random, read, done = np.random.default_rng(SEED), 0, 0
    (home / "good").mkdir()
    for i, data in enumerate(GOOD):
        (home / "good" / f"{i}.png").write_bytes(data)
    good = np.array(load(home / "good", home / "cache").images)
    before, end = memory(), time.monotonic() + seconds
    while done < rounds and time.monotonic() < end:
        folder = home / "data"
        folder.mkdir()
        KINDS[kind](random, folder)
        try:
            found = check(folder, home / "cache", None if kind == "parquet" else good)
        except BaseException:
            print("kept for you to look at:", folder)
            raise
        read, done = read + (found is not None), done + 1
        _empty(folder)
        _empty(home / "cache" / "images")
        assert memory() - before < MOST_MEMORY
    return done, read


def _empty(folder):
    for path in sorted(folder.rglob("*"), reverse=True) if folder.exists() else ():
        path.rmdir() if path.is_dir() else path.unlink()
    if folder.exists():
        folder.rmdir()


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_data_is_read_right_or_refused(kind, tmp_path):
    done, read = fuzz(kind, tmp_path, 20, rounds=25)
    assert done and read


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fuzzed_data(kind, tmp_path):
    done, read = fuzz(kind, tmp_path, SECONDS / len(KINDS), rounds=10**9)
    print(f"{kind}: {done} rounds, {read} read")
    assert 0 < read
