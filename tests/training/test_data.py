"""Images are decoded once and drawn in an order that follows from (seed, step).

Without this a resumed run would see other images than an uninterrupted one, labels would slide
against their images when one cannot be read, and validation rows could leak into training.
"""

import io
import json
import os
import shutil
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hebm_sample.data import source, sources
from hebm_sample.data.dataset import (
    StepSampler,
    last_images,
    load_images,
    to_float,
    zoomed,
)
from hebm_sample.errors import EnvironmentFailure, HubError, UserInputError
from hebm_sample.io.images import prepare

SIZE = 8


def shade(i: int) -> tuple[int, int, int]:
    return (10 * i + 5, 255 - 10 * i, 7 * i)


def encoded(i: int, side: tuple[int, int] = (SIZE, SIZE)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", side, shade(i)).save(file, format="PNG")
    return file.getvalue()


def fill(folder, count=6, broken=()):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        data = encoded(i)
        (folder / f"{i:03d}.png").write_bytes(data[:20] if i in broken else data)


def load(source, tmp_path, **kwargs):
    options = {"size": SIZE, "cache_dir": tmp_path / "cache", "progress": False, **kwargs}
    return load_images(source, **options)


def shades(images):
    return [tuple(int(v) for v in x[:, 0, 0]) for x in images.images]


def write_parquet(path, rows, labels=None):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [{"bytes": x, "path": None} for x in rows], **(labels or {})}
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pq.write_table(table, path)


