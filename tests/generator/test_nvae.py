"""An imported NVAE computes what NVAE computes, and is a generator as any other.

The numbers in `tests/nvae` are NVAE's own. Without them a norm folded into the wrong neighbour, a
mask that looks one position too far or two swapped corners give images that look plausible.
"""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from nvae_files import NAMES, TEMPERATURE, expected, noise, write_checkpoint
from torch import nn

from hebm_sample import Pipeline
from hebm_sample.config import GeneratorConfig, ModelConfig, NvaeConfig
from hebm_sample.errors import UserInputError
from hebm_sample.generator.encoder import encode
from hebm_sample.generator.nvae.encoder import Shift
from hebm_sample.generator.nvae.output import MixtureOutput, NormalOutput, quantised
from hebm_sample.pipeline.posterior_variance import posterior_variance
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.training.devices import computing
from hebm_sample.training.energy import PriorObjective
from hebm_sample.training.imports.nvae_checkpoint import load_nvae
from hebm_sample.training.imports.nvae_weights import causal_mask

ONE, THREE, NORMAL = NAMES


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Each checkpoint's networks, read from a file of NVAE's layout."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {n: load_nvae(write_checkpoint(n, folder / f"{n}.pt")) for n in NAMES}


def posterior(model, name):
    found = expected(name)
    images = found["image"].float() * 2 / 255 - 1
    with torch.no_grad():
        drawn = encode(model.generator, model.encoder, images, noise(found, "posterior"))
        return found, images, drawn, model.generator.output(drawn.top.features)


def random_latents(model, batch=2, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, *s, generator=stream) for s in model.config.latent_shapes)


