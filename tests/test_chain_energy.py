"""What chains evaluate is F, and evaluating it changes nothing.

A block left out too many, or a level remembered too long, gives images that merely look worse; a
parameter that collects gradients makes chains slow and training wrong.
"""

import pytest
import torch
from tiny import symbolic_pipeline, tiny_latents, tiny_pipeline
from torch._dynamo.utils import counters

from hebm_sample.errors import EnvironmentFailure
from hebm_sample.pipeline.conditions import read_condition
from hebm_sample.pipeline.runtime.frozen_energy import ChainEnergy
from hebm_sample.prior.density import value_and_grad


@pytest.fixture(scope="module")
def pipe():
    return symbolic_pipeline()


def latents(pipe, batch, seed=0):
    return tiny_latents(pipe.config, batch, seed)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("asked", [None, {"class": "a", "Smiling": "no"}])
def test_terms_and_gradients_are_the_models(pipe, batch, asked):
    energy, u = ChainEnergy(pipe.generator, pipe.prior), latents(pipe, batch)
    table = pipe.prior.table
    condition = asked and read_condition(table, asked, 2.0, batch, "tiny")
    for value in (2.0, -1.0, 2.0):
        level = torch.full((batch,), value)
        found = value_and_grad(lambda u, x=level: energy(u, x, condition), u)
        expected = value_and_grad(lambda u, x=level: pipe.energy_terms(u, x, condition), u)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert max(float(g.abs().max()) for g in found[1]) > 1e-3


def test_the_level_is_evaluated_once(pipe, monkeypatch):
    energy, u = ChainEnergy(pipe.generator, pipe.prior), latents(pipe, 2)
    seen, at = [], energy.prior.at
    monkeypatch.setattr(energy.prior, "at", lambda x: seen.append(x) or at(x))
    fixed = energy.at(1.0)
    one, two = fixed(u), fixed(u)
    assert torch.equal(one, two) and len(seen) == 1
    assert torch.equal(one, energy(u, torch.ones(2)))
    assert fixed(latents(pipe, 3)).shape[0] == 3  # another batch size has its own
    assert torch.equal(energy.at(torch.ones(2))(u), one)
    assert not torch.equal(energy.at(0.0)(u), one)
    seen.clear()
    monkeypatch.setattr(pipe.sampler, "chain_energy", lambda: energy)
    pipe(seeds=(0, 1), steps=12)
    # A chain and the step that follows it, at each of three levels; the last also at its end.
    assert len(seen) <= 7


def test_parameters_and_their_flags_are_left_alone():
    pipe = tiny_pipeline()
    networks = (pipe.generator, pipe.prior)
    for network in networks:
        network.requires_grad_(True)
    before = [p.clone() for m in networks for p in m.parameters()]
    pipe(seeds=(0, 1))
    after = [p for m in networks for p in m.parameters()]
    assert all(p.requires_grad and p.grad is None for p in after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    energy = pipe.sampler.chain_energy()
    frozen = [*energy.generator.parameters(), *energy.prior.parameters()]
    assert not any(p.requires_grad for p in frozen)
    assert {p.data_ptr() for p in frozen} <= {p.data_ptr() for p in after}  # not a second copy


def test_later_weights_are_seen():
    pipe = tiny_pipeline()
    first = pipe(seeds=(0,), output_type="torch").images
    with torch.no_grad():
        pipe.prior.nets[0].out.weight.mul_(3)  # written to
    second = pipe(seeds=(0,), output_type="torch").images
    weight = pipe.prior.nets[0].out.weight
    weight.data = weight.data / 3  # moved
    third = pipe(seeds=(0,), output_type="torch").images
    assert (first - second).abs().max() > 2 / 255
    assert (first - third).abs().max() < 1e-4


# ---- torch.compile


def test_only_the_first_batch_size_is_compiled(monkeypatch):
    seen = []

    def compile_(function, **options):
        assert options["dynamic"] is False
        return lambda u, *rest: seen.append(len(u[0])) or function(u, *rest)

    monkeypatch.setattr(torch, "compile", compile_)
    pipe = tiny_pipeline()
    plain = pipe(5, batch_size=2, output_type="torch").images
    assert not seen
    pipe.compile_chains = True
    assert torch.equal(pipe(5, batch_size=2, output_type="torch").images, plain)
    assert set(seen) == {2}


@pytest.mark.parametrize("known", [True, False])
def test_a_machine_that_cannot_compile(monkeypatch, known):
    module = "torch._inductor.exc" if known else "elsewhere"
    failure = type("Failure", (RuntimeError,), {"__module__": module})("no compiler\nmore")

    def fail(*_):
        raise failure

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    pipe = tiny_pipeline()
    pipe.compile_chains = True
    with pytest.raises(EnvironmentFailure if known else RuntimeError, match="no compiler"):
        pipe(1)


@pytest.mark.slow
def test_compiled_images_are_the_same():
    torch.compiler.reset()
    counters.clear()
    pipe = symbolic_pipeline()
    asked = {"symbols": {"class": "a"}, "output_type": "torch"}
    eager = pipe(3, **asked).images
    pipe.compile_chains = True
    assert (pipe(3, **asked).images - eager).abs().max() <= 2.01 / 255
    assert counters["stats"]["unique_graphs"] == 1  # each takes a minute
