"""Kernel distance, neighbourhoods, ranks and memorisation, against clouds whose answers are known.

An estimator with a bias, or precision and recall exchanged, gives figures in the plausible range.
"""

import math

import numpy as np
import pytest

from hebm_sample.errors import UserInputError
from hebm_sample.metrics.kernel import (
    gaussian_kernel,
    kernel_distance,
    mmd_squared,
    polynomial_kernel,
)
from hebm_sample.metrics.memorisation import expected_tail, measure_memorisation, nearness_test
from hebm_sample.metrics.neighbours import nearest, neighbourhoods
from hebm_sample.metrics.statistics import auroc, mean_figure


def cloud(seed: int, count: int, dim: int = 4, centre: float = 0.0) -> np.ndarray:
    return centre + np.random.default_rng(seed).normal(size=(count, dim))


class TestKernel:
    def test_is_the_definition_over_all_pairs(self):
        a, b = cloud(0, 23), cloud(1, 31, centre=0.5)

        def pairs(x, y):
            return [
                (sum(p * q for p, q in zip(u, v, strict=True)) / 4 + 1) ** 3 for u in x for v in y
            ]

        own = [[k for i, k in enumerate(pairs(x, x)) if i % (len(x) + 1)] for x in (a, b)]
        expected = np.mean(own[0]) + np.mean(own[1]) - 2 * np.mean(pairs(a, b))
        assert kernel_distance(a, b, num_groups=7).value == pytest.approx(expected, rel=1e-10)

    def test_is_unbiased_between_halves_of_one_set(self):
        values = []
        for seed in range(200):
            order = np.random.default_rng(seed).permutation(120)
            features = cloud(2, 120)[order]
            values.append(kernel_distance(features[:60], features[60:], num_groups=5).value)
        assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(200)
        assert min(values) < 0 < max(values)

    def test_error_is_the_spread_of_repeats(self):
        found = [kernel_distance(cloud(i, 200), cloud(1000 + i, 150, centre=1)) for i in range(60)]
        spread = np.std([f.value for f in found])
        assert np.sqrt(np.mean([f.error**2 for f in found])) == pytest.approx(spread, rel=0.3)

    def test_jackknife_leaves_out_groups_of_both_sets(self):
        a, b = cloud(0, 12), cloud(1, 12, centre=1)
        order = np.random.default_rng(0).permutation(12)
        kept = [np.delete(order, range(3 * g, 3 * g + 3)) for g in range(4)]
        values = [mmd_squared(a[k], b[k], polynomial_kernel, num_groups=2).value for k in kept]
        expected = math.sqrt(3 / 4 * np.sum((values - np.mean(values)) ** 2))
        found = mmd_squared(a, b, polynomial_kernel, num_groups=4)
        assert found.error == pytest.approx(expected, rel=1e-9)

    def test_gaussian_kernel_sees_what_has_the_same_moments(self):
        rng = np.random.default_rng(0)
        a, signs = rng.normal(size=(400, 1)), rng.choice([-1.0, 1.0], size=(400, 1))
        kernel = gaussian_kernel(a, signs)
        assert kernel(a[:1], a[:1]).item() == 1
        found = mmd_squared(a, signs, kernel)
        assert found.value > 5 * found.error
        same = mmd_squared(a[:200], a[200:], kernel)
        assert abs(same.value) < 4 * same.error

    def test_bad_input(self):
        with pytest.raises(UserInputError, match="4 and 3 dimensions.*one extractor"):
            kernel_distance(cloud(0, 40), cloud(0, 40, 3))
        with pytest.raises(UserInputError, match="num_groups is 20.*2 to 15"):
            kernel_distance(cloud(0, 30), cloud(0, 40))
        with pytest.raises(UserInputError, match="no width"):
            gaussian_kernel(np.ones((9, 2)), np.ones((9, 2)))