def test_the_last_images_are_those_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "unused"))
    fill(tmp_path / "set", broken=(4,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = load(tmp_path / "set", tmp_path)
    rows = [encoded(i) for i in range(6)]
    write_parquet(tmp_path / "rows.parquet", rows)
    images, _ = last_images(tmp_path / "rows.parquet", size=SIZE, count=3)
    assert np.array_equal(images, load(tmp_path / "rows.parquet", tmp_path).images[-3:])
    # Files lie in the order of their names, which can say what they show: random ones of them.
    images, identity = last_images(tmp_path / "set", size=SIZE, count=3)
    every = [x.tobytes() for x in whole.images]
    found = [every.index(x.tobytes()) for x in images]
    assert found == sorted(found) and 2 <= len(found) <= 3 and found[0] < len(every) - 2
    assert identity != last_images(tmp_path / "set", size=SIZE, count=2)[1]
    assert not (tmp_path / "unused").exists()
    with pytest.raises(UserInputError, match="none of the last 1 images"):
        fill(tmp_path / "broken", broken=range(6))
        last_images(tmp_path / "broken", size=SIZE, count=1)


class TestFolders:
    def test_jsonl_labels_follow_their_images(self, tmp_path):
        folder = tmp_path / "set"
        fill(folder)
        rows = [
            {"file_name": f"{i:03d}.png", "Smiling": i % 2, "class": "ab"[i % 2], "weight": 0.5}
            for i in (5, 3, 0, 1, 2)
        ]
        rows[1]["Smiling"] = None
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        images = load(folder, tmp_path)
        assert shades(images) == [shade(i) for i in range(6)]
        assert images.images.dtype == np.uint8
        assert images.images.shape == (6, 3, SIZE, SIZE)
        assert images.labels["Smiling"].tolist() == [0, 1, 0, -1, -1, 1]
        assert images.labels["class"].tolist() == [0, 1, 0, 1, -1, 1]
        assert images.label_names == {"class": ("a", "b")}
        assert "weight" not in images.labels

    def test_csv_labels(self, tmp_path):
        folder = tmp_path / "set"
        fill(folder, 3)
        (folder / "metadata.csv").write_text("file_name,young\n001.png,1\n000.png,\n002.png,0\n")
        assert load(folder, tmp_path).labels["young"].tolist() == [-1, 1, 0]

    def test_class_folders_and_hidden_files(self, tmp_path):
        fill(tmp_path / "set" / "dog", 2)
        fill(tmp_path / "set" / "cat", 1)
        (tmp_path / "set" / "cat" / "._000.png").write_bytes(b"resource fork")
        images = load(tmp_path / "set", tmp_path)
        assert images.labels["label"].tolist() == [0, 1, 1]
        assert images.label_names["label"] == ("cat", "dog")

    def test_split_folders(self, tmp_path):
        fill(tmp_path / "set" / "train", 3)
        fill(tmp_path / "set" / "test", 2)
        assert len(load(tmp_path / "set", tmp_path)) == 3
        assert len(load(tmp_path / "set", tmp_path, split="test")) == 2
        with pytest.raises(UserInputError, match="no folder 'odd'"):
            load(tmp_path / "set", tmp_path, split="odd")

    def test_broken_images_are_counted_and_rows_stay_aligned(self, tmp_path):
        folder = tmp_path / "set"
        fill(folder, broken=(0, 3))
        rows = [{"file_name": f"{i:03d}.png", "number": i} for i in range(6)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.warns(UserWarning, match="2 of 6 images .* left out; row 0: "):
            images = load(folder, tmp_path)
        assert images.skipped == 2
        assert images.labels["number"].tolist() == [1, 2, 4, 5]
        assert shades(images) == [shade(i) for i in (1, 2, 4, 5)]

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("metadata.jsonl", '{"file_name": "000.png"}\n{oops\n', "line 2: not JSON"),
            ("metadata.jsonl", '{"name": "000.png"}\n', "needs a text file_name"),
            ("metadata.csv", "file_name,a\nother.png,1\n", "names none of the 2 images"),
        ],
    )
    def test_bad_metadata(self, tmp_path, name, text, message):
        fill(tmp_path / "set", 2)
        (tmp_path / "set" / name).write_text(text)
        with pytest.raises(UserInputError, match=message):
            load(tmp_path / "set", tmp_path)

    def test_nothing_to_load(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises(UserInputError, match="no images in .*empty"):
            load(tmp_path / "empty", tmp_path)
        with pytest.raises(UserInputError, match="no images at .*nowhere"):
            load(tmp_path / "nowhere", tmp_path)
        with pytest.raises(UserInputError, match="place is empty"):
            load("", tmp_path)
        fill(tmp_path / "bad", 2, broken=(0, 1))
        with pytest.raises(UserInputError, match="none of the 2 images in .*bad can be read; row"):
            load(tmp_path / "bad", tmp_path)
        assert not list((tmp_path / "cache").glob("images/*"))

    def test_crops_the_middle_and_reduces(self, tmp_path):
        image = Image.new("RGB", (4 * SIZE, 2 * SIZE), (0, 0, 0))
        image.paste((200, 100, 50), (SIZE, 0, 3 * SIZE, 2 * SIZE))
        (tmp_path / "set").mkdir()
        image.save(tmp_path / "set" / "wide.png")
        assert (load(tmp_path / "set", tmp_path).images[0] == [[[200]], [[100]], [[50]]]).all()


class TestParquet:
    def test_parts_labels_and_names(self, tmp_path):
        root = tmp_path / "set"
        cells = [encoded(i) for i in range(5)]
        write_parquet(root / "train-00001-of-00002.parquet", cells[3:], {"label": [None, 1]})
        write_parquet(root / "train-00000-of-00002.parquet", cells[:3], {"label": [0, 1, 0]})
        write_parquet(root / "test-00000-of-00001.parquet", cells[:1], {"label": [1]})
        images = load(root, tmp_path)
        assert shades(images) == [shade(i) for i in range(5)]
        assert images.part_starts == (0, 3)
        assert images.labels["label"].tolist() == [0, 1, 0, -1, 1]
        assert images.label_names["label"] == ("cat", "dog")
        assert len(load(root, tmp_path, split="test")) == 1
        assert len(load(root / "train-00001-of-00002.parquet", tmp_path)) == 2
        with pytest.raises(UserInputError, match=r"'valid'; there are \['test', 'train'\]"):
            load(root, tmp_path, split="valid")

    def test_bad_files(self, tmp_path):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"x": [1]}), tmp_path / "plain.parquet")
        with pytest.raises(UserInputError, match=r"no column of images; its columns are \['x'\]"):
            load(tmp_path / "plain.parquet", tmp_path)
        (tmp_path / "torn.parquet").write_bytes(b"PAR1 and nothing else")
        with pytest.raises(EnvironmentFailure, match="not a readable parquet file"):
            load(tmp_path / "torn.parquet", tmp_path)

    def test_missing_extra_names_the_command(self, tmp_path, monkeypatch):
        write_parquet(tmp_path / "a.parquet", [encoded(0)])
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(EnvironmentFailure, match=r"pip install .*\[train\]"):
            load(tmp_path / "a.parquet", tmp_path)


