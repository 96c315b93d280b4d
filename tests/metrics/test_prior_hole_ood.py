"""Two-sample tests, out-of-distribution scores, diagnostics of chains, on laws that are known.

A classifier that sees its own training rows calls a closed hole open; an acceptance rate with the
proposal's densities exchanged stays near 1 for any step.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import release_config, tiny_latents, tiny_pipeline

from hebm_sample.data.images import ImageDataset
from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.evaluation import mcmc
from hebm_sample.evaluation.calibration import measure_images
from hebm_sample.evaluation.context import EvaluationContext
from hebm_sample.evaluation.mcmc import (
    ACCEPTANCE,
    DIFFUSION,
    TRACE_STARTS,
    TRACES,
    acceptance,
    check_steps,
    diagnose_levels,
    split_r_hat,
    traces_from,
)
from hebm_sample.evaluation.ood import (
    CHAINS,
    OWN_SETS,
    chain_latents,
    corruptions,
    png_bytes,
    scores,
    separations,
    top_group_energies,
)
from hebm_sample.evaluation.report.latents import run_diagnostics
from hebm_sample.io.extras import import_extra
from hebm_sample.io.seeds import derived_seed
from hebm_sample.latents import flatten
from hebm_sample.metrics.prior_hole import better_of, correlated_pairs, measure_prior_hole
from hebm_sample.metrics.typicality import fit_calibration, uniformity
from hebm_sample.prior.schedule import DiffusionSchedule
from hebm_sample.sampling import chain as chain_module
from hebm_sample.sampling import langevin as langevin_module
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.sampling.probability_flow import flow_levels


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


class TestPriorHole:
    @pytest.fixture(autouse=True)
    def _extra(self):
        pytest.importorskip("sklearn")

    def test_one_law_cannot_be_told_apart(self):
        rng = np.random.default_rng(0)
        found = measure_prior_hole(rng.normal(size=(600, 12)), rng.normal(size=(600, 12)))
        for figure in (found.quadratic, found.trees):
            assert abs(figure.value - 0.5) < 4 * figure.error
        assert found.kl_bound < 0.1 and abs(found.mmd.value) < 5 * found.mmd.error

    def test_correlation_alone_is_seen_and_bounded_by_the_divergence(self):
        """Same marginals: only the second moments across coordinates differ."""
        rng = np.random.default_rng(1)
        p = rng.normal(size=(1500, 6))
        q = p.copy()[::-1] + 0
        q[:, 1] = 0.9 * q[:, 0] + math.sqrt(1 - 0.81) * rng.normal(size=1500)
        found = measure_prior_hole(q, p)
        assert found.quadratic.value > 0.6
        assert abs(found.accuracy.value - found.quadratic.value) < 3 * found.quadratic.error
        divergence = -0.5 * math.log(1 - 0.81)
        assert 0.3 * divergence < found.kl_bound < divergence + 0.1
        assert found.mmd.value > 3 * found.mmd.error
        assert found.to_dict()["accuracy"] == found.accuracy.value
        assert correlated_pairs(q)[0] == (0, 1)

    def test_means_alone_are_seen_among_many_coordinates(self):
        rng = np.random.default_rng(5)
        q, p = rng.normal(size=(2000, 60)), rng.normal(size=(2000, 60))
        q[:, ::2] += 2 / math.sqrt(30)  # KL 2 nats, and 0.84 right at best
        found = measure_prior_hole(q, p)
        assert found.quadratic.value > 0.75 and 1 < found.kl_bound < 2.4

    def test_choosing_the_better_classifier_adds_nothing(self):
        """Of two that guess, the better on the very rows of the measurement looks like more."""
        rng, found, best = np.random.default_rng(3), [], []
        for _ in range(2000):
            guesses = [tuple(rng.random((2, 48)) < 0.5) for _ in range(2)]
            found.append(better_of(*guesses))
            best.append(max((a.mean() + b.mean()) / 2 for a, b in guesses))
        spread = np.std([f.value for f in found])
        assert np.mean([f.value for f in found]) == pytest.approx(0.5, abs=4 * spread / 44)
        assert np.mean([f.error for f in found]) == pytest.approx(spread, rel=0.1)
        assert np.mean(best) > 0.52

    def test_the_better_of_two_is_chosen_where_one_is_better(self):
        right, wrong = np.ones(40, dtype=bool), np.zeros(40, dtype=bool)
        value, error = better_of((wrong, right), (right, right))
        assert value == 1.0 and 0 < error < 0.05

    def test_pairs_share_no_column(self):
        rng = np.random.default_rng(2)
        q = rng.normal(size=(200, 5)) @ rng.normal(size=(5, 5))
        pairs = correlated_pairs(q, count=9)
        columns = [c for pair in pairs for c in pair]
        assert len(pairs) == 2 and len(set(columns)) == 4

    def test_too_few_rows(self):
        with pytest.raises(UserInputError, match="29 and 40 rows.*needs 30"):
            measure_prior_hole(np.zeros((29, 2)), np.zeros((40, 2)))


def test_a_missing_extra_is_named():
    with pytest.raises(EnvironmentFailure, match=r"no_such, which.*pip install .*\[eval"):
        import_extra("no_such.part", "eval")


class TestOod:
    def test_energies_of_top_groups_are_the_pipelines(self, pipe):
        u = tiny_latents(pipe.config, batch=5)
        found = top_group_energies(pipe, u, batch_size=2)
        assert found.shape == (5, 3)
        for k in range(3):
            expected = pipe.energy(latents=u, groups=slice(0, k + 1)).numpy()
            np.testing.assert_allclose(found[:, k], expected, rtol=1e-4, atol=1e-4)

    def test_the_chain_is_of_the_lowest_level(self):
        """With F = 0, u_0 given u_1 is N(a_1 u_1, sigma_1^2), and K steps from u an autoregression
        towards it: what is left of the start is rho^K, rho = 1 - s / (2 sigma_1^2).
        """
        pipe, steps = tiny_pipeline(), 12
        with torch.no_grad():
            for p in pipe.prior.parameters():
                p.zero_()
        u = tuple(3 + g for g in tiny_latents(pipe.config, 48))
        config = replace(pipe.config.sampling, steps=3 * steps, step_scale=2.0)
        done = []
        moved = flatten(chain_latents(pipe, u, config, batch_size=20, progress=done.append))
        assert sum(done) == 3 * steps  # batches, and the lowest of three levels' share
        schedule = DiffusionSchedule(pipe.config.prior.levels)
        noise = NoiseStreams(
            [derived_seed(i, CHAINS) for i in range(48)], pipe.generator.latent_shapes
        ).normal()
        mean = float(schedule.a[1]) * flatten(schedule.diffuse(u, 1, noise))
        sigma, (low, high) = float(schedule.sigma[1]), pipe.config.prior.levels[:2]
        left = (1 - (low / high) ** 2) ** steps  # s = 2 (sigma_1 low / high)^2
        residual = moved - mean - left * (flatten(u) - mean)
        count, spread = residual.numel(), sigma * math.sqrt(1 - left**2)
        assert abs(residual.mean()) < 4 * spread / math.sqrt(count)
        assert residual.std() == pytest.approx(spread, abs=4 * spread / math.sqrt(2 * count))
        again = flatten(chain_latents(pipe, u, config, batch_size=48))
        torch.testing.assert_close(again, moved, atol=1e-4, rtol=1e-4)

    def test_corruptions_are_what_they_say(self):
        images = np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16)).astype(np.uint8)
        found = corruptions(images)
        assert ("held-out", *found) == OWN_SETS
        assert all(x.shape == images.shape and x.dtype == np.uint8 for x in found.values())
        np.testing.assert_array_equal(255 - found["inverted"], images)
        assert (found["one colour"].std(axis=(2, 3)) == 0).all()
        np.testing.assert_allclose(
            found["one colour"][:, :, 0, 0], images.mean(axis=(2, 3)), atol=0.51
        )
        assert found["blur"].std() < 0.6 * images.std()
        again = corruptions(images)
        assert all((again[k] == found[k]).all() for k in found)
        sizes = {k: png_bytes(x).mean() for k, x in found.items()}
        assert sizes["one colour"] < sizes["blur"] < sizes["inverted"]

    def test_scores_are_large_for_what_is_out_of_distribution(self):
        energies = np.array([[0.0, 1.0], [2.0, 3.0]])
        own = scores(energies, np.array([10.0, 20.0]), np.array([1.0, 2.0]))
        assert list(own)[:2] == ["energy, top 1 of 2", "energy, top 2 of 2"]
        np.testing.assert_allclose(
            own["likelihood less compression"], [10 - 8 * math.log(2), 20 - 16 * math.log(2)]
        )
        other = {k: v + 1000 for k, v in own.items()}
        assert all(f.value == 1 for f in separations(own, other).values())
        assert all(f.value == 0.5 for f in separations(own, own).values())

    def test_scores_by_level_are_the_measured_ones(self, pipe):
        images = np.random.default_rng(1).integers(0, 256, (200, 3, 16, 16)).astype(np.uint8)
        measured = measure_images(pipe, images)
        calibration = fit_calibration(measured.statistics.numpy(), measured.names)
        nothing = np.zeros((200, 3)), np.zeros(200), np.zeros(200)
        found = scores(*nothing, None, measured, calibration)
        x, few = torch.from_numpy(images[:6]).float() / 255, range(6)
        for k in range(3):
            tops = slice(0, k + 1)
            for name, wanted in (
                ("negative log density", -pipe.log_density(x, groups=tops)),
                ("negative log density of means", -pipe.log_density(x, groups=tops, mode="mean")),
                ("rate", pipe.rate(x, groups=tops)),
            ):
                column = found[f"{name}, top {k + 1} of 3"][few]
                np.testing.assert_allclose(column, wanted.numpy(), rtol=1e-4, atol=2e-3)
            if k:
                ratios = pipe.score(x).ratios[:, k].numpy()
                np.testing.assert_allclose(found[f"LLR > {k}"][few], ratios, rtol=1e-4, atol=1e-2)
        levels = [f"top {k} of 3" for k in (1, 2, 3)]
        kinds = ("negative log density", "negative log density of means", "rate")
        names = [f"{kind}, {k}" for kind in kinds for k in levels]
        assert [n for n in found if not n.startswith("energy")][:12] == [
            *names,
            "LLR > 1",
            "LLR > 2",
            "combination",
        ]
        # Of images of one kind the combination's held-out half is like the other's new images.
        other = np.random.default_rng(2).integers(0, 256, (100, 3, 16, 16)).astype(np.uint8)
        distance = calibration.distance(measure_images(pipe, other).statistics.numpy())
        assert uniformity(calibration.distances, distance)[1] > 0.01
        flat = measure_images(pipe, corruptions(other)["one colour"])
        told = scores(*(x[:100] for x in nothing), None, flat, calibration)["combination"]
        assert separations({"d": distance}, {"d": told})["d"].value > 0.95

    def test_a_model_without_energies(self):
        from dataclasses import replace

        from tiny import tiny_config, tiny_modules

        from hebm_sample import Pipeline

        generator, encoder, _ = tiny_modules()
        bare = Pipeline(replace(tiny_config(), prior=None), generator, None, encoder)
        with pytest.raises(UserInputError, match="no energy-based prior"):
            top_group_energies(bare, tiny_latents(bare.config))
        with pytest.raises(UserInputError, match="no chains"):
            diagnose_levels(bare, [0])


def gaussian(variance):
    return lambda u: -flatten(u).square().sum(1) / (2 * variance)


def rows(seed, batch=400, dim=6):
    return (torch.randn(batch, dim, 1, 1, generator=torch.Generator().manual_seed(seed)).double(),)


class TestAcceptance:
    @pytest.mark.parametrize("step", [0.1, 1.0, 3.9])
    def test_is_one_where_the_kernel_is_exact(self, step):
        rate = acceptance(gaussian(2.0), rows(0), rows(1), 2 * step, reference_variance=2.0)
        np.testing.assert_allclose(rate.numpy(), 1, atol=1e-9)

    def test_is_the_detailed_balance_by_hand(self):
        u, noise, s = (torch.tensor([[[[0.7]]]]),), (torch.tensor([[[[-1.2]]]]),), 0.8
        moved = 0.7 * (1 - s / 2) - 1.2 * math.sqrt(s)

        def log_q(to, start):
            return -((to - start * (1 - s / 2)) ** 2) / (2 * s)

        alpha = math.exp((0.7**2 - moved**2) / 2 + log_q(0.7, moved) - log_q(moved, 0.7))
        found = acceptance(gaussian(1.0), u, noise, s, kernel="plain")
        assert found.item() == pytest.approx(min(1, alpha), rel=1e-5)

    def test_falls_with_the_step_and_with_a_wrong_reference(self):
        rates = [
            acceptance(gaussian(1.0), rows(0), rows(1), s, kernel="plain").mean().item()
            for s in (0.01, 0.5, 1.5)
        ]
        assert rates[0] > 0.99 > rates[1] > rates[2]
        wrong = acceptance(gaussian(1.0), rows(0), rows(1), 1.0, reference_variance=3.0)
        assert wrong.mean() < 0.9

    def test_without_noise_there_is_none(self):
        with pytest.raises(UserInputError, match="no acceptance rate"):
            acceptance(gaussian(1.0), rows(0), rows(1), 4.0)


class TestDiagnostics:
    def test_r_hat(self):
        mixed = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        assert split_r_hat(mixed) == pytest.approx(1, abs=0.01)
        assert split_r_hat(mixed + 3 * torch.arange(8)) > 2
        with pytest.raises(UserInputError, match="at least 4"):
            split_r_hat(mixed[:3])

    def test_the_sampler_itself_is_what_is_looked_at(self, pipe):
        config = pipe.sampling_config(steps=18, denoise=False)
        counted = []
        found, latents = diagnose_levels(pipe, [3, 4], config, counted.append)
        levels = pipe.config.prior.num_levels
        assert [d.level for d in found] == list(reversed(range(levels))) == list(latents)[:levels]
        assert sum(counted) == 18
        assert sum(d.steps for d in found) == 18 - (levels - 1)
        drawn = pipe(seeds=[3, 4], steps=18, denoise=False).latents
        for a, b in zip(latents[0], drawn, strict=True):
            torch.testing.assert_close(a, b)
        # Near N(0, 1) a step moves by about sqrt(s), less what the corrected kernel takes off.
        assert all(0.2 < x < 1.5 for d in found for x in d.displacement)
        checks = check_steps(pipe, latents, (0.1, 1.0), config)
        assert len(checks) == 2 * levels
        assert all(0 <= c.acceptance <= 1 for c in checks)
        assert all(c.effective_step == c.step_scale * c.acceptance for c in checks)

    def test_what_made_a_state_is_not_what_it_is_measured_with(self, pipe, tmp_path, monkeypatch):
        """All noise of a report's diagnostics: encodings, their diffusion, acceptance, traces."""
        made, real = [], NoiseStreams.__init__

        def record(self, seeds, *args, **how):
            made.append(tuple(seeds := list(seeds)))
            real(self, seeds, *args, **how)

        monkeypatch.setattr(NoiseStreams, "__init__", record)
        images = np.random.default_rng(0).integers(0, 255, (8, 3, 16, 16), dtype=np.uint8)
        data = ImageDataset(images, {}, {}, (0,), "x")
        context = EvaluationContext(pipe, 4, data, data, 8, progress=False)
        run_diagnostics(context, tmp_path, images=4, steps=8)
        purposes = {seeds[:4] for seeds in made}
        assert len(purposes) >= 5
        # The sampler's own seeds are those of its samples, 0 and on; all others are apart.
        flat = [seed for seeds in purposes for seed in seeds]
        assert (0, 1, 2, 3) in purposes and len(set(flat)) == len(flat)
        assert len({ACCEPTANCE, TRACES, TRACE_STARTS, DIFFUSION, CHAINS, 0}) == 6

    def test_chains_from_different_starts(self, pipe):
        starts = {"zero": tuple(0 * g for g in tiny_latents(pipe.config, 4))}
        starts["far"] = tuple(g + 30 for g in starts["zero"])
        counted = []
        found = traces_from(pipe, starts, 0, 8, progress=lambda: counted.append(1))
        assert {k: len(v) for k, v in found["traces"].items()} == {"zero": 8, "far": 8}
        assert found["traces"]["far"][0] < found["traces"]["zero"][0] - 30
        assert len(counted) == 16 and found["level"] == 0
        with pytest.raises(UserInputError, match="at least 8"):
            traces_from(pipe, starts, 0, 7)

    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {"step_decay": 0.3},
            {"kernel": "plain", "step_scale": 0.4},
            {"sampler": "annealed"},
            {"reference_variance": "posterior", "start": "ancestral"},
            {"momentum": 0.5},
            {"metropolis": True},
            {"precondition": True, "step_decay": 0.5},
            {"release": True},
        ],
        ids=str,
    )
    def test_reported_steps_are_those_that_the_chains_take(self, pipe, settings, monkeypatch):
        settings = dict(settings)
        if settings.pop("release", False):
            pipe = tiny_pipeline(release_config())
        config, used = pipe.sampling_config(steps=18, **settings), []
        real = chain_module.noise_scale

        def record(step_size, kernel, reference_variance):
            used.append(float(torch.as_tensor(step_size).mean()))
            return real(step_size, kernel, reference_variance)

        monkeypatch.setattr(chain_module, "noise_scale", record)  # of walks
        monkeypatch.setattr(langevin_module, "noise_scale", record)  # of single steps
        found, _ = diagnose_levels(pipe, [3, 4], config)
        reported = [s for level in found for s in level.step_sizes]
        assert reported == pytest.approx(used) and len(used) > 6
        assert [d.step_size for d in found] == pytest.approx([d.step_sizes[0] for d in found])

    @pytest.mark.parametrize("denoise", [True, False])
    def test_levels_of_the_flow_are_those_of_its_path(self, pipe, denoise):
        config = pipe.sampling_config(sampler="flow", steps=9, denoise=denoise)
        found, latents = diagnose_levels(pipe, [3, 4], config)
        low, high = pipe.config.prior.levels[0], min(0.99, pipe.config.prior.sigma_max)
        path = flow_levels(9, low, high, denoise=denoise)
        assert [d.level for d in found] == list(latents) == list(range(8, -1, -1))
        assert [d.cum_sigma for d in found] == pytest.approx(path[:-1])
        for d in found:
            assert d.steps == 0 and math.isnan(d.step_size)
            assert d.step_sizes == d.log_density == d.gradient_norm == d.displacement == []

    @pytest.mark.parametrize(
        "settings",
        [
            {"temperature": 0.5},
            {"temperature": (0.3, 1.0, 2.0)},
            {"step_decay": 0.2},
            {"precondition": True},
        ],
        ids=str,
    )
    def test_displacement_is_over_that_of_free_diffusion(self, settings):
        """With F = 0 and short steps nothing but the noise moves u: the ratio is 1."""
        pipe = tiny_pipeline()
        with torch.no_grad():
            for p in pipe.prior.parameters():
                p.zero_()
        config = pipe.sampling_config(steps=12, step_scale=1e-3, denoise=False, **settings)
        found, _ = diagnose_levels(pipe, range(20), config)
        every = [x for d in found for x in d.displacement]
        assert len(every) > 6 and every == pytest.approx([1.0] * len(every), abs=0.06)

    def test_chains_are_one_a_seed_whatever_the_sampler_has(self, pipe):
        config = pipe.sampling_config(steps=12, start="ancestral")
        found, latents = diagnose_levels(pipe, range(5), config)
        several, same = diagnose_levels(pipe, range(5), replace(config, particles=4))
        assert several == found
        assert all(
            torch.equal(a, b) for t in latents for a, b in zip(latents[t], same[t], strict=True)
        )
        assert len(same[0][0]) == 5

    def test_displacement_without_noise_is_none(self, pipe):
        config = pipe.sampling_config(steps=12, temperature=0.0, denoise=False)
        found, _ = diagnose_levels(pipe, [3, 4], config)
        assert all(math.isnan(x) for d in found for x in d.displacement)

    def test_a_state_is_measured_with_noise_that_did_not_make_it(self, pipe, monkeypatch):
        """Else acceptance is that of steps which go back to where the state came from."""
        seeds, seen = range(5, 9), []
        latents = {0: NoiseStreams(seeds, pipe.generator.latent_shapes).normal()}
        made = flatten(latents[0])
        monkeypatch.setattr(
            mcmc,
            "acceptance",
            lambda density, u, noise, *_, **__: seen.append(noise) or u[0].sum(0),
        )
        check_steps(pipe, latents, [0.5], seed=5)
        correlation = torch.corrcoef(torch.stack([made.flatten(), flatten(seen[0]).flatten()]))
        assert abs(float(correlation[0, 1])) < 4 / math.sqrt(made.numel())

    @pytest.mark.parametrize("level", [0, 2])
    def test_acceptance_is_what_a_metropolis_chain_accepts(self, level):
        """A second estimate: proposals drawn and accepted or not, from formulas of its own."""
        pipe = tiny_pipeline()
        with torch.no_grad():
            for net in pipe.prior.nets:
                net.out.weight.mul_(8)
        count, scale, repeats = 24, 1.5, 12
        schedule = DiffusionSchedule(pipe.config.prior.levels)
        u = tiny_latents(pipe.config, count, seed=3)
        u = schedule.diffuse(u, level, tiny_latents(pipe.config, count, seed=4))
        found = [
            check_steps(pipe, {level: u}, [scale], seed=1000 * i)[0].acceptance
            for i in range(repeats)
        ]
        noisy = float(schedule.cum_sigma[level]) ** 2
        step, log_snr = scale * noisy, math.log((1 - noisy) / noisy)
        variance, levels = step - step**2 / 4, torch.full((count,), log_snr)
        shapes, stream = [g.shape for g in u], torch.Generator().manual_seed(5)

        def density_and_mean(row):
            row = row.detach().requires_grad_()
            parts = row.split([s[1:].numel() for s in shapes], dim=1)
            groups = tuple(p.reshape(s) for p, s in zip(parts, shapes, strict=True))
            value = pipe.energy_terms(groups, levels).sum(1) - row.square().sum(1) / 2
            (gradient,) = torch.autograd.grad(value.sum(), row)
            return value.detach().double(), (row + step / 2 * gradient).detach().double()

        row, accepted = torch.cat([g.flatten(1) for g in u], dim=1), []
        before, mean = density_and_mean(row)
        for _ in range(repeats):
            noise = torch.randn(row.shape, generator=stream, dtype=torch.float64)
            moved = (mean + math.sqrt(variance) * noise).float()
            after, back = density_and_mean(moved)
            forth_distance = (moved.double() - mean).square().sum(1)
            back_distance = (row.double() - back).square().sum(1)
            ratio = after - before + (forth_distance - back_distance) / (2 * variance)
            uniform = torch.rand(count, generator=stream, dtype=torch.float64)
            accepted.append(float((uniform.log() < ratio).double().mean()))
        error = math.hypot(*(np.std(x, ddof=1) / math.sqrt(repeats) for x in (found, accepted)))
        assert 0.05 < np.mean(found) < 0.95
        assert abs(np.mean(found) - np.mean(accepted)) < 4 * error < 0.2

    def test_chains_from_two_starts_have_noise_of_their_own(self, pipe, monkeypatch):
        draws = []
        real = mcmc.run_chain

        def record(u, density, draw, **options):
            draws.append(flatten(draw()))
            return real(u, density, draw, **options)

        monkeypatch.setattr(mcmc, "run_chain", record)
        start = NoiseStreams(range(4), pipe.generator.latent_shapes).normal()
        traces_from(pipe, {"a": start, "b": start}, 0, 8)
        every = torch.stack([flatten(start).flatten(), *(d.flatten() for d in draws)])
        correlations = torch.corrcoef(every) - torch.eye(3)
        assert correlations.abs().max() < 4 / math.sqrt(every.shape[1])
