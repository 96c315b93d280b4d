"""What is asked, kept or freed is that, and nothing else changes.

Control that leaks looks like control: a kept group that moves a little, a weight of zero that
still guides, a mixture with the groups off by one all give plausible images.
"""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from tiny import (
    SYMBOLS,
    symbolic_config,
    symbolic_pipeline,
    tiny_images,
    tiny_latents,
    tiny_pipeline,
)

from hebm_sample.config import EDIT_STEPS, SamplerName
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import continued_seed, derived_seed
from hebm_sample.latents import flatten
from hebm_sample.pipeline.conditions import read_condition
from hebm_sample.pipeline.model import Model
from hebm_sample.pipeline.pipeline import Pipeline

CONFIG = symbolic_config(steps=6)
GROUPS = len(CONFIG.generator.latent_shapes)
SAMPLERS = get_args(SamplerName)
TWO_LEVELS = 2.01 / 255


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(CONFIG)


@pytest.fixture(scope="module")
def three(pipe):
    return pipe(3, output_type="torch")


@pytest.fixture(scope="module")
def images():
    """(2, 3, 16, 16) in [0, 1], on the 256 levels."""
    return (tiny_images(CONFIG, 2) + 1) / 2


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def distance(a, b):
    return float(sum((x - y).square().sum() for x, y in zip(a, b, strict=True)) ** 0.5)


def full_energy(pipe, u, symbols=None, guidance=1.0):
    """-F with what is asked, (N,)."""
    count = len(u[0])
    condition = read_condition(pipe.prior.table, symbols, guidance, count, "tiny")
    return -pipe.prior.join(pipe.model.lowest_outputs(u, count), condition).sum(1)


# ---- asking for symbols


def test_the_table(pipe):
    assert pipe.symbols == {"class": ("a", "b", "c"), "Smiling": ("no", "yes")}
    assert tiny_pipeline().symbols == {}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_weight_zero_and_empty_conditions_are_a_plain_call(pipe, sampler):
    plain = pipe(2, sampler=sampler)
    for options in (
        {"symbols": {}},
        {"symbols": {"class": "a"}, "guidance": 0.0},
        {"symbols": {"class": "a", "Smiling": "no"}, "guidance": {"class": 0, "Smiling": 0}},
    ):
        found = pipe(2, sampler=sampler, **options)
        assert equal(found.latents, plain.latents)
        assert [x.tobytes() for x in found.images] == [x.tobytes() for x in plain.images]
    asked = pipe(2, sampler=sampler, symbols={"class": "a"})
    assert distance(asked.latents, plain.latents) > 0.1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_asked_becomes_likelier_with_its_weight(pipe, sampler):
    found = []
    for weight in (0.0, 1.0, 4.0, 12.0):
        out = pipe(6, symbols={"class": "b"}, guidance=weight, sampler=sampler)
        found.append(float(pipe.classify(latents=out.latents)["class"][:, 1].mean()))
    assert found == sorted(found) and found[-1] > found[0] + 0.2
    out = pipe(6, symbols={"class": "~b"}, guidance=12.0, sampler=sampler)
    assert float(pipe.classify(latents=out.latents)["class"][:, 1].mean()) < found[0]


def test_a_condition_per_image_is_a_call_each(pipe):
    conditions = [{"class": "a"}, {"Smiling": True, "class": ["b", "c"]}, {}]
    together = pipe(symbols=conditions, guidance=2.0, output_type="torch")
    assert together.seeds == (0, 1, 2)
    for i, condition in enumerate(conditions):
        alone = pipe(seeds=[i], symbols=condition, guidance=2.0, output_type="torch")
        assert (together.images[i] - alone.images[0]).abs().max() <= TWO_LEVELS
    order = [2, 0, 1]
    shuffled = pipe(
        seeds=order,
        symbols=[conditions[i] for i in order],
        guidance=2.0,
        output_type="torch",
        batch_size=2,
    )
    assert (shuffled.images - together.images[order]).abs().max() <= TWO_LEVELS


