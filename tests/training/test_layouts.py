"""Folders, tables and parquet files as people have them: what is read is what a person sees there.

Without this a class is taken for a split, test images are trained on, labels get lost over a
separator or a byte-order mark, and a run's grids become data.
"""

import json
import os
import unicodedata

import pytest
from PIL import Image
from plain_images import draw, load, shades
from tiny import tiny_pipeline

from hebm_sample.data.labels import encode_labels
from hebm_sample.data.summary import data_line, held_out_rule
from hebm_sample.errors import UserInputError
from hebm_sample.io.images import save_image, save_png
from hebm_sample.io.written import mark_report_folder
from hebm_sample.training.trainer import make_run_folder


def line(images):
    return data_line("set", *images.split(), held_out_rule(None))


class TestSplits:
    """A split is one only where nothing else can be meant."""

    @pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "training"])
    @pytest.mark.parametrize("other", ["test", "Validation", "val", "dev"])
    def test_folders(self, tmp_path, train, other):
        draw(tmp_path / "set", f"{train}/a.png", f"{train}/b.png", f"{other}/c.png")
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [0, 1] and found.left_out == {f"of {other}/": 1}
        assert shades(load(tmp_path / "set", tmp_path, split=other.lower())) == [2]

    def test_a_split_of_classes(self, tmp_path):
        draw(
            tmp_path / "set",
            *(f"{s}/{k}/{i}.png" for s in ("train", "test") for k in "ab" for i in "12"),
        )
        found = load(tmp_path / "set", tmp_path)
        assert len(found) == 4 and found.label_names["label"] == ("a", "b")
        assert "left out: 4 of test/" in line(found)

    def test_the_folder_above(self, tmp_path):
        draw(tmp_path / "set", "images/train/a.png", "images/test/b.png")
        assert shades(load(tmp_path / "set", tmp_path)) == [0]
        draw(tmp_path / "named", "images/train/a.png", "images/test/b.png")
        assert shades(load(tmp_path / "named", tmp_path, split="test")) == [1]

    @pytest.mark.parametrize("name", ["train", "Test", "val"])
    def test_a_class_that_is_called_like_a_split(self, tmp_path, name):
        draw(tmp_path / "set", *(f"{k}/{i}.png" for k in ("bus", "car", name) for i in "123"))
        found = load(tmp_path / "set", tmp_path)
        assert len(found) == 9 and sorted(found.label_names["label"]) == sorted(
            ["bus", "car", name]
        )

    def test_test_images_in_a_folder_beside_the_others(self, tmp_path):
        draw(tmp_path / "set", "a.png", "b.png", "test/c.png")
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [0, 1] and found.left_out == {"of test/": 1}

    def test_an_image_beside_the_splits(self, tmp_path):
        draw(tmp_path / "set", "cover.png", "train/a.png", "test/c.png")
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [1] and sum(found.left_out.values()) == 2

    @pytest.mark.parametrize(
        "names",
        [
            ("test/a.png", "val/b.png"),
            ("train/a/1.png", "train/b/1.png", "extra/1.png"),
            ("train/a.png", "Training/b.png"),
            ("test_1.png", "val_1.png"),
        ],
    )
    def test_what_could_be_two_things_is_refused(self, tmp_path, names):
        draw(tmp_path / "set", *names)
        with pytest.raises(UserInputError, match="set holds .*(give the folder|put those)"):
            load(tmp_path / "set", tmp_path)

    def test_file_names(self, tmp_path):
        draw(tmp_path / "set", "train_0.png", "train_1.png", "test_0.png")
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [0, 1] and found.left_out == {"of split test": 1}
        assert shades(load(tmp_path / "set", tmp_path, split="test")) == [2]
        draw(tmp_path / "trains", "train_0.png", "train_1.png", "bus_0.png", "test_0.png")
        assert len(load(tmp_path / "trains", tmp_path)) == 4


