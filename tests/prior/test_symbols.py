"""The symbols' arithmetic is that of probabilities: sums over joint assignments, to rounding.

A logsumexp over the wrong values, or a p(y | u) counted twice, would still steer samples, only not
to the density that is promised.
"""

import itertools
import math

import pytest
import torch
from tiny import SYMBOLS, symbolic_config, tiny_latents, tiny_modules

from hebm_sample.config import SymbolConfig
from hebm_sample.prior.network import EnergyNet
from hebm_sample.prior.symbols import (
    Condition,
    GroupOutputs,
    SymbolTable,
    open_condition,
    symbol_part,
)

TABLE = SymbolTable((*SYMBOLS, SymbolConfig("size", ("s", "m", "l", "xl"))))
BATCH, GROUPS = 5, 3


def numbers(*shape, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=stream, dtype=torch.float64)


@pytest.fixture
def g():
    return numbers(BATCH, TABLE.num_values)


def condition(rows=BATCH, **asked):
    """A condition the same for all rows: name = (positions, weight)."""
    found, first = open_condition(TABLE, rows), 0
    for v, symbol in enumerate(TABLE.symbols):
        if symbol.name in asked:
            positions, weight = asked[symbol.name]
            allowed = [j in positions for j in range(len(symbol.values))]
            found.allowed[:, first : first + len(allowed)] = torch.tensor(allowed)
            found.weight[:, v] = weight
        first += len(symbol.values)
    return found


def joint(g):
    """log p(u, y) of every assignment of all variables, (B, assignments), and the assignments."""
    assignments = list(itertools.product(*(range(size) for size in TABLE.sizes)))
    parts = g.split(TABLE.sizes, dim=1)
    columns = [sum(p[:, j] for p, j in zip(parts, y, strict=True)) for y in assignments]
    return torch.stack(columns, dim=1), assignments


def summed_over(g, accepts):
    values, assignments = joint(g)
    chosen = [i for i, y in enumerate(assignments) if accepts(y)]
    return values[:, chosen].logsumexp(1)


# ---- one row


def test_open_variables_are_summed_out(g):
    expected = summed_over(g, lambda y: True)
    assert torch.allclose(symbol_part(TABLE, g), expected)
    assert torch.equal(symbol_part(TABLE, g, open_condition(TABLE, BATCH)), symbol_part(TABLE, g))


@pytest.mark.parametrize(
    "sets",
    [({1}, None, None), ({0, 2}, {1}, None), (None, {0}, {1, 2, 3}), ({2}, {0}, {3})],
)
def test_weight_one_is_the_sum_over_what_is_allowed(g, sets):
    """One value, OR, NOT and AND together."""
    names = [symbol.name for symbol in TABLE.symbols]
    asked = {n: (s, 1.0) for n, s in zip(names, sets, strict=True) if s is not None}
    expected = summed_over(
        g, lambda y: all(s is None or j in s for j, s in zip(y, sets, strict=True))
    )
    assert torch.allclose(symbol_part(TABLE, g, condition(**asked)), expected)


def test_one_value_puts_in_its_own_output(g):
    others = g[:, 3:5].logsumexp(1) + g[:, 5:].logsumexp(1)
    found = symbol_part(TABLE, g, condition(**{"class": ({1}, 1.0)}))
    assert torch.allclose(found, g[:, 1] + others)
    either = symbol_part(TABLE, g, condition(**{"class": ({1, 2}, 1.0)}))
    assert torch.allclose(either, torch.logaddexp(g[:, 1], g[:, 2]) + others)
    neither = symbol_part(TABLE, g, condition(**{"class": ({0}, 1.0)}))
    assert torch.allclose(torch.logaddexp(either, neither), symbol_part(TABLE, g))


def test_weights_are_factors_of_the_log_probability(g):
    still = symbol_part(TABLE, g)
    once = symbol_part(TABLE, g, condition(Smiling=({1}, 1.0))) - still
    assert torch.allclose(once, TABLE.probabilities(g)["Smiling"][:, 1].log())
    for weight in (0.5, 2.0, 7.0):
        found = symbol_part(TABLE, g, condition(Smiling=({1}, weight)))
        assert torch.allclose(found - still, weight * once)
    two = symbol_part(TABLE, g, condition(**{"Smiling": ({1}, 2.0), "class": ({0, 1}, 3.0)}))
    other = symbol_part(TABLE, g, condition(**{"class": ({0, 1}, 3.0)})) - still
    assert torch.allclose(two - still, 2 * once + other)


def test_weight_zero_is_open_in_every_bit():
    g = numbers(BATCH, TABLE.num_values).float().requires_grad_()
    ignored = symbol_part(TABLE, g, condition(**{"class": ({1}, 0.0), "size": ({0, 2}, 0.0)}))
    plain = symbol_part(TABLE, g)
    assert torch.equal(ignored, plain)
    grads = [torch.autograd.grad(x.sum(), g)[0] for x in (ignored, plain)]
    assert torch.equal(*grads)


