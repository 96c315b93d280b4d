"""A folder that was written can be loaded, whole; one that was not written to its end cannot.

Half precision on disk, whole models put in their place, nothing left over from an older one:
otherwise a folder loads and is not the model that its card describes.
"""

import contextlib
import errno
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from tiny import tiny_config, tiny_modules

from hebm_sample.cli.sample import main
from hebm_sample.config import ModelConfig
from hebm_sample.errors import EnvironmentFailure, UserInputError, WeightsError
from hebm_sample.hub import manifest, save
from hebm_sample.hub import resolve as resolving
from hebm_sample.hub.card import card_for, model_card
from hebm_sample.hub.load import build_model, load_encoder, read_config
from hebm_sample.hub.manifest import MODEL_FILES, read_row, write_row
from hebm_sample.hub.resolve import resolve
from hebm_sample.hub.save import write_model_folder
from hebm_sample.hub.weights import content_digest
from hebm_sample.io.files import sha256_of
from hebm_sample.metrics.typicality import Calibration
from hebm_sample.pipeline.pipeline import Pipeline

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


def test_a_writer_that_fails_leaves_the_older_model(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(module, dtype, name):
        if name == "prior.safetensors":
            raise EnvironmentFailure("the disk is full")
        return b"new"

    monkeypatch.setattr(save, "weights_bytes", fail)
    for place in (folder, folder.parent / "new"):
        with pytest.raises(EnvironmentFailure, match="the disk is full"):
            write(place, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    build_model(folder)


def test_saving_over_itself_keeps_card_licence_and_figures(tmp_path):
    figures = {"fid": 12.5}
    write(tmp_path / "m", licence="CC0-1.0", figures=figures, card="Café\n")
    (tmp_path / "m" / "README.md").write_bytes("Caf\xe9\n".encode("latin-1"))
    pipe = Pipeline.from_pretrained(tmp_path / "m", device="cpu")
    before = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    pipe.save_pretrained(tmp_path / "m", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()} == before
    row = manifest.read_row(tmp_path / "m")
    assert (row.licence, row.figures) == ("CC0-1.0", figures)
    # A card that cannot be read is found out before anything is changed.
    (tmp_path / "m" / "README.md").unlink()
    with pytest.raises(EnvironmentFailure, match="nothing was written"):
        pipe.save_pretrained(tmp_path / "m", overwrite=True)
    (tmp_path / "m" / "README.md").mkdir()
    with pytest.raises(UserInputError, match=r"README\.md is a folder"):
        pipe.save_pretrained(tmp_path / "m", overwrite=True)
    build_model(tmp_path / "m")


@pytest.mark.parametrize(
    "failing", ["config.json", "encoder.safetensors", "weights_manifest.json"]
)
def test_a_writer_that_fails_half_way_leaves_the_older_model(tmp_path, monkeypatch, failing):
    folder = tmp_path / "m"
    write(folder, licence="CC0-1.0", card="old")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    replaced, real = [], os.replace

    def replace_or_fail(source, place, **how):
        inside = Path(place).parent == folder
        if inside and Path(place).name == failing and failing not in replaced:
            replaced.append(failing)
            raise OSError(errno.EIO, "Input/output error")
        return real(source, place, **how)

    monkeypatch.setattr(os, "replace", replace_or_fail)
    generator, encoder, prior = tiny_modules(seed=7)
    with pytest.raises(EnvironmentFailure, match="Input/output error"):
        write_model_folder(folder, CONFIG, generator, prior, encoder, overwrite=True)
    assert replaced and {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_model_folder(folder, CONFIG, generator, prior, encoder, overwrite=True)
    assert (folder / "encoder.safetensors").read_bytes() != before["encoder.safetensors"]


def test_what_is_loaded_is_what_was_hashed(folder, tmp_path, monkeypatch):
    """Every file is replaced as soon as it was read: nothing of the replacement is loaded."""
    other = tiny_modules(seed=7)
    write_model_folder(tmp_path / "other", CONFIG, other[0], other[2], other[1])
    kept = {path.name: path.read_bytes() for path in folder.iterdir()}
    read, swapped = resolving.read_regular, []

    def read_then_swap(path, limit):
        data = read(path, limit)
        if path.parent == folder and path.name != manifest.MANIFEST_NAME:
            path.write_bytes((tmp_path / "other" / path.name).read_bytes())
            swapped.append(path.name)
        return data

    monkeypatch.setattr(resolving, "read_regular", read_then_swap)
    loaded = build_model(folder)
    encoder = load_encoder(loaded.resolved, loaded.config)
    assert sorted(swapped) == sorted(set(kept) - {"README.md", manifest.MANIFEST_NAME})
    wanted = [save.weights_bytes(m, torch.float16, "") for m in tiny_modules()]
    found = [
        save.weights_bytes(m, torch.float16, "") for m in (loaded.generator, encoder, loaded.prior)
    ]
    assert found == wanted
    with pytest.raises(WeightsError, match="corrupt"):
        build_model(folder)


def test_content_digest_sees_every_bit():
    generator, encoder, prior = tiny_modules()
    digests = {content_digest(generator), content_digest(encoder), content_digest(prior)}
    digests |= {content_digest(generator, prior), content_digest(prior, generator)}
    with torch.no_grad():
        before = content_digest(generator)
        assert content_digest(generator.to(memory_format=torch.channels_last)) == before
        generator.constant.neg_()
        digests.add(content_digest(generator))
        generator.constant.neg_()
        assert content_digest(generator) == before
    assert len(digests) == 6


def _writers(folder, rounds, parts):
    """A process that writes its model over and over."""
    from hebm_sample.errors import HebmError

    for _ in range(rounds):
        try:
            write_model_folder(folder, CONFIG, *parts, overwrite=True)
        except HebmError as error:  # pragma: no cover
            print(error)
            os._exit(3)
    os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("rounds", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_two_writers_of_one_folder_never_mix(tmp_path, rounds, monkeypatch):
    """Whatever a reader finds meanwhile is one of the two models, or is refused."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        models.append([torch.nn.Linear(2, 2) for _ in range(3)])
        write_model_folder(tmp_path / str(seed), CONFIG, *models[-1])
    whole = [manifest.read_row(tmp_path / str(seed)).files for seed in (1, 2)]
    children = []
    for parts in models:
        if (pid := os.fork()) == 0:
            _writers(tmp_path / "m", rounds, parts)
        children.append(pid)
    seen = set()
    while children:
        pid, status = os.waitpid(children[0], os.WNOHANG)
        if pid:
            children.pop(0)
            assert status == 0
        with contextlib.suppress(WeightsError, UserInputError):
            found = resolve(tmp_path / "m")
            found.path("encoder.safetensors")
            seen.add(whole.index(found.row.files))
    last = resolve(tmp_path / "m")
    last.path("encoder.safetensors")
    assert last.row.files in whole and seen <= {0, 1}
    assert [p.name for p in (tmp_path / "m").iterdir() if p.name.startswith(".")] == []


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
    assert fields["license"] == '"cc-by-nc-4.0"' and "license_name" not in fields
    assert fields["library_name"] == "hebm-sample"
    assert fields["pipeline_tag"] == "unconditional-image-generation"
    assert "| gap closed | 0.5 |" in body and "Licence of these weights: CC BY-NC 4.0" in body
    assert "4x2x2, 2x4x4, 2x4x4 (80 dimensions)" in body and "0.1, 0.6, 0.96, 1" in body
    assert "No figures were measured." in model_card(BARE, licence="x", figures={})
    assert "(cum_sigma): none" in model_card(BARE, licence="x", figures={})


@pytest.mark.parametrize(
    "licence, stated",
    [
        ("CC0-1.0", ("cc0-1.0",)),
        ("cc by-sa 4.0, after the data", ("cc-by-sa-4.0",)),
        ("Apache License 2.0", ("apache-2.0",)),
        ("MIT", ("mit",)),
        ("the ODbL 1.0 licence", ("odbl",)),
        ("ask me: by letter", ("other", "ask-me")),
        ("CC BY-NC 9.0", ("other", "cc-by-nc-9.0")),
        ("*all rights reserved*", ("other", "all-rights-reserved")),
        ("'own' terms", ("other", "own-terms")),
        ("@me", ("other", "me")),
        ("[own]", ("other", "own")),
        ("{x}", ("other", "x")),
        ("yes", ("other", "yes")),
        ("1.0", ("other", "1.0")),
        ("non-commercial research & education", ("other", "non-commercial-research-education")),
        ("Owner's terms\nof 2026", ("other", "owner-s-terms-of-2026")),
        ("\u6211", ("other", "own-terms")),
    ],
)
def test_a_card_names_licences_by_their_identifiers(licence, stated):
    text = model_card(CONFIG, licence=licence, figures={})
    fields = yaml.safe_load(text.split("---\n")[1])
    found = tuple(fields[name] for name in ("license", "license_name") if name in fields)
    assert found == stated and all(type(value) is str for value in found)
    assert all(re.fullmatch(r"[a-z0-9.-]+", value) for value in found)  # as the Hub has them
    assert f"Licence of these weights: {' '.join(licence.split())}." in text


@pytest.mark.parametrize("config", [CONFIG, BARE])
def test_a_cards_program_runs(config, tmp_path, monkeypatch):
    from hebm_sample import Pipeline

    generator, encoder, prior = tiny_modules()
    prior = None if config is BARE else prior
    write_model_folder(tmp_path / "FOLDER", config, generator, prior, encoder)
    card = (tmp_path / "FOLDER/README.md").read_text()
    monkeypatch.chdir(tmp_path / "FOLDER")  # where the card lies
    program = card.split("```python\n")[1].split("```")[0]
    exec(program, {"Pipeline": Pipeline})
    assert Path("sixteen.png").is_file() and not Path("samples.png").exists()
    lines = re.findall(r"`(hebm-sample [^`]*)`", card)
    assert len(lines) == 2
    for line in lines:
        words = [*line.split()[1:], "--device", "cpu", "--overwrite", "--out", "a.png"]
        done = CliRunner().invoke(main, words)
        assert done.exit_code == 0, done.output


def test_a_card_names_its_model_where_it_is_known_by_name():
    card = card_for(model_card(BARE, licence="MIT", figures={}), "you/mine")
    assert 'from_pretrained("you/mine")' in card and "In this folder" not in card
    assert card.count("hebm-sample --dataset you/mine --gaussian-prior") == 2
    earlier = 'Pipeline.from_pretrained("FOLDER")\n`hebm-sample --dataset FOLDER -n 16`'
    assert card_for(earlier, "a/b") == earlier.replace("FOLDER", "a/b")


def test_a_card_keeps_the_image_that_it_shows(tmp_path):
    generator, encoder, prior = tiny_modules()
    card = model_card(CONFIG, licence="MIT", figures={}, samples="Eight of them")
    assert "![Eight of them](samples.png)" in card
    parts = (CONFIG, generator, prior, encoder)
    write_model_folder(tmp_path / "a", *parts, card=card, samples=b"an image")
    write_model_folder(tmp_path / "c", *parts, samples=b"an image")
    assert "](samples.png)" in (tmp_path / "c/README.md").read_text()
    write_model_folder(tmp_path / "b", *parts, card=tmp_path / "a/README.md")
    assert (tmp_path / "b/samples.png").read_bytes() == b"an image"
    assert "samples.png" not in (tmp_path / "b/weights_manifest.json").read_text()
    write_model_folder(tmp_path / "b", *parts, overwrite=True)
    assert not (tmp_path / "b/samples.png").exists()


def test_a_card_that_exists_is_kept(tmp_path):
    write(tmp_path / "a", card="# Mine\n")
    assert (tmp_path / "a" / "README.md").read_text() == "# Mine\n"
    write(tmp_path / "b", card=tmp_path / "a" / "README.md")
    assert (tmp_path / "b" / "README.md").read_text() == "# Mine\n"
    write(tmp_path / "c")
    assert (tmp_path / "c" / "README.md").read_text().startswith("---\n")


# ---- one file of a model that is there


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _config_into(folder, loaded=None):
    return save.write_config(folder, replace(CONFIG, name="cut"), loaded=loaded)


def _calibration_into(folder, loaded=None):
    one = np.ones(1)
    found = Calibration(("energy",), one, one, np.eye(1), np.arange(500.0), {"images": 1000})
    return save.write_calibration(folder, found, loaded=loaded)


PARTS = [("config.json", _config_into), (manifest.CALIBRATION_NAME, _calibration_into)]


@pytest.mark.parametrize(("name", "write_part"), PARTS)
def test_a_part_that_cannot_be_written_leaves_the_model(folder, monkeypatch, name, write_part):
    """Whatever fails, a write or a rename, the folder is what it was, to the byte."""
    for before in ("without", "with"):
        kept = _content(folder)
        for attribute in ("write_atomically", "write_manifest"):
            with monkeypatch.context() as patch:

                def full(*_):
                    raise EnvironmentFailure("No space left on device")

                patch.setattr(save, attribute, full)
                with pytest.raises(EnvironmentFailure):
                    write_part(folder)
            assert _content(folder) == kept, (before, attribute)
        replace_file = os.replace
        for broken in (name, manifest.MANIFEST_NAME):
            with monkeypatch.context() as patch:

                def once(source, goal, broken=broken, replace_file=replace_file):
                    if os.path.basename(source) == broken and os.path.dirname(goal) == str(folder):
                        raise OSError(5, "Input/output error")
                    replace_file(source, goal)

                patch.setattr(save.os, "replace", once)
                with pytest.raises(EnvironmentFailure, match="as it was"):
                    write_part(folder)
            assert _content(folder) == kept, (before, broken)
        row = write_part(folder)
        build_model(folder)
        assert read_row(folder) == row and name in row.files


@pytest.mark.parametrize(("name", "write_part"), PARTS)
def test_a_part_of_one_model_never_gets_into_another(folder, name, write_part):
    """What was measured on the model that is there is written; on another, nothing is."""
    loaded = read_row(folder)
    _calibration_into(folder, loaded)  # the model that was measured is still there
    write_part(folder, loaded)
    generator, encoder, prior = tiny_modules(seed=7)
    write_model_folder(folder, CONFIG, generator, prior, encoder, overwrite=True)
    kept = _content(folder)
    with pytest.raises(UserInputError, match="generator.safetensors.* written there meanwhile"):
        write_part(folder, loaded)
    assert _content(folder) == kept


def test_a_name_may_have_its_resolution():
    """As in the names of presets; a folder that is called so is that folder."""
    for name, side in (("celebahq-64", 64), ("celebahq-256", 256), ("cifar10-32", 32)):
        assert resolve(name).row == resolve(name.rpartition("-")[0], resolution=side).row
        assert resolve(name, resolution=side).row.resolution == side
    for name, how in (("celebahq-65", {}), ("celebahq-64", {"resolution": 256}), ("-64", {})):
        with pytest.raises(UserInputError, match="no model|names the folder|cannot name"):
            resolve(name, **how)


def test_a_folder_of_that_name_is_that_folder(tmp_path, monkeypatch):
    """A model's, or a run's; others, such as that of yesterday's images, are in nobody's way."""
    monkeypatch.chdir(tmp_path)
    Path("celebahq-64").mkdir()
    assert resolve("celebahq-64").row.name == "celebahq"
    with pytest.raises(WeightsError, match="celebahq-64"):
        resolve(Path("celebahq-64"))
    write(Path("celebahq-64"))
    for given in ("celebahq-64", "./celebahq-64", Path("celebahq-64")):
        assert resolve(given).row.name == "tiny"
