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
from plain_images import SIZE, draw, load, shades

from hebm_sample.data.summary import data_line
from hebm_sample.errors import HebmError, UserInputError
from hebm_sample.evaluation.held_out import open_held_out


def encoded(shade):
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


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

    def test_cells_that_lead_out_of_the_folder(self, tmp_path):
        """Nor is a pipe, which would be waited for, or a device."""
        draw(tmp_path / "private", "cat.png", shade=200)
        draw(tmp_path / "set", "own.png", "up..png", shade=10)
        paths = [str(tmp_path / "private/cat.png"), "../private/cat.png", "/dev/zero"]
        if hasattr(os, "mkfifo"):
            os.mkfifo(tmp_path / "set/pipe.png")
            paths.append("pipe.png")
        cells = [{"bytes": None, "path": p} for p in ("own.png", *paths, "up..png")]
        write_parquet(tmp_path / "set/train-0.parquet", {"image": cells})
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [10, 10]
        assert sum(found.left_out.values()) >= len(paths)

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

    def test_what_lies_beside(self, tmp_path):
        rows = [{"bytes": None, "path": "cat.png"}]
        write_parquet(tmp_path / "set/train-0.parquet", {"image": rows})
        draw(tmp_path / "set", "cat.png", "other.png")
        write(tmp_path / "set/metadata.csv", "file_name,k\ncat.png,1\n")
        found = load(tmp_path / "set", tmp_path)
        assert found.left_out == {"beside the parquet files": 1, ".csv": 1}

    def test_columns_of_the_hub(self, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets")
        images = {k: [{"bytes": encoded(v), "path": None}] for k, v in (("mask", 1), ("image", 9))}
        table = datasets.Dataset.from_dict(
            {**images, "boxes": [[1, 2]]},
            features=datasets.Features(
                {
                    **{name: datasets.Image() for name in images},
                    "boxes": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )
        monkeypatch.setattr(datasets, "load_dataset", lambda name, split: table)
        found = load("someone/pets", tmp_path)
        assert shades(found) == [9] and "not read: the columns mask, boxes" in line(found)

    def test_cells_of_the_hub_that_name_files_of_this_machine(self, tmp_path, monkeypatch):
        """Only what its client has fetched is of the set."""
        datasets = pytest.importorskip("datasets")
        draw(tmp_path / "fetched", "own.png", shade=10)
        draw(tmp_path / "private", "mine.png", shade=200)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "fetched")
        paths = [str(tmp_path / p) for p in ("fetched/own.png", "private/mine.png", "fetched")]
        rows = [{"bytes": None, "path": p} for p in (*paths, "private/mine.png")]
        features = datasets.Features({"image": datasets.Image()})
        table = datasets.Dataset.from_dict({"image": rows}, features=features)
        monkeypatch.setattr(datasets, "load_dataset", lambda name, split: table)
        monkeypatch.chdir(tmp_path)
        assert shades(load("someone/pets", tmp_path)) == [10]


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

    def test_a_held_out_file_is_not_left_out(self, tmp_path):
        for i, name in enumerate(("train", "test", "val")):
            columns = {"image": [encoded(i)] * (i + 1)}
            write_parquet(tmp_path / f"set/{name}-0.parquet", columns)
        found = data_line("set", *self.open(tmp_path), "the split 'test'")
        assert "3 images" in found and "left out: 1 .parquet of other splits" in found

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


class TestFolderNames:
    @pytest.mark.parametrize(
        "names",
        [("007", "7", "8"), ("1", "1.0", "2"), ("-1", "0", "1"), ("0", "1", "none")]
        + [(" ", "a", "b"), ("1", "2", "20240101120000"), ("NaN", "cup"), ("+1", "1")],
    )
    def test_a_folder_s_name_is_a_text(self, tmp_path, names):
        draw(tmp_path / "set", *(f"{name}/0.png" for name in names))
        assert sorted(values(load(tmp_path / "set", tmp_path))) == sorted(names)

    def test_numbers_that_are_counted_stay_numbers(self, tmp_path):
        draw(tmp_path / "set", *(f"{i}/0.png" for i in (0, 2, 10)))
        found = load(tmp_path / "set", tmp_path)
        assert sorted(values(found)) == [0, 2, 10] and found.label_names == {}

    @pytest.mark.parametrize(
        "names",
        [
            ("00000/img00000000.png", "00001/img00001000.png"),
            ("00000/00007.png", "01000/01003.png"),
        ],
    )
    def test_parts_of_a_set_are_no_classes(self, tmp_path, names):
        draw(tmp_path / "set", *names)
        found = load(tmp_path / "set", tmp_path)
        assert found.labels == {} and "number parts of the set" in line(found)

    def test_numbered_classes_are_classes(self, tmp_path):
        draw(tmp_path / "set", "00000/00000_00001.png", "00001/00000_00001.png")  # GTSRB
        assert values(load(tmp_path / "set", tmp_path)) == ["00000", "00001"]


class TestSplits:
    @pytest.mark.parametrize(
        ("train", "other"),
        [("train2017", "val2017"), ("trainA", "testA"), ("train_images", "test_images")]
        + [("trainset", "testset"), ("Train-Set", "Val-Set"), ("cats_train", "cats_test")]
        + [("train", "test_images"), ("train2017", "val2014")],
    )
    def test_folders_with_more_than_the_word(self, tmp_path, train, other):
        draw(tmp_path / "set", f"{train}/0.png", f"{train}/1.png", f"{other}/2.png")
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [0, 1] and found.left_out == {f"of {other}/": 1}
        split = "test" if "test" in other else "val"
        assert shades(load(tmp_path / "set", tmp_path, split=split)) == [2]

    @pytest.mark.parametrize(
        "names",
        [("passenger train", "tram"), ("train station", "bullet train"), ("latest", "trained")],
    )
    def test_classes_with_such_a_word(self, tmp_path, names):
        draw(tmp_path / "set", *(f"{name}/0.png" for name in names))
        assert sorted(values(load(tmp_path / "set", tmp_path))) == sorted(names)

    @pytest.mark.parametrize(
        ("names", "seen"),
        [
            (("trainA", "trainB", "testA", "testB"), "holds testA/, testB/, trainA/, trainB/"),
            (("cats_train", "cats_test", "dogs_train", "dogs_test"), "holds cats_test/, cats_tr"),
            (
                ("train_images", "test_images", "masks"),
                "train_images/ and test_images/ beside mas",
            ),
            (("cats/train", "cats/test", "dogs/train", "dogs/test"), "holds cats/test/, cats/tr"),
            (("images/train", "images/val", "masks/train", "masks/val"), "holds images/train/"),
            (("train", "train/test"), "holds train/test/"),
            (("train/train", "train/test", "test"), "holds train/test/, train/train/"),
            (("cats", "cats/test", "dogs"), "holds cats/test/"),
        ],
    )
    def test_what_is_not_guessed(self, tmp_path, names, seen):
        draw(tmp_path / "set", *(f"{name}/0.png" for name in names))
        with pytest.raises(UserInputError, match=f"{seen}.*give the folder of one"):
            load(tmp_path / "set", tmp_path)

    def test_splits_by_their_own_names_come_first(self, tmp_path):
        names = ("train", "test", "train_masks", "test_masks")
        draw(tmp_path / "set", *(f"{name}/0.png" for name in names))
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [0] and sum(found.left_out.values()) == 3
        draw(tmp_path / "inner", *(f"train/{k}/0.png" for k in ("class_dev", "class_test", "x")))
        assert len(load(tmp_path / "inner", tmp_path).label_names["label"]) == 3

    def test_what_is_asked_for_by_its_name_is_not_asked_about(self, tmp_path):
        names = ("train_images", "test_images", "masks", "trainA", "trainB")
        draw(tmp_path / "set", *(f"{name}/0.png" for name in names))
        for i, name in enumerate(names):
            assert shades(load(tmp_path / "set", tmp_path, split=name)) == [i]

    def test_a_class_in_a_split_that_is_called_like_one(self, tmp_path):
        draw(tmp_path / "set", *(f"train/{k}/0.png" for k in ("bus", "test", "tram")), "val/0.png")
        assert values(load(tmp_path / "set", tmp_path)) == ["bus", "test", "tram"]

    @pytest.mark.parametrize("name", ["{}_1", "1_{}", "{}set_1", "cat-{}-1", "{}2017_1"])
    def test_file_names(self, tmp_path, name):
        draw(tmp_path / "set", *(f"{name.format(s)}.png" for s in ("train", "test")))
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [0] and found.left_out == {"of split test": 1}

    @pytest.mark.parametrize(
        ("train", "other"),
        [("trainset", "testset"), ("train2017/0", "val2017/0"), ("trainA", "testA")],
    )
    def test_parquet(self, tmp_path, train, other):
        for shade, name in ((1, train), (2, other)):
            write_parquet(tmp_path / f"set/{name}.parquet", {"image": [encoded(shade)]})
        assert shades(load(tmp_path / "set", tmp_path)) == [1]

    @pytest.mark.parametrize("name", ["train/0000", "train-00000-of-00001"])
    def test_parquet_of_two_configurations(self, tmp_path, name):
        for kind in ("fine", "coarse"):
            write_parquet(tmp_path / f"set/{kind}/{name}.parquet", {"image": [encoded(1)]})
        with pytest.raises(UserInputError, match="same names in coarse/, fine/"):
            load(tmp_path / "set", tmp_path)
        assert len(load(tmp_path / "set/fine", tmp_path)) == 1
        for place in ("", "default/"):
            write_parquet(tmp_path / f"one/{place}{name}.parquet", {"image": [encoded(1)]})
        assert len(load(tmp_path / "one", tmp_path)) == 2


class TestTables:
    def refused(self, tmp_path, text, message, name="metadata.csv"):
        draw(tmp_path / "set", "a.png", "b.png", "c.png")
        write(tmp_path / "set" / name, text)
        with pytest.raises(UserInputError, match=message):
            load(tmp_path / "set", tmp_path)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("file_name,kind,n\na.png,red, big,3\nb.png,blue,2\n", "line 2: 4 cells under 3 colu"),
            ("file_name,k,k\na.png,1,2\n", "two columns called k"),
            ("file_name,k, k\na.png,1,2\n", "two columns called k"),
            ('file_name,k\na.png,"cup\nb.png,plate\nc.png,cup\n', "could not be read: unexpected"),
        ],
    )
    def test_csv_that_says_two_things(self, tmp_path, text, message):
        self.refused(tmp_path, text, message)

    def test_keys_that_stand_twice(self, tmp_path):
        text = '{"file_name": "a.png", "k": 1, "k": 2}\n'
        self.refused(tmp_path, text, "line 1: not JSON .'k' stands twice", "metadata.jsonl")

    @pytest.mark.parametrize(
        ("text", "read"),
        [
            ("file_name, k, n\na.png, cup, 1\nb.png,cup,2\n", ["cup", "cup", None]),
            ("file_name,k\na.png,cup\nb.png,NaN\nc.png,Nan\n", ["cup", None, "Nan"]),
            ("file_name,k,\na.png,cup,\nb.png, cup\n", ["cup", " cup", None]),
            (",file_name,k\n0,a.png,cup\n", ["cup", None, None]),
            ('file_name,k\na.png,"red, big"\nb.png,5" disk\n', ["red, big", '5" disk', None]),
        ],
    )
    def test_csv_that_says_one(self, tmp_path, text, read):
        draw(tmp_path / "set", "a.png", "b.png", "c.png")
        write(tmp_path / "set/metadata.csv", text)
        assert values(load(tmp_path / "set", tmp_path), "k") == read

    def test_a_damaged_dataset_json(self, tmp_path):
        self.refused(tmp_path, '{"labels": [["a.png", 1], ["b', "is not JSON", "dataset.json")

    @pytest.mark.parametrize(
        ("place", "text"),
        [
            ("metadata.jsonl", '{"file_name": "cats/0.png", "caption": "hi"}\n'),
            ("cats/metadata.jsonl", '{"file_name": "0.png", "n": 1}\n'),
            ("metadata.jsonl", "\n"),
            ("metadata.csv", ""),
        ],
    )
    def test_a_table_that_says_little_leaves_the_classes(self, tmp_path, place, text):
        draw(tmp_path / "set", "cats/0.png", "dogs/0.png")
        write(tmp_path / "set" / place, text)
        found = load(tmp_path / "set", tmp_path)
        assert values(found) == ["cats", "dogs"]
        assert text.strip() or f"{place} has no rows" in line(found)

    def test_a_whole_table_is_what_counts(self, tmp_path):
        draw(tmp_path / "set", "cats/0.png", "dogs/0.png")
        write(tmp_path / "set/metadata.csv", "file_name,n\ncats/0.png,1\ndogs/0.png,2\n")
        found = load(tmp_path / "set", tmp_path)
        assert list(found.labels) == ["n"] and "the folders' names are no labels" in line(found)

    def test_a_column_s_name_that_is_no_text(self, tmp_path):
        draw(tmp_path / "set", "a.png")
        write(tmp_path / "set/metadata.jsonl", '{"file_name": "a.png", "\\ud800": 1}\n')
        assert "?: 1 value (1)" in line(load(tmp_path / "set", tmp_path))