class TestNeighbours:
    def test_nearest_is_brute_force_in_any_chunk(self, monkeypatch):
        monkeypatch.setattr("hebm_sample.metrics.neighbours.MAX_ENTRIES", 100)
        queries, points = cloud(0, 17), cloud(1, 40)
        distances, rows = nearest(queries, points, 3)
        brute = np.linalg.norm(queries[:, None] - points[None], axis=2)
        np.testing.assert_allclose(distances, np.sort(brute, axis=1)[:, :3], rtol=1e-12)
        np.testing.assert_array_equal(rows, np.argsort(brute, axis=1)[:, :3])

    def test_a_copy_is_at_distance_zero_however_far_from_the_origin(self):
        points = cloud(0, 50, centre=1e6)
        assert (nearest(points[:9], points)[0] == 0).all()
        assert (nearest(points, points, among_itself=True)[0] > 0).all()

    def test_precision_and_recall_exchange_with_their_sets(self):
        a, b = cloud(0, 300, 2), 0.3 * cloud(1, 300, 2)
        forth, back = neighbourhoods(a, b), neighbourhoods(b, a)
        assert forth.precision == back.recall and forth.recall == back.precision
        # Samples within the real ones' middle: all precise, few of the real ones reached.
        assert back.precision.value > 0.95 and back.recall.value < 0.7

    def test_one_law(self):
        found = neighbourhoods(cloud(0, 800, 3), cloud(1, 800, 3))
        assert found.density.value == pytest.approx(1, abs=0.1)
        # P(no sample in a ball of 5 of N neighbours) = 2^-5 for as many samples as real ones.
        assert found.coverage.value == pytest.approx(1 - 2**-5, abs=4 * found.coverage.error)
        assert found.precision.value > 0.9 and found.recall.value > 0.9

    def test_known_clouds(self):
        real = np.concatenate([cloud(0, 100, 2), cloud(1, 100, 2, centre=50)])
        collapsed = neighbourhoods(cloud(2, 200, 2), real)
        assert collapsed.coverage.value == pytest.approx(0.5, abs=0.05)
        assert collapsed.recall.value <= 0.5 and collapsed.precision.value > 0.9
        apart = neighbourhoods(cloud(3, 200, 2, centre=1e3), real)
        assert [f.value for f in (apart.precision, apart.recall, apart.density)] == [0, 0, 0]
        same = neighbourhoods(real, real)
        assert (same.precision.value, same.recall.value, same.coverage.value) == (1, 1, 1)

    def test_bad_input(self):
        with pytest.raises(UserInputError, match="k is 5; among 5 points it can be 1 to 4"):
            neighbourhoods(cloud(0, 5), cloud(1, 9))
        with pytest.raises(UserInputError, match="with one D"):
            nearest(cloud(0, 5), cloud(1, 9, 3))
        with pytest.raises(UserInputError, match="not finite"):
            nearest(cloud(0, 5), np.full((3, 4), np.nan))


class TestRanks:
    def test_is_the_share_of_pairs(self):
        low, high = np.array([0.0, 1, 1, 5]), np.array([1.0, 2, 3])
        pairs = [(h > x) + (h == x) / 2 for x in low for h in high]
        assert auroc(low, high).value == pytest.approx(np.mean(pairs))
        assert auroc(high, low).value == pytest.approx(1 - np.mean(pairs))
        assert auroc(low, low).value == 0.5
        assert auroc(low, low + 10) == (1, 1 / 5)  # and not ± 0

    def test_error_is_the_spread_of_repeats(self):
        found = [
            auroc(cloud(i, 80, 1)[:, 0], cloud(500 + i, 60, 1, centre=1)[:, 0]) for i in range(200)
        ]
        spread = np.std([f.value for f in found])
        assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.15)
        expected = 0.5 * (1 + math.erf(1 / 2))  # Phi(1 / sqrt 2)
        assert np.mean([f.value for f in found]) == pytest.approx(expected, abs=4 * spread / 14)

    def test_mean_and_bad_input(self):
        assert mean_figure(np.array([1.0, 2, 3])) == (2, pytest.approx(1 / math.sqrt(3)))
        for value in (0.0, 1.0):  # of answers that are all wrong, or all right
            assert mean_figure(np.full(99, value)) == (value, 0.01)
        with pytest.raises(UserInputError, match="1 and 2 numbers"):
            auroc(np.zeros(1), np.zeros(2))
        with pytest.raises(UserInputError, match="finite"):
            auroc(np.array([0, np.nan]), np.zeros(2))
        with pytest.raises(UserInputError, match="no pairs"):
            auroc(np.zeros(3), np.zeros(4), paired=True)

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_error_of_pairs_knows_that_they_are_pairs(self, sign):
        """What was made of an image has a score that follows, or turns, that of the image."""
        figures = []
        for i in range(300):
            low, noise = (np.random.default_rng(2 * i + k).normal(size=60) for k in (0, 1))
            high = 0.7 + sign * (0.9 * low + 0.4 * noise)
            figures.append((auroc(low, high, paired=True), auroc(low, high)))
        spread = np.std([paired.value for paired, _ in figures])
        known, plain = (np.mean([pair[k].error for pair in figures]) for k in (0, 1))
        assert known == pytest.approx(spread, rel=0.12)
        assert abs(plain / spread - 1) > 0.2  # as of independent images it would be wrong


