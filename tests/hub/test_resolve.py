"""Whatever was typed, what comes back has the bytes of its manifest row, or one line says why not.
Without that a model with a flipped bit draws images that are only somewhat wrong."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hub.loopback import damage

from hebm_sample.errors import UserInputError, WeightsError
from hebm_sample.hub import manifest
from hebm_sample.hub.resolve import resolve
from hebm_sample.io.extras import reinstall_hint

REPO = "somebody/tiny"


# --- local folders ------------------------------------------------------------------------------


def test_local_folder(model_folder, monkeypatch):
    model = resolve(model_folder)
    assert (model.folder, model.source, model.revision) == (model_folder, "folder", None)
    assert model.path("encoder.safetensors") == model_folder / "encoder.safetensors"
    monkeypatch.chdir(model_folder.parent)
    assert resolve("tiny").row == resolve("./tiny", resolution=32).row == model.row
    monkeypatch.setenv("HOME", str(model_folder.parent))
    assert resolve("~/tiny").row == model.row


@pytest.mark.parametrize("name", manifest.MODEL_FILES)
def test_one_flipped_bit_in_each_file(name, model_folder):
    damage(model_folder / name)
    want = manifest.read_row(model_folder).files[name].sha256
    message = f"{name} is corrupt: its sha256 is [0-9a-f]{{64}} and should be {want}; copy or"
    with pytest.raises(WeightsError, match=message):
        resolve(model_folder).path("encoder.safetensors")  # the last of them is checked here


@pytest.mark.parametrize("name", manifest.MODEL_FILES)
def test_missing_and_shortened_files(name, model_folder):
    path = model_folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=f"{name} is corrupt: it has .* bytes and should have"):
        resolve(model_folder).path("encoder.safetensors")
    path.unlink()
    with pytest.raises(WeightsError, match=f"{name} is missing; copy or export"):
        resolve(model_folder).path("encoder.safetensors")
    path.mkdir()
    with pytest.raises(WeightsError, match=f"{name} is no regular file"):
        resolve(model_folder).path("encoder.safetensors")


def test_encoder_waits_until_it_is_asked_for(model_folder):
    (model_folder / "encoder.safetensors").unlink()
    model = resolve(model_folder)
    with pytest.raises(WeightsError, match="encoder.safetensors is missing"):
        model.path("encoder.safetensors")


def test_only_known_files(model_folder):
    (model_folder / "generator.pt").write_bytes(b"pickle")
    model = resolve(model_folder)
    for name in ("generator.pt", "../tiny/config.json", "README.md", ""):
        with pytest.raises(UserInputError, match="is no model file; a model has config.json"):
            model.path(name)
    with pytest.raises(UserInputError, match="generator.pt' is a file; give the model folder"):
        resolve(str(model_folder / "generator.pt"))


def test_unlisted_files_are_not_used(model_folder):
    (model_folder / "encoder.safetensors").rename(model_folder / "elsewhere")
    manifest.write_row(model_folder, name="tiny", resolution=32, licence="CC0")
    (model_folder / "elsewhere").rename(model_folder / "encoder.safetensors")
    with pytest.raises(WeightsError, match="published without encoder.safetensors; it has config"):
        resolve(model_folder).path("encoder.safetensors")


def test_folder_without_manifest(model_folder):
    (model_folder / manifest.MANIFEST_NAME).unlink()
    with pytest.raises(WeightsError, match="there is no .*weights_manifest.json"):
        resolve(model_folder)


def test_arguments_that_do_not_fit_a_folder(model_folder):
    with pytest.raises(UserInputError, match="is a folder and has no revisions"):
        resolve(model_folder, revision="main")
    with pytest.raises(UserInputError, match="makes images of 32 pixels, not 64"):
        resolve(model_folder, resolution=64)


# --- what was typed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["./absent", "../absent", "~/absent", "/absent/x", Path("absent")]
)
def test_no_such_folder(name):
    with pytest.raises(UserInputError, match="there is no folder .*absent") as caught:
        resolve(name)
    assert caught.value.exit_code == 2


def test_a_path_below_a_folder_is_no_hubs_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr("hebm_sample.hub.resolve._from_hub", None)
    with pytest.raises(UserInputError, match="there is no folder 'runs/absent'"):
        resolve("runs/absent")


@pytest.mark.parametrize("name", ["celebahw", "a/b/c", "c\\d", "spa ce", "x" * 300, "\x1b[31m"])
def test_unknown_name(name, install, model_folder):
    install(replace(manifest.read_row(model_folder), name="celebahq"))
    with pytest.raises(UserInputError, match="there is no model .*known: celebahq") as caught:
        resolve(name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000])
def test_no_name_at_all(name):
    with pytest.raises(UserInputError, match="cannot name a model"):
        resolve(name)


@pytest.mark.parametrize("revision", ["", "../../x", "/abs", "a\0", "a b", "-x", "x" * 300])
def test_malformed_revision(revision):
    with pytest.raises(UserInputError, match="revision is .*a branch, a tag or a commit"):
        resolve(REPO, revision=revision)


@pytest.mark.parametrize("token", ["", "hf_a\nb", "hf_ä", "two words"])
def test_malformed_token_is_not_shown(token):
    with pytest.raises(UserInputError, match="the token is empty or holds") as caught:
        resolve(REPO, token=token)
    assert not token or token not in str(caught.value)


# --- embedded models ----------------------------------------------------------------------------


def test_embedded(model_folder, install, monkeypatch):
    row = replace(manifest.read_row(model_folder), folder="tiny")
    install(row, embedded=model_folder.parent)
    assert resolve("tiny").source == "embedded"
    assert resolve("tiny", resolution=32).folder == model_folder
    with pytest.raises(UserInputError, match="tiny has no resolution 64; it exists at 32"):
        resolve("tiny", resolution=64)
    with pytest.raises(UserInputError, match="comes with the package and has no revisions"):
        resolve("tiny", revision="main")
    damage(model_folder / "prior.safetensors")
    # Its own manifest is not what an embedded copy is checked against.
    manifest.write_row(model_folder, name="tiny", resolution=32, licence="CC0")
    want = row.files["prior.safetensors"].sha256
    said = f"prior.* should be {want}; {re.escape(reinstall_hint())}"
    with pytest.raises(WeightsError, match=said):
        resolve("tiny")


def test_resolutions_of_a_model_share_files(model_folder, install):
    small = replace(manifest.read_row(model_folder), folder="tiny", resolution=16, default=False)
    other = model_folder.with_name("large")
    other.mkdir()
    for name in ("config.json", "generator.safetensors"):
        (other / name).write_bytes((model_folder / name).read_bytes())
    large = replace(small, folder="large", resolution=32, default=True)
    install(small, large, embedded=model_folder.parent)
    found = resolve("tiny")
    assert found.path("config.json") == other / "config.json"
    assert found.path("prior.safetensors") == model_folder / "prior.safetensors"
    assert found.path("encoder.safetensors") == model_folder / "encoder.safetensors"
    damage(model_folder / "prior.safetensors")
    with pytest.raises(WeightsError, match="prior.safetensors is corrupt"):
        resolve("tiny")
    # Another model's file of that name is no substitute.
    files = {**large.files, "prior.safetensors": manifest.FileRow(3, "0" * 64)}
    install(small, replace(large, files=files), embedded=model_folder.parent)
    with pytest.raises(WeightsError, match="large/prior.safetensors is missing"):
        resolve("tiny")


def test_embedded_but_not_there(model_folder, install):
    install(replace(manifest.read_row(model_folder), folder="tiny"))
    said = f"tiny are not in this installation; {re.escape(reinstall_hint())}"
    with pytest.raises(WeightsError, match=said):
        resolve("tiny")


def test_a_folder_of_images_does_not_hide_a_name(model_folder, install, monkeypatch, tmp_path):
    install(replace(manifest.read_row(model_folder), folder="tiny"), embedded=model_folder.parent)
    (tmp_path / "work" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    assert resolve("tiny").source == "embedded"
    monkeypatch.chdir(model_folder.parent)
    assert resolve("tiny").source == "folder"