def test_all_values_allowed_says_nothing(g):
    assert torch.equal(
        symbol_part(TABLE, g, condition(size=({0, 1, 2, 3}, 5.0))), symbol_part(TABLE, g)
    )


def test_rows_have_their_own_conditions(g):
    single = [condition(rows=1, **{"class": ({j}, 1.0 + j)}) for j in range(3)] + [
        condition(rows=1)
    ] * 2
    mixed = Condition(*(torch.cat(column) for column in zip(*single, strict=True)))
    for i, one in enumerate(single):
        alone = symbol_part(TABLE, g[i : i + 1], one)
        assert torch.allclose(symbol_part(TABLE, g, mixed)[i : i + 1], alone)
        rows = mixed.rows(i, i + 1)
        assert all(torch.equal(a, b) for a, b in zip(rows, one, strict=True))


def test_probabilities_are_the_posterior_of_the_joint(g):
    found = TABLE.probabilities(g)
    assert list(found) == ["class", "Smiling", "size"]
    whole = summed_over(g, lambda y: True)
    for v, (name, size) in enumerate(zip(found, TABLE.sizes, strict=True)):
        assert torch.allclose(found[name].sum(1), torch.ones(BATCH, dtype=torch.float64))
        for j in range(size):
            part = summed_over(g, lambda y, v=v, j=j: y[v] == j)
            assert torch.allclose(found[name][:, j], (part - whole).exp())


def test_gradient(g):
    asked = condition(**{"class": ({0, 2}, 2.5), "Smiling": ({1}, 1.0)})
    for logits in (g, numbers(BATCH, GROUPS, TABLE.num_values)):
        torch.autograd.gradcheck(
            lambda x: symbol_part(TABLE, x, asked), logits.clone().requires_grad_()
        )


@pytest.mark.parametrize("size", [1e2, 1e4, 1e8])
def test_extreme_outputs_stay_finite(size):
    g = (size * numbers(BATCH, TABLE.num_values).sign()).float().requires_grad_()
    for weight in (0.0, 1.0, 100.0):
        found = symbol_part(
            TABLE, g, condition(**{"class": ({0}, weight), "size": ({1, 2}, weight)})
        )
        (grad,) = torch.autograd.grad(found.sum(), g)
        assert torch.isfinite(found).all() and torch.isfinite(grad).all()
    assert all(torch.isfinite(p).all() for p in TABLE.probabilities(g).values())


# ---- labels


def test_cross_entropy_counts_the_known_labels_alone(g):
    labels = torch.tensor([[0, -1, 3], [2, 1, -1], [-1, -1, -1], [1, 0, 0], [-1, 1, 2]])
    loss, right, known = TABLE.cross_entropy(g, labels)
    parts, picked = TABLE.split(g), []
    for v, part in enumerate(parts):
        for i in range(BATCH):
            if labels[i, v] >= 0:
                picked.append(-part[i].log_softmax(0)[labels[i, v]])
    assert loss.item() == pytest.approx(float(sum(picked)) / len(picked))
    assert known.tolist() == [3, 3, 3]
    best = torch.stack([part.argmax(1) for part in parts], dim=1)
    assert right.tolist() == ((best == labels) & (labels >= 0)).sum(0).tolist()
    perfect = best.clone()
    assert TABLE.cross_entropy(g, perfect)[1].tolist() == [BATCH] * 3


def test_unknown_labels_pull_at_nothing(g):
    g.requires_grad_()
    labels = torch.full((BATCH, 3), -1)
    loss, right, known = TABLE.cross_entropy(g, labels)
    assert loss.item() == 0 and right.sum() == 0 and known.sum() == 0
    assert torch.equal(torch.autograd.grad(loss, g)[0], torch.zeros_like(g))
    labels[1, 0] = 2
    (grad,) = torch.autograd.grad(TABLE.cross_entropy(g, labels)[0], g)
    touched = grad != 0
    assert touched[1, :3].all() and touched.sum() == 3


# ---- the networks


CONFIG = symbolic_config()
LEVEL = torch.tensor([0.7, -0.4], dtype=torch.float64)
ASKED = Condition(
    torch.tensor([[True, False, False, True, True], [True, True, False, False, True]]),
    torch.tensor([[1.0, 0.0], [2.0, 3.0]], dtype=torch.float64),
)


@pytest.fixture(scope="module")
def model():
    generator, _, prior = tiny_modules(CONFIG)
    return generator.double().requires_grad_(False), prior.double().requires_grad_(False)


@pytest.fixture(scope="module")
def outputs(model):
    generator, prior = model
    u = tiny_latents(CONFIG, dtype=torch.float64)
    found = prior.outputs(generator.transform(u), LEVEL)
    assert found.base.shape == (2, GROUPS) and found.logits.shape == (2, GROUPS, 5)
    assert found.logits.std() > 0.1
    return found


