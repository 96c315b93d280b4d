"""A description that is accepted can be built and written; one that is wrong says what is wrong.

Without this a typing error in a `config.json` becomes a default, or a shape error deep in a
network.
"""

import json
import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from tiny import symbolic_config, tiny_config

from hebm_sample.config import (
    FORMAT_VERSION,
    GeneratorConfig,
    LangevinConfig,
    ModelConfig,
    PriorConfig,
    ScaleConfig,
    StageConfig,
    SymbolConfig,
)
from hebm_sample.errors import UserInputError
from hebm_sample.presets.models import PRESETS

SCALES = (
    ScaleConfig(resolution=2, groups=1, latent_channels=4, width=16),
    ScaleConfig(resolution=4, groups=2, latent_channels=2, width=8, cells=0),
)
GENERATOR = GeneratorConfig(image_size=16, scales=SCALES, decoder=(StageConfig(8, 8),))


def model(**changes):
    data = json.loads(json.dumps(tiny_config().to_dict()))
    return data | changes


# ---- round trip


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_survives_json(name):
    preset = PRESETS[name]
    config = ModelConfig(name, preset.generator, preset.prior, preset.sampling)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_values_that_differ_from_the_defaults_survive():
    config = tiny_config(sampler="flow", steps=7, temperature=0.7, denoise=False)
    config = replace(config, prior=None, generator=replace(GENERATOR, log_sigma_bound=2.5))
    again = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and again.prior is None
    assert again.sampling.temperature == 0.7 and again.generator.scales[1].cells == 0


def test_symbols_and_a_temperature_a_group_survive():
    config = symbolic_config(temperature=(1.0, 0.5, 0.0))
    data = json.loads(json.dumps(config.to_dict()))
    assert data["prior"]["symbols"][1] == {"name": "Smiling", "values": ["no", "yes"]}
    again = ModelConfig.from_dict(data)
    assert again == config and again.sampling.temperature == (1.0, 0.5, 0.0)
    assert LangevinConfig(temperature=[1, 0.5]) == LangevinConfig(temperature=(1, 0.5))
    del data["prior"]["symbols"]
    assert ModelConfig.from_dict(data).prior.symbols == ()


def test_missing_optional_keys_take_the_defaults():
    data = {"name": "x", "generator": GENERATOR.to_dict()}
    config = ModelConfig.from_dict(data)
    assert config.prior is None and config.sampling == LangevinConfig()


def test_a_whole_number_is_a_fine_float_and_stays_one():
    data = model()
    data["sampling"]["temperature"] = 1
    value = ModelConfig.from_dict(data).sampling.temperature
    assert value == 1.0 and type(value) is float


def test_configs_are_frozen():
    with pytest.raises(FrozenInstanceError):
        GENERATOR.image_size = 8  # pyright: ignore[reportAttributeAccessIssue]


# ---- shapes


def test_shapes_follow_the_scales():
    assert GENERATOR.latent_shapes == ((4, 2, 2), (2, 4, 4), (2, 4, 4))
    assert GENERATOR.state_shapes == ((16, 2, 2), (8, 4, 4), (8, 4, 4))
    assert GENERATOR.latent_dimensions == 16 + 32 + 32
    assert tiny_config().prior.num_levels == 3


# ---- what is refused


def nested(path, value):
    data = model()
    *way, last = path
    target = data
    for key in way:
        target = target[key]
    target[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        (["widht"], 1, r"config has unknown keys \['widht'\]; known are .*'generator'"),
        (["prior", "wdith"], 1, r"config\.prior has unknown keys \['wdith'\]"),
        (["generator", "scales", 1, "depth"], 1, r"config\.generator\.scales\[1\] has unknown"),
        (["sampling", "steps"], "12", r"config\.sampling\.steps is '12'; it must be of type int"),
        (["sampling", "steps"], 12.0, r"config\.sampling\.steps is 12\.0; it must be of type int"),
        (["sampling", "steps"], True, r"config\.sampling\.steps is True; it must be of type int"),
        (["sampling", "denoise"], 1, r"config\.sampling\.denoise is 1; it must be of type bool"),
        (["sampling", "temperature"], None, r"temperature is None; it must lie in"),
        (["sampling", "temperature"], math.nan, r"temperature is nan; it must lie in"),
        (["prior", "levels"], 0.5, r"config\.prior\.levels is 0\.5; it must be a list"),
        (["prior", "levels", 0], "a", r"config\.prior\.levels\[0\] is 'a'"),
        (["name"], 7, r"config\.name is 7; it must be of type str"),
        (["name"], "", r"name is ''; it must have 1 to 100 letters"),
        (["generator"], [], r"config\.generator is list; it must be an object"),
        (
            ["prior", "parametrization"],
            "sigma",
            r"parametrization is 'sigma'; it can be 'log_snr'",
        ),
        (
            ["sampling", "sampler"],
            "gibbs",
            r"sampler is 'gibbs'; it can be 'recovery', 'annealed'",
        ),
        (["generator", "likelihood"], "l2", r"likelihood is 'l2'; it can be"),
    ],
)
def test_wrong_keys_and_types(path, value, match):
    with pytest.raises(UserInputError, match=match):
        ModelConfig.from_dict(nested(path, value))


