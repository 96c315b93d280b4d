"""The sharp decoder learns from its losses, and nothing else moves.

A discriminator that collects the decoder's gradient, or a penalty on the wrong images, trains for
hours to textures that no photograph has.
"""

import copy
import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
from tiny import tiny_config, tiny_images, tiny_latents, tiny_modules
from torch import nn
from torch.nn import functional as F

from hebm_sample.config import GeneratorConfig, StageConfig
from hebm_sample.generator.hierarchy import sharp_decoder
from hebm_sample.generator.likelihood import DiscretizedLogistic, LogisticOutput
from hebm_sample.presets.models import find_preset
from hebm_sample.presets.preset import DecoderPlan
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.decoding import objective as decoding
from hebm_sample.training.decoding.adversary import (
    Discriminator,
    Response,
    feature_distance,
    gradient_penalty,
)
from hebm_sample.training.decoding.objective import (
    ALONE,
    FLAT,
    MARGIN,
    RAMP,
    DecoderObjective,
    SharpDecoder,
    blurred,
    expected_errors,
    gaussian,
    sharpness,
    shifted,
)
from hebm_sample.training.optim import Part, make_optimizer, train_step

CONFIG = tiny_config()
IMAGES = tiny_images(CONFIG, 8)


def objective(pool=True, **plan):
    generator, encoder, _ = tiny_modules()
    torch.manual_seed(0)
    learner = SharpDecoder(generator.decoder, CONFIG.generator.image_size, rate=0.5)
    latents = tiny_latents(CONFIG, 12, seed=4) if pool else None
    return DecoderObjective(generator, encoder, learner, DecoderPlan(**plan), latents)


def part(seed=0):
    return Part(IMAGES, None, torch.Generator().manual_seed(seed))


def gradients(built, fraction=1.0):
    parameters = list(built.learner.parameters())
    grads, stats = built.differentiate(part(), fraction, parameters)
    names = [name for name, _ in built.learner.named_parameters()]
    return dict(zip(names, grads, strict=True)), stats


def test_the_penalty_of_a_linear_discriminator_is_its_weights_square():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 8, 8, dtype=torch.float64))

        def forward(self, x):
            return Response((x * self.weight).flatten(1).sum(1), ())

    net = Linear()
    found = gradient_penalty(net, torch.randn(5, 3, 8, 8, dtype=torch.float64))
    assert found.item() == pytest.approx(net.weight.square().sum().item())
    (slope,) = torch.autograd.grad(found, net.weight)
    assert torch.allclose(slope, 2 * net.weight)


def test_feature_distance():
    maps = [torch.randn(2, 3, 4, 4), torch.randn(2, 5, 2, 2)]
    assert feature_distance(maps, maps) == 0
    assert feature_distance([0 * m for m in maps], maps).item() == pytest.approx(1)
    doubled = [2 * m for m in maps]
    assert feature_distance(doubled, maps).item() == pytest.approx(1)
    assert feature_distance([7 * m for m in doubled], [7 * m for m in maps]) == pytest.approx(1)


@pytest.mark.parametrize("size, stages", [(8, 0), (16, 1), (64, 3), (128, 4)])
def test_the_discriminator_ends_at_four_by_four(size, stages):
    logits, maps = Discriminator(size)(torch.randn(2, 3, size, size))
    assert logits.shape == (2,) and len(maps) == stages
    assert not maps or maps[-1].shape[-2:] == (4, 4)


def test_shifted_images_are_the_same_ones_elsewhere():
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(shifted(x, 0, None)(x), x)
    stream, seen = torch.Generator().manual_seed(0), set()
    for _ in range(80):
        move = shifted(x, 1, stream)
        there = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        found = {
            (i, j)
            for i, j in there
            if torch.equal(
                move(x)[..., 1:-1, 1:-1], torch.roll(x, (i, j), (2, 3))[..., 1:-1, 1:-1]
            )
        }
        assert len(found) == 1 and torch.equal(move(x), move(x))
        seen |= found
    assert len(seen) == 9  # every place, the same for all that one map is given
    far = shifted(x, 100, stream)(x)  # no further than the image reaches
    assert far.shape == x.shape and set(far.unique().tolist()) <= set(x.unique().tolist())