CELEBA = "2\nSmiling Male\n000001.jpg 1 1\n000002.jpg -1 1\n"


class TestCelebA:
    def test_rows_that_follow_each_other(self, tmp_path):
        draw(tmp_path / "set", "1.png")
        write(tmp_path / "set/list_attr_celeba.txt", "2\nSmiling\n1.png 1\n1.png -1\n")
        with pytest.raises(UserInputError, match="line 4: 1 has other values above"):
            load(tmp_path / "set", tmp_path)

    def test_a_table_beside_the_folder(self, tmp_path):
        write(tmp_path / "list_attr_celeba.txt", CELEBA)
        draw(tmp_path / "images", "000001.jpg", "000002.jpg")
        found = load(tmp_path / "images", tmp_path)
        assert values(found, "Smiling") == ["yes", "no"]
        assert "attributes of list_attr_celeba.txt beside the folder" in line(found)
        # Where another folder says that it is CelebA's, these are not.
        draw(tmp_path / "img_align_celeba", "000001.jpg")
        found = load(tmp_path / "images", tmp_path)
        assert found.labels == {} and "list_attr_celeba.txt beside the folder is not read" in line(
            found
        )
        assert "Smiling" in load(tmp_path / "img_align_celeba", tmp_path).labels

    def test_classes_come_first(self, tmp_path):
        write(tmp_path / "list_attr_celeba.txt", CELEBA)
        draw(tmp_path / "p", *(f"{k}/{n}.jpg" for k in ("cats", "dogs") for n in ("000001", "x")))
        found = load(tmp_path / "p", tmp_path)
        assert list(found.labels) == ["label"] and "beside the folder is not read" in line(found)