def deep():
    value = []
    for _ in range(3000):
        value = [value]
    return value


@pytest.mark.parametrize("path", (["name"], ["sampling", "steps"], ["sampling", "sampler"]))
@pytest.mark.parametrize(
    "value",
    (deep(), "x" * 3000, 10**5000, np.zeros((3, 3)), torch.zeros(2)),
    ids=("deep", "long", "large", "array", "tensor"),
)
def test_what_is_long_or_nested_is_told_in_one_short_line(path, value):
    with pytest.raises(UserInputError) as told:
        ModelConfig.from_dict(nested(path, value))
    assert len(str(told.value)) < 400 and "\n" not in str(told.value)


def test_missing_keys_are_named():
    data = model()
    del data["generator"]["image_size"], data["generator"]["scales"]
    with pytest.raises(
        UserInputError, match=r"generator lacks the keys \['image_size', 'scales'\]"
    ):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 0])
def test_another_format_version_is_refused(version):
    with pytest.raises(
        UserInputError, match=rf"format_version is {version}; .*upgrade hebm_sample"
    ):
        ModelConfig.from_dict(model(format_version=version))


@pytest.mark.parametrize("resolutions", [(2, 2), (2, 6), (4, 2), (2, 8)])
def test_scales_must_double(resolutions):
    scales = tuple(replace(SCALES[0], resolution=r) for r in resolutions)
    with pytest.raises(UserInputError, match=r"resolutions \[.*\] must double"):
        GeneratorConfig(image_size=16, scales=scales)


def test_the_decoder_must_double_too():
    with pytest.raises(UserInputError, match=r"resolutions \[2, 4, 16\] must double"):
        replace(GENERATOR, decoder=(StageConfig(16, 8),))


def test_the_head_must_reach_the_image():
    with pytest.raises(UserInputError, match=r"head_upsample is 4; .*image_size = 16"):
        replace(GENERATOR, head_upsample=4)


def test_no_scales():
    with pytest.raises(UserInputError, match="scales is empty"):
        GeneratorConfig(image_size=16, scales=())


@pytest.mark.parametrize(
    ("levels", "match"),
    [
        ((0.5,), "levels has 1 numbers; it needs at least 2"),
        ((0.5, 0.5), "must rise"),
        ((0.5, 0.1, 1.0), "must rise"),
        ((0.0, 1.0), r"levels is 0\.0; it must lie in"),
        ((0.1, 1.5), r"levels is 1\.5; it must lie in"),
    ],
)
def test_levels_rise_within_their_range(levels, match):
    with pytest.raises(UserInputError, match=match):
        PriorConfig(levels=levels)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"steps": 0}, r"steps is 0; it must lie in \[1"),
        ({"steps": 2.5}, r"steps is 2\.5; it must be a whole number"),
        ({"temperature": -0.1}, r"temperature is -0\.1"),
        ({"temperature": math.inf}, r"temperature is inf"),
        ({"step_scale": 4.1}, r"step_scale is 4\.1; the corrected kernel needs s <= 4 C"),
        ({"kernel": "exact"}, r"kernel is 'exact'; it can be 'corrected', 'plain'"),
        ({"start": "noise"}, r"start is 'noise'"),
        ({"reference_variance": "one"}, r"reference_variance is 'one'"),
        ({"step_decay": 0.0}, r"step_decay is 0\.0; it must lie in \[0\.001, 1"),
        ({"momentum": 1.0}, r"momentum is 1\.0"),
        ({"momentum": 0.5, "step_scale": 4.0}, "need steps with noise: step_scale below 4"),
        ({"metropolis": True, "temperature": 0.0}, "metropolis needs one number above 0"),
        ({"metropolis": True, "temperature": [1.0, 0.9]}, "metropolis needs one number above 0"),
        ({"precondition": "yes"}, r"precondition is 'yes'"),
    ],
)
def test_sampler_settings_out_of_range(settings, match):
    with pytest.raises(UserInputError, match=match):
        LangevinConfig(**settings)