@pytest.mark.parametrize("shift", [0, 3])
def test_each_network_has_the_gradient_of_its_own_loss(shift):
    built = objective(shift=shift)
    found, _ = gradients(built)
    stream = part().stream
    own, drawn = built.states(IMAGES, stream)
    move = shifted(IMAGES, shift, stream)
    learner, losses, seen = built.learner, built.plan, move(IMAGES)
    fakes = [learner.decoder(own), learner.decoder(drawn)]
    real = learner.discriminator(seen)
    responses = [learner.discriminator(move(y)) for y in fakes]
    mine = [p for p in learner.discriminator.parameters()]
    detached = [learner.discriminator(move(y.detach())).logits for y in fakes]
    loss_d = F.softplus(-real.logits).mean() + F.softplus(torch.stack(detached)).mean()
    some = [seen[::4], *(move(y.detach())[:1] for y in fakes)]  # as many of both kinds
    slopes = [gradient_penalty(learner.discriminator, torch.cat(v)) for v in (some[:1], some[1:])]
    loss_d = loss_d + losses.penalty / 2 * sum(slopes)
    for p, grad in zip(mine, torch.autograd.grad(loss_d, mine), strict=True):
        name = next(n for n, q in learner.named_parameters() if q is p)
        assert torch.allclose(found[name], grad, atol=1e-6), name
    off = fakes[0] - IMAGES
    loss_g = losses.pixels * off.abs().mean() + losses.squares * off.square().mean()
    loss_g = loss_g + losses.features * feature_distance(
        responses[0].maps, [m.detach() for m in real.maps]
    )
    voices = []
    for y in fakes:
        leaf = y.detach().requires_grad_()
        (slope,) = torch.autograd.grad(learner.discriminator(move(leaf)).logits.sum(), leaf)
        steep = slope[0].numel() ** 0.5 * slope.square().sum((1, 2, 3)).sqrt()
        voices.append(F.softplus(-learner.discriminator(move(y)).logits) / steep.clamp(min=FLAT))
    others = list(learner.decoder.parameters())
    voice = torch.stack(voices).mean()
    expected = torch.autograd.grad(loss_g + losses.adversarial * voice, others)
    for p, grad in zip(others, expected, strict=True):
        name = next(n for n, q in learner.named_parameters() if q is p)
        assert torch.allclose(found[name], grad, atol=1e-5), name
        assert grad.abs().max() > 0


@pytest.mark.parametrize("times", [1.0, 1e3])
def test_the_discriminators_word_has_one_weight_however_steep_it_is(times):
    """Where it is undecided: a root mean square of half of what `adversarial` is, a value."""
    built = objective(features=0.0, adversarial=3.0)
    weight = times * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))

    def response(y):
        return Response((weight * y).sum((1, 2, 3)), ())

    y = torch.zeros(4, 3, 16, 16, requires_grad=True)
    found, real = response(y), Response(torch.zeros(4), (torch.ones(1),))
    (toward,) = torch.autograd.grad(found.logits.sum(), y, retain_graph=True)
    with mock.patch.object(decoding, "feature_distance", lambda *_: torch.zeros(())):
        loss, stats = built.opinion(found, real, 2, toward)
    (slope,) = torch.autograd.grad(loss, y)
    assert stats["steepness"] > FLAT
    rms = slope.square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(rms, torch.full_like(rms, 3.0 * 0.5 / y.numel()))


def test_the_discriminator_begins_without_a_say_and_its_weight_rises():
    built = objective(adversarial=5e3)
    early, _ = gradients(built, 0.0)
    pixels, _ = gradients(objective(adversarial=0.0, features=0.0), 0.5)
    for name, found in early.items():
        if name.startswith("decoder"):
            assert found.abs().max() > 0 and torch.allclose(found, pixels[name], atol=1e-7), name
    assert any(g.abs().max() > 0 for n, g in early.items() if n.startswith("discriminator"))
    sizes = [
        sum(float(g.abs().sum()) for n, g in gradients(built, f)[0].items() if n[:4] == "deco")
        for f in (ALONE + RAMP / 4, ALONE + RAMP / 2, ALONE + RAMP, 1.0)
    ]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]


