"""A folder that was written can be loaded, whole; one that was not written to its end cannot.

Half precision on disk, the manifest row last, nothing left over from an older model: otherwise a
folder loads and is not the model that its card describes.
"""

import json
from dataclasses import replace

import pytest
import torch
from tiny import tiny_config, tiny_modules

from hebm_sample.config import ModelConfig
from hebm_sample.errors import EnvironmentFailure, UserInputError, WeightsError
from hebm_sample.hub import save
from hebm_sample.hub.card import model_card
from hebm_sample.hub.load import build_model, load_encoder, read_config
from hebm_sample.hub.manifest import MODEL_FILES, read_row, write_row
from hebm_sample.hub.resolve import resolve
from hebm_sample.hub.save import write_model_folder
from hebm_sample.io.files import sha256_of

CONFIG = tiny_config()
BARE = replace(CONFIG, prior=None)


def write(folder, config=CONFIG, **options):
    generator, encoder, prior = tiny_modules()
    prior = prior if config.prior else None
    return write_model_folder(folder, config, generator, prior, encoder, **options)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "model")
    return tmp_path / "model"


def test_what_lies_in_the_folder(folder):
    names = sorted(p.name for p in folder.iterdir())
    assert names == sorted([*MODEL_FILES, "README.md", "weights_manifest.json"])
    assert ModelConfig.from_dict(json.loads((folder / "config.json").read_text())) == CONFIG


def test_the_row_describes_the_files(tmp_path):
    row = write(tmp_path / "m", licence="CC0-1.0", figures={"gap_closed": 0.5})
    assert row == read_row(tmp_path / "m") and set(row.files) == set(MODEL_FILES)
    assert (row.name, row.resolution, row.licence) == ("tiny", 16, "CC0-1.0")
    assert row.figures == {"gap_closed": 0.5}
    for name, file in row.files.items():
        path = tmp_path / "m" / name
        assert (file.size, file.sha256) == (path.stat().st_size, sha256_of(path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_come_back_in_float32(tmp_path, dtype):
    write(tmp_path / "m", dtype=dtype)
    loaded = build_model(tmp_path / "m")
    encoder = load_encoder(loaded.resolved, loaded.config)
    for module, original in zip(
        (loaded.generator, encoder, loaded.prior), tiny_modules(), strict=True
    ):
        found, expected = module.state_dict(), original.state_dict()
        assert list(found) == list(expected)
        for key, value in found.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, expected[key].to(dtype).float()), key


def test_half_precision_is_the_default_and_equal_weights_give_equal_bytes(tmp_path):
    first, second = write(tmp_path / "a"), write(tmp_path / "b", dtype=torch.float16)
    assert first.files == second.files
    name = "generator.safetensors"
    assert (
        write(tmp_path / "c", dtype=torch.float32).files[name].size > 1.5 * first.files[name].size
    )


def test_loading_leaves_the_random_state_alone(folder):
    before = torch.get_rng_state()
    loaded = build_model(folder)
    load_encoder(loaded.resolved, loaded.config)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_without_a_prior(tmp_path):
    row = write(tmp_path / "m", BARE)
    assert "prior.safetensors" not in row.files
    loaded = build_model(tmp_path / "m")
    assert loaded.prior is None and loaded.config == BARE


def test_writing_over_an_older_model_leaves_nothing_of_it(folder):
    with pytest.raises(UserInputError, match="already holds"):
        write(folder, BARE)
    row = write(folder, BARE, overwrite=True)
    assert "prior.safetensors" not in row.files
    assert not (folder / "prior.safetensors").exists()


def test_an_interrupted_writer_leaves_a_folder_that_is_refused(folder, monkeypatch):
    def fail(module, path, dtype):
        if path.name == "prior.safetensors":
            raise EnvironmentFailure("the disk is full")
        path.write_bytes(b"new")

    monkeypatch.setattr(save, "save_weights", fail)
    with pytest.raises(EnvironmentFailure, match="the disk is full"):
        write(folder, overwrite=True)
    with pytest.raises(WeightsError, match=r"weights_manifest\.json"):
        build_model(folder)


def test_weights_that_do_not_fit_half_precision_are_refused(tmp_path):
    generator, encoder, prior = tiny_modules()
    with torch.no_grad():
        generator.constant[0, 0, 0, 0] = 1e6
    with pytest.raises(WeightsError, match=r"float16: non-finite values in 'constant'"):
        write_model_folder(tmp_path / "m", CONFIG, generator, prior, encoder)
    whole = {"dtype": torch.float32, "overwrite": True}
    write_model_folder(tmp_path / "m", CONFIG, generator, prior, encoder, **whole)
    assert build_model(tmp_path / "m").generator.constant[0, 0, 0, 0] == 1e6


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "m").write_text("")
    with pytest.raises(UserInputError, match=r"m is a file; name a folder for the model"):
        write(tmp_path / "m")
    with pytest.raises((UserInputError, EnvironmentFailure), match="cannot be written"):
        write(tmp_path / "m" / "below")


