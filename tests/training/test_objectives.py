"""What is minimised is what the formulas say, and one bad batch does not spoil a run.

A sign or a factor wrong here trains for hours to a model that is merely worse; a NaN that reaches
the optimiser's moments ends a run some steps after the batch that caused it.
"""

import copy
import math
import random

import numpy as np
import pytest
import torch
from analytic import Mixture, gaussian_energy
from tiny import release_config, symbolic_config, tiny_config, tiny_images, tiny_modules
from torch import nn
from torch.nn import functional as F

from hebm_sample.config import PriorConfig
from hebm_sample.errors import TrainingDivergedError, UserInputError
from hebm_sample.generator.likelihood import bits_per_dimension
from hebm_sample.hub.load import new_prior
from hebm_sample.latents import flatten
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.prior.symbols import Condition, symbol_part
from hebm_sample.training.elbo import (
    WARM_UP,
    GeneratorObjective,
    balance,
    elbo,
    group_weights,
    standard_normal,
)
from hebm_sample.training.energy import MleObjective, ScoreObjective, stratified
from hebm_sample.training.optim import (
    NanGuard,
    Part,
    Threads,
    averaged,
    group_rate,
    learning_rate,
    make_optimizer,
    power_exponent,
    seed_step,
    train_step,
)

CONFIG = tiny_config()
SHAPES = CONFIG.generator.latent_shapes
IMAGES = tiny_images(CONFIG, 8)


# ---- the generator's objective


def test_balance_is_the_formula_with_mean_one_and_no_gradient():
    kl = torch.tensor([[1.0, 0.0, 4.0], [3.0, 0.0, 2.0]], requires_grad=True)
    c = balance(kl, CONFIG.generator)
    # Positions over groups of each scale: 4 / 1, and 16 / 2 twice.
    raw = torch.tensor([2.01 / 4, 0.01 / 8, 3.01 / 8])
    assert torch.allclose(c, raw / raw.mean()) and float(c.mean()) == pytest.approx(1.0)
    assert not c.requires_grad


@pytest.fixture(scope="module")
def generator_objective():
    generator, encoder, _ = tiny_modules()
    return GeneratorObjective(generator, encoder)


def pieces(objective, seed):
    torch.manual_seed(seed)
    noise = standard_normal(SHAPES, len(IMAGES), torch.device("cpu"))
    found = elbo(objective.generator, objective.encoder, IMAGES, noise)
    return found.distortion, found.kl


@pytest.mark.parametrize("fraction", [WARM_UP, 0.5, 1.0])
def test_after_the_warm_up_the_loss_is_the_bound_in_bits(generator_objective, fraction):
    distortion, kl = pieces(generator_objective, 3)
    torch.manual_seed(3)
    loss, stats = generator_objective(IMAGES, fraction)
    bits = bits_per_dimension((distortion + kl.sum(1)).mean(), (3, 16, 16))
    assert loss.item() == pytest.approx(bits.item(), rel=1e-6)
    assert stats["bits"].item() == pytest.approx(bits.item(), rel=1e-6)
    assert torch.allclose(stats["kl"], kl.mean(0), rtol=1e-5)
    assert stats["distortion_bits"] < stats["bits"] and not stats["bits"].requires_grad


def test_during_the_warm_up_kl_is_balanced_and_charged_in_part(generator_objective):
    distortion, kl = pieces(generator_objective, 4)
    torch.manual_seed(4)
    loss, stats = generator_objective(IMAGES, WARM_UP / 4)
    charged = 0.25 * (balance(kl, CONFIG.generator) * kl).sum(1)
    expected = bits_per_dimension((distortion + charged).mean(), (3, 16, 16))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() < stats["bits"].item()
    torch.manual_seed(4)
    free, stats = generator_objective(IMAGES, 0.0)
    assert free.item() == pytest.approx(stats["distortion_bits"].item(), rel=1e-6)


@pytest.mark.parametrize("fraction", [0.0, WARM_UP / 4, WARM_UP, 0.9])
def test_the_part_of_the_run_may_be_a_tensor(generator_objective, fraction):
    kl = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    for warm_up in (WARM_UP, 0.0):
        objective = GeneratorObjective(*generator_objective.children(), warm_up=warm_up)
        same = objective.weights(kl, torch.tensor(fraction))
        assert torch.allclose(same, objective.weights(kl, fraction), rtol=1e-6)


