"""What is read is what lies there: no other set's pixels or labels, nothing renamed or lost.

Without this a table that was moved still labels the images that it named before, birds are scored
as cats, and columns vanish without a word.
"""

import io
import json
import os
import shutil

import pytest
from PIL import Image

from hebm_sample.data.dataset import load_images
from hebm_sample.data.summary import data_line
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.held_out import open_held_out

SIZE = 8


def draw(folder, *names, shade=None):
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        value = i if shade is None else shade
        Image.new("RGB", (SIZE, SIZE), (value, 2 * value % 256, 3)).save(path)


def encoded(shade):
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def load(source, tmp_path, **options):
    options = {"size": SIZE, "cache_dir": tmp_path / "cache", "progress": False, **options}
    return load_images(source, **options)


def shades(images):
    return [int(x[0, 0, 0]) for x in images.images]


def line(images):
    return data_line("set", images, None, "")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def values(images, column="label"):
    """The column as a person reads it."""
    names = images.label_names.get(column)
    numbers = images.labels[column].tolist()
    return [None if v < 0 else v if names is None else names[v] for v in numbers]


# Of layouts that releases before read rightly: runs go on where the data's identity is the same.
IDENTITIES = {
    "flat": "d5e38ad786cc319f",
    "classes": "455b8350b58a275f",
    "digits": "0940fbacf590aa19",
    "splits": "abb6bd5ae8007aba",
    "csv": "1c17c874a97ef720",
    "classes and table": "8b42b550f1230851",
    "stylegan": "e4ecc2823f2cb6ee",
    "parquet": "3b918f7066683734",
}


def features(names, column="label"):
    described = {column: {"names": names, "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": described}})}


def write_parquet(path, columns, metadata=None):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path)


def make(layout, folder):
    names = {
        "flat": ["a.png", "b.png"],
        "classes": ["cats/a.png", "cats/b.png", "dogs/a.png"],
        "digits": [f"{i}/a.png" for i in range(12)],
        "splits": [f"{s}/{k}/a.png" for s in ("train", "test") for k in "ab"],
        "csv": ["a.png", "b.png", "c.png"],
        "classes and table": ["x/a.png", "y/b.png"],
        "stylegan": ["00000/img00000000.png", "00000/img00000001.png"],
        "parquet": ["row.png"],
    }
    draw(folder, *names[layout])
    if layout == "csv":
        write(folder / "metadata.csv", "file_name,kind,n\na.png,cup,3\nb.png,,1\nc.png,pan,\n")
    if layout == "classes and table":
        write(folder / "metadata.csv", "file_name,n\nx/a.png,3\ny/b.png,1\n")
    if layout == "stylegan":
        write(folder / "dataset.json", '{"labels":[["00000/img00000000.png",6]]}')
    if layout == "parquet":
        image = (folder / "row.png").read_bytes()
        (folder / "row.png").unlink()
        cells = [{"bytes": image, "path": "x.png"}] * 2
        columns = {"image": cells, "label": [0, 1], "t": ["q", None]}
        for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
            write_parquet(folder / f"{name}.parquet", columns, features(["a", "b"]))


@pytest.mark.parametrize("layout", IDENTITIES)
def test_a_set_is_the_one_that_it_was(tmp_path, layout):
    make(layout, tmp_path / "set")
    assert load(tmp_path / "set", tmp_path).identity.startswith(IDENTITIES[layout])


class TestCache:
    def test_a_table_that_was_moved(self, tmp_path):
        draw(tmp_path / "set", *(f"{k}/{i}.png" for k in "ab" for i in range(3)))
        write(tmp_path / "set/a/metadata.csv", "file_name,n\n0.png,5\n1.png,6\n2.png,7\n")
        assert values(load(tmp_path / "set", tmp_path), "n") == [5, 6, 7, None, None, None]
        os.rename(tmp_path / "set/a/metadata.csv", tmp_path / "set/b/metadata.csv")
        assert values(load(tmp_path / "set", tmp_path), "n") == [None, None, None, 5, 6, 7]

    @pytest.mark.parametrize("place", ["another folder", "the same folder"])
    def test_files_with_the_same_names_sizes_and_times(self, tmp_path, place):
        for name, shade in (("a", 0), ("b", 255)):
            draw(tmp_path / name, "0.bmp", "1.bmp", shade=shade)
            for path in (tmp_path / name).iterdir():
                os.utime(path, (315532800, 315532800))
        assert shades(load(tmp_path / "a", tmp_path)) == [0, 0]
        if place == "the same folder":
            shutil.rmtree(tmp_path / "a")
            (tmp_path / "b").rename(tmp_path / "a")
            for path in (tmp_path / "a").iterdir():
                os.utime(path, (315532800, 315532800))
        folder = tmp_path / ("b" if place == "another folder" else "a")
        assert shades(load(folder, tmp_path)) == [255, 255]

    def test_nothing_is_decoded_twice(self, tmp_path, monkeypatch):
        draw(tmp_path / "set", "0.png")
        load(tmp_path / "set", tmp_path)
        monkeypatch.setattr("hebm_sample.data.decoding.decode_square", None)
        (tmp_path / "link").symlink_to(tmp_path / "set")
        monkeypatch.chdir(tmp_path)
        for place in ("set", "link", "./set/", tmp_path / "set"):
            assert shades(load(place, tmp_path)) == [0]


