"""Rows that count as held out were trained on by no part of a model.

Without this `evaluate` after a training with another --validation measures training rows, and says
that the model is good.
"""

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from toy import draw_images, short_preset

from hebm_sample import Pipeline
from hebm_sample.cli.evaluation.main import main
from hebm_sample.config import ModelConfig, TrainingRecord
from hebm_sample.data.dataset import load_images
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.distances import held_out_by, open_held_out
from hebm_sample.training.export import export, load_run
from hebm_sample.training.record import check_rows, held_out_rule_of, same_rows, trained_on
from hebm_sample.training.train import train_generator, train_prior

VALIDATION = 24


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Images, and a run of both parts that holds the last 24 of 60 out."""
    home = tmp_path_factory.mktemp("rows")
    draw_images(home / "images", count=60)
    draw_images(home / "others", count=60, seed=7)
    preset, images = short_preset(validation=VALIDATION), opened(home)
    train_generator(preset, images, home / "generator", show_progress=False)
    model = load_run(home / "generator")
    train_prior(preset, model, images, home / "prior", show_progress=False)
    export(home / "prior", home / "model", name="mine")
    return home


def opened(home, name="images"):
    return load_images(home / name, size=16, cache_dir=home / "cache", progress=False)


@pytest.fixture
def records(home):
    return Pipeline.from_pretrained(home / "model", device="cpu").config.training


def held_out(home, records, name="images", **options):
    where = {"size": 16, "cache_dir": home / "cache", "progress": False, "model": "mine"}
    return open_held_out(home / name, records=records, **where | options)


def test_an_exported_folder_says_which_rows_of_which_data(home, records):
    training, _ = opened(home).split(VALIDATION)
    assert [(r.part, r.data, r.held_out) for r in records] == [
        (part, training.identity, "last:24") for part in ("generator", "prior")
    ]
    assert load_run(home / "prior").config.training == records
    assert all(r.held_out_seed == 0 for r in records)


def test_the_run_s_own_rule_is_the_default(home, records):
    training, rows = held_out(home, records)
    assert (len(training), len(rows)) == (36, 24)
    # The preset called tiny holds others out, which the run did not.
    assert len(held_out(home, records, model="tiny")[1]) == 24
    assert held_out_by("tiny", None, None, records=records, size=16) == "the last rows"
    assert held_out_rule_of(records, 32) is None  # of images of another size it says nothing
    assert check_rows("mine", records, training, rows) == ""


@pytest.mark.parametrize("validation", [25, 40, "hash"])
def test_rows_that_were_trained_on_are_refused(home, records, validation):
    with pytest.raises(UserInputError, match="mine's generator was trained with other rows held"):
        held_out(home, records, validation=validation)


def test_what_a_run_starts_from_was_trained_on_the_same_rows(home, tmp_path):
    """Weights that saw other rows of the same data leave none that is held out of both."""
    images, preset = opened(home), short_preset(validation=10)
    model = Pipeline.from_pretrained(home / "prior" / "model", device="cpu")
    with pytest.raises(UserInputError, match="mine's generator was trained on other rows"):
        mine = Pipeline.from_pretrained(home / "model", device="cpu")
        train_generator(preset, images, tmp_path / "g", init=mine, show_progress=False)
    train_generator(preset, images, tmp_path / "g", show_progress=False)
    other = load_run(tmp_path / "g")
    how = {"objective": "mle", "init": model, "show_progress": False}
    with pytest.raises(UserInputError, match="was trained on other rows of these data"):
        train_prior(preset, other, images, tmp_path / "p", **how)
    assert not (tmp_path / "p").exists()


def test_energies_keep_the_record_of_those_that_they_start_from(home, records, tmp_path):
    """And not of those that were in their place."""
    model = Pipeline.from_pretrained(home / "model", device="cpu")
    preset, images = short_preset(validation=VALIDATION), opened(home)
    for name, init in (("anew", None), ("on", model)):
        how = {"objective": "mle", "init": init, "show_progress": False}
        train_prior(preset, model, images, tmp_path / name, **how)
        found = load_run(tmp_path / name).config.training
        exported = Pipeline.from_pretrained(tmp_path / name / "model", device="cpu").config
        assert exported.training == found
        assert found[:-1] == (records[:1] if init is None else records)
        assert found[-1].part == "prior"


def test_a_part_without_a_record_is_said(home, records):
    training, rows = held_out(home, records)
    for kept in ((records[1],), (replace(records[0], data="", held_out=""), records[1])):
        said = check_rows("mine", kept, training, rows)
        assert said == "mine does not say which rows its generator was trained on"
    assert check_rows("mine", (records[1],), training, rows, generator=False) == ""


def test_records_say_the_weights_of_the_divergences(home, records):
    weight = short_preset().kl_weight
    assert records[0].kl_weights == (weight,) * 3 and records[1].kl_weights == ()
    assert TrainingRecord.from_dict(records[0].to_dict()) == records[0]
    with pytest.raises(UserInputError, match="kl_weights is -1"):
        replace(records[0], kl_weights=(-1.0,))


@pytest.mark.parametrize("kind", ["generator", "prior"])
def test_a_run_with_another_model_to_begin_with_is_not_exported(home, tmp_path, kind):
    """Energies of one generator's latents are no energies of another's."""
    shutil.copytree(home / kind, tmp_path / "run")
    if kind == "generator":  # it began with none
        assert load_run(tmp_path / "run").config.training
    model = Pipeline.from_pretrained(home / "model", device="cpu")
    with torch.no_grad():
        next(model.generator.parameters()).neg_()
    model.save_pretrained(tmp_path / "run" / "generator", overwrite=True)
    with pytest.raises(UserInputError, match="is not the model that the run began with"):
        load_run(tmp_path / "run")


def test_fewer_of_the_rows_held_out_are_allowed(home, records):
    assert len(held_out(home, records, validation=10)[1]) == 10


def test_other_data_and_unknown_rows_are_said(home, records):
    sets = held_out(home, records, "others")
    assert "these are not the data that mine was trained on" in check_rows("mine", records, *sets)
    assert "does not say which rows" in check_rows("mine", (), *sets)
    old = tuple(replace(r, data="", held_out="") for r in records)
    assert "does not say which rows" in check_rows("mine", old, *sets)


def test_parts_of_another_size_and_rule_are_said(home, records):
    """A grown model's T saw smaller images: of other rows nothing can be told from larger ones, of
    the same rule they are the same.
    """
    sets = held_out(home, records)
    here = replace(records[0], part="decoder")
    same = replace(records[0], image_size=8, data="a[0:36]")
    assert check_rows("mine", (same, here), *sets) == ""
    note = check_rows("mine", (replace(same, held_out="last:10"), here), *sets)
    assert "trained at 8 pixels with other rows held out (last:10)" in note


def test_a_reference_of_rows_that_were_trained_on_is_refused(records):
    """The package's evaluation set is of some rows; a model may have been trained on them."""
    record = records[0]
    start, stop = (int(x) for x in re.findall(r"[0-9]+", record.data.partition("[")[2]))
    name = record.data.partition("[")[0]
    assert not trained_on(record.data, record.data, f"{name}[{stop}:{stop + 9}]")
    assert not trained_on(record.data, "x[0:1]", f"{name}[{stop}:{stop + 9}][0:4]")
    assert trained_on(record.data, f"{name}[{start}:{stop - 5}]", f"{name}[{stop - 5}:{stop}]")
    assert not trained_on(record.data, "other[0:5]", "other[5:9]") and not trained_on("", "", "")