def test_kl_weight_charges_more_and_leaves_the_statistics_alone():
    generator, encoder, _ = tiny_modules()
    found = []
    for weight in (1.0, 3.0):
        for fraction in (WARM_UP / 2, 1.0):
            torch.manual_seed(5)
            found.append(GeneratorObjective(generator, encoder, weight)(IMAGES, fraction))
    once, whole, thrice_once, thrice = (loss.item() for loss, _ in found)
    distortion = found[0][1]["distortion_bits"].item()
    assert thrice - distortion == pytest.approx(3 * (whole - distortion), rel=1e-3)
    assert thrice_once - distortion == pytest.approx(3 * (once - distortion), rel=1e-3)
    assert len({stats["bits"].item() for _, stats in found}) == 1


@pytest.mark.parametrize("fraction", [WARM_UP / 2, 1.0])
def test_every_group_is_charged_its_own_weight(fraction):
    generator, encoder, _ = tiny_modules()
    weights = (2.0, 3.0, 5.0)

    def loss(kl_weight):
        torch.manual_seed(5)
        return GeneratorObjective(generator, encoder, kl_weight)(IMAGES, fraction)[0].item()

    free = loss(0.0)
    alone = [loss(tuple(float(i == k) for i in range(3))) - free for k in range(3)]
    assert min(alone) > 0
    charged = sum(w * x for w, x in zip(weights, alone, strict=True))
    assert loss(weights) - free == pytest.approx(charged, rel=1e-3)
    # One a scale is the same for all groups of a scale.
    assert loss((2.0, 3.0)) == pytest.approx(loss((2.0, 3.0, 3.0)), rel=1e-6)


@pytest.mark.parametrize("weights", [-3.0, math.nan, (1.0, -1.0), (1.0, math.inf, 1.0)])
def test_kl_weights_that_charge_nothing_sensible_are_refused(weights):
    with pytest.raises(UserInputError, match="kl_weight is .* must lie in"):
        group_weights(CONFIG.generator, weights)


@pytest.mark.parametrize("weights", [(), (1.0,), (1.0,) * 4])
def test_kl_weights_of_another_number_are_refused(weights):
    with pytest.raises(UserInputError, match="2 scales and 3 groups: give one number, one per"):
        group_weights(CONFIG.generator, weights)


# ---- score matching


def score_objective(prior=None):
    generator, encoder, energies = tiny_modules()
    return ScoreObjective(generator, encoder, prior if prior is not None else energies)


def test_stratified_numbers_fall_in_every_part():
    parts = stratified(64, torch.device("cpu")) * 64
    assert torch.equal(parts.floor(), torch.arange(64.0))