class TestParquet:
    def test_parts_that_name_other_values(self, tmp_path):
        for i, names in enumerate((["cat", "dog"], ["dog", "cat"])):
            path = tmp_path / f"set/train-{i}.parquet"
            write_parquet(path, {"image": [encoded(1)] * 2, "label": [0, 1]}, features(names))
        message = r"train-1\.parquet calls the values of label dog, cat, .* before it cat, dog"
        with pytest.raises(UserInputError, match=message):
            load(tmp_path / "set", tmp_path)

    def test_names_of_another_column_or_too_few(self, tmp_path):
        columns = {"image": [encoded(1)] * 2, "label": ["dog", "zebra"]}
        write_parquet(tmp_path / "texts.parquet", columns, features(["cat", "dog"]))
        assert values(load(tmp_path / "texts.parquet", tmp_path)) == ["dog", "zebra"]
        columns["label"] = [0, 7]
        write_parquet(tmp_path / "more.parquet", columns, features(["cat", "dog"]))
        found = load(tmp_path / "more.parquet", tmp_path)
        assert values(found) == [0, 7] and "label has the value 7, and names of 2" in line(found)

    def test_cells_that_name_files(self, tmp_path, monkeypatch):
        rows = [{"bytes": None, "path": f"{k}.png"} for k in ("cat", "sub/dog")]
        write_parquet(tmp_path / "set/train-0.parquet", {"image": rows})
        draw(tmp_path / "set", "cat.png", "sub/dog.png", shade=10)
        draw(tmp_path / "elsewhere", "cat.png", "sub/dog.png", shade=200)
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert shades(load(tmp_path / "set", tmp_path)) == [10, 10]
        draw(tmp_path / "set", "cat.png", "sub/dog.png", shade=30)
        assert shades(load(tmp_path / "set", tmp_path)) == [30, 30]

    def test_which_column_holds_the_images(self, tmp_path):
        columns = {"mask": [encoded(1)], "Image": [encoded(100)]}
        write_parquet(tmp_path / "a.parquet", columns)
        found = load(tmp_path / "a.parquet", tmp_path)
        assert shades(found) == [100] and "not read: the columns mask" in line(found)
        columns = {"photo2": [encoded(7)], "thumb": [encoded(8)]}
        write_parquet(tmp_path / "b.parquet", columns)
        found = line(load(tmp_path / "b.parquet", tmp_path))
        assert "images of the column photo2; not read: the columns thumb" in found
        for i, name in enumerate(("image", "photo")):
            write_parquet(tmp_path / f"parts/{i}.parquet", {name: [encoded(i)]})
        with pytest.raises(UserInputError, match="are in the column image, those of .* in photo"):
            load(tmp_path / "parts", tmp_path)

    def test_columns_that_are_no_labels_are_named(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        columns = {
            "image": [{"bytes": encoded(1), "path": None, "label": 3}],
            "list": [[1, 2]],
            "struct": [{"a": 1}],
            "date": pa.array([1], pa.date32()),
            "bytes": [b"cat"],
        }
        write_parquet(tmp_path / "a.parquet", columns)
        found = line(load(tmp_path / "a.parquet", tmp_path))
        assert "not read: the columns list, struct, date, bytes, image.label" in found
        table = pa.Table.from_arrays(
            [pa.array([encoded(1)])] + [pa.array([1])] * 2, ["image", *"xx"]
        )
        pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "b.parquet")
        with pytest.raises(UserInputError, match="two columns called x"):
            load(tmp_path / "b.parquet", tmp_path)


class TestHeldOutSplit:
    def open(self, tmp_path):
        options = {"size": SIZE, "cache_dir": tmp_path / "cache", "progress": False}
        return open_held_out(tmp_path / "set", split="test", **options)

    def test_values_are_matched_by_name(self, tmp_path):
        names = [f"train/{k}/{i}.png" for k in ("cats", "dogs") for i in "12"]
        draw(tmp_path / "set", *names, *(f"test/{k}/1.png" for k in ("birds", "cats", "dogs")))
        training, held_out = self.open(tmp_path)
        assert held_out.label_names == training.label_names == {"label": ("cats", "dogs")}
        assert values(held_out) == [None, "cats", "dogs"]
        found = data_line("set", training, held_out, "the split 'test'")
        assert "7 images" in found and "3 held out, the split 'test'" in found
        assert "no training image has birds" in found and "left out" not in found

    def test_what_agrees_stays_as_it_is(self, tmp_path):
        names = ("train/a/1", "train/b/1", "train/c/1", "test/a/1", "test/b/1")
        draw(tmp_path / "set", *(f"{name}.png" for name in names))
        training, held_out = self.open(tmp_path)
        assert values(held_out) == ["a", "b"] and held_out.label_names == training.label_names
        assert held_out.identity == load(tmp_path / "set", tmp_path, split="test").identity

    def test_names_here_and_numbers_there(self, tmp_path):
        draw(tmp_path / "set", "train/1.png", "test/1.png")
        write(tmp_path / "set/train/metadata.csv", "file_name,k\n1.png,cup\n")
        write(tmp_path / "set/test/metadata.csv", "file_name,k\n1.png,1\n")
        with pytest.raises(UserInputError, match="k has names in one split .cup. and numbers in"):
            self.open(tmp_path)

    def test_damaged_images_of_both_are_counted(self, tmp_path):
        draw(tmp_path / "set", "train/1.png", "train/2.png", "test/1.png", "val/1.png")
        write(tmp_path / "set/test/2.png", "x")
        with pytest.warns(UserWarning, match="1 of 2 images"):
            sets = self.open(tmp_path)
        found = data_line("set", *sets, "the split 'test'")
        assert "left out: 1 of val/, 1 that cannot be read" in found