class TestHub:
    def table(self):
        datasets = pytest.importorskip("datasets")
        features = datasets.Features(
            {"label": datasets.ClassLabel(names=["cat", "dog"]), "image": datasets.Image()}
        )
        rows = {"label": [1, 0], "image": [{"bytes": encoded(i), "path": None} for i in (1, 2)]}
        return datasets, datasets.Dataset.from_dict(rows, features=features)

    def test_loads(self, tmp_path, monkeypatch):
        datasets, table = self.table()
        monkeypatch.setattr(datasets, "load_dataset", lambda name, split: table)
        images = load("someone/pets", tmp_path)
        assert shades(images) == [shade(1), shade(2)]
        assert images.labels["label"].tolist() == [1, 0]
        assert images.label_names == {"label": ("cat", "dog")}

    def test_failures(self, tmp_path, monkeypatch):
        datasets, _ = self.table()

        def failing(error):
            def load_dataset(name, split):
                raise error

            monkeypatch.setattr(datasets, "load_dataset", load_dataset)

        failing(datasets.exceptions.DatasetNotFoundError("no such set"))
        with pytest.raises(UserInputError, match="neither a folder here nor a data set"):
            load("someone/pets", tmp_path)
        failing(ConnectionError("offline"))
        with pytest.raises(HubError, match="someone/pets could not be fetched: offline"):
            load("someone/pets", tmp_path)


def _flip(place):
    def flip(path):
        data = bytearray(path.read_bytes())
        data[int(place * (len(data) - 1))] ^= 1
        path.write_bytes(data)

    return flip