def test_guidance_by_name(pipe):
    condition = {"class": "c", "Smiling": "yes"}
    even = pipe(2, symbols=condition, guidance=3.0)
    assert equal(
        pipe(2, symbols=condition, guidance={"class": 3.0, "Smiling": 3}).latents, even.latents
    )
    one = pipe(2, symbols=condition, guidance={"class": 3.0, "Smiling": 0})
    assert equal(one.latents, pipe(2, symbols={"class": "c"}, guidance=3.0).latents)


def test_energies_hold_what_was_asked(pipe):
    out = pipe(2, symbols={"class": "a"}, guidance=2.0)
    condition = read_condition(pipe.prior.table, {"class": "a"}, 2.0, 2, "tiny")
    terms = pipe.prior.join(pipe.model.lowest_outputs(out.latents, 2), condition)
    assert out.energies.shape == (2, GROUPS)
    assert torch.allclose(out.energies, -terms[:, :GROUPS], rtol=1e-3, atol=1e-3)


def test_the_stream_ends_with_the_call(pipe):
    options = {"symbols": [{"class": "a"}, {"Smiling": "no"}], "output_type": "torch"}
    states = list(pipe.stream(guidance=2.0, **options))
    last = pipe(guidance=2.0, **options)
    assert [s.level for s in states] == [2, 1, 0] and equal(states[-1].latents, last.latents)
    assert torch.equal(states[-1].images, last.images)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"symbols": {"clas": "a"}}, r"tiny has no symbol 'clas' \(did you mean 'class'"),
        ({"symbols": {"class": "d"}}, r"symbol 'class' has no value 'd'"),
        ({"symbols": {"class": ["a", "~a"]}}, r"asked to be a and not to be"),
        ({"symbols": [{"class": "a"}]}, r"symbols is a list of 1 for 2 images"),
        ({"guidance": 2.0}, r"guidance is given, but no symbols"),
        ({"symbols": {"class": "a"}, "prior": "gaussian"}, r"prior='gaussian' draws u at once"),
        ({"best_of": 2, "prior": "gaussian"}, r"best_of ranks by density"),
        ({"best_of": 0}, r"best_of is 0"),
        ({"best_of": 2, "rank_by": "size"}, r"rank_by is 'size'; it can be 'density', 'energy'"),
        ({"temperature": (1.0, 0.5)}, r"temperature has 2 numbers; the model has 3 groups"),
    ],
)
def test_calls_that_cannot_be(pipe, options, message):
    for call in (pipe, pipe.stream):
        if call == pipe.stream and "best_of" in options:
            continue
        with pytest.raises(UserInputError, match=message) as caught:
            call(2, **options)
        assert "\n" not in str(caught.value)


def test_a_model_without_symbols():
    plain = tiny_pipeline()
    assert len(plain(1, symbols={})) == 1
    with pytest.raises(UserInputError, match="tiny has no symbols, so 'class' cannot be asked"):
        plain(1, symbols={"class": "a"})
    with pytest.raises(UserInputError, match="tiny has no symbols; .*--list"):
        plain.classify(latents=plain(1).latents)


# ---- best of n


def test_best_of_one_is_the_call(pipe, three):
    assert equal(pipe(3, best_of=1).latents, three.latents)