def test_models_from_before_a_setting_keep_their_hash():
    config = tiny_config()
    later = {"early_share", "step_decay", "momentum", "metropolis", "precondition"}
    assert not later & set(config.to_dict()["sampling"])
    uneven = replace(config, sampling=replace(config.sampling, early_share=0.5))
    assert uneven.to_dict()["sampling"]["early_share"] == 0.5
    assert ModelConfig.from_dict(uneven.to_dict()) == uneven


def test_the_plain_kernel_takes_larger_steps():
    assert LangevinConfig(kernel="plain", step_scale=4.1).step_scale == 4.1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"sigma_min": 0.5, "sigma_max": 0.4}, r"sigma_max is 0\.4; it must lie in \[0\.5"),
        ({"step_size_0": 0.0}, r"step_size_0 is 0\.0"),
        ({"width": 2}, r"width is 2"),
        ({"sigma_min": 0.2}, r"levels begin at 0\.1, below sigma_min 0\.2, where the energies"),
    ],
)
def test_prior_settings_out_of_range(change, match):
    with pytest.raises(UserInputError, match=match):
        PriorConfig(levels=(0.1, 1.0), **change)


def test_levels_may_begin_where_the_energies_do():
    assert PriorConfig(levels=(0.1, 1.0), sigma_min=0.1).levels == (0.1, 1.0)
    release = PriorConfig(levels=(0.01, 1.0), parametrization="release")
    assert release.levels[0] < release.sigma_min


NO_YES = {"name": "Smiling", "values": ["no", "yes"]}


@pytest.mark.parametrize(
    ("symbols", "match"),
    [
        ([NO_YES, NO_YES], r"symbols \['Smiling', 'Smiling'\] name a variable twice"),
        ([NO_YES | {"values": ["yes"]}], r"'Smiling' has the values \['yes'\]; it needs 2 to"),
        ([NO_YES | {"values": []}], r"it needs 2 to 1000 different ones"),
        ([NO_YES | {"values": ["no", "no"]}], r"it needs 2 to 1000 different ones"),
        ([NO_YES | {"values": [str(i) for i in range(1001)]}], r"it needs 2 to 1000"),
        ([NO_YES | {"values": ["no", "~yes"]}], r"symbol name '~yes'; it must have 1 to 64"),
        ([NO_YES | {"values": "yes"}], r"symbols\[0\]\.values is 'yes'; it must be a list"),
        ([NO_YES | {"values": [0, 1]}], r"symbols\[0\]\.values\[0\] is 0; it must be of type str"),
        ([NO_YES | {"name": "a=b"}], r"symbol name 'a=b'"),
        ([NO_YES | {"name": ""}], r"symbol name ''"),
        ([{"name": "Smiling"}], r"symbols\[0\] lacks the keys \['values'\]"),
        ([NO_YES | {"weight": 1}], r"symbols\[0\] has unknown keys \['weight'\]"),
        (NO_YES, r"symbols is .*; it must be a list"),
        ([NO_YES | {"name": f"v{i}"} for i in range(257)], r"257 variables; it can have 256"),
    ],
)
def test_symbols_that_cannot_be(symbols, match):
    with pytest.raises(UserInputError, match=match):
        ModelConfig.from_dict(nested(["prior", "symbols"], symbols))


def test_symbols_made_in_python_are_checked_too():
    with pytest.raises(UserInputError, match="it needs 2 to 1000 different ones"):
        SymbolConfig("class", ("a", "b", "a"))


@pytest.mark.parametrize(
    "temperature", [-0.1, 11.0, (1.0, -1.0), [1.0, math.inf], ("a",), (None,)]
)
def test_temperatures_out_of_range(temperature):
    with pytest.raises(UserInputError, match="temperature is .* must lie in"):
        LangevinConfig(temperature=temperature)
