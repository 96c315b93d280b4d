"""A manifest says which bytes are a model. One that is believed too easily opens files outside its
folder, or lets a flipped bit pass."""

import json
import os
import string
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hebm_sample.errors import EnvironmentFailure, UserInputError, WeightsError
from hebm_sample.hub import manifest
from hebm_sample.hub.manifest import FileRow, Manifest, ModelRow, read_row, write_row
from hebm_sample.io import files

FILE = FileRow(3, "0" * 64)
FILES = {"config.json": FILE, "generator.safetensors": FILE}
ROW = ModelRow("tiny", 32, "CC0-1.0", FILES)
HOSTILE = [
    "..",
    "../config.json",
    "a/b",
    "/etc/passwd",
    "a\\b",
    "\\\\host\\x",
    "C:\\x",
    "C:x",
    "a\0b",
    "x" * 300,
    "",
    ".",
    ".hidden",
    "a..b",
    "dot.",
    " space",
    "new\nline",
    "ünï",
    "\ud800",
]


def write(path, data):
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path


def document(**changes):
    return {"format_version": 1, "models": [{**ROW.to_dict(), **changes}]}


def test_round_trip(tmp_path):
    row = replace(ROW, folder="tiny", repo_id="a/b", revision="0" * 40, figures={"fid": 3.5})
    manifest.write_manifest(tmp_path / "m.json", [row])
    assert Manifest.load(tmp_path / "m.json").models == (row,)
    assert ModelRow.from_dict(json.loads(json.dumps(row.to_dict()))) == row


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names(name, tmp_path):
    listed = {**ROW.to_dict()["files"], name: {"size": 3, "sha256": "0" * 64}}
    for change in ({"files": listed}, {"folder": name}, {"name": name}, {"repo_id": f"a/{name}"}):
        path = write(tmp_path / "m.json", document(**change))
        with pytest.raises(WeightsError, match="no valid model manifest") as caught:
            Manifest.load(path)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"config.json": {"size": -1, "sha256": "0" * 64}}}, "size is -1"),
        ({"files": {"config.json": {"size": 2**40, "sha256": "0" * 64}}}, "size is 1099"),
        ({"files": {"config.json": {"size": True, "sha256": "0" * 64}}}, "size is True"),
        ({"files": {"config.json": {"size": 1.5, "sha256": "0" * 64}}}, "size is 1.5"),
        ({"files": {"config.json": {"size": 1, "sha256": "0" * 63}}}, "sha256 is '0"),
        ({"files": {"config.json": {"size": 1, "sha256": "G" * 64}}}, "sha256 is 'G"),
        ({"files": {"config.json": {"size": 1}}}, r"lacks the keys \['sha256'\]"),
        ({"files": {"config.json": 7}}, "files.* is 7; it must be an object"),
        ({"files": []}, r"files is \[\]; it must be an object"),
        ({"files": {}}, "files lacks config.json, generator.safetensors"),
        ({"resolution": "32"}, "resolution is '32'"),
        ({"resolution": 3}, "resolution is 3"),
        ({"licence": ""}, "licence is ''"),
        ({"licence": "a\nb"}, "licence is"),
        ({"default": 1}, "default is 1"),
        ({"repo_id": "no-owner"}, "repo_id is 'no-owner'"),
        ({"revision": "0" * 40}, "revision is .* commit of repo_id"),
        ({"repo_id": "a/b", "revision": "main"}, "revision is 'main'"),
        ({"figures": []}, r"figures is \[\]"),
        ({"surprise": 1}, "unknown keys"),
    ],
)
def test_wrong_values(change, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        Manifest.load(write(tmp_path / "m.json", document(**change)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "must be an object"),
        ("{}", "format_version is None"),
        ('{"format_version": 2, "models": []}', "format_version is 2; .*upgrade"),
        ('{"format_version": true, "models": []}', "format_version is True"),
        ('{"format_version": 1}', "models is None"),
        ('{"format_version": 1, "models": [3]}', "a model row is 3"),
        ('{"format_version": 1, "models": [], "models": []}', "'models' appears twice"),
        ('{"format_version": 1, "models": [], "more": 1}', "unknown keys"),
        ('{"format_version": 1, "models": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "nested too deeply"),
        (" " * 1_000_001, "more than 1000000 bytes"),
    ],
)
def test_wrong_documents(text, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        Manifest.load(write(tmp_path / "m.json", text))


def test_duplicate_file_key(tmp_path):
    text = json.dumps(document()).replace('"config.json"', '"generator.safetensors"')
    with pytest.raises(WeightsError, match="'generator.safetensors' appears twice"):
        Manifest.load(write(tmp_path / "m.json", text))


def test_not_utf8_missing_and_no_file(tmp_path):
    (tmp_path / "m.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(WeightsError, match="no valid model manifest: .*utf-8"):
        Manifest.load(tmp_path / "m.json")
    with pytest.raises(WeightsError, match="there is no .*absent.json"):
        Manifest.load(tmp_path / "absent.json")
    with pytest.raises(WeightsError, match="no regular file"):
        Manifest.load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "m.json")
    with pytest.raises(WeightsError, match="no regular file"):
        Manifest.load(tmp_path / "m.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=40, deadline=None)
@given(key=st.sampled_from([*ROW.to_dict(), "more"]), value=json_values)
def test_any_value_in_any_field(key, value, tmp_path_factory):
    path = write(tmp_path_factory.getbasetemp() / "any.json", document(**{key: value}))
    try:
        (row,) = Manifest.load(path).models
    except WeightsError as error:
        assert str(error).isprintable()
    else:
        assert row.to_dict() == {**ROW.to_dict(), key: value}


@settings(max_examples=60, deadline=None)
@given(name=st.text(max_size=12) | st.text(string.printable, max_size=12))
def test_accepted_names_stay_in_the_folder(name):
    try:
        replace(ROW, files={**FILES, name: FILE})
    except UserInputError:
        return
    assert os.path.basename(name) == name and name not in ("", ".", "..") and name.isascii()


def test_find():
    rows = (
        replace(ROW, name="celebahq", resolution=64, default=False),
        replace(ROW, name="celebahq", resolution=256),
        replace(ROW, name="cifar10", default=False),
    )
    models = Manifest(rows)
    assert models.find("celebahq") is rows[1]
    assert models.find("celebahq", 64) is rows[0]
    assert models.find("cifar10") is rows[2]
    with pytest.raises(UserInputError, match="no resolution 32; it exists at 64, 256"):
        models.find("celebahq", 32)
    with pytest.raises(
        UserInputError,
        match="no model 'celebaHQ'; did you mean celebahq.*known: celebahq, cifar10",
    ):
        models.find("celebaHQ")
    with pytest.raises(UserInputError, match="no model 'x'; this installation lists none"):
        Manifest(()).find("x")


def test_ambiguous_names_refused():
    with pytest.raises(UserInputError, match="two rows of one resolution"):
        Manifest((ROW, ROW))
    with pytest.raises(UserInputError, match="tiny has 2 default rows"):
        Manifest((ROW, replace(ROW, resolution=64)))


def test_write_row_measures_the_folder(model_folder):
    row = read_row(model_folder)
    assert set(row.files) == set(manifest.MODEL_FILES)
    for name, file in row.files.items():
        assert file.size == (model_folder / name).stat().st_size
        assert file.sha256 == files.sha256_of(model_folder / name)
    assert row.revision is None and not list(model_folder.glob(".*"))


def test_write_row_refuses(tmp_path, model_folder):
    with pytest.raises(UserInputError, match="files lacks config.json"):
        write_row(tmp_path, name="tiny", resolution=32, licence="CC0")
    with pytest.raises(UserInputError, match="name is 'a/b'"):
        write_row(model_folder, name="a/b", resolution=32, licence="CC0")
    with pytest.raises(UserInputError, match="figures must be plain JSON"):
        write_row(model_folder, name="a", resolution=32, licence="CC0", figures={"fid": 1e999})


def test_read_row_wants_one_row(model_folder):
    write(model_folder / "weights_manifest.json", {"format_version": 1, "models": []})
    with pytest.raises(WeightsError, match="holds 0 models"):
        read_row(model_folder)


def test_write_atomically(tmp_path, monkeypatch):
    path = tmp_path / "file"
    mask = os.umask(0o027)
    try:
        files.write_atomically(path, b"old")
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640 or os.name == "nt"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EnvironmentFailure, match="cannot write .*file: No space left on device"):
        files.write_atomically(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_package_manifest_without_torch():
    code = (
        "import sys; from hebm_sample.hub.manifest import list_models; list_models();"
        "import hebm_sample.hub.resolve; print({'torch', 'huggingface_hub'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