@pytest.mark.parametrize("rank_by", ["density", "energy"])
@pytest.mark.parametrize("symbols", [None, {"class": "a"}])
def test_best_of_keeps_the_candidate_that_ranks_first(pipe, symbols, rank_by):
    """By the conditional density F - |u|^2 / 2, what is asked in F, or by -F alone."""
    seeds = range(3, 8)
    how = {"symbols": symbols, "output_type": "torch"}
    default = {} if rank_by == "density" else {"rank_by": rank_by}
    best = pipe(seeds=seeds, best_of=3, **default, **how)
    candidates = [
        pipe(seeds=[derived_seed(s, k) for s in seeds], symbols=symbols, output_type="torch")
        for k in range(3)
    ]
    ranks = torch.stack([full_energy(pipe, c.latents, symbols) for c in candidates])
    if rank_by == "density":
        ranks += torch.stack(
            [sum(g.flatten(1).square().sum(1) for g in c.latents) / 2 for c in candidates]
        )
    assert {x.facts["rank_by"] for x in best.provenance} == {rank_by}
    chosen = ranks.argmin(0)
    assert len(set(chosen.tolist())) > 1 and best.seeds == tuple(seeds)
    for i, k in enumerate(chosen.tolist()):
        assert torch.equal(best.images[i], candidates[k].images[i])
        assert all(
            torch.equal(a[i], b[i])
            for a, b in zip(best.latents, candidates[k].latents, strict=True)
        )
        assert torch.equal(best.energies[i], candidates[k].energies[i])


# ---- what energies and symbols say of images


@pytest.mark.parametrize(
    "groups, chosen",
    [(None, [0, 1, 2]), (slice(0, 2), [0, 1]), ([2, 0], [2, 0]), (1, [1]), (-1, [2])],
)
def test_energy_of_groups(pipe, three, groups, chosen):
    found = pipe.energy(latents=three.latents, groups=groups)
    outputs = pipe.model.lowest_outputs(three.latents, 3)
    assert torch.equal(found, -pipe.prior.select(outputs, chosen))
    if len(chosen) == 1:
        assert torch.allclose(found, three.energies[:, chosen[0]], rtol=1e-3, atol=1e-3)
    if len(chosen) == GROUPS:
        assert torch.allclose(found, full_energy(pipe, three.latents), rtol=1e-4)


def test_classify(pipe, images, three):
    found = pipe.classify(images)
    assert {k: v.shape for k, v in found.items()} == {"class": (2, 3), "Smiling": (2, 2)}
    for values in found.values():
        assert torch.allclose(values.sum(1), torch.ones(2), atol=1e-6) and (values >= 0).all()
    means = pipe.classify(images, mode="mean")
    again = pipe.classify(latents=pipe.encode(images, mode="mean"))
    assert all(torch.equal(means[k], again[k]) for k in found)
    whole, parts = (pipe.classify(latents=three.latents, batch_size=n)["class"] for n in (3, 1))
    assert torch.allclose(whole, parts, atol=1e-5)
    logits = pipe.model.lowest_outputs(three.latents, 3).logits
    some = pipe.classify(latents=three.latents, groups=[0, 2])
    expected = (logits[:, 0, :3] + logits[:, 2, :3]).softmax(1)
    assert torch.allclose(some["class"], expected, atol=1e-6)
    assert not torch.allclose(some["class"], whole, atol=1e-3)


# ---- a temperature per group


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_temperature_a_group(pipe, sampler):
    ones = pipe(2, sampler=sampler, temperature=(1.0,) * GROUPS)
    assert equal(ones.latents, pipe(2, sampler=sampler).latents)
    still = pipe(2, sampler=sampler, temperature=[0.0, 1.0, 0.5]).latents
    # The top group's energies read nothing below it but its pull: without noise of its own it
    # differs between seeds only by what the others' gradients do to it.
    gaussian = pipe(2, prior="gaussian", temperature=(0.0, 1.0, 0.5)).latents
    assert torch.equal(gaussian[0], torch.zeros_like(gaussian[0]))
    plain = pipe(2, prior="gaussian").latents
    assert torch.equal(gaussian[1], plain[1]) and torch.equal(gaussian[2], 0.5 * plain[2])
    spread = [float((g[0] - g[1]).std()) for g in still]
    assert spread[0] < 0.5 * spread[1]


