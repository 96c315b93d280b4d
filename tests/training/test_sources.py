"""The originals are read as their authors publish them: LSUN's LMDBs, CelebA's attributes.

Without this attributes slide against their images or keep a third value, a torn download kills
the process, and a pickle is opened.
"""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from hebm_sample.data import source, sources
from hebm_sample.data.celeba import read_attributes
from hebm_sample.data.dataset import load_images
from hebm_sample.data.lmdb import count_values
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.presets.models import find_preset
from hebm_sample.training.label_columns import label_columns

SIZE = 8
KINDS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}


def encoded(shade: int, kind: str = "PNG", side: tuple[int, int] = (SIZE, SIZE)) -> bytes:
    file = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.new("RGB", side, (shade, shade, shade)).save(file, format=kind, **options)
    return file.getvalue()


def load(source, tmp_path, **options):
    options = {"size": SIZE, "cache_dir": tmp_path / "cache", "progress": False, **options}
    return load_images(source, **options)


def test_a_path_that_is_not_there_is_no_hubs_name(tmp_path, monkeypatch):
    """Else a slip of the finger waits for the network, and could load a stranger's data."""
    asked = []
    monkeypatch.setattr(sources, "hub_source", lambda *name: asked.append(name))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("photos/cts", "./cts", "../cts", "~/cts", ".photos/cts", tmp_path / "photos/cts"):
        with pytest.raises(UserInputError, match="no images at .*cts: give a folder"):
            load(name, tmp_path)
    sources.open_source("owner/cats", None)
    assert asked == [("owner/cats", None)]


def shades(images):
    return [int(x[0, 0, 0]) for x in images.images]


def write_lmdb(folder, values):
    lmdb = pytest.importorskip("lmdb")
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=2**22) as environment:
        with environment.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key, value)
    (folder / "lock.mdb").unlink()
    return folder


class TestLmdb:
    def values(self):
        """Keys out of order, as hashes are; every kind of image that can come."""
        kinds = ("WEBP", "PNG", "WEBP", "JPEG", "WEBP")
        keys = (b"e1", b"0c", b"a7", b"ff", b"3d")
        return {
            k: encoded(40 * i + 10, kind)
            for i, (k, kind) in enumerate(zip(keys, kinds, strict=True))
        }

    @pytest.mark.parametrize("given", ["", "data.mdb"])
    def test_rows_are_in_the_order_of_the_keys(self, tmp_path, given):
        folder = write_lmdb(tmp_path / "set", self.values())
        images = load(folder / given if given else folder, tmp_path)
        assert shades(images) == [50, 170, 90, 10, 130]
        assert images.labels == {} and images.skipped == 0
        assert [p.name for p in folder.iterdir()] == ["data.mdb"]  # nothing is left behind

    def test_memory_is_one_chunk(self, tmp_path, monkeypatch):
        monkeypatch.setattr(source, "CHUNK_ROWS", 2)
        opened = sources.open_source(write_lmdb(tmp_path / "set", self.values()), None)
        assert opened.total == 5
        assert [len(chunk.images) for chunk in opened.chunks()] == [2, 2, 1]
        assert [len(chunk.images) for chunk in opened.chunks()] == [2, 2, 1]  # a second pass

    def test_the_folder_above_lsuns_folders(self, tmp_path):
        for part, count in (("train", 5), ("val", 2)):
            values = dict(list(self.values().items())[:count])
            write_lmdb(tmp_path / f"lsun/church_outdoor_{part}_lmdb", values)
        assert len(load(tmp_path / "lsun", tmp_path)) == 5
        assert len(load(tmp_path / "lsun", tmp_path, split="val")) == 2
        with pytest.raises(
            UserInputError, match="church_outdoor_train_lmdb, .*give the folder of"
        ):
            load(tmp_path / "lsun", tmp_path, split="test")

    def test_several_sets_are_not_guessed_between(self, tmp_path):
        for name in ("tower", "bridge"):
            write_lmdb(tmp_path / f"lsun/{name}_train_lmdb", {b"0": encoded(3)})
        with pytest.raises(UserInputError, match="bridge_train_lmdb, tower_train_lmdb; give the"):
            load(tmp_path / "lsun", tmp_path)

    def test_a_value_that_is_no_image_is_counted(self, tmp_path):
        values = {**self.values(), b"aa": b"raw pixels"}
        with pytest.warns(UserWarning, match="1 of 6 images .* left out"):
            images = load(write_lmdb(tmp_path / "set", values), tmp_path)
        assert images.skipped == 1 and shades(images) == [50, 170, 90, 10, 130]

    def test_a_torn_download(self, tmp_path):
        values = {f"{i:04}".encode(): bytes(4000) for i in range(60)}
        path = write_lmdb(tmp_path / "set", values) / "data.mdb"
        path.write_bytes(path.read_bytes()[:100_000])
        with pytest.raises(EnvironmentFailure, match="is cut short: it has 100,000 of 2"):
            load(tmp_path / "set", tmp_path)
        path.write_bytes(b"not a database" * 1000)
        with pytest.raises(EnvironmentFailure, match="not a readable LMDB"):
            load(tmp_path / "set", tmp_path)

    def test_a_whole_file_is_not_called_short(self, tmp_path):
        lmdb = pytest.importorskip("lmdb")
        for count in (1, 100, 700):
            values = {f"{i:04}".encode(): bytes(3000) for i in range(count)}
            assert count_values(lmdb, write_lmdb(tmp_path / str(count), values)) == count

    def test_without_the_library(self, tmp_path, monkeypatch):
        (tmp_path / "set").mkdir()
        (tmp_path / "set/data.mdb").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "lmdb", None)
        with pytest.raises(EnvironmentFailure, match=r"lmdb.* pip install .*\[train\]"):
            load(tmp_path / "set", tmp_path)


