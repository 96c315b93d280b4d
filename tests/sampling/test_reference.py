"""The package's chain against a plain loop, `benchmarks/langevin.py`: same steps, same images.

What makes a step fast must not change what it computes.
"""

import pytest
import torch
from scripts import script
from tiny import symbolic_pipeline, tiny_pipeline

from hebm_sample.prior.density import conditional_at
from hebm_sample.sampling.langevin import langevin_step
from hebm_sample.sampling.noise import NoiseStreams


@pytest.fixture(scope="module")
def benchmark():
    with script("benchmarks/langevin.py") as module:
        yield module


@pytest.mark.parametrize("make", [tiny_pipeline, symbolic_pipeline])
def test_one_step(benchmark, make):
    pipe = make()
    reference = benchmark.Reference(pipe)
    noise = NoiseStreams(range(3), pipe.generator.latent_shapes)
    u, u_next, eps = (noise.normal() for _ in range(3))
    for t in range(pipe.model.schedule.num_levels):
        s, c = reference.variances(t)
        density = conditional_at(pipe.sampler.chain_energy(), pipe.model.schedule, t, u_next)
        found, _ = langevin_step(u, density, s, eps, reference_variance=c)
        with torch.no_grad():
            expected = reference.step(u, u_next, t, eps)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("settings", [{}, {"start": "ancestral", "momentum": 0.8}])
def test_equal_seeds_give_equal_images(benchmark, batch, settings):
    pipe, seeds = symbolic_pipeline(**settings), list(range(batch))
    with torch.no_grad():
        u = benchmark.Reference(pipe).sample(seeds)
    expected = pipe.decode(u, output_type="torch")
    found = pipe(seeds=seeds, batch_size=batch, output_type="torch").images
    assert (found - expected).abs().max() <= 2.01 / 255


def test_the_table(benchmark, monkeypatch):
    monkeypatch.setattr(benchmark, "CONVOLUTIONS", ((8, 4),))
    monkeypatch.setattr(benchmark, "MATMUL_SIDES", (16,))
    pipe = tiny_pipeline()
    clock = benchmark.Clock("wall", pipe.device)
    with torch.no_grad():
        result = benchmark.measure(pipe, [2], 1, clock, compiled=False, half=True)
        (plain,) = benchmark.reference_seconds(pipe, [2], 1, clock)
    (row,) = result["rows"]
    assert set(row["seconds"]) == {"reference", "ours", "bfloat16"} and len(row["parts"]) == 6
    row["seconds"]["plain"] = plain
    assert 0 < row["gflop"] < row["reference_gflop"]  # the last block is left out
    facts = ("model", "device", "where", "torch", "version", "clock")
    result["machine"] = dict.fromkeys(facts, "x")
    assert benchmark.table(result).count("\n") == 15