def test_without_samples_there_are_reconstructions_alone():
    built = objective(pool=False)
    assert built.states(IMAGES, None)[1] is None
    with_pool, without = gradients(objective())[1], gradients(built)[1]
    torch.testing.assert_close(with_pool["pixels"], without["pixels"])
    assert with_pool["logit_fake"] != without["logit_fake"]


def test_a_square_is_nearly_what_it_is_in_the_whole_image():
    built = objective(square=2)
    h = torch.cat(built.states(IMAGES, torch.Generator().manual_seed(0)))
    whole = built.learner.decoder(h)
    count = len(IMAGES)
    for seed in range(4):
        stream = torch.Generator().manual_seed(seed)
        y, x, expected = built.decoded(h, IMAGES, stream)
        top, left = torch.randint(
            h.shape[-1] - 1, (2,), generator=torch.Generator().manual_seed(seed)
        ).tolist()
        scale = IMAGES.shape[-1] // h.shape[-1]
        rows, columns = (slice(s * scale, (s + 2) * scale) for s in (top, left))
        assert torch.equal(x, IMAGES[..., rows, columns]) and y.shape[1:] == x.shape[1:]
        # The tiny model's decoder is the likelihood's too.
        torch.testing.assert_close(expected.mean, y[count:])
        away = (y - whole[..., rows, columns]).abs().mean()
        assert away < 0.05 * whole.std() and MARGIN == 2


def test_errors_are_expected_as_draws_of_the_likelihood_have_them():
    torch.manual_seed(0)
    likelihood = DiscretizedLogistic().double()
    likelihood.log_scale.data = torch.tensor([-3.0, -2.0, -1.0], dtype=torch.float64)
    mean, off = 0.1 * torch.randn(1, 3, 2, 2).double(), 0.3 * torch.randn(1, 3, 2, 2).double()
    noise = torch.logit(torch.rand(200_000, 3, 2, 2, dtype=torch.float64))
    x = mean + likelihood.log_scale.exp().view(1, 3, 1, 1) * noise
    y = mean + off
    error, square = expected_errors(LogisticOutput(mean, likelihood), off)
    torch.testing.assert_close(error, (y - x).abs().mean(), rtol=5e-3, atol=0)
    torch.testing.assert_close(square, (y - x).square().mean(), rtol=5e-3, atol=0)


@pytest.mark.parametrize("blur", [0.0, 1.0])
def test_samples_are_held_to_what_the_likelihood_expects(blur):
    plan = {"pixels": 2.0, "squares": 3.0, "features": 0.0, "adversarial": 0.0}
    built = objective(**plan, blur=blur)
    decoder = built.learner.decoder = copy.deepcopy(built.learner.decoder)
    nn.init.normal_(decoder.head.bias)  # off the mean, where it would learn nothing
    both, _ = gradients(built)
    h = built.states(IMAGES, part().stream)[1]
    built.pool = None
    alone, _ = gradients(built)
    output = built.generator.output(h)
    off = blurred(decoder(h) - output.mean, gaussian(blur))
    error, square = expected_errors(output, off)
    own = torch.autograd.grad(2.0 * error + 3.0 * square, list(decoder.parameters()))
    assert own[-1].abs().min() > 1e-3
    for (name, _), grad in zip(decoder.named_parameters(), own, strict=True):
        name = f"decoder.{name}"
        torch.testing.assert_close(both[name] - alone[name], grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("deviation", [0.0, 0.7, 2.0])
def test_a_blur_keeps_what_is_coarse_and_nothing_of_a_lattice(deviation):
    kernel = gaussian(deviation)
    places = torch.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1.0)
    assert (kernel * places**2).sum().sqrt() == pytest.approx(deviation, rel=0.02, abs=1e-6)
    side = torch.arange(32)
    coarse = torch.cos(torch.pi * (side + 0.5) / 32).expand(1, 3, 32, 32)  # mirrored at borders
    kept = math.exp(-0.5 * (deviation * torch.pi / 32) ** 2)
    torch.testing.assert_close(blurred(coarse, kernel), kept * coarse, rtol=0.01, atol=1e-4)
    lattice = 1.0 - 2.0 * (side % 2).expand(1, 1, 32, 32)
    least = 2.0 * math.exp(-0.5 * (deviation * torch.pi) ** 2)  # two frequencies fold into it
    assert blurred(lattice, kernel).abs().max() < least + 1e-3