class TestParquet:
    def write(self, path, shade, count=3, **columns):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        draw(path.parent, "row.png", shade=shade)
        file = path.parent / "row.png"
        cells = [{"bytes": file.read_bytes(), "path": None}] * count
        file.unlink()
        pq.write_table(pa.table({"image": cells, **columns}), path)

    @pytest.mark.parametrize(
        "name",
        ["train/0000.parquet", "default/train/0000.parquet", "cifar-train.parquet"]
        + ["Train/0.parquet", "data/set_Training_0.parquet", "train.parquet"],
    )
    def test_splits(self, tmp_path, name):
        other = name.replace("Training", "validation").replace("train", "test")
        other = other.replace("Train", "Test")
        self.write(tmp_path / "set" / name, 1)
        self.write(tmp_path / "set" / other, 2, count=2)
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [1, 1, 1]
        assert found.left_out == {".parquet of other splits": 1}
        split = "val" if "validation" in other else "test"
        assert shades(load(tmp_path / "set", tmp_path, split=split)) == [2, 2]

    def test_no_split_and_only_others(self, tmp_path):
        for name in ("0000", "0001"):
            self.write(tmp_path / "set" / f"{name}.parquet", 1)
        assert len(load(tmp_path / "set", tmp_path)) == 6
        for name in ("test", "val"):
            self.write(tmp_path / "other" / f"{name}-0.parquet", 1)
        with pytest.raises(UserInputError, match="the splits test and validation and none called"):
            load(tmp_path / "other", tmp_path)

    def test_images_beside_are_counted(self, tmp_path):
        self.write(tmp_path / "set/a.parquet", 1)
        draw(tmp_path / "set", "x.png", "y.jpg")
        assert load(tmp_path / "set", tmp_path).left_out == {"beside the parquet files": 2}

    def test_columns_of_every_kind(self, tmp_path):
        pa = pytest.importorskip("pyarrow")
        columns = {
            "float": pa.array([1.0, None, 0.0]),
            "text": pa.array(["b", "a", None], pa.string_view()),
            "share": pa.array([0.5, 0.25, 1.0]),
        }
        self.write(tmp_path / "set/a.parquet", 1, **columns)
        found = load(tmp_path / "set", tmp_path)
        assert found.labels["float"].tolist() == [1, -1, 0]
        assert found.labels["text"].tolist() == [1, 0, -1]
        assert "share" not in found.labels and "no labels in share" in line(found)

    def test_images_in_binary_views(self, tmp_path):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        draw(tmp_path, "row.png", shade=7)
        cells = pa.array([(tmp_path / "row.png").read_bytes()], pa.binary_view())
        pq.write_table(pa.table({"image": cells}), tmp_path / "views.parquet")
        assert shades(load(tmp_path / "views.parquet", tmp_path)) == [7]

    def test_a_row_keeps_its_side_when_files_are_added(self, tmp_path):
        before = tmp_path / "before"
        self.write(before / "train-00000-of-00001.parquet", 1, count=40)
        (tmp_path / "after").mkdir()
        moved = tmp_path / "after/train-00000-of-00002.parquet"
        moved.write_bytes((before / "train-00000-of-00001.parquet").read_bytes())
        self.write(tmp_path / "after/train-00001-of-00002.parquet", 2, count=40)
        keys = [load(tmp_path / x, tmp_path).keys for x in ("before", "after")]
        assert keys[1][:40].tolist() == keys[0].tolist() and len(set(keys[1].tolist())) == 80


