"""Names that are no UTF-8, texts in Latin-1, and no home folder: it works, or is one line.

A POSIX name is bytes; Python keeps those that are no UTF-8 as surrogates, which no text takes.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image, PngImagePlugin
from tiny import symbolic_pipeline
from toy import draw_images

from hebm_sample.cli.edit import main as edit
from hebm_sample.cli.sample import main as sample
from hebm_sample.data.dataset import load_images
from hebm_sample.data.summary import data_line, held_out_rule
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.hub.client import reason
from hebm_sample.hub.save import write_model_folder
from hebm_sample.io.decode import open_image
from hebm_sample.io.images import read_text, save_image, writable_text
from hebm_sample.training.log import RunLog

pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are UTF-8")
CAFE = os.fsdecode(b"caf\xe9")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A model and an image, whose names are no UTF-8."""
    monkeypatch.chdir(tmp_path)
    symbolic_pipeline(steps=3).save_pretrained(CAFE)
    Image.new("RGB", (20, 24), "teal").save(f"{CAFE}.png")
    return tmp_path


def run(command, *words):
    result = CliRunner().invoke(command, [*words, "-d", f"./{CAFE}", "--device", "cpu"])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif"])
def test_images_are_read_and_written(here, ending):
    run(edit, "edit", f"{CAFE}.png", "--class", "b", "--out", f"{CAFE}-new.{ending}")
    text = read_text(f"{CAFE}-new.{ending}")
    assert "edit 'caf?.png' --dataset './caf?'" in text["command"]


def test_images_of_such_a_folder_are_gone_on_with(here):
    words = ["--outdir", f"{CAFE}-out", "--skip-existing", "--json"]
    assert json.loads(run(sample, "-n", "1", *words))["skipped"] == 0
    assert json.loads(run(sample, "-n", "2", *words))["skipped"] == 1


def test_scores_name_such_an_image(here):
    (row,) = json.loads(run(edit, "score", f"{CAFE}.png", "--json"))["scores"]
    assert row["picture"] == f"{CAFE}.png"
    assert "caf" in run(edit, "score", f"{CAFE}.png").splitlines()[1]


def test_data_and_runs(tmp_path):
    folder = draw_images(tmp_path / CAFE, count=4)
    os.rename(folder / "000.png", folder / f"{CAFE}.png")
    images = load_images(folder, size=16, cache_dir=tmp_path / "cache", progress=False)
    assert len(images) == 4
    training, held_out = images.split(None)
    line = data_line(str(folder), training, held_out, held_out_rule(None))
    assert "4 images" in line.encode("ascii", "backslashreplace").decode()
    with pytest.warns(UserWarning, match="TensorBoard.*caf.xe9"):
        log = RunLog(tmp_path / CAFE)
    log.log(1, loss=2.0)
    log.close()
    assert json.loads((tmp_path / CAFE / "log.jsonl").read_text())["loss"] == 2.0


def test_a_card_is_utf8_whatever_it_says(tmp_path):
    pipe = symbolic_pipeline()
    parts = (pipe.generator, pipe.prior, pipe.encoder)
    write_model_folder(tmp_path / "m", pipe.config, *parts, card=f"mine, {CAFE}")
    assert (tmp_path / "m/README.md").read_text(encoding="utf-8") == "mine, caf?"
    with pytest.raises(UserInputError, match="licence is 'mine"):
        write_model_folder(tmp_path / "n", pipe.config, *parts, licence=f"mine, {CAFE}")


# Texts in other encodings


def test_texts_in_latin_1_are_no_obstacle(tmp_path):
    image, info = Image.new("RGB", (16, 16), "teal"), PngImagePlugin.PngInfo()
    info.add(b"tEXt", b"Caption\0caf\xe9")
    info.add(b"iTXt", b"Title\0\0\0\0\0caf\xe9")
    image.save(tmp_path / "a.png", pnginfo=info)
    image.save(tmp_path / "b.gif", comment=b"caf\xe9")
    exif = image.getexif()
    exif[0x010E] = b"caf\xe9"
    image.save(tmp_path / "c.jpg", exif=exif)
    assert read_text(tmp_path / "a.png")["Caption"] == "café"
    assert read_text(tmp_path / "b.gif") == read_text(tmp_path / "c.jpg") == {}
    for name in ("a.png", "b.gif", "c.jpg"):
        assert open_image(tmp_path / name).size == (16, 16)


def test_what_files_hold_can_be_written():
    assert writable_text({"a": f"é {CAFE}"}) == {"a": "é caf?"}
    assert writable_text(None) == {}


def test_text_that_is_no_utf8_is_written_all_the_same(tmp_path):
    for ending in ("png", "gif"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / f"a.{ending}", {"command": CAFE})
        assert read_text(tmp_path / f"a.{ending}") == {"command": "caf?"}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "list_attr_celeba.txt"])
def test_tables_in_latin_1_are_one_line(tmp_path, name):
    folder = draw_images(tmp_path / "images", count=4)
    (folder / name).write_bytes(b"file_name,caf\xe9\n000.png,1\n")
    with pytest.raises(UserInputError, match=name) as caught:
        load_images(folder, size=16, cache_dir=tmp_path / "cache", progress=False)
    assert "\n" not in str(caught.value)


# No home folder


@pytest.fixture
def homeless(monkeypatch):
    import pwd

    def unknown(_):
        raise KeyError("uid not found")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "HEBM_CACHE"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_home_folder(homeless, tmp_path):
    folder = draw_images(tmp_path / "images", count=4)
    with pytest.raises(EnvironmentFailure, match="no home folder.*set HEBM_CACHE"):
        load_images(folder, size=16, progress=False)
    with pytest.raises(UserInputError, match="no images at ~/images"):
        load_images("~/images", size=16, cache_dir=tmp_path, progress=False)
    assert "set HF_HOME" in reason(RuntimeError("Could not determine home directory."))


def test_a_home_folder_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "home").write_text("no folder")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HEBM_CACHE", raising=False)
    folder = draw_images(tmp_path / "images", count=4)
    with pytest.raises(EnvironmentFailure, match="set HEBM_CACHE to a folder that can be written"):
        load_images(folder, size=16, progress=False)


def test_sampling_needs_no_home_folder(here, homeless):
    run(sample, "-n", "1", "--out", "x.png")
    assert Path("x.png").is_file()
