"""The file that is imported, and the folder, name and size of what it becomes.

Without these tests a changed byte would become a weight, a machine without memory would blame the
file, and a wrong name would be told after gigabytes have been read.
"""

import io
import os
import zipfile

import pytest
import torch
from click.testing import CliRunner
from nvae_files import NAMES, checkpoint, write_checkpoint
from tiny import tiny_pipeline

from hebm_sample import Pipeline
from hebm_sample.cli.train import main
from hebm_sample.errors import UserInputError
from hebm_sample.hub import save
from hebm_sample.io.files import mark_run_folder
from hebm_sample.training.ending import check_model_place
from hebm_sample.training.export import export
from hebm_sample.training.imports import nvae_checkpoint, pickles
from hebm_sample.training.imports.nvae_checkpoint import import_nvae, load_nvae

ONE = NAMES[0]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("nvae")
    write_checkpoint(ONE, home / "nvae.pt")
    import_nvae(home / "nvae.pt", home / "model")
    return home


def refused(checkpoint, out, *more, code=2):
    """The one line that the command ends with."""
    words = ["import-nvae", str(checkpoint), "--out", str(out), *map(str, more)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, result.output
    assert result.output.startswith("Error: ") and result.output.count("\n") == 1
    return result.output


# The file


@pytest.mark.parametrize("record", ("data/0", "data.pkl"))
def test_a_changed_byte_is_noticed(home, tmp_path, record):
    """torch compares no checksums: one bit makes a weight of 0.1 one of 1.5."""
    whole = bytearray((home / "nvae.pt").read_bytes())
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        found = next(i for i in archive.infolist() if i.filename.endswith(f"/{record}"))
    lengths = whole[found.header_offset + 26 : found.header_offset + 30]
    names = int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    whole[found.header_offset + 30 + names + 3] ^= 1
    (tmp_path / "x.pt").write_bytes(whole)
    text = refused(tmp_path / "x.pt", tmp_path / "out")
    assert f"is damaged: '{found.filename}' in it differs from its checksum" in text
    assert not (tmp_path / "out").exists()


def test_compressed_records_are_never_unpacked(home, tmp_path, monkeypatch):
    with (
        zipfile.ZipFile(home / "nvae.pt") as whole,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("it was unpacked"))
    text = refused(tmp_path / "x.pt", tmp_path / "out")
    assert "has compressed records" in text and len(text) < 700


def test_both_kinds_of_files_are_read_alike_and_archives_stay_on_the_disk(
    home, tmp_path, monkeypatch
):
    """An optimiser's tensors are twice the weights, and nobody looks at them."""
    mapped, read = [], torch.load
    monkeypatch.setattr(
        pickles.torch, "load", lambda *a, **k: (mapped.append(k["mmap"]), read(*a, **k))[1]
    )
    torch.save(checkpoint(ONE), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    bare, archive = load_nvae(tmp_path / "x.pt"), load_nvae(home / "nvae.pt")
    assert mapped == [False, True]
    for ours, theirs in ((bare.generator, archive.generator), (bare.encoder, archive.encoder)):
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value), key


def no_memory(count):
    """The error of this torch where it gets no memory for `count` bytes."""
    with pytest.raises(RuntimeError) as told:
        torch.empty(2**52, dtype=torch.uint8)
    return RuntimeError(str(told.value).replace(str(2**52), str(count)))


@pytest.mark.parametrize(
    "error",
    (
        no_memory(1000),
        MemoryError(),
        RuntimeError("unable to mmap 1000 bytes from file <x>: Cannot allocate memory (12)"),
    ),
)
@pytest.mark.parametrize("place", ("load", "fill"))
def test_too_little_memory_is_no_fault_of_the_file(home, tmp_path, monkeypatch, error, place):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(*{"load": (torch, "load"), "fill": (nvae_checkpoint, "fill")}[place], fail)
    text = refused(home / "nvae.pt", tmp_path / "out", code=1)
    assert f"there is too little memory for {home / 'nvae.pt'}, which has 0 MiB" in text


def test_a_file_that_asks_for_more_than_it_has_is_damaged(home, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise no_memory(10**12)

    monkeypatch.setattr(torch, "load", fail)
    assert "is damaged" in refused(home / "nvae.pt", tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", "/dev/null"):
        assert f"{path} is no regular file" in refused(path, tmp_path / "out")


# What is told before a checkpoint of gigabytes is read


@pytest.fixture
def unread(monkeypatch):
    monkeypatch.setattr(nvae_checkpoint, "read_checkpoint", lambda _: pytest.fail("it was read"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--energies", "none.pth"), "there is no file none.pth"),
        (("--energies", "y" * 300), "is too long for a file"),
        (("--name", ""), "name is ''; it must be a plain name"),
        (("--name", "a b"), "name is 'a b'"),
        (("--name", "a..b"), "name is 'a..b'"),
    ],
)
def test_options_are_refused_first(home, tmp_path, unread, more, said):
    assert said in refused(home / "nvae.pt", tmp_path / "out", *more)


def test_places_are_refused_first(home, tmp_path, unread):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "run").mkdir()
    mark_run_folder(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    for name, said in (
        ("file", "is a file; name a folder"),
        ("file/in/deep", f"cannot be written: {tmp_path / 'file'} is a file"),
        ("link", "is a link to nothing"),
        ("y" * 300, "is too long for a folder"),
        ("run", "is the folder of a training run"),
    ):
        assert said in refused(home / "nvae.pt", tmp_path / name)
    assert "is too long for a file" in refused(tmp_path / ("y" * 300), tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_exports_refuse_the_same_before_the_run_is_read(tmp_path):
    with pytest.raises(UserInputError, match="name is ''"):
        export(tmp_path / "none", tmp_path / "out", name="")
    (tmp_path / "run").mkdir()
    mark_run_folder(tmp_path / "run")
    with pytest.raises(UserInputError, match="is the folder of a training run"):
        export(tmp_path / "none", tmp_path / "run")
    with pytest.raises(UserInputError, match="is the folder of a training run"):
        tiny_pipeline().save_pretrained(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".hebm-run"]


def test_a_run_that_could_not_write_its_model_does_not_begin(tmp_path):
    assert check_model_place(tmp_path / "none") is check_model_place(tmp_path) is False
    (tmp_path / "model").mkdir()
    mark_run_folder(tmp_path / "model")
    with pytest.raises(UserInputError, match="model is the folder of a training run"):
        check_model_place(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/model").write_text("mine")
    with pytest.raises(UserInputError, match="model is a file; name a folder"):
        check_model_place(tmp_path / "other")


def test_a_name_as_long_as_names_can_be_is_written(home, tmp_path):
    import_nvae(home / "nvae.pt", tmp_path / ("y" * 255))
    assert (tmp_path / ("y" * 255) / "config.json").is_file()


def test_networks_larger_than_any_file_are_refused_before_they_are_filled(
    home, tmp_path, monkeypatch
):
    monkeypatch.setattr(save, "MAX_FILE_BYTES", 10_000)
    monkeypatch.setattr(nvae_checkpoint, "fill", lambda *_: pytest.fail("it was filled"))
    text = refused(home / "nvae.pt", tmp_path / "out")
    assert "generator.safetensors would have " in text and "too large to be stored" in text
    with pytest.raises(UserInputError, match="generator.safetensors would have"):
        tiny_pipeline().save_pretrained(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# What becomes of large weights


def test_imported_weights_out_of_half_precision_stay_in_float32(home, tmp_path):
    """As a run on it copies and ends with them; they cannot be trained to be smaller."""
    pipe = Pipeline.from_pretrained(home / "model")
    weight = next(pipe.generator.parameters())
    weight.data[(0,) * weight.ndim] = 1e6
    pipe.save_pretrained(tmp_path / "out")
    again = Pipeline.from_pretrained(tmp_path / "out")
    for key, value in pipe.generator.state_dict().items():
        assert torch.equal(again.generator.state_dict()[key], value), key
    sizes = {
        part: [
            (f / f"{part}.safetensors").stat().st_size for f in (home / "model", tmp_path / "out")
        ]
        for part in ("generator", "encoder")
    }
    assert sizes["generator"][0] == sizes["generator"][1]
    assert sizes["encoder"][1] < 0.7 * sizes["encoder"][0]