class TestFiles:
    def write_lmdb(self, folder, shades):
        lmdb = pytest.importorskip("lmdb")
        folder.mkdir(parents=True)
        with lmdb.open(str(folder), map_size=2**20) as opened, opened.begin(write=True) as begun:
            for i, shade in enumerate(shades):
                begun.put(b"%d" % i, encoded(shade))

    def test_what_lies_beside_an_lmdb(self, tmp_path):
        self.write_lmdb(tmp_path / "set/x_train_lmdb", (1, 2))
        self.write_lmdb(tmp_path / "set/x_val_lmdb", (3,))
        draw(tmp_path / "set", "0.png", "1.png")
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [1, 2]
        others = {"LMDB that is another": 1, "images beside the LMDB": 2}
        assert found.left_out == others
        write(tmp_path / "set/metadata.csv", "file_name,k\n0.png,1\n")
        assert load(tmp_path / "set", tmp_path).left_out == others | {".csv": 1}

    def test_what_is_no_lmdb_of_images(self, tmp_path):
        self.write_lmdb(tmp_path / "set/.cache", (1, 2))
        draw(tmp_path / "set", "0.png")
        write(tmp_path / "set/sub/data.mdb", "\0\1\0\0Standard Jet DB" + " " * 40)
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [0] and found.left_out == {".mdb": 1}

    def test_archives_alone_are_named(self, tmp_path):
        write(tmp_path / "set/a.tar", "x")
        with pytest.raises(UserInputError, match=r"archives .a\.tar.; unpack them"):
            load(tmp_path / "set", tmp_path)

    @pytest.mark.skipif(os.name == "nt", reason="links need rights there")
    def test_links_to_nothing_and_pipes_are_counted(self, tmp_path):
        draw(tmp_path / "set", "a.png")
        (tmp_path / "set/b.png").symlink_to("/nonexistent/x.png")
        (tmp_path / "set/c.png").symlink_to("c.png")
        os.mkfifo(tmp_path / "set/d.png")
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [0]
        assert found.left_out == {"that are no files, or links to nothing": 3}
        (tmp_path / "set/metadata.csv").symlink_to("/nonexistent/x.csv")
        with pytest.raises(UserInputError, match=r"metadata\.csv cannot be read: it is a link"):
            load(tmp_path / "set", tmp_path)

    @pytest.mark.skipif(os.name == "nt", reason="links need rights there")
    def test_folders_that_link_to_each_other_are_read_once(self, tmp_path):
        for i in range(7):
            draw(tmp_path / "set", f"{i}/x.png", shade=i)
            for j in range(7):
                if i != j:
                    (tmp_path / f"set/{i}/l{j}").symlink_to(tmp_path / f"set/{j}")
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == list(range(7)) and values(found) == list(range(7))
        assert found.left_out == {"linked folders that are read already": 42}

    def test_names_that_cannot_be_shown(self, tmp_path):
        draw(tmp_path / "set", "a.png")
        write(tmp_path / "set/b\n\x1b[31m.png", "x")
        with pytest.warns(UserWarning, match="1 of 2 images") as said:
            load(tmp_path / "set", tmp_path)
        assert str(said[0].message).isprintable()


@pytest.mark.parametrize("word", [b"bytes", b"path", b"image", b"label"])
def test_parquet_whose_names_are_no_text_is_one_line(tmp_path, word):
    cells = [{"bytes": encoded(i), "path": None} for i in range(2)]
    path = tmp_path / "set/a.parquet"
    path.parent.mkdir()
    write_parquet(path, {"image": cells, "label": [0, 1]})
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    damaged = data[footer:].replace(word, word[:1] + b"\xe0" + word[2:])
    assert damaged != data[footer:]
    path.write_bytes(data[:footer] + damaged)
    with pytest.raises(HebmError) as caught:
        load(tmp_path / "set", tmp_path)
    assert str(caught.value).isprintable()