# ---- vary and layers


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(
    "keep, kept", [(slice(0, 1), [0]), ([0, 2], [0, 2]), ([-1], [2]), (2, [0, 1])]
)
def test_variations_keep_groups_bit_by_bit_image_by_image(pipe, three, sampler, keep, kept):
    found = pipe.vary(three, keep, 2, sampler=sampler, symbols={"class": "a"}, batch_size=4)
    assert len(found) == 6 and found.columns == 2 and found.seeds == (3, 4) * 3
    for i in range(6):
        for g in range(GROUPS):
            same = torch.equal(found.latents[g][i], three.latents[g][i // 2])
            assert same == (g in kept), (i, g)
    free = next(g for g in range(GROUPS) if g not in kept)
    values = found.latents[free]
    assert all((values[i] - values[j]).abs().max() > 1e-3 for i in range(6) for j in range(i))


def test_variations_of_latents_and_images(pipe, three, images):
    a, b = (pipe.vary(x, [0], 2, seeds=[4, 5]) for x in (three, three.latents))
    assert equal(a.latents, b.latents)
    assert pipe.vary(three.latents, [0], 1).seeds == (0, 0, 0)
    u = pipe.encode(images)
    found = pipe.vary(images, [1], 1, seeds=[5])
    assert torch.equal(found.latents[1], u[1]) and found.seeds == (5, 5)


@pytest.mark.parametrize("keep", [slice(0, 0), [], (), slice(None, 0), slice(0)])
def test_nothing_kept_is_new_images(pipe, three, keep):
    """Of the noise that goes on from images, which is never that of a sample."""
    found = pipe.vary(three, keep, 2, seeds=[8, 9])
    fresh = pipe(seeds=[continued_seed(8), continued_seed(9)])
    for i in range(6):
        row = tuple(g[i] for g in found.latents)
        assert distance(row, tuple(g[i % 2] for g in fresh.latents)) < 1e-3


def test_energies_of_variations_are_those_of_the_returned_latents(pipe, three):
    """At the end the clamped groups are what they were, and so is what is said of them."""
    found = pipe.vary(three, [0, 1], 2)
    outputs = pipe.model.lowest_outputs(found.latents, 6)
    terms = pipe.prior.join(outputs)[:, :GROUPS]
    assert torch.allclose(found.energies, -terms, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "keep, message",
    [
        (slice(0, GROUPS), "all 3 groups are kept, so nothing would change; keep at most 2"),
        ([0, 1, 2], "all 3 groups are kept"),
        (7, "keep is 7; give how many top groups to keep, 0 to 2, or a list of groups"),
        ([7], r"groups \[7\] asked for; this model has 3, numbered 0 \(top\) to 2"),
        ([0, 0], "each to be named once"),
        ("top", "asked for"),
        (None, "all 3 groups are kept|asked for"),
        (1.5, "asked for"),
        (slice(5, 9), "asked for"),
    ],
)
def test_what_cannot_be_kept(pipe, three, keep, message):
    with pytest.raises(UserInputError, match=message):
        pipe.vary(three, keep)


def test_variations_have_a_condition_each(pipe, three):
    conditions = [{"class": v} for v in "abcabc"]
    found = pipe.vary(three, [0], 2, symbols=conditions, guidance=3.0)
    for i in (1, 4):
        one = tuple(g[i // 2 : i // 2 + 1] for g in three.latents)
        alone = pipe.vary(one, [0], 1, seeds=[3 + i % 2], symbols=conditions[i], guidance=3.0)
        row = tuple(g[i : i + 1] for g in found.latents)
        assert distance(row, alone.latents) < 1e-3


@pytest.mark.parametrize("what", ["vary", "edit", "inpaint"])
def test_the_gaussian_prior_keeps_nothing_and_is_refused(pipe, three, images, what):
    """It draws all groups at once: an answer would have ignored what was to be kept."""
    calls = {
        "vary": lambda: pipe.vary(three, [0], 2, prior="gaussian"),
        "edit": lambda: pipe.edit(images, groups=[0], prior="gaussian"),
        "inpaint": lambda: pipe.inpaint(images, torch.ones(16, 16) > 0, prior="gaussian"),
    }
    with pytest.raises(UserInputError, match="gaussian"):
        calls[what]()


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_layers(pipe, seed):
    grid = pipe.layers(seed, 4, output_type="torch")
    own = pipe(seeds=[seed], output_type="torch")
    assert len(grid) == GROUPS * 4 and grid.columns == 4
    assert grid.grid().size == (4 * 16 + 3 * 2, GROUPS * 16 + 2 * 2)
    for row in range(GROUPS):
        first = 4 * row
        assert (grid.images[first] - own.images[0]).abs().max() <= TWO_LEVELS
        assert grid.seeds[first] == seed
        kept = GROUPS - 1 - row
        for i in range(first, first + 4):
            for g in range(kept):
                assert torch.equal(grid.latents[g][i], grid.latents[g][first])
        free = grid.latents[kept][first : first + 4]
        gaps = [(free[i] - free[j]).abs().max() for i in range(4) for j in range(i)]
        assert min(gaps) > 1e-2, "a variation repeats the image it varies"


def test_layers_at_chosen_cuts(pipe):
    grid = pipe.layers(7, 2, cuts=[0, 2], symbols={"class": "a"}, steps=6)
    assert len(grid) == 4 and len(grid.energies) == 4
    for bad, message in (({"cuts": [3]}, "cut is 3"), ({"cuts": [-1]}, "cut is -1")):
        with pytest.raises(UserInputError, match=message):
            pipe.layers(7, 2, **bad)
    with pytest.raises(UserInputError, match="cuts is empty"):
        pipe.layers(7, 2, cuts=[], steps=3)
    with pytest.raises(UserInputError, match="columns is 1"):
        pipe.layers(7, 1)


# ---- mix and interpolate


def test_mix(pipe, three):
    other = tiny_latents(CONFIG, 3, seed=4)
    a, b = (pipe.decode(x, output_type="torch") for x in (three.latents, other))
    for cut, expected in ((0, b), (GROUPS, a)):
        assert torch.equal(pipe.mix(three, other, cut, output_type="torch").images, expected)
    expected = pipe.decode((three.latents[0], *other[1:]), output_type="torch")
    assert torch.equal(pipe.mix(three, other, 1, output_type="torch").images, expected)
    one = tuple(g[:1] for g in other)
    each = pipe.mix(three, one, 2, output_type="torch")
    row = tuple(g[2:3] for g in three.latents[:2]) + one[2:]
    assert len(each) == 3
    assert (pipe.decode(row, output_type="torch")[0] - each[2]).abs().max() <= TWO_LEVELS
    for cut in (-1, GROUPS + 1):
        with pytest.raises(UserInputError, match=f"cut is {cut}"):
            pipe.mix(three, other, cut)
    with pytest.raises(UserInputError, match="3 images were given with 2; give as many, or one"):
        pipe.mix(three, tiny_latents(CONFIG, 2), 1)


def between(pipe, a, b, count, monkeypatch):
    """The latents that `interpolate` decodes."""
    seen = {}
    with monkeypatch.context() as patch:
        patch.setattr(Model, "decode", lambda self, u, **_: seen.update(u=u))
        pipe.interpolate(a, b, count)
    return seen["u"]


def test_interpolation_is_the_great_circle_group_by_group(pipe, monkeypatch):
    a, b = (tiny_latents(CONFIG, 2, seed=s) for s in (1, 2))
    # Equal norms: all between have it too.
    b = tuple(
        y
        / y.flatten(1).norm(dim=1)[:, None, None, None]
        * x.flatten(1).norm(dim=1)[:, None, None, None]
        for x, y in zip(a, b, strict=True)
    )
    path = between(pipe, a, b, 5, monkeypatch)
    for x, y, p in zip(a, b, path, strict=True):
        assert len(p) == 10
        rows = p.flatten(1).reshape(2, 5, -1)
        assert torch.equal(rows[:, 0], x.flatten(1)) and torch.equal(rows[:, 4], y.flatten(1))
        norms = rows.norm(dim=2)
        assert torch.allclose(norms, norms[:, :1].expand(-1, 5), rtol=1e-5)
        steps = (rows[:, 1:] - rows[:, :-1]).norm(dim=2)
        assert torch.allclose(steps, steps[:, :1].expand(-1, 4), rtol=1e-4)


def test_interpolation_turns_evenly_and_so_does_its_length(pipe, monkeypatch):
    a, b = (tiny_latents(CONFIG, 1, seed=s) for s in (1, 2))
    b = tuple(3 * g for g in b)
    for x, p in zip(a, between(pipe, a, b, 5, monkeypatch), strict=True):
        rows = p.flatten(1).double()
        lengths, start = rows.norm(dim=1), x.flatten().double()
        turned = torch.acos((rows @ start / (lengths * start.norm())).clamp(-1, 1))
        for even in (lengths.diff(), turned.diff()):
            assert torch.allclose(even, even.mean().expand(4), rtol=1e-4, atol=1e-6)


def test_interpolation_ends_at_the_images(pipe, three, monkeypatch):
    other = tiny_latents(CONFIG, 3, seed=4)
    found = pipe.interpolate(three, other, 4, output_type="torch").images
    assert len(found) == 12
    for first, source in ((0, three.latents), (3, other)):
        expected = pipe.decode(source, output_type="torch")
        assert (found[first::4] - expected).abs().max() <= TWO_LEVELS
    still = between(pipe, other, other, 3, monkeypatch)
    for g, p in zip(other, still, strict=True):
        assert torch.allclose(p, g.repeat_interleave(3, dim=0), atol=1e-6)
    opposite = between(pipe, other, tuple(-g for g in other), 3, monkeypatch)
    assert all(torch.isfinite(g).all() for g in opposite)
    zero = between(pipe, tuple(torch.zeros_like(g) for g in other), other, 3, monkeypatch)
    assert all(torch.isfinite(g).all() for g in zero)
    with pytest.raises(UserInputError, match="num_images is 1"):
        pipe.interpolate(three, other, 1)


# ---- edit


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("mode", ["sample", "mean"])
def test_edits_leave_the_other_groups(pipe, images, sampler, mode):
    asked = {"groups": [1], "mode": mode, "sampler": sampler, "method": "noise"}
    found = pipe.edit(images, {"class": "b"}, seeds=[3, 4], **asked)
    u = pipe.encode(images, mode=mode, seeds=(3, 4))
    assert found.seeds == (3, 4)
    for g in range(GROUPS):
        assert torch.equal(found.latents[g], u[g]) == (g != 1)


def test_edits_are_reproducible_and_go_by_seed(pipe, images):
    first = pipe.edit(images, {"class": "b"}, output_type="torch")
    assert torch.equal(first.images, pipe.edit(images, {"class": "b"}, output_type="torch").images)
    turned = pipe.edit(images.flip(0), {"class": "b"}, seeds=[1, 0], output_type="torch")
    assert (turned.images.flip(0) - first.images).abs().max() <= TWO_LEVELS
    other = pipe.edit(images, {"class": "b"}, seeds=[1, 2], output_type="torch")
    assert (other.images - first.images).abs().max() > TWO_LEVELS


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_weak_edit_stays_near_the_image(pipe, images, sampler):
    moved = []
    for strength in (0.1, 0.6, 1.0):
        asked = {"strength": strength, "mode": "mean", "sampler": sampler, "method": "noise"}
        found = pipe.edit(images, {"class": "b"}, guidance=1.0, **asked)
        moved.append(distance(found.latents, pipe.encode(images, mode="mean")))
    assert moved[0] == moved[1]  # both are nearest to level 1
    assert moved[1] < 0.8 * moved[2]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_full_strength_is_a_new_image(pipe, images, sampler):
    asked = {"strength": 1.0, "sampler": sampler, "guidance": 1.0, "method": "noise"}
    found = pipe.edit(images, {"class": "b"}, **asked)
    seeds = [continued_seed(0), continued_seed(1)]
    fresh = pipe(seeds=seeds, symbols={"class": "b"}, sampler=sampler)
    assert equal(found.latents, fresh.latents)


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([flatten(x).flatten() for x in (a, b)]))[0, 1])


@pytest.mark.parametrize("particles", [1, 3])
def test_the_noise_that_drew_an_image_does_not_draw_what_replaces_it(pipe, particles):
    """With the seed that drew it, what is filled in, edited or varied would come back."""
    drawn = pipe(12, start="ancestral", particles=particles, output_type="torch")
    how = {"seeds": drawn.seeds, "start": "ancestral", "particles": particles}
    hidden = torch.ones(16, 16, dtype=torch.bool)
    hidden[:2] = False
    found = {
        "varied": pipe.vary(drawn, [], 1, **how | {"seeds": [5]}),
        "edited": pipe.edit(drawn.images, method="noise", strength=1.0, **how),
        "filled": pipe.inpaint(drawn.images, hidden, strength=1.0, **how),
    }
    for name, others in found.items():
        latents = drawn.latents if name != "varied" else tuple(g[5:6] for g in drawn.latents)
        others = others.latents if name != "varied" else tuple(g[5:6] for g in others.latents)
        assert abs(correlation(latents, others)) < 0.3, name


@pytest.mark.parametrize("asked", [{}, {"steps": 2}, {"steps": 9}, {"denoise": False}])
@pytest.mark.parametrize("groups", [None, [1], [0, 2]])
def test_an_edit_by_the_flow_with_nothing_asked_is_the_identity(pipe, images, asked, groups):
    """At the default, and with any number of gradients, over all groups or some."""
    found = pipe.edit(images, groups=groups, output_type="torch", **asked)
    u = pipe.encode(images, seeds=(0, 1))
    assert distance(found.latents, u) < 1e-5
    again = pipe.decode(u, output_type="torch")
    assert (found.images - again).abs().max() <= TWO_LEVELS
    by_weight = pipe.edit(images, {"class": "b"}, guidance=0.0, groups=groups, **asked)
    assert distance(by_weight.latents, u) < 1e-3
    noisy = pipe.edit(images, method="noise", groups=groups)
    assert distance(noisy.latents, u) > 0.1


def test_an_edit_by_the_flow_leaves_the_other_groups(pipe, images):
    asked = {"mode": "mean", "symbols": {"class": "b"}}
    found, u = pipe.edit(images, groups=[1], **asked), pipe.encode(images, mode="mean")
    for g in range(GROUPS):
        assert torch.equal(found.latents[g], u[g]) == (g != 1)


def test_an_edit_by_the_flow_has_its_own_number_of_gradients(pipe, images):
    """The sampler's may be as few as its chains need, which says nothing of the flow."""
    for method, options, total in (
        ("flow", {}, EDIT_STEPS),
        ("flow", {"steps": 10}, 10),
        ("noise", {}, pipe.config.sampling.steps),
    ):
        counted = []
        pipe.edit(images, method=method, progress=counted.append, guidance=1.0, **options)
        assert sum(counted) == total
    assert pipe.config.sampling.steps != EDIT_STEPS


def test_an_edit_by_the_flow_draws_nothing(pipe, images):
    asked = {"symbols": {"class": "b"}, "mode": "mean", "output_type": "torch"}
    first, other = (pipe.edit(images, seeds=s, **asked) for s in ([0, 1], [7, 8]))
    assert equal(first.latents, other.latents)
    assert not equal(first.latents, pipe.edit(images, mode="mean").latents)


def test_an_edit_by_the_flow_goes_where_it_is_asked_to(pipe, images):
    """p(asked | u) rises with guidance, and the way back is nearer than SDEdit's."""
    chances = []
    for guidance in (0.0, 4.0, 16.0):
        found = pipe.edit(images, {"class": "b"}, guidance=guidance, mode="mean")
        chances.append(pipe.classify(latents=found.latents)["class"][:, 1])
    assert (chances[0] < chances[1]).all() and (chances[1] < chances[2]).all()


def test_half_of_the_gradients_lead_up(pipe, images):
    done = []
    pipe.edit(images, {"class": "b"}, steps=9, progress=done.append)
    assert sum(done) == 9


def test_edits_that_cannot_be(pipe, images):
    for options, message in (
        ({"strength": 2}, r"strength is 2; it must lie in"),
        ({"strength": -0.1}, r"strength is -0.1"),
        ({"groups": []}, r"groups \[\] asked for"),
        ({"mode": "mode"}, r"mode is 'mode'"),
        ({"method": "chain"}, r"method is 'chain'; it can be 'flow', 'noise'"),
        ({"sampler": "recovery"}, r"sampler is 'recovery', but method 'flow' draws nothing"),
        ({"steps": 0}, r"steps is 0; it must lie in"),
        ({"steps": 1}, r"steps is 1; an edit by inversion takes at least 2"),
        ({"seeds": [1]}, r"seed"),
        ({"symbols": {"class": "d"}}, r"no value 'd'"),
    ):
        with pytest.raises(UserInputError, match=message):
            pipe.edit(images, **options)


def test_wrong_numbers_of_seeds_are_refused_in_a_line_that_says_so(pipe, images):
    for call in (pipe.edit, lambda x, **o: pipe.inpaint(x, torch.ones(16, 16) > 0, **o)):
        with pytest.raises(UserInputError, match="1 seeds were given for 2 images"):
            call(images, seeds=[1])


# ---- saving


def test_a_saved_model_keeps_its_symbols(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model", dtype=torch.float32)
    loaded = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    assert loaded.config == CONFIG and loaded.symbols == pipe.symbols
    asked = {"symbols": {"class": "~a", "Smiling": True}, "guidance": 2.0}
    assert equal(loaded(2, **asked).latents, pipe(2, **asked).latents)
    u = tiny_latents(CONFIG)
    for name, values in pipe.classify(latents=u).items():
        assert torch.equal(loaded.classify(latents=u)[name], values)


def test_weights_of_another_table_are_refused(pipe, tmp_path):
    import json

    from hebm_sample.errors import HebmError

    pipe.save_pretrained(tmp_path / "model")
    path = tmp_path / "model/config.json"
    config = json.loads(path.read_text())
    assert [s["name"] for s in config["prior"]["symbols"]] == [s.name for s in SYMBOLS]
    config["prior"]["symbols"] = config["prior"]["symbols"][:1]
    path.write_text(json.dumps(config))
    with pytest.raises(HebmError):
        Pipeline.from_pretrained(tmp_path / "model", device="cpu")


def test_bfloat16_samples_agree_about_symbols(pipe):
    low = symbolic_pipeline().to(dtype=torch.bfloat16)
    u = tiny_latents(CONFIG, 4)
    for name, values in pipe.classify(latents=u).items():
        assert torch.allclose(low.classify(latents=u)[name], values, atol=0.05)
    assert np.isfinite(low(2, symbols={"class": "a"}).energies.numpy()).all()


def test_the_release_parametrization_has_symbols_too(images):
    from tiny import release_config

    config = release_config()
    config = replace(config, prior=replace(config.prior, symbols=SYMBOLS))
    release = tiny_pipeline(config)
    found = release.vary(release(2, symbols={"class": "a"}), [0], 2)
    assert len(found) == 4
    with pytest.raises(UserInputError, match="'flow' needs energies conditioned on log SNR"):
        release.edit(images, {"class": "b"})
    edited = release.edit(images, {"class": "b"}, groups=[1, 2], method="noise")
    assert torch.isfinite(edited.energies).all()