def test_rules_of_runs():
    record = TrainingRecord("prior", 1, 1, 1.0, "2026-01-01", "2026-01-01", 1, 16, data="a[0:4]")
    rules = {"hash": "hash", "last:7": 7, "none": 0}
    for text, rule in rules.items():
        assert held_out_rule_of((replace(record, held_out=text),), 16) == rule
    for text in ("last:0", "first:3", "last:"):
        with pytest.raises(UserInputError, match="held_out is"):
            replace(record, held_out=text)


def test_parts_agree(home):
    model, images = load_run(home / "generator"), opened(home)
    with pytest.raises(UserInputError, match="generator was trained on other rows.*last:24"):
        train_prior(short_preset(validation=10), model, images, home / "x", show_progress=False)
    same_rows("mine", model.config.training, opened(home, "others").split(10)[0])  # other data


def test_configs_of_before_are_written_as_they_were(home):
    data = json.loads((home / "model/config.json").read_text())
    for record in data["training"]:
        for key in ("data", "held_out", "held_out_seed"):
            del record[key]
    again = ModelConfig.from_dict(data).to_dict()
    assert json.loads(json.dumps(again)) == data


def test_the_command_says_and_refuses(home):
    def run(*more, name="images"):
        arguments = ["distances", home / "model", "--data", home / name, "-n", 10, "--steps", 6]
        env = {"HEBM_CACHE": str(home / "cache")}
        command = [str(a) for a in (*arguments, "--device", "cpu", *more)]
        return CliRunner().invoke(main, command, env=env)

    result = run()
    assert result.exit_code == 0, result.output
    assert "24 held out, the last rows" in result.stderr and "does not say" not in result.stderr
    refused = run("--validation", 40)
    assert (
        refused.exit_code == 2 and "give --validation last:24, or leave it out" in refused.stderr
    )
    assert "these are not the data" in run(name="others").stderr
