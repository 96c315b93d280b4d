"""Numbers that are not finite, or beyond all reason, end in an error and never in an image.

A chain that runs away ends at numbers that are still finite; clamped to bytes they are a flat
black or white image, which nobody can tell from a bad model.
"""

import os

import pytest
import torch
from click.testing import CliRunner
from tiny import symbolic_pipeline, tiny_config, tiny_latents, tiny_pipeline
from torch import nn

from hebm_sample.cli.sample import main
from hebm_sample.errors import NonFiniteSampleError, UserInputError
from hebm_sample.sampling.state import MOST
from hebm_sample.training.optim import Part, train_step

CONFIG = tiny_config()


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def loud(factor):
    """A model whose energies' weights are this much too large."""
    pipe = tiny_pipeline()
    assert pipe.prior is not None
    with torch.no_grad():
        for net in pipe.prior.nets:
            net.out.weight.mul_(factor)
    return pipe


# ---- chains


@pytest.mark.parametrize("sampler", ["recovery", "annealed"])
def test_steps_that_are_too_large_are_no_image(pipe, sampler):
    with pytest.raises(
        NonFiniteSampleError, match=r"became too large to be one \(\|u\| > 10000\)"
    ):
        pipe(seeds=(3, 4), sampler=sampler, kernel="plain", step_scale=30.0)


def test_too_much_guidance_is_no_image():
    conditions = {"class": "a", "Smiling": "yes"}
    with pytest.raises(NonFiniteSampleError, match="seed 0, 1 became .*; use .* less guidance"):
        symbolic_pipeline()(2, symbols=conditions, guidance=100.0)


@pytest.mark.parametrize("factor", [1e3, 1e8, 1e30])
def test_energies_that_explode_are_no_image(factor):
    with pytest.raises(NonFiniteSampleError) as caught:
        loud(factor)(seeds=(5,))
    assert caught.value.seeds == [5] and caught.value.exit_code == 1
    assert str(caught.value).isprintable()


def test_only_the_seeds_that_ran_away_are_named(pipe, monkeypatch):
    chain = pipe.sampler.chain_energy()

    class Pushed:
        """The second row's energy falls off without end."""

        def at(self, level, condition=None):
            terms = chain.at(level, condition)

            def pushed(u):
                far = 1e6 * u[0].flatten(1).sum(1) * (torch.arange(len(u[0])) == 1)
                return terms(u) + far[:, None]

            return pushed

    monkeypatch.setattr(pipe.sampler, "chain_energy", Pushed)
    with pytest.raises(NonFiniteSampleError) as caught:
        pipe(seeds=(7, 8, 9))
    assert caught.value.seeds == [8] and "too large" in str(caught.value)


def test_the_most_noise_there_is_is_far_from_the_limit(pipe):
    out = pipe(seeds=range(4), temperature=10.0, prior="gaussian")
    assert max(float(u.abs().max()) for u in out.latents) < MOST / 100


@pytest.mark.parametrize("sampler", ["recovery", "annealed"])
@pytest.mark.parametrize("moving", [{}, {"momentum": 0.8}, {"kernel": "plain", "momentum": 0.3}])
def test_without_steps_the_noise_stays_where_it_is(pipe, sampler, moving):
    """Step size 0 is the identity, to the bit; and so is a temperature of 0 on top of it."""
    still = {"step_scale": 0.0, "start": "u_next", "denoise": False, "sampler": sampler} | moving
    found = pipe(seeds=(1, 2), **still).latents
    start = pipe(seeds=(1, 2), prior="gaussian").latents
    assert all(torch.equal(a, b) for a, b in zip(found, start, strict=True))
    nothing = pipe(seeds=(1, 2), temperature=0.0, **still).latents
    assert all(not bool(u.any()) for u in nothing)


# ---- latents


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("output_type", ["pil", "numpy", "torch"])
def test_latents_that_are_not_finite_have_no_image(pipe, value, output_type):
    good = tiny_latents(CONFIG)
    bad = (good[0].clone(), *good[1:])
    bad[0][1, 0, 0, 0] = value
    calls = [
        lambda: pipe.decode(bad, output_type=output_type),
        lambda: pipe.mix(bad, good, 1, output_type=output_type),
        lambda: pipe.interpolate(bad, good, 3, output_type=output_type),
    ]
    for call in calls:
        with pytest.raises(UserInputError, match="latents are not finite; the latents are not,"):
            call()
    with pytest.raises(NonFiniteSampleError, match="non-finite"):
        pipe.vary(bad, slice(0, 1), 1, output_type=output_type)


@pytest.mark.parametrize("part", ["generator", "encoder"])
def test_networks_that_put_out_nan_give_no_image(part):
    pipe = tiny_pipeline()
    weights = pipe.encoder.heads[0].out.weight if part == "encoder" else pipe.generator.constant
    with torch.no_grad():
        weights.fill_(torch.nan)
    with pytest.raises(UserInputError, match="not finite"):
        pipe.reconstruct(torch.zeros(1, 3, 16, 16), output_type="torch")
    if part == "generator":
        with pytest.raises(NonFiniteSampleError, match="seed 0 became non-finite"):
            pipe(prior="gaussian", output_type="torch")


def test_great_circles_without_a_direction_are_finite(pipe):
    u = tiny_latents(CONFIG, 1)
    zero, opposite = tuple(0 * g for g in u), tuple(-g for g in u)
    for a, b in ((u, u), (zero, u), (zero, zero), (u, opposite)):
        images = pipe.interpolate(a, b, 3, output_type="torch").images
        assert bool(torch.isfinite(images).all())


# ---- the command


def test_the_command_writes_nothing(tmp_path, monkeypatch):
    """Weights that a file can hold, in half precision, and whose chains run away."""
    monkeypatch.chdir(tmp_path)
    loud(1e4).save_pretrained("model")
    common = ["--dataset", "./model", "-n", "2", "--device", "cpu"]
    for more in (["--out", "a.png"], ["--outdir", "out"], ["--trajectory"], ["--layers"]):
        result = CliRunner().invoke(main, [*common, *more])
        assert result.exit_code == 1 and result.stdout == ""
        assert result.stderr.startswith("Error: the sample of seed ")
        assert result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["model"]


# ---- training


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_a_step_that_is_not_finite_leaves_no_trace(value):
    """1e38 overflows, because it is a factor twice."""
    layer = nn.Linear(4, 1)
    optimizer = torch.optim.AdamW(layer.parameters())
    before = {key: x.clone() for key, x in layer.state_dict().items()}

    def objective(images, *_):
        return (layer(images) * value * value).sum(), {}

    finite, stats = train_step(
        objective,
        [Part(torch.ones(2, 4))],
        0.0,
        optimizer,
        list(layer.parameters()),
        1.0,
    )
    assert not finite and not torch.isfinite(stats["loss"])
    assert not optimizer.state
    assert all(torch.equal(x, before[key]) for key, x in layer.state_dict().items())
