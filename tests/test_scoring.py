"""Densities, rates and likelihood ratios of images, on models whose energies are exact Gaussians.

A score without |u|^2 / 2 orders images by a ratio of densities; one that draws anew for each row
depends on an image's neighbours; a ratio of bounds with different noise is not zero where nothing
is replaced.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from analytic import gaussian_energy
from nvae_files import NAMES, expected, write_checkpoint
from tiny import (
    symbolic_pipeline,
    tiny_config,
    tiny_images,
    tiny_latents,
    tiny_modules,
    tiny_pipeline,
)

from hebm_sample.config import ModelConfig
from hebm_sample.errors import UserInputError
from hebm_sample.generator.encoder import encode, kl_per_group
from hebm_sample.io.seeds import posterior_seed
from hebm_sample.pipeline import scoring
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.pipeline.scores import group_scores
from hebm_sample.pipeline.scoring import measure
from hebm_sample.prior.joint import JointEnergy
from hebm_sample.prior.symbols import GroupOutputs
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.training.elbo import elbo
from hebm_sample.training.imports.nvae_checkpoint import load_nvae

VARIANCE, MEAN = 0.3, 0.4


class GaussianEnergies(JointEnergy):
    """Exact energies of data N(MEAN, VARIANCE) in every dimension of u."""

    def outputs(self, top, level):
        base = gaussian_energy(VARIANCE, MEAN)(top.u, level)
        return GroupOutputs(base, base.new_zeros(*base.shape, 0))


def gaussian_pipeline():
    config = tiny_config()
    generator, encoder, _ = tiny_modules(config)
    prior = GaussianEnergies(
        config.prior, config.generator.latent_shapes, config.generator.state_shapes
    )
    return Pipeline(config, generator, prior, encoder)


@pytest.fixture(scope="module")
def gaussian():
    return gaussian_pipeline()


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def symbols():
    return symbolic_pipeline()


@pytest.fixture(scope="module")
def flows(tmp_path_factory):
    """Imported NVAEs whose posteriors have flows, with energies, by name."""
    folder, prior, found = tmp_path_factory.mktemp("nvae"), tiny_config().prior, {}
    for name in (NAMES[0], NAMES[2]):
        nvae = load_nvae(write_checkpoint(name, folder / f"{name}.pt"))
        config = ModelConfig(name, nvae.config, prior)
        torch.manual_seed(0)
        energies = JointEnergy(prior, nvae.config.latent_shapes, nvae.config.state_shapes)
        found[name] = Pipeline(config, nvae.generator, energies, nvae.encoder, device="cpu")
    return found


@pytest.fixture(scope="module")
def images(pipe):
    return (tiny_images(pipe.config, 5) + 1) / 2


def exact(pipe, u, groups):
    """log N of the lowest level's diffused data, without its constant, (N,)."""
    sigma = pipe.config.prior.levels[0]
    total = (1 - sigma**2) * VARIANCE + sigma**2
    centre = (1 - sigma**2) ** 0.5 * MEAN
    rows = [u[i].flatten(1).double() for i in groups]
    return -sum((r - centre).square().sum(1) for r in rows) / (2 * total)


class TestLogDensity:
    @pytest.mark.parametrize("groups", [[0, 1, 2], [0], [2, 0]])
    @pytest.mark.parametrize("mode", ["sample", "mean"])
    def test_differs_between_images_by_what_it_should(self, gaussian, images, groups, mode):
        seeds = ([0] * len(images), [1] * len(images)) if mode == "sample" else (None,)
        each = [gaussian.encode(images, mode=mode, seeds=s) for s in seeds]
        found = gaussian.log_density(images, groups=groups, mode=mode).double()
        expected = torch.stack([exact(gaussian, u, groups) for u in each]).mean(0)
        assert expected.std() > 0.05
        torch.testing.assert_close(found - found[0], expected - expected[0], atol=2e-3, rtol=1e-4)

    def test_is_minus_the_energy_less_half_a_square(self, pipe):
        u = tiny_latents(pipe.config, 4)
        energy = pipe.energy(latents=u, groups=slice(0, 2)).double()
        squares = sum(g.flatten(1).double().square().sum(1) for g in u[:2])
        found = pipe.log_density(latents=u, groups=slice(0, 2)).double()
        torch.testing.assert_close(found, -energy - squares / 2, atol=1e-3, rtol=1e-5)

    def test_a_rate_is_the_energy_and_the_divergence_from_the_standard_normal(self, pipe, images):
        """Of the same samples; the top group's Gaussian depends on the image alone."""
        with torch.no_grad():
            q = encode(pipe.generator, pipe.encoder, images * 2 - 1, None)
        m, s = q.mean[0].flatten(1).double(), q.log_s[0].flatten(1).double().exp()
        exact = ((m.square() + s.square() - 1) / 2 - s.log()).sum(1)
        assert exact.min() > 0.2
        found = pipe.rate(images, groups=0) - pipe.energy(images, groups=0)
        torch.testing.assert_close(found.double(), exact, atol=1e-3, rtol=1e-4)

    def test_the_rate_of_exact_energies_is_the_divergence(self, gaussian, images):
        """Up to the same constant for every image: KL(q || N(m, V)) of the encoder's Gaussians, of
        which the top group's is known in closed form.
        """
        found = gaussian.rate(images, groups=0, draws=400).double()
        with torch.no_grad():
            q = encode(gaussian.generator, gaussian.encoder, images * 2 - 1, None)
        sigma = gaussian.config.prior.levels[0]
        total = (1 - sigma**2) * VARIANCE + sigma**2
        centre = (1 - sigma**2) ** 0.5 * MEAN
        m, s = q.mean[0].flatten(1).double(), q.log_s[0].flatten(1).double()
        exact = (((m - centre).square() + (2 * s).exp()) / (2 * total) - s).sum(1)
        error = (found - found.mean()) - (exact - exact.mean())
        assert error.abs().max() < 0.2 * exact.std()