@pytest.mark.parametrize("asked", [None, ASKED], ids=["open", "asked"])
def test_terms_sum_to_f_and_begin_with_each_group_alone(model, outputs, asked):
    _, prior = model
    terms = prior.join(outputs, asked)
    assert terms.shape == (2, GROUPS + 1)
    whole = outputs.base.sum(1) + symbol_part(prior.table, outputs.logits.sum(1), asked)
    assert torch.allclose(terms.sum(1), whole)
    for i in range(GROUPS):
        alone = outputs.base[:, i] + symbol_part(prior.table, outputs.logits[:, i], asked)
        assert torch.allclose(terms[:, i], alone)
    assert terms[:, GROUPS].abs().min() > 1e-3  # else the last column would test nothing


def test_base_is_scaled_and_log_odds_are_not(model):
    generator, prior = model
    top = generator.transform(tiny_latents(CONFIG, dtype=torch.float64))
    found = prior.outputs(top, LEVEL)
    for i, net in enumerate(prior.nets):
        f, g = net(top.z[i], top.u[i], top.h[i], LEVEL)
        assert torch.allclose(found.base[:, i], f * (1 + LEVEL.exp()).sqrt())
        assert torch.equal(found.logits[:, i], g)


@pytest.mark.parametrize("groups", [[0], [1, 2], [2, 0], [0, 1, 2]])
def test_chosen_groups_are_a_model_without_the_others(model, outputs, groups):
    _, prior = model
    inside = torch.zeros(GROUPS, dtype=torch.float64)
    inside[groups] = 1
    dropped = GroupOutputs(outputs.base * inside, outputs.logits * inside[:, None])
    found = prior.select(outputs, groups)
    assert torch.allclose(
        found, dropped.base.sum(1) + symbol_part(prior.table, dropped.logits.sum(1))
    )
    if len(groups) == GROUPS:
        assert torch.allclose(found, prior.join(outputs).sum(1))
    if len(groups) == 1:
        assert torch.allclose(found, prior.join(outputs)[:, groups[0]])


@pytest.mark.parametrize("asked", [None, ASKED], ids=["open", "asked"])
def test_the_gradient_of_the_terms_is_that_of_f(model, asked):
    """Against finite differences: the columns are detached where they cancel."""
    generator, prior = model
    u = tiny_latents(CONFIG, dtype=torch.float64)

    def f(*groups):
        return prior(generator.transform(groups), LEVEL, asked).sum(1)

    leaves = tuple(x.clone().requires_grad_() for x in u)
    grads = torch.autograd.grad(f(*leaves).sum(), leaves)
    stream = torch.Generator().manual_seed(1)
    ways = [torch.randn(x.shape, generator=stream, dtype=torch.float64) for x in u]
    step = 1e-5
    ends = [f(*(x + s * step * w for x, w in zip(u, ways, strict=True))) for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    along = sum((d * w).flatten(1).sum(1) for d, w in zip(grads, ways, strict=True))
    assert torch.allclose(along, slope, rtol=1e-7, atol=1e-8)


def test_shared_weights_begin_alike_with_and_without_symbols():
    """A warm start compares like with like, and so does an ablation."""
    from tiny import tiny_config

    from hebm_sample.hub.load import new_prior

    torch.manual_seed(0)
    plain = new_prior(tiny_config()).state_dict()
    torch.manual_seed(0)
    symbolic = new_prior(CONFIG).state_dict()
    assert {k for k in symbolic if k not in plain} == {k for k in symbolic if ".symbol_" in k}
    for key, value in plain.items():
        assert torch.equal(value, symbolic[key]), key


def test_untrained_symbols_are_evenly_likely():
    from hebm_sample.hub.load import new_prior

    generator = tiny_modules(CONFIG)[0].requires_grad_(False)
    prior = new_prior(CONFIG)
    top = generator.transform(tiny_latents(CONFIG))
    found = prior.outputs(top, LEVEL.float())
    assert torch.equal(found.logits, torch.zeros(2, GROUPS, 5))
    assert prior(top, LEVEL.float()).sum(1).tolist() == pytest.approx([math.log(6)] * 2)


def test_a_nets_symbol_outputs_are_inner_products_of_maps_with_u():
    """Summed over positions first, which must not change them: < conv(x)^j, u>."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = EnergyNet((4, 16, 16), 8, 12, 1, 8, symbol_values=5).double()
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        x, u = torch.randn(3, 12, 8, 8).double(), torch.randn(3, 16, 8, 8).double()
    maps = net.symbol_out(x).unflatten(1, (5, -1))  # (B, V, C, H, W)
    expected = torch.einsum("bvchw,bchw->bv", maps, u)
    torch.testing.assert_close(net._symbol_maps(x, u), expected)
