"""`benchmarks/steps.py`: its settings are settings, and differences from the full chain have the
right sign and error.
"""

from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scripts import script
from tiny import symbolic_config, tiny_config, tiny_latents, tiny_modules, tiny_pipeline

from hebm_sample import Pipeline
from hebm_sample.config import LangevinConfig
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.context import fingerprint
from hebm_sample.metrics.frechet import FeatureStatistics
from hebm_sample.pipeline.conditions import read_condition


@pytest.fixture(scope="module")
def steps():
    with script("benchmarks/steps.py") as module:
        yield module


def test_every_setting_is_one_of_the_sampler(steps):
    for texts in steps.SETS.values():
        assert texts[0] in ("steps=full", "steps=48", "own", "own,particles=1") and len(
            set(texts)
        ) == len(texts)
        settings = [steps.read_setting(text, 6) for text in texts]
        given = [{k: v for k, v in s.items() if k not in steps.OURS} for s in settings]
        own = {
            "start": "ancestral"
        }  # of the models with faces, whose own settings these go on from
        configs = [LangevinConfig(**(own | each)) for each in given]
        assert len({str(s) for s in settings}) == len(texts)
        assert [c.steps == 300 for c in configs] == [text == "steps=full" for text in texts]
    assert steps.read_setting("start=ancestral,step_scale=1.5", 6) == {
        "sampler": "recovery",
        "start": "ancestral",
        "step_scale": 1.5,
    } | {k: v for k, v in steps.USUAL.items() if k not in ("start", "step_scale")}
    flow = steps.read_setting("steps=16,sampler=flow", 6)
    assert flow.keys() == {"sampler", "steps", "temperature", "denoise", "particles"}
    # Whatever the model's own is, all settings but `own` say all that there is.
    said = {f.name for f in fields(LangevinConfig)}
    assert steps.read_setting("steps=8", 6).keys() == said
    assert steps.read_setting("own", 6) == {}
    assert steps.read_setting("own,best_of=4", 6) == {"best_of": 4}
    with pytest.raises(UserInputError, match="must be name=value"):
        steps.read_setting("24", 6)


@pytest.fixture
def guided():
    with script("benchmarks/guided.py") as module:
        yield module


def test_guided_energies_go_on_from_the_weak_to_the_strong(guided):
    config = symbolic_config()
    generator, encoder, prior = tiny_modules(config)
    weak = Pipeline(config, generator, tiny_modules(config, seed=1)[2], encoder)
    pipe = Pipeline(config, generator, prior, encoder)
    u, level = tiny_latents(config), torch.tensor([0.3, -1.0])
    top = generator.transform(u)
    strong, led = pipe.prior, guided.guided(pipe, weak, 1.5).prior
    a, b = strong(top, level).sum(1), weak.prior(top, level).sum(1)
    torch.testing.assert_close(led(top, level).sum(1), 2.5 * a - 1.5 * b)
    # What symbols say is the strong energies' own, whatever the weight.
    condition = read_condition(strong.table, {"Smiling": "yes"}, 3.0, len(u[0]), "toy")
    torch.testing.assert_close(
        led(top, level, condition).sum(1) - led(top, level).sum(1),
        strong(top, level, condition).sum(1) - a,
    )
    marks = {fingerprint(guided.guided(pipe, weak, w)) for w in (0.0, 1.0, 2.0)}
    assert len(marks) == 3  # latents that are kept are of one weight
    drawn = [guided.guided(pipe, weak, w)(seeds=[3], steps=12).images for w in (0.0, 1.0)]
    assert np.array_equal(drawn[0], pipe(seeds=[3], steps=12).images)
    assert not np.array_equal(drawn[1], drawn[0])


def test_energies_of_another_model_guide_nothing(guided):
    generator, encoder, prior = tiny_modules(seed=2)
    other = Pipeline(tiny_config(), generator, prior, encoder)
    with pytest.raises(UserInputError, match="the weak model has another T"):
        guided.guided(tiny_pipeline(), other, 1.0)


class MeanColours(torch.nn.Module):
    """An extractor of three features."""

    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.ones(1))

    def features(self, images):
        return images.float().mean((2, 3))


def test_settings_are_measured_with_what_they_cost(steps, tmp_path):
    config = tiny_config()
    generator, encoder, prior = tiny_modules(config)
    pipe = Pipeline(config, generator, prior, encoder)
    weak = Pipeline(config, generator, tiny_modules(seed=1)[2], encoder)
    reference = FeatureStatistics.from_features(np.random.default_rng(0).normal(size=(50, 3)))
    known = SimpleNamespace(space="colours", net=MeanColours(), statistics=reference)
    known.features = np.zeros(3)
    costs = {
        "own,steps=12": 12,
        "own,steps=12,best_of=2": 24,
        "own,steps=12,particles=2,start=ancestral": 24,
        "own,steps=12,autoguidance=1": 24,
    }
    found = steps.measure(pipe, known, costs, 20, 10, tmp_path, weak)["settings"]
    assert {text: row["gradients"] for text, row in found.items()} == costs
    assert len({row["distance"] for row in found.values()}) == len(costs)
    assert "own,steps=12,best_of=2" in steps.table(
        {"settings": found, "images": 20, "space": "colours"}
        | {"machine": dict.fromkeys(("model", "threads", "cores", "torch", "version"), "")}
    )


def test_differences_from_the_full_chain(steps):
    rng = np.random.default_rng(0)
    reference = FeatureStatistics.from_features(rng.normal(size=(4000, 3)))
    full = rng.normal(size=(400, 3))
    worse = full + np.array([1.0, 0, 0])
    same = steps.distances(full, full, reference)
    assert same["less_full"] == 0 and same["less_full_error"] == 0
    row = steps.distances(worse, full, reference)
    assert row["less_full"] == pytest.approx(1.0, abs=0.2)
    # Rows are paired, so what both share does not count.
    assert row["less_full_error"] < row["error"] * 1.1
    assert steps.distances(full, None, reference)["less_full"] is None
