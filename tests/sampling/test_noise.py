"""One stream per seed: a seed's noise depends on the seed alone.

If it depended on the batch, `--seeds 7` would not give the seventh image of `--seeds 0-7`.
"""

import numpy as np
import pytest
import torch
from analytic import assert_moments

from hebm_sample.errors import UserInputError
from hebm_sample.sampling.noise import NoiseStreams

SHAPES = ((3, 2, 2), (1, 4, 4))


def test_batch_and_order_do_not_matter():
    batch = NoiseStreams([5, 2, 9], SHAPES)
    for _ in range(3):
        batch.normal()
    drawn = batch.normal()
    assert [g.shape for g in drawn] == [(3, 3, 2, 2), (3, 1, 4, 4)]
    for row, seed in enumerate([5, 2, 9]):
        alone = NoiseStreams([seed], SHAPES)
        for _ in range(3):
            alone.normal()
        for g, h in zip(drawn, alone.normal(), strict=True):
            assert torch.equal(g[row], h[0])


def test_uniform_numbers_belong_to_their_seeds():
    batch, alone = NoiseStreams([5, 2, 5], SHAPES), NoiseStreams([2], SHAPES)
    drawn = torch.stack([batch.uniform() for _ in range(200)])
    assert torch.equal(drawn[:, 0], drawn[:, 2])
    assert torch.equal(drawn[:, 1], torch.cat([alone.uniform() for _ in range(200)]))
    assert 0 <= float(drawn.min()) < 0.05 and 0.95 < float(drawn.max()) < 1
    assert abs(float(drawn.mean()) - 0.5) < 0.06


def test_seeds_differ_and_repeat():
    (a,) = NoiseStreams([0, 1, 0], ((64, 1, 1),)).normal()
    assert torch.equal(a[0], a[2]) and not torch.equal(a[0], a[1])


def test_standard_normal_and_std():
    assert_moments(NoiseStreams([1], ((100_000, 1, 1),)).normal()[0], 0.0, 1.0)
    assert_moments(NoiseStreams([1], ((100_000, 1, 1),)).normal(0.5)[0], 0.0, 0.25)


def test_zero_std_advances_the_stream():
    one, two = NoiseStreams([4], SHAPES), NoiseStreams([4], SHAPES)
    assert not any(g.any() for g in one.normal(0.0))
    two.normal()
    assert torch.equal(one.normal()[1], two.normal()[1])


def test_a_std_a_group():
    plain = NoiseStreams([4, 5], SHAPES).normal()
    stds = tuple(0.5 * i for i in range(len(SHAPES)))
    scaled, following = NoiseStreams([4, 5], SHAPES), NoiseStreams([4, 5], SHAPES)
    for g, x, std in zip(scaled.normal(stds), plain, stds, strict=True):
        assert torch.equal(g, std * x)
    following.normal()
    assert torch.equal(scaled.normal()[0], following.normal()[0])
    for wrong in ((), (1.0,) * (len(SHAPES) + 1)):
        with pytest.raises(
            UserInputError, match=rf"temperature has {len(wrong)} numbers; .*{len(SHAPES)} groups"
        ):
            scaled.normal(wrong)


def test_global_random_state_is_untouched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = NoiseStreams([8], SHAPES).normal()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(NoiseStreams([8], SHAPES).normal()[0], first[0])


def test_dtype_is_a_cast():
    single = NoiseStreams([8], SHAPES).normal()
    double = NoiseStreams([8], SHAPES, dtype=torch.float64).normal()
    assert double[0].dtype == torch.float64 and torch.equal(double[0], single[0].double())


def test_whole_numbers_of_any_kind():
    assert NoiseStreams(np.arange(2), SHAPES).seeds == [0, 1]
    assert len(NoiseStreams(range(3), SHAPES)) == 3


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([-1], r"seed is -1; it must lie in \[0, 4294967295\]"),
        ([2**32], "seed is 4294967296; it must lie"),
        ([0.5], "seed is 0.5; it must be a whole number"),
        ([], "no seeds were given"),
    ],
)
def test_bad_seeds(seeds, message):
    with pytest.raises(UserInputError, match=message):
        NoiseStreams(seeds, SHAPES)