class TestRatios:
    @pytest.mark.parametrize("name", [NAMES[0], None])
    def test_are_those_of_bounds_that_are_computed_one_by_one(self, pipe, flows, images, name):
        pipe = flows[name] if name else pipe
        x = expected(name)["image"].float() * 2 / 255 - 1 if name else images * 2 - 1
        shapes, by_hand = pipe.generator.latent_shapes, []
        for draw in range(2):
            stream = NoiseStreams([posterior_seed(draw)] * len(x), shapes)
            own, further, row = stream.normal(), stream.normal(), []
            with torch.no_grad():
                found = elbo(pipe.generator, pipe.encoder, x, own)
                for kept in range(len(shapes), 0, -1):
                    u = (*found.posterior.u[:kept], *further[kept:])
                    output = pipe.generator.output(pipe.generator.transform(u).features)
                    row.append(output.log_prob(x) - found.kl[:, :kept].sum(1))
            bound = -found.distortion - found.kl.sum(1)
            by_hand.append(torch.stack([bound - other for other in row], dim=1))
        wanted = torch.stack(by_hand).mean(0)
        assert wanted[:, 1:].abs().min() > 1
        ratios = measure(pipe.model, x).ratios.float()
        torch.testing.assert_close(ratios, wanted, rtol=1e-4, atol=2e-2)

    def test_with_nothing_replaced_the_bound_above_is_the_bound(self, gaussian, images):
        model, x = gaussian.model, images * 2 - 1
        with torch.no_grad():
            sample = scoring._posterior_sample(model, model.encoder.features(x), 0)
            found = scoring.bound_above(model, x, sample, 0)
        bound = measure(model, x, draws=1).bound
        torch.testing.assert_close(found, bound, rtol=1e-5, atol=1e-2)

    def test_of_groups_that_say_nothing_are_zero(self, images):
        """Finest groups whose posterior is N(0, I) and whose z the generator ignores: keeping them
        explains no more than drawing them.
        """
        pipe = gaussian_pipeline()
        with torch.no_grad():
            for i in (1, 2):
                for layer in (pipe.encoder.heads[i].out, pipe.generator.groups[i].take_in):
                    layer.weight.zero_()
                    layer.bias.zero_()
        found = measure(pipe.model, images * 2 - 1).ratios
        assert found.abs().max() < 1e-2
        with torch.no_grad():
            pipe.encoder.heads[2].out.bias += 1.0  # a rate that buys nothing
        mean, log_s = 1.0, 5 * math.tanh(1 / 5)  # as the head bounds it
        kl = (mean**2 + math.exp(2 * log_s) - 1) / 2 - log_s
        found = measure(pipe.model, images * 2 - 1).ratios
        size = pipe.generator.latent_shapes[2]
        expected = -kl * size[0] * size[1] * size[2]
        torch.testing.assert_close(
            found[:, 1], torch.full_like(found[:, 1], expected), rtol=1e-3, atol=1e-2
        )

    @pytest.mark.parametrize("name", [NAMES[0], NAMES[2]])
    def test_the_bound_of_a_posterior_with_flows_is_the_objectives(self, flows, name):
        """And all that its KL enters: ratios of nothing replaced, rates, log KL."""
        pipe = flows[name]
        x = expected(name)["image"].float() * 2 / 255 - 1
        shapes, bounds, rates = pipe.generator.latent_shapes, [], []
        for draw in range(2):
            noise = NoiseStreams([posterior_seed(draw)] * len(x), shapes).normal()
            with torch.no_grad():
                found = elbo(pipe.generator, pipe.encoder, x, noise)
                terms = pipe.prior.outputs(
                    found.posterior.top, torch.full((len(x),), pipe.model.lowest_level())
                )
            bounds.append(-found.distortion - found.kl.sum(1))
            rates.append(found.kl.cumsum(1) - terms.base.cumsum(1))
            before = kl_per_group(found.posterior.mean, found.posterior.log_s)
            assert float((found.kl.sum(1) - before.sum(1)).abs().min()) > 5  # nats, by the flows
        measured = measure(pipe.model, x)
        close = {"rtol": 1e-5, "atol": 1e-2}
        torch.testing.assert_close(measured.bound.float(), torch.stack(bounds).mean(0), **close)
        torch.testing.assert_close(measured.rates.float(), torch.stack(rates).mean(0), **close)
        assert measured.statistics.isfinite().all()

    def test_statistics_of_the_mean_are_of_what_flows_make_of_it(self, flows):
        pipe = flows[NAMES[0]]
        x = expected(NAMES[0])["image"].float() * 2 / 255 - 1
        with torch.no_grad():
            q = encode(pipe.generator, pipe.encoder, x, None)
        wanted = torch.cat([u.mean((2, 3)) for u in q.u], dim=1).double()
        found = measure(pipe.model, x, draws=1)
        columns = [i for i, name in enumerate(found.names) if name.startswith("channel mean")]
        torch.testing.assert_close(found.statistics[:, columns], wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(q.u[1], q.mean[1], atol=1e-2)

    def test_the_bound_is_the_training_objectives(self, pipe, images):
        x, bounds = images * 2 - 1, []
        for draw in range(2):
            noise = NoiseStreams(
                [posterior_seed(draw)] * len(x), pipe.generator.latent_shapes
            ).normal()
            with torch.no_grad():
                found = elbo(pipe.generator, pipe.encoder, x, noise)
            bounds.append(-found.distortion - found.kl.sum(1))
        torch.testing.assert_close(
            measure(pipe.model, x).bound.float(),
            torch.stack(bounds).mean(0),
            rtol=1e-4,
            atol=1e-2,
        )


class TestMeasured:
    def test_a_batch_agrees_with_single_images(self, pipe, images):
        x = images * 2 - 1
        together = measure(pipe.model, x, batch_size=5).statistics
        for order in ([3], [4, 0, 3]):
            alone = measure(pipe.model, x[order], batch_size=2).statistics
            torch.testing.assert_close(alone, together[order], rtol=1e-3, atol=1e-3)

    def test_columns_have_names_and_are_finite(self, pipe):
        x = torch.zeros(2, 3, 16, 16)
        found = measure(pipe.model, x)
        assert len(found.names) == len(set(found.names)) == found.statistics.shape[1]
        assert torch.isfinite(found.statistics).all()
        assert found.rates.shape == found.densities.shape == found.ratios.shape == (2, 3)

    def test_what_may_be_negative_keeps_its_order(self, pipe):
        """-log of a density, and a KL divergence at single draws of a posterior with flows."""
        rows = torch.tensor([-900.0, -249.0, -3.0, 0.0, 0.5, 3.0, 5000.0]).double()[:, None]
        found = {k: rows.expand(-1, 3) for k in ("kl", "distortion")}
        others = ("gains", "gains at means", "channel mean", "channel width", "residual mean")
        others += ("squares", "squares of means", "channel square", "residual squares", "ratios")
        columns = scoring._columns(found | {k: rows.abs() for k in others})
        for name in found:
            assert (columns[f"asinh {name}"].diff(dim=0) > 0.4).all()

    def test_distortion_alone_is_that_of_all(self, pipe, images):
        x = images * 2 - 1
        found = measure(pipe.model, x)
        assert torch.equal(scoring.distortion(pipe.model, x, 2), found.distortion)
        column = found.statistics[:, found.names.index("asinh distortion 0")]
        torch.testing.assert_close(column.sinh(), found.distortion)


class TestOneImage:
    """What is said of an image depends on it alone."""

    @pytest.mark.parametrize(
        "score",
        [
            lambda pipe, x: pipe.energy(x),
            lambda pipe, x: pipe.energy(x, groups=1, batch_size=2),
            lambda pipe, x: pipe.log_density(x),
            lambda pipe, x: pipe.rate(x),
            lambda pipe, x: pipe.score(x).log_density,
            lambda pipe, x: pipe.classify(x)["class"],
        ],
    )
    def test_has_one_score_in_any_place(self, symbols, images, score):
        together = score(symbols, images)
        assert together.std(0).max() > 1e-4
        close = {"rtol": 1e-4, "atol": 1e-3}
        for order in ([3], [4, 0, 3], [4, 3, 2, 1, 0]):
            torch.testing.assert_close(score(symbols, images[order]), together[order], **close)

    def test_has_the_same_numbers_by_every_name(self, symbols, images):
        found, groups = symbols.score(images), group_scores(symbols.model, images)
        close = {"rtol": 1e-5, "atol": 2e-3}
        for name in ("energy", "log_density", "rate"):
            torch.testing.assert_close(
                getattr(symbols, name)(images), getattr(found, name), **close
            )
        torch.testing.assert_close(groups.energy, found.energy, **close)
        torch.testing.assert_close(groups.log_density, found.log_density, **close)
        for i, energy in groups.energies.items():
            torch.testing.assert_close(energy, symbols.energy(images, groups=i), **close)
        for name, p in groups.symbols.items():
            torch.testing.assert_close(p, symbols.classify(images)[name], **close)

    def test_scores_are_means_over_samples_of_one_noise(self, symbols, images):
        each = [symbols.encode(images, seeds=[draw] * len(images)) for draw in range(2)]
        for call in (symbols.energy, symbols.log_density):
            wanted = torch.stack([call(latents=u) for u in each]).mean(0)
            torch.testing.assert_close(call(images), wanted, rtol=1e-5, atol=1e-3)
        by_draw = [symbols.classify(latents=u)["class"] for u in each]
        torch.testing.assert_close(symbols.classify(images)["class"], sum(by_draw) / 2)


class TestBadInput:
    def test_groups_out_of_range(self, pipe, images):
        for call in (pipe.log_density, pipe.rate):
            with pytest.raises(UserInputError, match=r"groups 7 asked for; this model has 3"):
                call(images, groups=7)

    @pytest.mark.parametrize("call", ["energy", "log_density", "rate", "score", "encode"])
    @pytest.mark.parametrize(
        "array",
        [np.zeros(3), np.array(3.0), np.array(["a.png"]), np.array([None]), np.zeros((1, 3))],
        ids=lambda x: f"{x.dtype} {x.shape}",
    )
    def test_arrays_that_are_no_images(self, pipe, call, array):
        with pytest.raises(UserInputError, match="images"):
            getattr(pipe, call)(array)

    @pytest.mark.parametrize("call", ["energy", "log_density"])
    def test_latents_that_are_none(self, pipe, call):
        u = tiny_latents(pipe.config, 2)
        for wrong, said in (
            (tuple(g.numpy() for g in u), "one tensor per group; these are ndarray"),
            ([None] * 3, "one tensor per group; these are NoneType"),
            (tuple(torch.zeros(()) for _ in u), "latents have shapes"),
            ((u[0] * math.nan, *u[1:]), "must be finite"),
        ):
            with pytest.raises(UserInputError, match=said):
                getattr(pipe, call)(latents=wrong)

    def test_arrays_that_are_mirrored_are_images(self, pipe, images):
        array = images.permute(0, 2, 3, 1).numpy()
        mirrored = pipe.energy(array[:, :, ::-1])
        torch.testing.assert_close(mirrored, pipe.energy(images.flip(3)))

    def test_all_that_read_images_align(self, pipe, images):
        for call in (pipe.energy, pipe.log_density, pipe.rate, pipe.score, pipe.encode):
            with pytest.raises(UserInputError, match="states no face crop"):
                call(images, align=True)
            with pytest.raises(UserInputError, match="face need"):
                call(images, face=1)

    def test_no_prior(self, images):
        generator, encoder, _ = tiny_modules()
        bare = Pipeline(replace(tiny_config(), prior=None), generator, None, encoder)
        for call in (bare.log_density, bare.rate):
            with pytest.raises(UserInputError, match="tiny has no energy-based prior"):
                call(images)

    def test_images_of_another_size_are_fitted(self, pipe):
        from PIL import Image

        grey = Image.linear_gradient("L").resize((40, 24))
        fitted = pipe.log_density([grey.convert("RGB").crop((8, 0, 32, 24))])
        torch.testing.assert_close(pipe.log_density([grey]), fitted)