# ---- descriptions


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", r"config\.json is not a description of a model"),
        ("[]", r"config is list; it must be an object"),
        ('{"name": "tiny"}', r"config lacks the keys \['generator'\]"),
        ('{"name": "tiny", "name": "tiny"}', r"config\.json is not a description of a model"),
    ],
)
def test_a_broken_description_is_named(folder, text, match):
    (folder / "config.json").write_text(text)
    write_row(folder, name="tiny", resolution=16, licence="CC0-1.0")
    with pytest.raises(WeightsError, match=match):
        build_model(folder)


def test_a_newer_description_asks_for_an_upgrade(folder):
    data = CONFIG.to_dict() | {"format_version": 2}
    (folder / "config.json").write_text(json.dumps(data))
    write_row(folder, name="tiny", resolution=16, licence="CC0-1.0")
    with pytest.raises(WeightsError, match=r"format_version is 2; .*upgrade hebm_sample"):
        read_config(resolve(folder))


def test_weights_of_another_description_are_refused(folder):
    wider = replace(CONFIG, prior=replace(CONFIG.prior, width=24))
    (folder / "config.json").write_text(json.dumps(wider.to_dict()))
    write_row(folder, name="tiny", resolution=16, licence="CC0-1.0")
    with pytest.raises(WeightsError, match=r"prior\.safetensors does not fit its config\.json"):
        build_model(folder)


def test_a_changed_description_is_caught_by_its_digest(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"steps": 12', '"steps": 13'))
    with pytest.raises(WeightsError, match=r"config\.json is corrupt: its sha256 is"):
        build_model(folder)


# ---- cards


def front_matter(text):
    opening, block, body = text.split("---\n", 2)
    assert opening == ""
    return dict(line.split(": ", 1) for line in block.strip().splitlines()), body


def test_the_card():
    text = model_card(CONFIG, licence="CC BY-NC 4.0: as the data", figures={"gap_closed": 0.5})
    fields, body = front_matter(text)
    assert fields["license"] == "other" and fields["license_name"] == "cc-by-nc-4.0"
    assert fields["library_name"] == "hebm-sample"
    assert fields["pipeline_tag"] == "unconditional-image-generation"
    assert "| gap closed | 0.5 |" in body and "Licence of these weights: CC BY-NC 4.0" in body
    assert "4x2x2, 2x4x4, 2x4x4 (80 dimensions)" in body and "0.1, 0.6, 0.96, 1" in body
    assert "No figures were measured." in model_card(BARE, licence="x", figures={})
    assert "(cum_sigma): none" in model_card(BARE, licence="x", figures={})


def test_a_card_that_exists_is_kept(tmp_path):
    write(tmp_path / "a", card="# Mine\n")
    assert (tmp_path / "a" / "README.md").read_text() == "# Mine\n"
    write(tmp_path / "b", card=tmp_path / "a" / "README.md")
    assert (tmp_path / "b" / "README.md").read_text() == "# Mine\n"
    write(tmp_path / "c")
    assert (tmp_path / "c" / "README.md").read_text().startswith("---\n")