def _away(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _folder(path):
    path.unlink()
    path.mkdir()


def _file(path):
    shutil.rmtree(path)
    path.write_bytes(b"")


def _lost_link(path):
    _away(path)
    path.symlink_to("nowhere")


def _many_rows(path):
    """A header of NumPy that asks for much more than the file has."""
    data = path.read_bytes().replace(b"(6, 3", b"(999999, 3", 1)
    path.write_bytes(data[:-1])


def _pickle(path):
    np.save(path.with_suffix(".npy"), np.array([{}], dtype=object), allow_pickle=True)
    path.with_suffix(".npy").replace(path)


DAMAGES = {
    "missing": _away,
    "empty": lambda p: p.write_bytes(b""),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "cut in the header": lambda p: p.write_bytes(p.read_bytes()[:20]),
    "longer": lambda p: p.write_bytes(p.read_bytes() + b"x"),
    "first byte": _flip(0),
    "middle byte": _flip(0.5),
    "last byte": _flip(1),
    "noise": lambda p: p.write_bytes(bytes(range(256)) * 8),
    "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
    "brackets": lambda p: p.write_bytes(b"[" * 60_000),
    "header": _many_rows,
    "pickle": _pickle,
    "folder": _folder,
    "lost link": _lost_link,
}
# NumPy's header says nothing that is not known: only what lies behind it is read.
HARMLESS = {("longer", "images.npy"), ("first byte", "images.npy")}


@pytest.fixture(
    params=[
        *(
            (kind, name)
            for kind in DAMAGES
            for name in ("images.npy", "labels.npz", "meta.json")
            if (kind, name) not in HARMLESS
        ),
        *((kind, "") for kind in ("a file", "an empty folder", "lost link")),
    ],
    ids=" ".join,
)
def damaged(request):
    kind, name = request.param
    if name:
        return DAMAGES[kind], name
    make = {"a file": _file, "lost link": _lost_link}
    return make.get(kind, lambda p: (_away(p), p.mkdir())), ""


class TestCache:
    def test_second_load_decodes_nothing(self, tmp_path, monkeypatch):
        fill(tmp_path / "set")
        first = load(tmp_path / "set", tmp_path)
        monkeypatch.setattr("hebm_sample.data.decoding.decode_square", None)
        second = load(tmp_path / "set", tmp_path)
        assert second.identity == first.identity
        assert (second.images == first.images).all()
        assert isinstance(second.images, np.memmap)

    def test_what_a_killed_process_left_goes_after_a_day(self, tmp_path):
        fill(tmp_path / "set")
        home, left = tmp_path / "cache" / "images", {}
        for name, age in (("old", 2 * 86_400), ("new", 60)):
            left[name] = home / f".{32 * name[0]}-{'0a' * 16}"
            left[name].mkdir(parents=True)
            (left[name] / "images.npy").write_bytes(b"half")
            then = time.time() - age
            for path in (left[name] / "images.npy", left[name]):
                os.utime(path, (then, then))
        load(tmp_path / "set", tmp_path)
        assert not left["old"].exists() and left["new"].exists()

    def test_a_damaged_copy_is_made_again_with_one_line(self, tmp_path, damaged):
        """Of every kind: nothing of it is trained on, and it never ends a run."""
        damage, name = damaged
        fill(tmp_path / "set")
        (tmp_path / "set" / "metadata.csv").write_text(
            "file_name,n\n" + "".join(f"{i:03d}.png,{i}\n" for i in range(6))
        )
        first = load(tmp_path / "set", tmp_path)
        pixels, labels = np.array(first.images), first.labels["n"].tolist()
        (kept,) = (tmp_path / "cache" / "images").iterdir()
        damage(kept / name if name else kept)
        with pytest.warns(UserWarning, match="damaged and are made again") as said:
            second = load(tmp_path / "set", tmp_path)
        assert len(said) == 1 and "\n" not in str(said[0].message)
        assert np.array_equal(second.images, pixels) and second.labels["n"].tolist() == labels
        assert second.identity == first.identity
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load(tmp_path / "set", tmp_path)
        assert [p.name for p in (tmp_path / "cache" / "images").iterdir()] == [kept.name]

    def test_what_is_renamed_is_on_the_disk(self, tmp_path, monkeypatch):
        synced, rename = set(), Path.rename

        def renamed(path, target):
            synced.update(p.stat().st_ino for p in path.iterdir() if p.stat().st_ino in inodes)
            assert len(synced) == 3, "not all files are on the disk"
            return rename(path, target)

        inodes, fsync = set(), os.fsync
        monkeypatch.setattr(
            os, "fsync", lambda d: (inodes.add(os.fstat(d).st_ino), fsync(d)) and None
        )
        monkeypatch.setattr(Path, "rename", renamed)
        fill(tmp_path / "set")
        load(tmp_path / "set", tmp_path)
        assert len(synced) == 3

    def test_identity_is_of_the_content(self, tmp_path):
        fill(tmp_path / "a")
        fill(tmp_path / "b")
        a = load(tmp_path / "a", tmp_path).identity
        assert load(tmp_path / "b", tmp_path).identity == a
        (tmp_path / "b" / "002.png").write_bytes(encoded(20))
        assert load(tmp_path / "b", tmp_path).identity != a
        (tmp_path / "a" / "metadata.csv").write_text("file_name,young\n001.png,1\n")
        assert load(tmp_path / "a", tmp_path).identity != a

    def test_environment_variable_and_unwritable_place(self, tmp_path, monkeypatch):
        fill(tmp_path / "set", 1)
        monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "elsewhere"))
        load(tmp_path / "set", tmp_path, cache_dir=None)
        assert (tmp_path / "elsewhere" / "images").is_dir()
        (tmp_path / "file").write_text("")
        with pytest.raises(EnvironmentFailure, match="could not be kept in .*file"):
            load(tmp_path / "set", tmp_path, cache_dir=tmp_path / "file")

    def test_memory_is_one_chunk(self, tmp_path, monkeypatch):
        fill(tmp_path / "set", 7)
        monkeypatch.setattr(source, "CHUNK_ROWS", 3)
        opened = sources.open_source(tmp_path / "set", None)
        assert [len(c.images) for c in opened.chunks()] == [3, 3, 1]
        assert shades(load(tmp_path / "set", tmp_path)) == [shade(i) for i in range(7)]