def close(found, wanted, *, relative=1e-6):
    torch.testing.assert_close(found, wanted, rtol=relative, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_output_distribution_is_nvaes(models, name):
    found, _, _, output = posterior(models[name], name)
    close(output.logits[:, :, ::8, ::8], found["logits"], relative=0)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_keeps_bits_and_images_within_what_the_docs_say(models, name, tmp_path):
    """Models that come of a run on an NVAE are stored so: `docs/training.md`."""
    model = models[name]
    config = ModelConfig(name, model.config)
    whole = Pipeline(config, model.generator, None, model.encoder, device="cpu")
    whole.save_pretrained(tmp_path / "half")
    half = Pipeline.from_pretrained(tmp_path / "half", device="cpu")
    found, images, _, _ = posterior(model, name)
    with torch.no_grad():
        drawn = encode(half.generator, half.encoder, images, noise(found, "posterior"))
        log_p = half.generator.output(drawn.top.features).log_prob(images)
    nats = half.encoder.kl(drawn).sum(1) - log_p
    kl = sum(found[f"kl.{i}"] for i in range(len(model.config.latent_shapes)))
    scale = images[0].numel() * math.log(2)
    assert float((nats - kl + found["log_likelihood"]).abs().max()) / scale < 1e-4
    u = tuple(TEMPERATURE * e for e in noise(found, "prior"))
    pair = [pipe.decode(u, output_type="torch") for pipe in (whole, half)]
    assert 0 < float((pair[0] - pair[1]).abs().max()) < 0.1 / 255


@pytest.mark.parametrize("name", NAMES)
def test_kl_per_group_and_likelihood_are_nvaes(models, name):
    model = models[name]
    found, images, drawn, output = posterior(model, name)
    groups = range(len(model.config.latent_shapes))
    kl = model.encoder.kl(drawn)
    close(kl, torch.stack([found[f"kl.{i}"] for i in groups], dim=1))
    close(output.log_prob(images), found["log_likelihood"])
    bits = (kl.sum(1) - output.log_prob(images)) / (math.log(2) * images[0].numel())
    nats = sum(found[f"kl.{i}"] for i in groups) - found["log_likelihood"]
    close(bits, nats / (math.log(2) * images[0].numel()))


@pytest.mark.parametrize("name", NAMES)
def test_gaussian_noise_times_a_temperature_is_nvaes_sampling(models, name):
    found, generator = expected(name), models[name].generator
    u = tuple(TEMPERATURE * e for e in noise(found, "prior"))
    with torch.no_grad():
        logits = generator.output(generator.transform(u).features).logits
    close(logits[:, :, ::8, ::8], found["sample_logits"], relative=0)


@pytest.mark.parametrize("name", NAMES)
def test_log_densities_at_the_draw_differ_as_nvaes(models, name):
    """log q(z | x) - log p(z) at the draw, which NVAE sums over groups."""
    model = models[name]
    found, _, drawn, _ = posterior(model, name)
    parts = zip(drawn.u, drawn.noise, drawn.log_s, strict=True)
    total = sum((0.5 * (u.square() - e.square()) - s).sum() for u, e, s in parts)
    close(total, (found["log_q"] - found["log_p"])[0], relative=1e-5)


@pytest.mark.parametrize("flows", (False, True))
def test_bfloat16_leaves_u_alone_where_sigma_is_small(models, flows):
    """A difference of numbers of 8 bits, divided by a sigma of 0.01, would be noise."""
    model = copy.deepcopy(models[ONE if flows else THREE])
    assert model.encoder.normal is not flows
    for group, head in zip(model.generator.groups, model.encoder.heads, strict=True):
        for layer in filter(None, (group.prior, head.prior)):
            layer.bias.data[: group.latent_channels] += 3.0
            layer.bias.data[group.latent_channels :] -= 8.0
    size = model.config.image_size
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    eps = random_latents(model)
    frozen = PriorObjective(model.generator, model.encoder, nn.Identity())
    stream = torch.Generator()
    context = computing(frozen, TrainSettings(steps=1, dtype="bfloat16"), torch.device("cpu"))

    def found():
        maps, drawn = (
            frozen.encoder.features(images),
            encode(model.generator, model.encoder, images, eps),
        )
        again = encode(model.generator, model.encoder, maps, eps)
        own = frozen.posterior_draw(maps, stream.manual_seed(1))
        return (*drawn.u, *again.u, *own, *model.generator.inverse(drawn.top.z))

    with torch.no_grad():
        wanted = found()
        with context():
            low = found()
            assert model.generator.transform(eps).h[-1].dtype == torch.bfloat16
    assert max(float(u.std()) for u in wanted) > 1
    for a, b in zip(low, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_widths_of_a_posterior_with_flows_are_those_of_its_draws(models):
    """Of the top group, which follows no other: against so many draws that they tell."""
    model, device = copy.deepcopy(models[ONE]), torch.device("cpu")
    generator, encoder = model.generator, model.encoder
    for shift in encoder.heads[0].flows:  # wide ones
        shift.out.weight.data *= 200
    found = posterior_variance(generator, encoder, device)
    assert [tuple(w.shape[1:]) for w in found] == list(model.config.latent_shapes)
    with torch.no_grad():
        own = NoiseStreams(range(32), model.config.latent_shapes).normal()
        maps = encoder.features(generator(own).clamp(-1, 1))
        h = generator.constant.expand(32, -1, -1, -1)
        mu, log_sigma = generator.groups[0].prior_parameters(h)
        eps = torch.randn(100, *own[0].shape, generator=torch.Generator().manual_seed(5))
        several = [encoder.posterior(0, maps, h, mu, log_sigma, e) for e in eps]
    wanted = torch.stack([group.u for group in several]).var(0).mean(0)
    torch.testing.assert_close(found[0][0], wanted, rtol=0.35, atol=0)
    assert float((wanted / torch.exp(2 * several[0].log_s).mean(0)).max()) > 2


@pytest.mark.parametrize("name", NAMES)
def test_inverse_undoes_the_map(models, name):
    model = models[name]
    u = random_latents(model)
    with torch.no_grad():
        top = model.generator.transform(u)
        for a, b in zip(model.generator.inverse(top.z), u, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert [tuple(h.shape[1:]) for h in top.h] == list(model.config.state_shapes)
    assert [tuple(z.shape[1:]) for z in top.z] == list(model.config.latent_shapes)


def test_maps_have_the_shapes_they_are_said_to_have(models):
    for model in models.values():
        size = model.config.image_size
        maps = model.encoder.features(torch.zeros(2, 3, size, size))
        assert {k: tuple(m.shape[1:]) for k, m in maps.items()} == model.encoder.map_shapes
    with pytest.raises(UserInputError, match=r"this model needs \(B, 3, 64, 64\)"):
        model.encoder.features(torch.zeros(2, 3, 32, 32))


def test_a_chains_map_gives_the_same_states_without_the_last_convolution(models):
    model = models[THREE]
    u = random_latents(model)
    with torch.no_grad():
        whole = model.generator.transform(u)
        short = model.generator.transform(u, features=False)
    for a, b in zip(whole.h + whole.z, short.h + short.z, strict=True):
        assert torch.equal(a, b)
    assert short.features is short.h[-1]


def test_an_image_does_not_depend_on_the_others(models):
    model = models[THREE]
    u = random_latents(model)
    with torch.no_grad():
        both = model.generator(u)
        alone = model.generator(tuple(g[1:] for g in u))
    torch.testing.assert_close(both[1:], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", (ONE, NORMAL))
@pytest.mark.parametrize("mirrored", (False, True))
def test_shifts_preserve_volume(models, name, mirrored):
    """Every shift's Jacobian is triangular with ones on the diagonal, in one of two orders."""
    shift = models[name].encoder.heads[1].flows[int(mirrored)].double()
    z = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: shift(x[None])[0], z)
    shift.float()
    order = jacobian.permute(1, 2, 0, 4, 5, 3).reshape(36, 36)  # rows, columns, then channels
    if mirrored:
        places = torch.arange(9).flip(0)
        order = order.view(9, 4, 9, 4)[places][:, :, places].reshape(36, 36)
    assert torch.equal(order.diagonal(), torch.ones(36, dtype=torch.float64))
    assert float(order.triu(1).abs().max()) == 0.0
    assert float(order.tril(-1).abs().max()) > 0.0


def test_masks_see_earlier_latents_only():
    shift = Shift(2)
    strict = causal_mask(shift.conv1, strict=True, mirrored=False)
    assert strict[:, :, 1, 1].tolist() == [[0.0, 0.0]] * 6 + [[1.0, 0.0]] * 6
    assert causal_mask(shift.out, strict=False, mirrored=False)[0, :, 0, 0].sum() == 6


@pytest.mark.parametrize("bits", (1, 5, 8))
def test_the_mixture_is_a_distribution_of_colours(bits):
    """Probabilities of all values of blue, given red and green, sum to one; but for the levels
    between 0.99 and 1, which NVAE counts to the brightest bin each.
    """
    stream = torch.Generator().manual_seed(bits)
    logits = torch.randn(1, 20, 1, 1, generator=stream).double()
    levels = 2**bits
    values = torch.linspace(-1, 1, levels).double()
    values = values[values <= 0.99] if bits == 8 else values
    colours = [torch.full_like(values, 1.0), torch.full_like(values, -1.0), values]
    images = torch.stack(colours, 1)[:, :, None, None]
    with torch.no_grad():
        output = MixtureOutput(logits.expand(len(values), -1, -1, -1), 2, 8)
        output.bits = bits
        given = _pairs(logits, bits)
        if bits < 8:  # already on these levels: nothing to round
            images = (((images + 1) / 2 * (levels - 1)).round() * 2 ** (8 - bits)) * 2 / 255 - 1
        total = output.log_prob(images).exp().sum()
        if bits == 8:  # what is left is one bin that reaches to infinity
            last = torch.tensor([1.0, -1.0, 254 / 127.5 - 1]).double().view(1, 3, 1, 1)
            total = total + MixtureOutput(logits, 2, bits).log_prob(last).exp().sum()
    assert float(total) == pytest.approx(float(given), rel=1e-6)


def _pairs(logits, bits):
    """P(red = 1, green = -1) of a mixture of two, from the definition."""
    weights = torch.softmax(logits[0, :2, 0, 0], 0)
    parts = logits[0, 2:, 0, 0].view(3, 3, 2)
    means, scales = parts[:, 0], parts[:, 1].clamp(min=-7).exp()
    # 1 and -1 are the outermost bins, and above 0.99 of 8 bits there are two levels.
    half = 1 / (2**bits - 1)
    red = torch.sigmoid(-((1 - half) - means[0]) / scales[0])
    green = torch.sigmoid((-1 + half - means[1] - parts[0, 2].tanh()) / scales[1])
    return (weights * red * green).sum()


def test_bits_are_the_first_ones_of_a_value():
    levels = torch.arange(256.0)
    found = quantised(levels * 2 / 255 - 1, 5)
    torch.testing.assert_close((found + 1) / 2 * 31, (levels // 8))
    assert torch.equal(quantised(levels * 2 / 255 - 1, 8), levels * 2 / 255 - 1)


def test_the_normal_output_is_a_density():
    logits = torch.tensor([0.3, -0.2, 0.1, -1.0, -0.5, 0.0]).view(1, 6, 1, 1)
    output = NormalOutput(logits, 8)
    x = torch.tensor([0.5, 0.0, -0.5]).view(1, 3, 1, 1)
    sigma = torch.exp(5 * torch.tanh(logits[0, 3:, 0, 0] / 5)) + 0.01
    mean = 5 * torch.tanh(logits[0, :3, 0, 0] / 5)
    wanted = torch.distributions.Normal(mean, sigma).log_prob(x[0, :, 0, 0]).sum()
    torch.testing.assert_close(output.log_prob(x)[0], wanted)
    torch.testing.assert_close(output.variance[0, :, 0, 0], sigma.square())


# The description


def test_the_description_round_trips_and_names_its_kind(models):
    config = ModelConfig("imported", models[THREE].config)
    data = json.loads(json.dumps(config.to_dict()))
    assert data["generator"]["kind"] == "nvae"
    assert ModelConfig.from_dict(data) == config
    assert isinstance(ModelConfig.from_dict(data).generator, NvaeConfig)


def test_our_own_kind_is_written_without_a_kind():
    from tiny import tiny_config

    data = tiny_config().to_dict()
    assert "kind" not in data["generator"]
    assert isinstance(ModelConfig.from_dict(data).generator, GeneratorConfig)
    data["generator"] |= {"kind": "gan"}
    with pytest.raises(UserInputError, match="generator.kind is 'gan'; it can be 'nvae'"):
        ModelConfig.from_dict(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"groups": (1,)},
        {"groups": ()},
        {"image_size": 30},
        {"bits": 9},
        {"flows": -1},
        {"blocks": 0},
        {"kind": "other"},
    ],
)
def test_what_no_nvae_can_be_is_refused(models, changes):
    with pytest.raises(UserInputError):
        replace(models[THREE].config, **changes)