def test_at_zero_energies_the_score_loss_is_the_gaussians(monkeypatch):
    objective, seen = score_objective(new_prior(CONFIG)), {}
    plain = objective.residual

    def record(u_t, noise, cum_sigma, condition):
        assert condition is None
        seen.update(u=flatten(u_t).detach(), noise=flatten(noise), sigma=cum_sigma)
        return plain(u_t, noise, cum_sigma, condition)

    monkeypatch.setattr(objective, "residual", record)
    loss, stats = objective(IMAGES, 0.0)
    expected = (seen["noise"] - seen["sigma"][:, None] * seen["u"]).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert stats["gaussian"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert stats["drop"].abs() < 1e-6 and stats["drop_by_noise"].abs().max() < 1e-6
    low, high = CONFIG.prior.sigma_min, CONFIG.prior.sigma_max
    assert low <= seen["sigma"].min() < 2 * low and high / 2 < seen["sigma"].max() <= high


def test_the_residual_is_the_score_of_the_marginal():
    objective = score_objective()
    stream = torch.Generator().manual_seed(0)
    u = tuple(torch.randn(3, *s, generator=stream) for s in SHAPES)
    noise = tuple(torch.randn(3, *s, generator=stream) for s in SHAPES)
    sigma = torch.tensor([0.1, 0.5, 0.9])
    leaves = tuple(x.clone().requires_grad_() for x in u)
    level = ((1 - sigma**2) / sigma**2).log()
    log_p = objective.terms(leaves, level).sum() - 0.5 * flatten(leaves).square().sum()
    score = flatten(torch.autograd.grad(log_p, leaves))
    found, logits = objective.residual(u, noise, sigma)
    assert logits.shape == (3, 0)
    assert torch.allclose(found, sigma[:, None] * score + flatten(noise), atol=1e-5)
    assert score.std() > 0.1


class Toy(nn.Module):
    """Latents of known law in place of a generator, an encoder or a prior."""

    def __init__(self, config=None):
        super().__init__()
        self.config, self.latent_shapes = config, ((1, 32, 32),)


def toy_loss(variance, believed):
    """The loss of Gaussian data of one variance under the exact energies of another."""
    config = PriorConfig(levels=(0.05, 1.0), sigma_min=0.05, sigma_max=0.95)
    objective = ScoreObjective(Toy(), Toy(), Toy(config))
    objective.posterior_draw = lambda images, _: (
        math.sqrt(variance) * torch.randn(len(images), 1, 32, 32),
    )
    exact = gaussian_energy(believed)
    objective.energies = lambda u, level, condition: (exact(u, level), torch.zeros(len(level), 0))
    torch.manual_seed(0)
    losses = torch.stack([objective(torch.zeros(256, 1), 0.0)[0].detach() for _ in range(4)])
    return losses.mean().item()


@pytest.mark.parametrize("variance", [0.1, 3.0])
def test_exact_energies_reach_the_least_loss(variance):
    log_sigma = torch.linspace(math.log(0.05), math.log(0.95), 20_001, dtype=torch.float64)
    a = 1 - (2 * log_sigma).exp()
    least = torch.trapezoid(a * variance / (a * variance + 1 - a), dx=1 / 20_000).item()
    # A million squares of Gaussians, each of a variance below 1.
    error = math.sqrt(2 / (4 * 256 * 1024))
    assert abs(toy_loss(variance, variance) - least) < 4 * error
    for wrong in (0.5 * variance, 2 * variance):
        assert toy_loss(variance, wrong) > least + 4 * error


def test_score_matching_moves_the_energies_and_nothing_else():
    objective = score_objective()
    objective(IMAGES, 0.0)[0].backward()
    for net in objective.energy.nets:
        assert net.out.weight.grad.abs().max() > 0
    frozen = [*objective.generator.parameters(), *objective.encoder.parameters()]
    assert all(p.grad is None and not p.requires_grad for p in frozen)


def test_the_score_loss_can_be_measured_without_gradients():
    objective = score_objective()
    seed_step(0, 0, 0)
    learning = objective(IMAGES, 0.0)[0]
    seed_step(0, 0, 0)
    with torch.no_grad():
        measured = objective(IMAGES, 0.0)[0]
    assert (
        measured.item() == pytest.approx(learning.item(), rel=1e-5) and not measured.requires_grad
    )


# ---- maximum likelihood


def mle(config=CONFIG, **options):
    options = {"chain_steps": 3, **options}
    return MleObjective(*tiny_modules(config), **options)


@pytest.mark.parametrize("config", [CONFIG, release_config()], ids=["log_snr", "release"])
def test_mle_pushes_data_up_and_chains_down(config, monkeypatch):
    objective, calls = mle(config), []
    plain, energies = objective.terms, objective.energies

    def record(u, level, condition=None):
        calls.append((tuple(g.detach() for g in u), level))
        return energies(u, level, condition)

    monkeypatch.setattr(objective, "energies", record)
    seed_step(0, 0, 0)
    loss, stats = objective(IMAGES, 0.0)
    loss.backward()
    assert len(calls) == 3 + 2
    grads = {name: p.grad.clone() for name, p in objective.energy.named_parameters()}
    objective.energy.zero_grad()
    (positive, level), (negative, again) = calls[-2:]
    assert torch.equal(level, again)
    up, down = plain(positive, level).sum(1), plain(negative, level).sum(1)
    dimensions = CONFIG.generator.latent_dimensions
    assert loss.item() == pytest.approx((down - up).mean().item() / dimensions, rel=1e-4)
    ((down.mean() - up.mean()) / dimensions).backward()
    for name, p in objective.energy.named_parameters():
        scale = p.grad.abs().max().clamp(min=1e-8)
        assert torch.allclose(grads[name] / scale, p.grad / scale, atol=1e-3), name
    assert stats["displacement"] > 0 and stats["energy_positive"].shape == (len(SHAPES),)
    assert torch.allclose(stats["energy_positive"].sum(), -up.mean(), rtol=1e-4)


def test_a_gradient_step_of_mle_lowers_the_loss_on_its_own_pairs():
    """The sign: what the data have becomes likelier than what the chains have."""
    objective, pairs = mle(), []
    plain = objective.terms
    energies = objective.energies
    objective.energies = lambda u, level, *rest: pairs.append((u, level)) or energies(u, level)
    objective(IMAGES, 0.0)[0].backward()
    (positive, level), (negative, _) = pairs[-2:]
    objective.energies = energies

    def advantage():
        with torch.no_grad():
            return (plain(positive, level).sum(1) - plain(negative, level).sum(1)).mean().item()

    before = advantage()
    with torch.no_grad():
        for p in objective.energy.parameters():
            p -= 1e-3 * p.grad
    assert advantage() > before


def test_chains_of_mle_give_the_parameters_no_gradient(monkeypatch):
    objective = mle()
    monkeypatch.setattr(objective, "energies", lambda *_: pytest.fail("after the chain"))
    terms = objective.terms
    plain = MleObjective.energies
    monkeypatch.setattr(objective, "terms", lambda u, level: plain(objective, u, level)[0])
    assert terms is not objective.terms
    level = torch.zeros(len(IMAGES), dtype=torch.long)
    u = tuple(torch.zeros(len(IMAGES), *shape) for shape in SHAPES)
    moved, _ = objective.negative(u, level)
    assert not any(g.requires_grad for g in moved)
    assert all(p.grad is None and p.requires_grad for p in objective.energy.parameters())


def test_mle_chains_of_the_release_use_its_step_sizes():
    from hebm_sample.prior.schedule import release_step_sizes

    objective = mle(release_config(), step_scale=2.0)
    step, _ = objective.step_sizes()
    s = release_step_sizes(objective.schedule, objective.energy.config.step_size_0)
    assert torch.allclose(step, 2 * torch.tensor(s))
    own, reference = mle(step_scale=2.0).step_sizes()
    assert torch.allclose(own, 2 * reference) and (own > step).all()


# ---- a step of the optimiser


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, batch, fraction, *_):
        return (batch @ self.weight).square().mean(), {"fraction": fraction}