class TestImages:
    def test_labels_of_rows_go_with_their_images(self, tmp_path):
        labels = {"n": [5, None, 7, 8], "m": [0, 1, 0, None]}
        write_parquet(tmp_path / "set/0.parquet", [encoded(i) for i in range(4)], labels)
        images = load(tmp_path / "set", tmp_path)
        rows = torch.tensor([3, 0, 1, 0])
        found = images.label_rows(rows, ("m", "n"))
        assert found.dtype == torch.int64
        assert found.tolist() == [[-1, 8], [0, 5], [1, -1], [0, 5]]
        assert images.label_rows(rows, ("n",)).tolist() == [[8], [5], [-1], [5]]
        _, last = images.split(2)
        assert last.label_rows(torch.tensor([0]), ("n",)).tolist() == [[7]]
        whole = images.batch(rows)
        assert torch.equal(whole[1], whole[3]) and not torch.equal(whole[0], whole[1])

    def test_split_keeps_the_last_rows_apart_as_views(self, tmp_path):
        root = tmp_path / "set"
        write_parquet(root / "0.parquet", [encoded(i) for i in range(3)], {"n": [0, 1, 2]})
        write_parquet(
            root / "1.parquet", [encoded(i) for i in range(3, 8)], {"n": [3, 4, 5, 6, 7]}
        )
        images = load(root, tmp_path)
        train, validation = images.split(6)
        assert (len(train), len(validation)) == (2, 6)
        assert validation.labels["n"].tolist() == [2, 3, 4, 5, 6, 7]
        assert train.part_starts == (0,)
        assert validation.part_starts == (0, 1)
        assert np.shares_memory(train.images, images.images)
        assert len({train.identity, validation.identity, images.identity}) == 3
        with pytest.raises(UserInputError, match="of 8 images it can be 0 to 7"):
            images.split(8)

    def test_batch(self, tmp_path):
        (tmp_path / "set").mkdir()
        image = Image.new("RGB", (SIZE, SIZE), (0, 0, 0))
        image.paste((255, 255, 255), (0, 0, 1, SIZE))
        for name in "ab":
            image.save(tmp_path / "set" / f"{name}.png")
        images = load(tmp_path / "set", tmp_path)
        batch = images.batch(torch.tensor([0, 1]), torch.tensor([False, True]))
        assert batch.shape == (2, 3, SIZE, SIZE)
        assert batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert (batch[0, :, :, 0] == 1).all()
        assert (batch[0, :, :, 1:] == -1).all()
        assert torch.equal(batch[1], batch[0].flip(-1))

    def test_to_float_is_the_inference_scale(self):
        levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
        scaled = to_float(levels)
        assert scaled.min() == -1
        assert scaled.max() == 1
        assert torch.equal(scaled, levels.float() / 127.5 - 1)

    def test_global_rng_and_warnings_untouched(self, tmp_path):
        fill(tmp_path / "set", 2)
        before = torch.get_rng_state()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            load(tmp_path / "set", tmp_path)
        sampler = StepSampler(10, 2, seed=0)
        sampler.indices(3)
        sampler.flips(3)
        assert torch.equal(before, torch.get_rng_state())


class TestStepSampler:
    @pytest.mark.parametrize("world", [1, 2, 3])
    def test_an_epoch_is_a_permutation_shared_by_the_ranks(self, world):
        samplers = [StepSampler(48, 4, seed=5, rank=r, world=world) for r in range(world)]
        steps = samplers[0].steps_per_epoch
        assert steps == 48 // (4 * world)
        for epoch in range(3):
            numbers = range(epoch * steps, (epoch + 1) * steps)
            rows = torch.cat([s.indices(i) for i in numbers for s in samplers])
            assert rows.sort().values.tolist() == list(range(48))
            assert {s.epoch(i) for i in numbers for s in samplers} == {epoch}

    def test_world_size_does_not_change_the_global_batch(self):
        one = StepSampler(50, 8, seed=1)
        two = [StepSampler(50, 4, seed=1, rank=r, world=2) for r in range(2)]
        for step in (0, 3, 7, 100):
            assert torch.equal(one.indices(step), torch.cat([s.indices(step) for s in two]))
            assert torch.equal(one.flips(step), torch.cat([s.flips(step) for s in two]))

    def test_position_follows_from_the_step_alone(self):
        walked, jumped = StepSampler(30, 7, seed=2), StepSampler(30, 7, seed=2)
        walk = [(walked.indices(i), walked.flips(i)) for i in range(20)]
        for i in (13, 2, 19):
            assert torch.equal(jumped.indices(i), walk[i][0])
            assert torch.equal(jumped.flips(i), walk[i][1])

    def test_epochs_and_seeds_differ(self):
        a, b = StepSampler(100, 100, seed=0), StepSampler(100, 100, seed=1)
        assert not torch.equal(a.indices(0), a.indices(1))
        assert not torch.equal(a.indices(0), b.indices(0))
        # Neighbouring (seed, epoch) must not coincide, as they would if they were summed.
        assert not torch.equal(a.indices(1), b.indices(0))

    def test_incomplete_last_batch_is_dropped(self):
        sampler = StepSampler(11, 4, seed=0)
        assert sampler.steps_per_epoch == 2
        assert [sampler.epoch(i) for i in range(5)] == [0, 0, 1, 1, 2]

    def test_fewer_rows_than_a_batch(self):
        sampler = StepSampler(3, 8, seed=0)
        rows = sampler.indices(4)
        assert rows.shape == (8,)
        assert sorted(rows[:3].tolist()) == sorted(rows[3:6].tolist()) == [0, 1, 2]
        assert sampler.epoch(4) == 4

    def test_flips_are_fair_coins(self):
        sampler = StepSampler(64, 64, seed=0)
        coins = torch.stack([sampler.flips(i) for i in range(200)]).float()
        assert abs(coins.mean() - 0.5) < 4 * 0.5 / coins.numel() ** 0.5

    def test_squares_follow_from_the_step_and_fit_the_image(self):
        one = StepSampler(50, 8, seed=1)
        two = [StepSampler(50, 4, seed=1, rank=r, world=2) for r in range(2)]
        assert torch.equal(one.squares(7, 0.8), torch.cat([s.squares(7, 0.8) for s in two]))
        drawn = torch.cat([one.squares(i, 0.8) for i in range(100)])
        assert drawn[:, 0].min() >= 0.8 and drawn[:, 0].min() < 0.81 and drawn.max() <= 1
        assert drawn[:, 1:].min() >= 0 and abs(drawn[:, 1:].mean() - 0.5) < 4 * 0.29 / 1600**0.5

    def test_bad_arguments(self):
        with pytest.raises(UserInputError, match=r"rank 2 in \[0, world\)"):
            StepSampler(10, 2, seed=0, rank=2, world=2)
        with pytest.raises(UserInputError, match="num_rows 0"):
            StepSampler(0, 2, seed=0)


