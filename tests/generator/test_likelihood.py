"""The discretised logistic is a distribution over 256 levels, and `draw` draws from it.

Were the probabilities not to sum to one, bits per dimension could be had for nothing.
"""

import math

import pytest
import torch

from hebm_sample.generator.likelihood import (
    LOWEST_LOG_SCALE,
    DiscretizedLogistic,
    bits_per_dimension,
)

LEVELS = torch.arange(256, dtype=torch.float64) * 2 / 255 - 1


def likelihood(*log_scales: float) -> DiscretizedLogistic:
    module = DiscretizedLogistic(len(log_scales)).double()
    module.log_scale.data = torch.tensor(log_scales, dtype=torch.float64)
    return module.requires_grad_(False)


def probabilities(module, means):
    """(channels, 256): each level in each channel alone."""
    rows = []
    for channel, mean in enumerate(means):
        one = likelihood(float(module.log_scale[channel]))
        images = LEVELS.view(256, 1, 1, 1)
        rows.append(one.log_prob(torch.full_like(images, mean), images).exp())
    return torch.stack(rows)


@pytest.mark.parametrize("log_scale", [LOWEST_LOG_SCALE, -4.0, -2.0, 0.0, 2.0])
@pytest.mark.parametrize("mean", [-1.5, -1.0, -0.3, 0.0, 0.9, 1.2])
def test_probabilities_sum_to_one(mean, log_scale):
    total = probabilities(likelihood(log_scale), [mean]).sum()
    assert float(total) == pytest.approx(1.0, abs=1e-12)


def test_channels_have_their_own_scale_and_the_image_is_a_sum():
    module = likelihood(-3.0, -2.0, -1.0)
    # Near the levels: the naive difference of sigmoids cancels to 0 in the far tails.
    images = LEVELS[torch.arange(96) * 83 % 256].view(2, 3, 4, 4)
    means = images + 0.2 * images.flip(-1)
    expected = torch.zeros(2, dtype=torch.float64)
    for b in range(2):
        for c, log_scale in enumerate((-3.0, -2.0, -1.0)):
            x, m, scale = images[b, c], means[b, c], math.exp(log_scale)
            high = torch.where(x > 0.999, torch.inf, (x + 1 / 255 - m) / scale)
            low = torch.where(x < -0.999, -torch.inf, (x - 1 / 255 - m) / scale)
            expected[b] += (torch.sigmoid(high) - torch.sigmoid(low)).log().sum()
    assert torch.allclose(module.log_prob(means, images), expected, rtol=1e-6)


def test_far_tails_stay_finite_in_float32():
    module = DiscretizedLogistic(1)
    module.log_scale.data.fill_(-20.0)  # below the clamp
    mean = torch.full((1, 1, 1, 1), -1.0, requires_grad=True)
    value = module.log_prob(mean, torch.full((1, 1, 1, 1), 0.5))
    value.sum().backward()
    assert torch.isfinite(value).all() and torch.isfinite(mean.grad).all()
    assert value.item() == pytest.approx(-1.5 / math.exp(LOWEST_LOG_SCALE), rel=0.01)


@pytest.mark.parametrize(("mean", "log_scale"), [(0.1, -2.0), (-0.4, -3.0), (0.95, -1.5)])
def test_draws_have_the_distributions_moments(mean, log_scale):
    module, count = likelihood(log_scale), 200_000
    p = probabilities(module, [mean])[0]
    centre = float((p * LEVELS).sum())
    variance = float((p * (LEVELS - centre).square()).sum())
    fourth = float((p * (LEVELS - centre) ** 4).sum())
    uniform = torch.rand(
        count, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    draws = module.draw(torch.full_like(uniform, mean), uniform)
    assert abs(float(draws.mean()) - centre) < 4 * math.sqrt(variance / count)
    spread = math.sqrt((fourth - variance**2) / count)
    assert abs(float(draws.var()) - variance) < 4 * spread


def test_draws_lie_on_the_levels_and_follow_the_uniform():
    uniform = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64).view(-1, 1, 1, 1)
    draws = likelihood(-1.0).draw(torch.zeros_like(uniform), uniform).flatten()
    index = (draws + 1) * 127.5
    assert torch.allclose(index, index.round(), atol=1e-9)
    assert (
        (draws.diff() >= 0).all()
        and draws[0] == -1
        and draws[-1] == 1
        and draws[500].abs() < 0.004
    )


def test_bits_of_a_uniform_image_are_eight():
    nats = torch.tensor([3 * 4 * 4 * math.log(256)])
    assert float(bits_per_dimension(nats, (3, 4, 4))) == pytest.approx(8.0)