def test_pixels_are_compared_through_the_blur():
    """A lattice costs next to nothing; what is told of pixels is of the images as they are."""
    plan = {"pixels": 1.0, "squares": 0.0, "features": 0.0, "adversarial": 0.0}
    told, paid = {}, {}
    for blur in (0.0, 1.5):
        built = objective(pool=False, **plan, blur=blur)
        lattice = torch.tensor([1.0, -1.0, -1.0, 1.0]).repeat(3)
        built.learner.decoder.head.bias.data += 10.0 * lattice
        _, stats = gradients(built)
        told[blur] = stats["pixels"].item()
        paid[blur] = (stats["loss"] - stats["discriminator"]).item()
    assert told[0.0] == told[1.5] > 5.0
    assert paid[1.5] < 0.2 * paid[0.0]


def test_bilinear_upsampling_draws_no_lattice():
    """Of a flat h: nothing may depend on where in a block a pixel lies."""
    flat = {}
    for mode in ("nearest", "bilinear"):
        torch.manual_seed(3)
        config = replace(
            find_preset("images64").generator,
            sharp_decoder=(StageConfig(32, 16, 1), StageConfig(64, 16, 1)),
            sharp_upsampling=mode,
        )
        assert GeneratorConfig.from_dict(config.to_dict()) == config
        assert ("sharp_upsampling" in config.to_dict()) == (mode == "bilinear")
        decoder = sharp_decoder(config)
        nn.init.normal_(decoder.head.weight)
        nn.init.normal_(decoder.fine.head.weight)
        with torch.no_grad():
            y = decoder(torch.ones(1, config.scales[-1].width, 16, 16))[..., 24:40, 24:40]
        flat[mode] = (y.amax((2, 3)) - y.amin((2, 3))).max()
    assert flat["bilinear"] < 1e-3 < 0.1 < flat["nearest"]


def test_a_step_moves_both_at_their_rates_and_leaves_the_rest_alone():
    built = objective()
    frozen = [*built.generator.groups.parameters(), *built.encoder.parameters()]
    before = [p.clone() for p in frozen]
    optimizer = make_optimizer(built.learner, TrainSettings(steps=1))
    assert [g["factor"] for g in optimizer.param_groups] == [1.0, 0.5]
    parameters = list(built.learner.parameters())
    start = [p.clone() for p in parameters]
    finite, stats = train_step(built, [part(1), part(2)], 1.0, optimizer, parameters, 1e9)
    assert finite and {"pixels", "features", "adversarial", "discriminator"} <= stats.keys()
    moved = [not torch.equal(a, b) for a, b in zip(start, parameters, strict=True)]
    assert all(moved)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))
    assert all(p.grad is None for p in frozen)


def test_the_discriminator_learns_to_tell_and_the_decoder_to_come_nearer():
    built = objective()
    optimizer = make_optimizer(built.learner, TrainSettings(steps=1, learning_rate=2e-3))
    parameters, history = list(built.learner.parameters()), []
    images = torch.full_like(IMAGES, 0.6)
    for step in range(60):
        fraction, own = (0.0 if step < 20 else 1.0), part(step)._replace(images=images)
        _, stats = train_step(built, [own], fraction, optimizer, parameters, 1e9)
        history.append(stats)
    best = min(history[:20], key=lambda stats: float(stats["discriminator"]))
    assert best["discriminator"] < 0.5 * history[0]["discriminator"]
    assert best["logit_real"] > best["logit_fake"]
    assert history[-1]["pixels"] < 0.8 * history[19]["pixels"]


def test_sharpness_falls_with_blur():
    images = torch.rand(2, 3, 16, 16)
    blurred = F.avg_pool2d(images, 3, 1, 1)
    assert sharpness(blurred) < 0.5 * sharpness(images)
    assert sharpness(torch.ones(1, 3, 8, 8)) == 0
    assert sharpness(3 * images).item() == pytest.approx(3 * sharpness(images).item(), rel=1e-4)