class TestClasses:
    def test_a_stray_image(self, tmp_path):
        draw(tmp_path / "set", "cover.png", "cats/0.png", "cats/1.png", "dogs/0.png")
        found = load(tmp_path / "set", tmp_path)
        assert found.labels["label"].tolist() == [0, 0, -1, 1]
        assert "4 images; label: 2 values (cats, dogs), known of 3;" in line(found)

    @pytest.mark.skipif(os.name == "nt", reason="links need rights there")
    def test_linked_folders(self, tmp_path):
        draw(tmp_path / "elsewhere", "0.png", "1.png", shade=9)
        draw(tmp_path / "set", "birds/0.png", shade=5)
        (tmp_path / "set/cats").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "set/birds/loop").symlink_to(tmp_path / "set")
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [5, 9, 9] and found.label_names["label"] == ("birds", "cats")

    def test_classes_below_a_common_folder(self, tmp_path):
        draw(tmp_path / "set", "images/a/0.png", "images/b/0.png")
        assert load(tmp_path / "set", tmp_path).label_names["label"] == ("a", "b")

    def test_folders_in_folders_are_no_classes(self, tmp_path):
        draw(tmp_path / "set", "2019/01/0.png", "2019/02/0.png", "2020/0.png")
        found = load(tmp_path / "set", tmp_path)
        assert found.labels == {} and "no labels" in line(found)


def write_table(folder, rows, name="metadata.jsonl", encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows), encoding=encoding)


class TestTables:
    def test_at_the_root_of_splits(self, tmp_path):
        draw(tmp_path / "set", "train/0.png", "train/1.png", "test/2.png")
        table = "file_name,kind\ntrain/0.png,a\ntrain/1.png,b\ntest/2.png,a\n"
        (tmp_path / "set/metadata.csv").write_text(table)
        found = load(tmp_path / "set", tmp_path)
        assert shades(found) == [0, 1] and found.labels["kind"].tolist() == [0, 1]
        assert found.notes == ()
        assert load(tmp_path / "set", tmp_path, split="test").labels["kind"].tolist() == [0]

    def test_names_that_are_written_otherwise(self, tmp_path):
        composed = unicodedata.normalize("NFC", "é.png")
        draw(tmp_path / "set", "a/0.png", "a/1.PNG", f"b/{composed}", "b/x y.jpg")
        written = ["a\\0.png", "./a/1.png", "b/" + unicodedata.normalize("NFD", "é.png")]
        rows = [{"file_name": n, "n": i + 1} for i, n in enumerate([*written, "b//x y.JPG"])]
        write_table(tmp_path / "set", rows)
        found = load(tmp_path / "set", tmp_path)
        assert sorted(found.labels["n"].tolist()) == [1, 2, 3, 4]
        assert "name no image" not in line(found)

    def test_an_exact_name_comes_first(self, tmp_path):
        draw(tmp_path / "set", "a.png", "a.PNG")
        write_table(tmp_path / "set", [{"file_name": n, "k": n[-1]} for n in ("a.png", "a.PNG")])
        found = load(tmp_path / "set", tmp_path)
        assert found.label_names["k"] == ("G", "g") and found.labels["k"].tolist() == [0, 1]
        write_table(tmp_path / "set", [{"file_name": n, "k": 1} for n in ("a.Png", "a.png")])
        assert "1 of 2 rows of metadata.jsonl name no image" in line(
            load(tmp_path / "set", tmp_path)
        )

    def test_rows_and_images_without_each_other(self, tmp_path):
        draw(tmp_path / "set", "0.png", "1.png", "2.png")
        rows = [
            {"file_name": n, "k": 1} for n in ("0.png", "gone.png", "/etc/hosts", "../0.png", "")
        ]
        write_table(tmp_path / "set", rows)
        found = load(tmp_path / "set", tmp_path)
        assert found.labels["k"].tolist() == [1, -1, -1]
        assert "4 of 5 rows of metadata.jsonl name no image" in line(found)

    def test_two_labels_of_one_image(self, tmp_path):
        draw(tmp_path / "set", "0.png")
        write_table(tmp_path / "set", [{"file_name": "0.png", "k": k} for k in (1, 2)])
        with pytest.raises(UserInputError, match=r"two rows with other labels for 0\.png"):
            load(tmp_path / "set", tmp_path)

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    @pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
    def test_marks_at_the_start(self, tmp_path, encoding, name):
        draw(tmp_path / "set", "0.png")
        rows = {"metadata.jsonl": '{"file_name": "0.png", "k": "ä"}\n'}
        text = rows.get(name, "file_name,k\r\n0.png,ä\r\n")
        (tmp_path / "set" / name).write_text(text, encoding=encoding)
        assert load(tmp_path / "set", tmp_path).label_names["k"] == ("ä",)

    def test_stylegan(self, tmp_path):
        draw(tmp_path / "set", "00000/img0.png", "00000/img1.png", "00001/img2.png")
        labels = [["00000/img0.png", 3], ["00000/img1.png", 0]]
        (tmp_path / "set/dataset.json").write_text(json.dumps({"labels": labels}))
        found = load(tmp_path / "set", tmp_path)
        assert found.labels["label"].tolist() == [3, 0, -1] and found.left_out == {}
        (tmp_path / "set/dataset.json").write_text('{"labels": null}')
        assert load(tmp_path / "set", tmp_path).labels == {}
        (tmp_path / "set/dataset.json").write_text('{"images": []}')
        found = load(tmp_path / "set", tmp_path)
        assert found.labels == {} and found.left_out == {".json": 1}
        (tmp_path / "set/dataset.json").write_text('{"labels": [3]}')
        with pytest.raises(UserInputError, match="not as StyleGAN writes it"):
            load(tmp_path / "set", tmp_path)


