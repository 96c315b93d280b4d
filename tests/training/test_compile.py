"""Compiled steps: the gradients of those that are not, and one line where nothing compiles."""

import shutil
from dataclasses import replace

import pytest
import torch
from tiny import symbolic_config
from torch import nn
from toy import short_preset

from hebm_sample.errors import EnvironmentFailure
from hebm_sample.generator.blocks import Cell, Upsample, enlarged
from hebm_sample.pipeline.runtime import compiled as module
from hebm_sample.pipeline.runtime.compiled import compiled
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.devices import compile_parts, computing
from hebm_sample.training.optim import Part, Rows, Threads
from hebm_sample.training.recipe import stages
from tests.training.test_division import BATCH, CPU, gradients, objective, stream, whole

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("kind", ["generator", "score"])
def test_a_compiled_step_learns_the_same(kind):
    config = symbolic_config() if kind == "score" else None
    labels = torch.stack([torch.arange(BATCH) % 3, torch.arange(BATCH) % 2], dim=1)
    labels = labels if kind == "score" else None
    settings, built = TrainSettings(steps=1, compile=True), objective(kind, config)
    with torch.no_grad():  # heads begin at zero, where little can be wrong
        for i, p in enumerate(q for q in built.parameters() if q.requires_grad):
            p.add_(0.05 * torch.randn(p.shape, generator=stream(i)))
    wanted, plain = gradients(built, [whole(config, labels)])
    compile_parts(built)
    context = computing(built, settings, CPU)
    found, stats = gradients(built, [whole(config, labels)], context=context)
    assert max(float(g.abs().max()) for g in wanted) > 1e-3
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert stats.keys() == plain.keys()
    torch.testing.assert_close(stats["loss"], plain["loss"], rtol=1e-5, atol=1e-6)
    # Two threads at once, in bfloat16.
    images, half = whole(config).images, BATCH // 2
    parts = [
        Part(images[k : k + half], None if labels is None else labels[k : k + half], rows)
        for k in (0, half)
        for rows in [Rows(stream(), k, BATCH)]
    ]
    lower = computing(built, replace(settings, dtype="bfloat16"), CPU)
    with Threads(2) as threads:
        found, _ = gradients(built, parts, context=lower, threads=threads)
    # Weight by weight: the likelihood's are so large that the others could be lost beside them.
    least = 1e-3 * max(float(g.norm()) for g in wanted)
    for a, b in zip(found, wanted, strict=True):
        assert float((a - b).norm()) < 0.25 * float(b.norm()) + least


@pytest.mark.slow
@needs_compiler
def test_a_compiled_enlargement_keeps_its_gradient():
    """Widths of `cifar10`: with those of toys the compiler does not go wrong."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(Upsample(144, 80), Cell(80)).to(memory_format=torch.channels_last)
        h = torch.randn(32, 144, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    slopes = []
    for function in (net, compiled(lambda x: net(x), "")):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            y = function(h)
        slopes.append(torch.autograd.grad(y.float().square().mean(), h)[0])
    assert float((slopes[0] - slopes[1]).norm()) < 0.05 * float(slopes[0].norm())


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_enlarging_is_the_same_where_it_is_compiled(mode, monkeypatch):
    x = torch.randn(2, 3, 4, 5, generator=stream(0))
    plain = enlarged(x, 2, mode)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.equal(enlarged(x, 2, mode), plain)


def test_what_cannot_be_compiled_is_said_in_a_line(monkeypatch):
    def refuse(function, **_):
        def call(*args):
            raise torch._dynamo.exc.BackendCompilerFailed(
                lambda: None, RuntimeError("no compiler\nsecond line"), None
            )

        return call

    monkeypatch.setattr(module.torch, "compile", refuse)
    with pytest.raises(EnvironmentFailure, match="train without --compile$") as raised:
        compiled(torch.sin, "train without --compile")(torch.ones(1))
    assert "\n" not in str(raised.value)


def test_other_errors_of_what_is_compiled_stay_what_they_are(monkeypatch):
    monkeypatch.setattr(module.torch, "compile", lambda function, **_: function)

    def fails(x):
        raise RuntimeError("shape")

    with pytest.raises(RuntimeError, match="^shape$"):
        compiled(fails, "")(torch.ones(1))


def test_all_stages_of_a_recipe_have_the_settings_that_were_typed(tmp_path):
    found = stages(short_preset(), tmp_path, 1.0, {"dtype": "bfloat16", "compile": True})
    assert {(s.settings.dtype, s.settings.compile) for s in found} == {("bfloat16", True)}
    assert {s.settings.dtype for s in stages(short_preset(), tmp_path)} == {"float32"}


def test_the_first_call_of_threads_begins_with_one_item():
    seen = []
    with Threads(2) as threads:
        for _ in range(2):
            assert threads.call_first(lambda x: seen.append(x) or x, [1, 2, 3]) == [1, 2, 3]
    assert seen[0] == 1 and sorted(seen) == [1, 1, 2, 2, 3, 3]