GOOD = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
BAD = torch.tensor([[1.0, math.nan], [0.5, -1.0]])
SETTINGS = TrainSettings(steps=100, learning_rate=0.1, warmup_steps=10, weight_decay=0.0)


def one_step(model, optimizer, batch, clip=1.0):
    parameters = list(model.parameters())
    return train_step(model, [Part(batch)], 0.5, optimizer, parameters, clip)


def test_a_nan_batch_leaves_weights_and_optimiser_as_they_were():
    model = Line()
    optimizer = make_optimizer(model, SETTINGS)
    finite, stats = one_step(model, optimizer, GOOD)
    assert finite and stats["fraction"] == 0.5 and not stats["loss"].requires_grad
    weight, state = model.weight.detach().clone(), copy.deepcopy(optimizer.state_dict())
    for batch in (BAD, GOOD * math.inf):
        finite, stats = one_step(model, optimizer, batch)
        assert finite is False and not math.isfinite(stats["loss"])
        assert torch.equal(model.weight.detach(), weight)
        for key, value in optimizer.state_dict()["state"][0].items():
            assert torch.equal(value, state["state"][0][key]), key
    assert one_step(model, optimizer, GOOD)[0]
    assert torch.isfinite(model.weight).all() and not torch.equal(model.weight.detach(), weight)