class TestZoom:
    images = to_float(
        torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    )

    def test_the_whole_square_is_the_image(self):
        squares = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.3, 0.9]])
        assert torch.allclose(zoomed(self.images, squares), self.images, atol=1e-6)

    @pytest.mark.parametrize(("left", "top"), [(0.0, 0.0), (1.0, 0.0), (0.5, 1.0)])
    def test_a_square_is_the_part_it_names(self, left, top):
        large = zoomed(self.images, torch.tensor([[0.5, left, top]] * 2))
        x, y = int(left * 4), int(top * 4)
        part = torch.nn.functional.interpolate(
            self.images[..., y : y + 4, x : x + 4], scale_factor=2, mode="bilinear"
        )
        # The outermost pixels look beyond the part, where `interpolate` repeats its border.
        assert torch.allclose(large[..., 1:-1, 1:-1], part[..., 1:-1, 1:-1], atol=0.51 / 127.5)

    def test_it_stays_on_the_levels_of_bytes(self):
        levels = (zoomed(self.images, torch.tensor([[0.7, 0.2, 0.6]] * 2)) + 1) * 127.5
        assert torch.allclose(levels, levels.round(), atol=1e-4)
        assert levels.min() >= 0 and levels.max() <= 255


def test_training_reads_an_image_as_inference_does(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name, shape in (("a", (32, 32, 3)), ("b", (30, 41, 3))):
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(
            tmp_path / "in" / f"{name}.png"
        )
    images = load(tmp_path / "in", tmp_path, size=16)
    seen = prepare([tmp_path / "in" / "a.png", tmp_path / "in" / "b.png"], 16)
    assert torch.allclose(images.batch(torch.arange(2)), seen, atol=1e-6)


class TestSome:
    """Any part of `some` rows stands for all: reconstructions and reference are of one law."""

    @pytest.mark.parametrize("rule", ["split", "last"])
    def test_rows_of_folders_of_classes_are_mixed(self, tmp_path, rule):
        for part in ("train", "test"):
            for name in ("cat", "dog"):
                fill(tmp_path / "set" / part / name, count=20)
        if rule == "split":
            held_out = load(tmp_path / "set", tmp_path, split="test")
        else:
            held_out = load(tmp_path / "set", tmp_path).split(30)[1]
        labels = held_out.some(20).labels["label"]
        for half in (labels[:10], labels[10:]):
            assert 2 <= (half == 0).sum() <= 8
        again = held_out.some(20)
        assert np.array_equal(again.labels["label"], labels) and len(held_out.some(99)) == len(
            held_out
        )

    def test_rows_of_a_table_stay_unless_they_are_sorted(self, tmp_path):
        rng = np.random.default_rng(0)
        mixed = rng.integers(0, 2, 40).tolist()
        for name, labels in (("mixed", mixed), ("sorted", sorted(mixed))):
            rows = [encoded(i % 20) for i in range(40)]
            write_parquet(tmp_path / f"{name}.parquet", rows, {"label": labels})
            found = load(tmp_path / f"{name}.parquet", tmp_path)
            first = found.some(10).labels["label"]
            assert (first.tolist() == labels[:10]) == (name == "mixed")
