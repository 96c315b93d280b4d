"""A setting is changed by its name or refused in a line; a run that was started with it keeps it.

Without this an ablation compares a model with itself, or goes on with another one's checkpoint.
"""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from tiny import tiny_pipeline
from toy import draw_images

from hebm_sample.cli.train import main
from hebm_sample.errors import UserInputError
from hebm_sample.presets.models import find_preset
from hebm_sample.training.overrides import changed, changed_settings
from hebm_sample.training.train import sampling_for

PRESET = find_preset("cifar10")


def test_particles_stay_where_they_can():
    """As in a call: what has no particles is not refused for those of the preset."""
    faces = find_preset("celeba64")
    assert faces.sampling.particles == 4
    for change, left in (
        ("sampling.steps=24", 4),
        ("sampling.start=flow", 1),
        ("sampling.sampler=flow", 1),
        ("sampling.temperature=0.9", 4),
        ("sampling.particles=2", 2),
    ):
        assert changed(faces, "prior", [change]).sampling.particles == left
    with pytest.raises(UserInputError, match="they need start='ancestral'"):
        changed(faces, "prior", ["sampling.start=flow", "sampling.particles=2"])
    release = changed(faces, "prior", ["prior.parametrization=release", "prior.num_levels=3"])
    assert sampling_for(release).particles == 1 and sampling_for(faces) == faces.sampling


def test_each_change_changes_one_setting():
    for kind, change, part, field, value in (
        ("prior", "prior.width=48", "prior", "width", 48),
        ("prior", "prior.levels=[0.3, 0.9, 1]", "prior", "levels", (0.3, 0.9, 1.0)),
        ("prior", "sampling.kernel=plain", "sampling", "kernel", "plain"),
        ("prior", "settings.ema_decay=0", "prior_settings", "ema_decay", 0.0),
        ("generator", "settings.zoom=0.8", "generator_settings", "zoom", 0.8),
    ):
        expected = replace(PRESET, **{part: replace(getattr(PRESET, part), **{field: value})})
        assert changed(PRESET, kind, [change]) == expected != PRESET
    assert changed(PRESET, "prior", ["chain_steps=7"]) == replace(PRESET, chain_steps=7)
    assert changed(PRESET, "generator", ["kl_weight=1"]) == replace(PRESET, kl_weight=1.0)
    two = changed(PRESET, "generator", ["kl_weight=[2, 3.5]"])
    assert two == replace(PRESET, kl_weight=(2.0, 3.5))
    wide = changed(PRESET, "generator", ["generator.scales.1.width=96"]).generator
    assert [s.width for s in wide.scales] == [128, 96] and wide.scales[
        0
    ] == PRESET.generator.scales[0]


def test_levels_by_their_number():
    for count in (1, 2, 3, 4, 6):
        prior = changed(PRESET, "prior", [f"prior.num_levels={count}"]).prior
        assert prior.num_levels == count and prior.levels[0] == PRESET.prior.levels[0]
        assert prior.levels[-1] == 1.0
        assert count == 1 or prior.levels[-2] == pytest.approx(PRESET.prior.levels[-2])
    both = ["prior.parametrization=release", "prior.num_levels=3"]
    assert changed(PRESET, "prior", both).prior.levels[2] == pytest.approx(0.9603, abs=1e-3)


@pytest.mark.parametrize(
    "kind, change, words",
    [
        ("prior", "prior.wdith=4", "prior has unknown keys .*wdith.*known are .*width"),
        ("prior", "prior.width=4.5", "prior.width is 4.5; it must be of type int"),
        ("prior", "prior.width=x", "prior.width is 'x'"),
        ("prior", "prior.width=1", "width is 1; it must lie in"),
        ("prior", "prior.levels=[0.5, 0.2]", "must rise"),
        ("prior", "prior.levels.9=1", "has the parts 0 to 6"),
        ("prior", "prior.width.a=1", "has no part 'a'"),
        ("prior", "prior.num_levels=0", "num_levels is 0"),
        ("generator", "kl_weight=[2, 3, 4]", "kl_weight has 3 numbers; this generator has 2 sc"),
        ("generator", "kl_weight=[2, -1]", "kl_weight is -1"),
        ("generator", "kl_weight=-1", "kl_weight is -1"),
        ("generator", "kl_weight=much", "kl_weight is 'much'"),
        ("prior", "settings.learning_rate=NaN", "learning_rate is nan"),
        ("prior", "generator.image_size=64", "training a prior reads no 'generator.image_size'"),
        ("generator", "prior.width=4", "training a generator reads no 'prior.width'"),
        ("prior", "kl_weight=2", "reads no 'kl_weight'; there are prior"),
        ("prior", "prior=4", "reads no 'prior'"),
        ("prior", "width", "write NAME=VALUE"),
        ("prior", "prior..width=4", "write NAME=VALUE"),
    ],
)
def test_what_is_refused(kind, change, words):
    with pytest.raises(UserInputError, match=words):
        changed(PRESET, kind, [change])


def test_steps_and_a_time_budget_take_each_others_place():
    settings = changed(PRESET, "prior", ["settings.time_budget=600"]).prior_settings
    assert (settings.steps, settings.time_budget) == (None, 600)
    found = replace(PRESET, prior_settings=settings)
    settings = changed(found, "prior", ["settings.steps=7"]).prior_settings
    assert (settings.steps, settings.time_budget) == (7, None)


def test_settings_are_named():
    assert changed_settings(["settings.seed=3", "prior.width=4"]) == {"seed"}


def test_a_run_keeps_what_was_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("HEBM_CACHE", str(tmp_path / "cache"))
    draw_images(tmp_path / "images", count=20)
    tiny_pipeline().save_pretrained(tmp_path / "model")
    command = ["prior", "--preset", "tiny", "--generator", "model", "--data", "images"]
    command += ["--out", "run", "--max-steps", "2", "--device", "cpu", "--quiet"]
    monkeypatch.chdir(tmp_path)

    def run(*more):
        return CliRunner().invoke(main, [*command, *more])

    own = ("--set", "prior.width=8", "--set", "sampling.steps=5", "--set", "settings.batch_size=4")
    result = run(*own)
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run/model/config.json").read_text())
    assert (config["prior"]["width"], config["sampling"]["steps"]) == (8, 5)
    assert run(*own, "--resume").exit_code == 0
    for other, words in (((), "other config, settings"), (own[:-2], "settings (batch_size)")):
        result = run(*other, "--resume")
        assert result.exit_code == 2 and words in result.stderr
    result = run(*own, "--batch-size", "4")
    assert result.exit_code == 2 and "batch_size was given with --set and" in result.stderr