@pytest.mark.parametrize(
    "own, mean, decision",
    [(math.inf, 1.0, True), (0.0, math.nan, False), (0.0, 1.0, True), (math.nan, math.inf, False)],
)
def test_processes_decide_alike(own, mean, decision):
    """By the gradient that they share: a loss is one process's, and some would update alone."""

    class Local(Line):
        def forward(self, batch, fraction, *_):
            loss, stats = super().forward(batch, fraction)
            return loss + own, stats

    model = Local()
    before, optimizer = model.weight.detach().clone(), make_optimizer(model, SETTINGS)
    parameters = list(model.parameters())
    finite, _ = train_step(
        model,
        [Part(GOOD)],
        0.5,
        optimizer,
        parameters,
        1.0,
        reduce=lambda row: torch.full_like(row, mean),
    )
    assert finite is decision
    assert torch.equal(model.weight.detach(), before) is not decision


@pytest.mark.parametrize("threads", [None, 2])
def test_parts_of_a_batch_are_averaged(threads):
    """Equal parts with a mean each have the whole's mean, its gradient and its statistics."""
    batch = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    whole, cut = Line(), Line()
    found = []
    for model, parts in ((whole, [batch]), (cut, list(batch.chunk(3)))):
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        with Threads(threads or 1) as pool:
            _, stats = train_step(
                model, [Part(x) for x in parts], 0.5, sgd, [model.weight], 1.0, threads=pool
            )
        found.append([model.weight.detach(), stats["loss"], stats["gradient_norm"]])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, rtol=1e-5)
    assert not torch.equal(found[0][0], Line().weight)


def test_threads_keep_the_order_and_pass_errors_on():
    with Threads(3) as pool:
        assert pool.call(lambda x: x * x, range(20)) == [x * x for x in range(20)]
        with pytest.raises(ZeroDivisionError):
            pool.call(lambda x: 1 / x, [1, 0])


def test_the_gradient_is_clipped_and_its_norm_is_reported_unclipped():
    model = Line()
    sgd = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    _, stats = one_step(model, sgd, 100 * GOOD, clip=0.25)
    assert stats["gradient_norm"] > 100
    assert (model.weight.detach() - before).norm().item() == pytest.approx(0.25, rel=1e-4)


def test_only_what_trains_is_optimised():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    (group,) = make_optimizer(model, SETTINGS).param_groups
    assert len(group["params"]) == 2 and group["betas"] == SETTINGS.betas


def test_updates_are_those_of_plain_adamw_and_made_in_one_pass():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    model.to(memory_format=torch.channels_last)  # pyright: ignore
    twin = copy.deepcopy(model)

    def objective(images, *_):
        return model(images).square().mean(), {}

    optimizer = make_optimizer(model, SETTINGS)
    (group,) = optimizer.param_groups
    assert group["fused"] is True
    plain = torch.optim.AdamW(
        twin.parameters(),
        lr=group["lr"],
        betas=group["betas"],
        weight_decay=group["weight_decay"],
        foreach=False,
    )
    for step in range(5):
        stream = torch.Generator().manual_seed(step)
        parts = [Part(torch.randn(2, 3, 4, 4, generator=stream)) for _ in range(3)]
        train_step(objective, parts, 0.5, optimizer, list(model.parameters()), 1e9)
        plain.zero_grad()
        torch.stack([twin(part.images).square().mean() for part in parts]).mean().backward()
        plain.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def feed(guard, *steps):
    for step, finite in enumerate(steps):
        guard.record(finite, step)


def test_the_guard_stops_after_so_many_in_a_row():
    guard = NanGuard(3)
    feed(guard, False, False, True, False, False, True)
    assert (guard.total, guard.in_a_row) == (4, 0)
    with pytest.raises(
        TrainingDivergedError, match=r"3 steps in a row had non-finite .*\(step 2\)"
    ):
        feed(guard, False, False, False)
    with pytest.raises(TrainingDivergedError, match="lower --learning-rate and --init RUN"):
        feed(NanGuard(3, total=9, in_a_row=2), False)


def test_the_average_is_the_ramped_formula():
    model = Line()
    ema, expected = averaged(model, 0.6), None
    for n in range(20):
        with torch.no_grad():
            model.weight += torch.tensor([0.3, -0.1]) * n
            model.seen += 1
        now = torch.cat([model.weight.detach(), model.seen]).clone()
        decay = min(0.6, (1 + n) / (10 + n))
        expected = now if expected is None else decay * expected + (1 - decay) * now
        ema.update_parameters(model)
    found = torch.cat([ema.module.weight, ema.module.seen])
    assert torch.allclose(found, expected, rtol=1e-5)
    assert not found.requires_grad and model.weight.requires_grad