class TestLabels:
    """A number is one however it is written, and nothing unknown becomes known."""

    @pytest.mark.parametrize(
        ("cells", "numbers"),
        [
            ([1.0, 0.0, None], [1, 0, -1]),
            ([1.0, float("nan")], [1, -1]),
            (["1.0", "0.", "", " ", None], [1, 0, -1, -1, -1]),
            (["1", 1, 1.0, True, "+1", "01"], [1] * 6),
            (["1", "nan", "NA", "null"], [1, -1, -1, -1]),
            ([-1, "-3", 2], [-1, -1, 2]),
            ([b"4", memoryview(b"5")], [4, 5]),
        ],
    )
    def test_numbers(self, cells, numbers):
        labels, names = encode_labels({"x": cells}, {})
        assert labels["x"].tolist() == numbers and names == {}

    @pytest.mark.parametrize(
        ("cells", "values", "numbers"),
        [
            (["cat", 1, None, 10, 2], ("1", "10", "2", "cat"), [3, 0, -1, 1, 2]),
            (["nan", "None", "", "NaN"], ("None",), [-1, 0, -1, -1]),
            ([b"b", "a"], ("a", "b"), [1, 0]),
            (["1.5", "2"], ("1.5", "2"), [0, 1]),
        ],
    )
    def test_texts(self, cells, values, numbers):
        labels, names = encode_labels({"x": cells}, {})
        assert names["x"] == values and labels["x"].tolist() == numbers

    @pytest.mark.parametrize(
        "cells",
        [[0.5, 1], [2**40], ["a", 0.5], [[1]], [{}], [float("inf")], [b"\xff"], ["9" * 5000]],
    )
    def test_no_labels(self, cells):
        assert encode_labels({"x": cells}, {}) == ({}, {})

    def test_a_column_of_nothing_is_unknown(self):
        assert encode_labels({"x": [None, ""]}, {})[0]["x"].tolist() == [-1, -1]