NAMES = find_preset("celeba64").prior.symbols
HEAD = " ".join(["5_o_Clock_Shadow", *(s.name for s in NAMES)])


def write_celeba(folder, count=4, suffix=".jpg", table="list_attr_celeba.txt", first=1):
    """Images of rising shade; attribute k of image i is yes where bit k of i is set."""
    folder.mkdir(parents=True)
    lines = [str(count), HEAD + " "]
    for i in range(count):
        (folder / f"{first + i:06}{suffix}").write_bytes(encoded(60 * i, KINDS[suffix]))
        bits = [1 if i >> k & 1 else -1 for k in range(len(NAMES) + 1)]
        lines.append(f"{first + i:06}.jpg " + " ".join(f"{b:2}" for b in bits))
    (folder.parent / table).write_text("\n".join(lines) + "\n")
    return folder


class TestCelebA:
    def expected(self, count, k):
        return [i >> k & 1 for i in range(count)]

    @pytest.mark.parametrize("given", ["img_align_celeba", "."])
    def test_attributes_follow_their_images(self, tmp_path, given):
        write_celeba(tmp_path / "set/img_align_celeba")
        images = load(tmp_path / "set" / given, tmp_path)
        assert shades(images) == [0, 60, 120, 180]
        assert images.labels["5_o_Clock_Shadow"].tolist() == self.expected(4, 0)
        for k, symbol in enumerate(NAMES, start=1):
            assert images.labels[symbol.name].tolist() == self.expected(4, k)
            assert images.label_names[symbol.name] == ("no", "yes")

    def test_presets_find_their_symbols_in_them(self, tmp_path):
        images = load(write_celeba(tmp_path / "set/images"), tmp_path)
        for name in ("celeba64", "celeba64-paper"):
            with pytest.warns(UserWarning, match="no training image has Black_Hair = yes, Blond"):
                columns = label_columns(find_preset(name), images)
            assert columns == tuple(s.name for s in NAMES)

    def test_the_official_layout_and_the_png_copy(self, tmp_path):
        """Img/ beside Anno/, and names that differ in their suffix."""
        folder = write_celeba(tmp_path / "set/Img/img_align_celeba_png", suffix=".png")
        (tmp_path / "set/Anno").mkdir()
        table = folder.parent / "list_attr_celeba.txt"
        table.rename(tmp_path / "set/Anno/list_attr_celeba.txt")
        assert load(tmp_path / "set", tmp_path).labels["5_o_Clock_Shadow"].tolist() == [0, 1, 0, 1]

    def test_celeba_hq(self, tmp_path):
        folder, name = tmp_path / "set/CelebA-HQ-img", "CelebAMask-HQ-attribute-anno.txt"
        write_celeba(folder, table=name, first=0)
        big = encoded(200, "JPEG", (4 * SIZE, 4 * SIZE))
        (folder / "000009.jpg").write_bytes(big)  # in no row: unknown, not "no"
        images = load(folder, tmp_path)
        assert images.images.shape[2:] == (SIZE, SIZE)
        assert images.labels[NAMES[0].name].tolist() == [0, 0, 1, 1, -1]

    def test_a_changed_table_is_read_again(self, tmp_path):
        folder = write_celeba(tmp_path / "set/images")
        before = load(folder, tmp_path)
        table = tmp_path / "set/list_attr_celeba.txt"
        table.write_text(table.read_text().replace("000001.jpg -1", "000001.jpg  1 "))
        after = load(folder, tmp_path)
        assert after.labels["5_o_Clock_Shadow"].tolist() == [1, 1, 0, 1]
        assert before.identity != after.identity

    def test_the_table_as_csv(self, tmp_path):
        path = tmp_path / "list_attr_celeba.csv"
        path.write_text("image_id,Bangs,Male\n000001.jpg,-1,1\n\n000002.jpg,1,-1\n")
        table = read_attributes(path)
        assert table.names == ("Bangs", "Male") and table.values.tolist() == [[0, 1], [1, 0]]
        assert table.rows == {"000001": 0, "000002": 1}

    def test_a_row_that_stands_twice(self, tmp_path):
        path = tmp_path / "list_attr_celeba.csv"
        path.write_text("image_id,Bangs\n1.jpg,-1\n1.jpg,-1\n2.jpg,1\n1.png,-1\n3.jpg,-1\n")
        table = read_attributes(path)
        labels = table.columns([Path(f"{i}.jpg") for i in (1, 2, 3, 4)])
        assert labels == {"Bangs": [0, 1, 0, None]}

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("1\nMale Young\n000001.jpg 1\n", "line 3: a row needs .* 2 values"),
            ("1\nMale Young\n\n000001.jpg 1 2\n", "line 4: a row needs"),
            ("1\nMale\n1.jpg 1\n2.jpg 1\n1.png -1\n", "line 5: 1 has other values above"),
            ("1\n", "names no attributes in line 2"),
            ("", "names no attributes in line 2"),
        ],
    )
    def test_a_table_that_is_damaged(self, tmp_path, text, message):
        folder = write_celeba(tmp_path / "set/images")
        (tmp_path / "set/list_attr_celeba.txt").write_text(text)
        with pytest.raises(UserInputError, match=message):
            load(folder, tmp_path)

    def test_a_table_of_other_images(self, tmp_path):
        folder = write_celeba(tmp_path / "set/images", first=1)
        for path in folder.iterdir():
            path.rename(path.with_name("x" + path.name))
        with pytest.raises(UserInputError, match="names none of the 4 images"):
            load(tmp_path / "set", tmp_path)
        assert load(folder, tmp_path).labels == {}  # a table beside a folder need not be its own


class TestRefused:
    @pytest.mark.parametrize(
        "name", ["cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_1", "data_batch_1"]
    )
    def test_pickles_are_not_opened(self, tmp_path, name):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x80\x02.")
        given = path if name.endswith(".gz") else tmp_path / "set"
        with pytest.raises(UserInputError, match="pickles, .* --data uoft-cs/cifar10"):
            load(given, tmp_path)

    def test_archives(self, tmp_path):
        (tmp_path / "img_align_celeba.zip").write_bytes(b"PK")
        with pytest.raises(UserInputError, match="is an archive; unpack it"):
            load(tmp_path / "img_align_celeba.zip", tmp_path)
