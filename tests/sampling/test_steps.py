"""`benchmarks/steps.py`: its settings are settings, and differences from the full chain have the
right sign and error.
"""

import numpy as np
import pytest
from scripts import script

from hebm_sample.config import LangevinConfig
from hebm_sample.errors import UserInputError
from hebm_sample.metrics.frechet import FeatureStatistics


@pytest.fixture(scope="module")
def steps():
    with script("benchmarks/steps.py") as module:
        yield module


def test_every_setting_is_one_of_the_sampler(steps):
    for texts in steps.SETS.values():
        assert texts[0] in ("steps=full", "steps=48", "own") and len(set(texts)) == len(texts)
        configs = [LangevinConfig(**steps.read_setting(text, 6)) for text in texts]
        assert len(set(configs)) == len(texts)
        assert [c.steps == 300 for c in configs] == [text == "steps=full" for text in texts]
    assert steps.read_setting("start=ancestral,step_scale=1.5", 6) == {
        "sampler": "recovery",
        "start": "ancestral",
        "step_scale": 1.5,
        "momentum": 0.0,
    }
    assert steps.read_setting("own", 6) == {}
    with pytest.raises(UserInputError, match="must be name=value"):
        steps.read_setting("24", 6)


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