class TestRuns:
    def test_what_a_run_writes_is_no_data(self, tmp_path):
        draw(tmp_path / "set", "0.png", "1.png")
        before = load(tmp_path / "set", tmp_path)
        make_run_folder(tmp_path / "set/runs/mine")
        draw(tmp_path / "set", "runs/mine/samples/grid.png", "runs/mine/a/b.png")
        after = load(tmp_path / "set", tmp_path)
        assert after.identity == before.identity and after.keys.tolist() == before.keys.tolist()
        assert after.left_out == {"folder of a run": 1}
        with pytest.raises(UserInputError, match="folder of a training run"):
            load(tmp_path / "set/runs/mine", tmp_path)
        for inner in ("samples", "model/figures"):
            draw(tmp_path / "set/runs/mine", f"{inner}/grid.png")
            with pytest.raises(
                UserInputError, match="lies in .*mine, the folder of a training run"
            ):
                load(tmp_path / "set/runs/mine" / inner, tmp_path)
        assert len(load(tmp_path / "set/runs/mine/a", tmp_path)) == 1  # no run writes it

    def test_exports_and_reports_are_no_data(self, tmp_path):
        draw(tmp_path / "set", "cats/0.png", "dogs/0.png", "dogs/1.png")
        before = load(tmp_path / "set", tmp_path)
        tiny_pipeline().save_pretrained(tmp_path / "set/export")
        draw(tmp_path / "set", "export/samples.png", "page/nearest.png", "page/figures/hole.png")
        mark_report_folder(tmp_path / "set/page")
        old = {"format_version": 1, "version": "1", "model": "m", "parts": {}}
        draw(tmp_path / "set", "older/nearest.png")
        (tmp_path / "set/older/results.json").write_text(json.dumps(old))
        after = load(tmp_path / "set", tmp_path)
        assert after.identity == before.identity and after.label_names == before.label_names
        assert after.left_out["written by an export or a report"] == 5
        with pytest.raises(UserInputError, match="the folder of a report"):
            load(tmp_path / "set/page/figures", tmp_path)

    @pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".gif"])
    def test_samples_are_read_and_said(self, tmp_path, ending):
        draw(tmp_path / "set", "mine.png", "other.jpg")
        text = {"seed": "3", "model": "m", "sampling": "x" * 99, "version": "hebm_sample 1"}
        image = Image.effect_noise((256, 256), 90).convert("RGB")
        save_image(image, tmp_path / f"set/seed0003{ending}", text)
        note = {"version": "another 1", "said": "hebm_sample 1"}
        save_png(image, tmp_path / "set/zero.png", note)
        found = load(tmp_path / "set", tmp_path)
        assert len(found) == 4 and "; 1 of the images was made by hebm_sample" in line(found)

    def test_files_beside_what_was_written_are_read(self, tmp_path):
        draw(tmp_path / "set", "cats/0.png", "cats/1.png", "dogs/nearest.png", "dogs/samples.png")
        (tmp_path / "set/dogs/results.json").write_text("{}")
        assert len(load(tmp_path / "set", tmp_path)) == 4
        mark_report_folder(tmp_path / "set/cats")
        assert len(load(tmp_path / "set", tmp_path)) == 4

    def test_runs_of_before_had_no_mark(self, tmp_path):
        draw(tmp_path / "set", "0.png", "run/samples/grid.png")
        (tmp_path / "set/run/checkpoint-00000001").mkdir()
        (tmp_path / "set/run/checkpoint-00000001/state.json").write_text("{}")
        (tmp_path / "set/run/log.jsonl").write_text("")
        assert len(load(tmp_path / "set", tmp_path)) == 1


def test_other_files_are_counted_by_suffix(tmp_path):
    draw(tmp_path / "set", "0.png", "1.bmp", "2.gif", "3.TIFF", "4.ppm", "5.Jpg")
    for name in ("a.heic", "b.HEIC", "c.svg", "README"):
        (tmp_path / "set" / name).write_bytes(b"x")
    (tmp_path / "set/.hidden.png").write_bytes(b"x")
    found = load(tmp_path / "set", tmp_path)
    assert len(found) == 6
    assert found.left_out == {".heic": 2, ".svg": 1, "without a suffix": 1}
    assert "left out: 2 .heic, 1 .svg, 1 without a suffix" in line(found)