@pytest.mark.parametrize("length", [0.05, 0.15, 0.25])
def test_the_power_function_average_forgets_a_fixed_share_of_the_run(length):
    """Its weights over the steps t are t^gamma, of relative standard deviation `length`."""
    gamma, steps = power_exponent(length), 3000

    class Clock(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("impulse", torch.zeros(steps, dtype=torch.float64))

    model = Clock()
    ema = averaged(model, 0.5, length)
    for t in range(steps):
        model.impulse.zero_()[t] = 1
        ema.update_parameters(model)
    profile = ema.module.impulse
    assert float(profile.sum()) == pytest.approx(1.0)
    times = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    mean = float((profile * times).sum())
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=2e-3)
    spread = float((profile * (times - mean) ** 2).sum()) ** 0.5
    assert spread == pytest.approx(length, rel=5e-3)


def test_the_learning_rates_ends():
    rates = [learning_rate(SETTINGS, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.01) and rates[9] == rates[10] == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.001)
    assert rates[55] == pytest.approx(0.1 * (0.01 + 0.99 / 2))
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert learning_rate(SETTINGS, 10_000, 100) == rates[-1]


def test_a_steady_group_warms_up_and_stays():
    for step in (0, 4, 9, 10, 55, 100):
        rate = learning_rate(SETTINGS, step, 100)
        assert group_rate(SETTINGS, {}, step, 100) == rate
        assert group_rate(SETTINGS, {"factor": 3.0}, step, 100) == pytest.approx(3 * rate)
        steady = group_rate(SETTINGS, {"factor": 3.0, "steady": True}, step, 100)
        assert steady == pytest.approx(3 * (rate if step < 10 else 0.1))


def test_a_run_shorter_than_its_warm_up():
    rates = [learning_rate(SETTINGS, step, 5) for step in range(5)]
    assert rates == sorted(rates) and rates[-1] <= 0.1


# ---- randomness


def test_a_steps_draws_depend_on_seed_step_and_rank_alone():
    def draw(*key):
        seed_step(*key)
        return torch.randn(4)

    assert torch.equal(draw(1, 2, 0), draw(1, 2, 0))
    torch.manual_seed(99)
    torch.randn(7)
    first = draw(1, 2, 0)
    keys = [(1, 2, 0), (2, 1, 0), (1, 3, 0), (1, 2, 1), (0, 2, 1), (2, 2, 0)]
    draws = [draw(*key) for key in keys]
    assert torch.equal(draws[0], first)
    assert len({tuple(x.tolist()) for x in draws}) == len(keys)


@pytest.mark.parametrize("make", [score_objective, mle])
def test_an_objective_draws_from_the_seeded_stream_alone(make):
    objective, results = make(), []
    for salt in (0, 1):
        random.seed(salt), np.random.seed(salt)
        seed_step(5, 7, 0)
        loss, _ = objective(IMAGES, 0.0)
        objective.energy.zero_grad()
        loss.backward()
        results.append((loss.item(), objective.energy.nets[0].out.weight.grad.clone()))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    seed_step(5, 8, 0)
    assert objective(IMAGES, 0.0)[0].item() != results[0][0]


# ---- symbols


SYMBOLIC = symbolic_config()
LABELS = torch.tensor([[0, 1], [2, -1], [-1, 0], [-1, -1], [1, 1], [0, 0], [2, 1], [1, -1]])
MIXTURE = Mixture((-1.0, 0.5), (0.3, 0.7), 0.1)
COUNT = 20_000


def symbolic_objective(kind=ScoreObjective, **options):
    return kind(*tiny_modules(SYMBOLIC), **options)