class TestMemorisation:
    def test_fresh_samples_are_no_shorter(self):
        sets = [cloud(i, 500, 8) for i in range(2)]
        found = measure_memorisation(
            *sets, cloud(9, 3000, 8), reconstructions=0.5 * cloud(5, 90, 8)
        )
        assert found.no_shorter
        assert found.shorter.value == pytest.approx(0.5, abs=4 * found.shorter.error)
        median = {name: q[4] for name, q in found.quantiles.items()}
        assert median["reconstructions"] < median["samples"]
        assert found.counts == {
            "samples": 500,
            "held_out": 500,
            "reconstructions": 90,
            "training": 3000,
        }
        assert np.all(np.diff(found.distances["samples"][found.closest]) >= 0)

    @pytest.mark.parametrize("copied", [25, 500])
    def test_copies_are_caught_few_or_many(self, copied):
        training = cloud(9, 3000, 8)
        samples = np.concatenate([training[:copied], cloud(0, 500 - copied, 8)])
        found = measure_memorisation(samples, cloud(1, 500, 8), training)
        assert not found.no_shorter and found.tail.value >= copied / 500
        assert sorted(found.neighbours[:copied]) == list(range(copied))
        assert found.to_dict()["tail_expected"] == pytest.approx((0.01 * 499 + 1) / 501)

    def test_few_copies_show_among_samples_that_are_further_away(self):
        """In the mean of all distances they would drown."""
        found = []
        for i in range(20):
            rng = np.random.default_rng(i)
            held_out, samples = (np.sqrt(rng.chisquare(8, size=1000)) for _ in range(2))
            samples = np.concatenate([np.full(12, 0.01), 1.05 * samples[12:]])
            found.append(nearness_test(samples, held_out, permutations=199) <= 0.05)
        assert np.mean(found) >= 0.8

    def test_the_expected_share_of_the_tail(self):
        for count in (10, 50, 250):
            rng = np.random.default_rng(count)
            shares = []
            for _ in range(400):
                limit = np.quantile(rng.random(count), 0.01)
                shares.append(limit)  # of uniform numbers, the share below it
            spread = np.std(shares) / 20
            assert np.mean(shares) == pytest.approx(expected_tail(count), abs=4 * spread)

    @pytest.mark.slow
    def test_the_level_is_what_it_says(self):
        """1 of 20 of fresh samples alarm, in simulation; twice as many did with two tests."""
        alarms = []
        for i in range(3000):
            d = np.random.default_rng(i).chisquare(4, size=90)
            alarms.append(nearness_test(d[:40], d[40:], permutations=199) <= 0.05)
        assert np.mean(alarms) == pytest.approx(0.05, abs=0.01)

    @pytest.mark.slow
    def test_the_level_holds_with_the_distances_themselves(self):
        found = [
            measure_memorisation(*(cloud(3 * i + k, 60, 3) for k in range(3))).p_value
            for i in range(300)
        ]
        assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=4 * 0.0126)
        assert np.mean(found) == pytest.approx(0.5, abs=4 / math.sqrt(12 * 300))

    def test_ties_share_their_scores(self):
        d = np.zeros(30)
        assert nearness_test(d, np.zeros(20)) == 1.0
        assert nearness_test(d, np.ones(20)) == 1 / 1000

    def test_no_images(self):
        with pytest.raises(UserInputError, match="at least 2 images"):
            measure_memorisation(cloud(0, 1), cloud(0, 9), cloud(0, 9))