def mixture_loss(reveal, energies=None):
    """The score loss of labelled numbers, one an example, under their exact energies."""
    config = PriorConfig(levels=(0.05, 1.0), sigma_min=0.05, sigma_max=0.95)
    toy = Toy(config)
    toy.latent_shapes, toy.table = ((1, 1, 1),), MIXTURE.table
    objective = ScoreObjective(toy, Toy(), toy, symbol_weight=0.0)
    torch.manual_seed(0)
    y = (torch.rand(COUNT) < 0.7).long()
    u_0 = MIXTURE.means[y] + math.sqrt(MIXTURE.variance) * torch.randn(COUNT).double()

    def exact(u, level, condition):
        logits = MIXTURE.logits(flatten(u), level)
        return symbol_part(MIXTURE.table, logits, condition)[:, None], logits

    objective.posterior_draw = lambda images, _: (u_0.float().reshape(-1, 1, 1, 1),)
    objective.energies = energies or exact
    objective.reveal = lambda labels, _: reveal(labels, y)
    loss, stats = objective(torch.zeros(COUNT, 1), 0.0, y[:, None])
    return loss.item(), stats


def revealed(labels, y):
    return Condition(F.one_hot(y, 2).bool(), torch.ones(COUNT, 1))


def hidden(labels, y):
    return Condition(torch.ones(COUNT, 2, dtype=torch.bool), torch.zeros(COUNT, 1))


def least_loss(means, weights):
    """1 - sigma^2 E(score^2), log sigma uniform, by quadrature."""
    sigma = torch.linspace(math.log(0.05), math.log(0.95), 201, dtype=torch.float64).exp()
    u = torch.linspace(-6, 6, 4001, dtype=torch.float64)[:, None, None]
    a = (1 - sigma**2).sqrt()[:, None]
    total = a**2 * MIXTURE.variance + 1 - a**2
    log_p = weights.log() - 0.5 * (u - a * means).square() / total - 0.5 * total.log()
    log_p = log_p - 0.5 * math.log(2 * math.pi)
    pull = -(u - a * means) / total
    score = (log_p.softmax(2) * pull).sum(2)
    density = log_p.logsumexp(2).exp()
    fisher = torch.trapezoid(density * score.square(), dx=12 / 4000, dim=0)
    return torch.trapezoid(1 - sigma**2 * fisher, dx=1 / 200).item()


def test_exact_conditional_energies_reach_the_least_loss():
    """Of the whole density with the label open, of its component with the label set."""
    error = math.sqrt(2 / COUNT)
    openly, stats = mixture_loss(hidden)
    weights = MIXTURE.log_weights.exp()
    expected = least_loss(MIXTURE.means, weights)
    assert abs(openly - expected) < 4 * error
    shown, _ = mixture_loss(revealed)
    component = least_loss(MIXTURE.means[:1], torch.ones(1, dtype=torch.float64))
    assert abs(shown - component) < 4 * error
    assert component < expected - 4 * error  # else a label would have nothing to tell
    wrong, _ = mixture_loss(lambda labels, y: revealed(labels, 1 - y))
    assert wrong > openly + 4 * error
    assert stats["accuracy"].item() > 0.75


def test_reveal_sets_known_labels_alone():
    objective = symbolic_objective(condition_share=1.0)
    labels, set_before = LABELS.repeat(50, 1), torch.zeros(400, 2, dtype=torch.bool)
    seed_step(0, 0, 0)
    for _ in range(20):
        condition = objective.reveal(labels)
        shown = condition.weight == 1
        assert ((condition.weight == 0) | shown).all() and not shown[labels < 0].any()
        set_before |= shown
        for allowed, y, seen in zip(
            objective.energy.table.split(condition.allowed), labels.T, shown.T, strict=True
        ):
            assert allowed[~seen].all()
            assert torch.equal(allowed[seen], F.one_hot(y[seen], allowed.shape[1]).bool())
    assert torch.equal(set_before, labels >= 0)
    assert 0.3 < shown[(labels >= 0).all(1)].float().mean() < 0.7


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_share_of_examples_with_labels_set(share):
    objective = symbolic_objective(condition_share=share)
    seed_step(1, 0, 0)
    labels = torch.zeros(20_000, 2, dtype=torch.long)
    found = objective.reveal(labels)
    # Of the chosen examples a share s ~ U(0, 1) of both labels: none with E(1 - s)^2 = 1/3.
    assert found.weight.any(1).float().mean().item() == pytest.approx(share * 2 / 3, abs=0.015)
    assert share > 0 or found.allowed.all()


def undisturbed(objective):
    """The objective, whose choice of labels takes no draw away from what follows."""
    if (own := getattr(objective, "reveal", None)) is not None:

        def reveal(labels, *_):
            return own(labels, torch.Generator().manual_seed(9))

        objective.reveal = reveal
    return objective


def test_share_zero_and_no_labels_see_the_same_density():
    objective = undisturbed(symbolic_objective(condition_share=0.0, symbol_weight=0.0))
    results = []
    for labels in (None, LABELS):
        seed_step(0, 0, 0)
        results.append(objective(*(IMAGES, 0.0) + ((labels,) if labels is not None else ())))
    assert results[0][0].item() == results[1][0].item()
    assert set(results[1][1]) - set(results[0][1]) == {"cross_entropy", "accuracy"}
    assert results[1][1]["accuracy"].shape == (2,)


@pytest.mark.parametrize("kind", [ScoreObjective, MleObjective])
def test_cross_entropy_is_added_with_its_weight(kind):
    found = []
    for weight in (0.0, 0.5, 1.0):
        objective = symbolic_objective(kind, symbol_weight=weight)
        seed_step(0, 0, 0)
        loss, stats = objective(IMAGES, 0.0, LABELS)
        found.append(loss.item())
        entropy = stats["cross_entropy"].item()
    assert found[1] - found[0] == pytest.approx(0.5 * entropy, rel=1e-3)
    assert found[2] - found[0] == pytest.approx(entropy, rel=1e-3)
    assert entropy > 0.3


@pytest.mark.parametrize("kind", [ScoreObjective, MleObjective])
def test_unknown_labels_change_nothing_but_the_draws(kind):
    """All unknown: no cross-entropy, and every symbol open, as without labels."""
    results, gradients = [], []
    for labels in ((), (torch.full_like(LABELS, -1),), (LABELS,)):
        objective = undisturbed(symbolic_objective(kind, symbol_weight=1.0))
        seed_step(0, 0, 0)
        loss, stats = objective(IMAGES, 0.0, *labels)
        loss.backward()
        if labels and labels[0] is not LABELS:
            assert stats["cross_entropy"] == 0 and torch.equal(stats["accuracy"], torch.zeros(2))
        results.append(loss.item())
        parameters = [p for p in objective.parameters() if p.grad is not None]
        gradients.append(sum(float(p.grad.square().sum()) for p in parameters))
    assert results[0] == results[1] and gradients[0] == pytest.approx(gradients[1], rel=1e-6)
    assert results[2] != results[0] and math.isfinite(results[0])


def test_mle_leaves_all_symbols_open():
    """Both phases: else p(y | u) would be counted twice."""
    objective, seen = symbolic_objective(MleObjective, chain_steps=2), []
    energies = objective.energies

    def record(u, level, condition=None):
        seen.append(condition)
        return energies(u, level, condition)

    objective.energies = record
    objective(IMAGES, 0.0, LABELS)[0].backward()
    assert seen == [None] * 4
    for net in objective.energy.nets:
        assert net.symbol_out.weight.grad.abs().max() > 0


def test_labels_are_learned_in_a_few_steps():
    """Latents whose mean tells the label."""
    objective = symbolic_objective(symbol_weight=1.0)
    optimizer = torch.optim.Adam(objective.energy.parameters(), lr=5e-3)
    accuracy = []
    for step in range(18):
        seed_step(0, step, 0)
        labels = torch.stack([torch.randint(3, (16,)), torch.randint(2, (16,))], dim=1)
        u_0 = standard_normal(SHAPES, 16, torch.device("cpu"))
        signs = (labels * torch.tensor([1.0, 2.0]) - 1).T[:, :, None, None, None]
        u_0 = (u_0[0] + 2 * signs[0], u_0[1] + 2 * signs[1], u_0[2])
        objective.posterior_draw = lambda images, stream=None, u_0=u_0: u_0
        loss, stats = objective(IMAGES.repeat(2, 1, 1, 1), 0.0, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        accuracy.append(stats["accuracy"])
    first, last = torch.stack(accuracy[:4]).mean(0), torch.stack(accuracy[-6:]).mean(0)
    assert first[0] < 0.75 and (last > 0.8).all()
