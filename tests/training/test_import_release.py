"""Energies of the authors' release become the prior of an imported NVAE.

No file of theirs is at hand: these have the same layout and random numbers, and what the nets
should give is written down here a second time, from the layers' formulas.
"""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from click.testing import CliRunner
from nvae_files import NAMES, write_checkpoint
from torch.nn import functional as F

from hebm_sample import Pipeline
from hebm_sample.cli.train import main
from hebm_sample.config import ModelConfig, PriorConfig
from hebm_sample.errors import UserInputError
from hebm_sample.prior.schedule import DiffusionSchedule, release_step_sizes
from hebm_sample.training.imports.nvae_checkpoint import import_nvae, load_nvae
from hebm_sample.training.imports.release_checkpoint import load_energies

ONE, THREE, NORMAL = NAMES
WIDTH = 4
DENSE = ("linear1", "linear2")


def shapes(channels, side, residual):
    """Weights of one net by the release's names."""
    count = int(math.log2(side // (2 if residual else 4)))
    flat = WIDTH * (4 if residual else 16)
    found = {"out.1": (1, flat // 4)}
    if residual:
        found |= {"t_ebm_model1.0": (channels, 128), "t_ebm_model1.2": (channels, channels)}
        found |= {"t_ebm_model2.0": (128, 128), "t_ebm_model2.2": (128, 128)}
        found |= {"conv_start": (WIDTH, channels, 4, 4), "conv_all.1": (WIDTH, WIDTH, 3, 3)}
        found |= {"conv_short": (WIDTH, channels, 4, 4), "t_linear.1": (WIDTH, 128)}
        for i in range(count - 1):
            block = f"res_blocks.{i}"
            found |= {f"{block}.conv2d_{n}.1": (WIDTH, WIDTH, 4, 4) for n in ("1", "shortcut")}
            found |= {
                f"{block}.conv2d_2.1": (WIDTH, WIDTH, 3, 3),
                f"{block}.linear.1": (WIDTH, 128),
            }
    else:
        found |= {"t_ebm_model1.0": (128, 128), "t_ebm_model1.2": (128, 128)}
        names = [f"conv2d.conv{i + 1}" for i in range(count - 1)] + ["downsample"]
        found |= {n: (WIDTH, WIDTH if i else channels, 4, 4) for i, n in enumerate(names)}
    for name in DENSE:
        found |= {f"{name}_{part}.1": (flat // 2, flat) for part in ("x", "short")}
        found |= {f"{name}_t.1": (flat // 2, 128), f"{name}_all.1": (flat // 2, flat // 2)}
        flat //= 2
    return found


def state(channels, side, residual, seed, normed=True):
    """A net's state dictionary, its singular vectors exact, and its weights over their norms."""
    stream = torch.Generator().manual_seed(seed)
    tensors, weights = {}, {}
    for name, shape in shapes(channels, side, residual).items():
        value = torch.randn(shape, generator=stream)
        if not normed:
            tensors[f"{name}.weight"] = weights[name] = value / math.sqrt(value[0].numel())
            continue
        left, norms, right = torch.linalg.svd(value.flatten(1), full_matrices=False)
        tensors[f"{name}.weight_orig"] = value
        tensors[f"{name}.weight_u"], tensors[f"{name}.weight_v"] = left[:, 0], right[0]
        weights[name] = value / norms[0]
    return tensors, weights


def energies(model, residual, path, normed=True):
    """A file of the release for a generator; and each net's weights."""
    data, weights = {}, []
    for i, (channels, side, _) in enumerate(model.config.latent_shapes):
        data[f"netE{i}"], own = state(channels, side, residual, i, normed)
        data[f"opt{i}"] = {"state": {}, "param_groups": []}
        weights.append(own)
    torch.save(data, path)
    return weights


def wanted(w, z, t, residual):
    """s_t F of one group, from the formulas."""
    k = torch.arange(64.0) / 64
    phase = torch.full((len(z), 1), float(t)) * torch.exp(-math.log(10000.0) * k)
    sinusoids = torch.cat([phase.cos(), phase.sin()], 1)

    def mlp(name):
        return F.silu(sinusoids @ w[f"{name}.0"].T) @ w[f"{name}.2"].T

    down = partial(F.conv2d, stride=2, padding=1)
    if residual:
        e, f = mlp("t_ebm_model2"), z + mlp("t_ebm_model1")[:, :, None, None]
        e = F.silu(e)
        x = down(f, w["conv_start"]) + (e @ w["t_linear.1"].T)[:, :, None, None]
        f = F.conv2d(F.silu(x), w["conv_all.1"], padding=1) + down(f, w["conv_short"])
        for i in range(sum(".linear.1" in key for key in w)):
            b = f"res_blocks.{i}"
            f = F.silu(f)
            x = down(f, w[f"{b}.conv2d_1.1"]) + (e @ w[f"{b}.linear.1"].T)[:, :, None, None]
            x = F.conv2d(F.silu(x), w[f"{b}.conv2d_2.1"], padding=1)
            f = x + down(f, w[f"{b}.conv2d_shortcut.1"])
    else:
        e, f = F.silu(mlp("t_ebm_model1")), z
        for i in range(sum(key.startswith("conv2d.") for key in w)):
            f = F.silu(down(f, w[f"conv2d.conv{i + 1}"]))
        f = down(f, w["downsample"])
    f = f.flatten(1)
    for name in DENSE:
        g = F.silu(f)
        x = F.silu(g @ w[f"{name}_x.1"].T + e @ w[f"{name}_t.1"].T)
        f = x @ w[f"{name}_all.1"].T + g @ w[f"{name}_short.1"].T
    return (F.silu(f) @ w["out.1"].T).squeeze(1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nvae")
    return {n: load_nvae(write_checkpoint(n, folder / f"{n}.pt")) for n in (ONE, THREE)}


@pytest.mark.parametrize("name", (ONE, THREE))
@pytest.mark.parametrize(("residual", "normed"), [(True, True), (False, True), (False, False)])
def test_the_energies_are_the_releases(models, tmp_path, name, residual, normed):
    model = models[name]
    weights = energies(model, residual, tmp_path / "e.pth", normed)
    config, sampling, prior = load_energies(tmp_path / "e.pth", model.config)
    assert (config.width, config.num_levels, config.parametrization) == (WIDTH, 3, "release")
    assert sampling.steps == (150 if residual else 90) and sampling.kernel == "plain"
    stream = torch.Generator().manual_seed(0)
    u = tuple(torch.randn(2, *s, generator=stream) for s in model.config.latent_shapes)
    steps = release_step_sizes(DiffusionSchedule(config.levels), config.step_size_0)
    with torch.no_grad():
        top = model.generator.transform(u)
        for t in range(3):
            found = prior(top, torch.full((2,), float(t))) * steps[t]
            rows = zip(weights, top.z, strict=True)
            expected = torch.stack([wanted(w, z, t, residual) for w, z in rows], 1)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_model_samples_with_the_releases_chains(models, tmp_path):
    write_checkpoint(ONE, tmp_path / "nvae.pt")
    energies(models[ONE], True, tmp_path / "e.pth")
    row = import_nvae(tmp_path / "nvae.pt", tmp_path / "model", energies=tmp_path / "e.pth")
    assert "prior.safetensors" in row.files
    pipe = Pipeline.from_pretrained(tmp_path / "model")
    assert pipe.config.prior.network == "release_residual"
    images = pipe(1, steps=6, output_type="torch").images
    assert images.shape == (1, 3, 32, 32) and bool(torch.isfinite(images).all())


def test_only_other_nets_are_written_into_a_description(models):
    ours = PriorConfig(levels=(0.2, 1.0))
    assert "network" not in ours.to_dict()
    theirs = PriorConfig((0.2, 1.0), parametrization="release", network="release_plain")
    assert PriorConfig.from_dict(theirs.to_dict()) == theirs
    config = ModelConfig("x", models[ONE].config, theirs)
    assert ModelConfig.from_dict(config.to_dict()) == config
    with pytest.raises(UserInputError, match="needs parametrization 'release' and no symbols"):
        PriorConfig((0.2, 1.0), network="release_plain")


def test_other_files_and_other_groups_are_refused(models, tmp_path):
    path = tmp_path / "e.pth"
    energies(models[ONE], True, path)
    with pytest.raises(UserInputError, match="have netE0 to netE6, one per group"):
        load_energies(path, models[THREE].config)
    data = torch.load(path, weights_only=True)
    del data["netE1"]["out.1.weight_u"]
    data["netE1"]["more"] = torch.zeros(1)
    torch.save(data, path)
    with pytest.raises(
        UserInputError,
        match=r"netE1 of .* does not fit the net of its group: it lacks out.1.weight_u; also ",
    ):
        load_energies(path, models[ONE].config)
    torch.save({f"netE{i}": ([] if i == 1 else {}) for i in range(3)}, path)
    with pytest.raises(UserInputError, match="'netE1: list'.*each net has a dictionary"):
        load_energies(path, models[ONE].config)
    torch.save({f"netE{i}": {} for i in range(3)}, path)
    with pytest.raises(UserInputError, match="supported are the release's residual nets"):
        load_energies(path, models[ONE].config)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("out.1.weight_orig", torch.nan, "'out.1.weight_orig' is not finite"),
        ("out.1.weight_u", 0.0, r"the spectral norm u\^T W v of 'out.1' is 0, and"),
    ],
)
def test_weights_that_are_not_finite_are_refused(models, tmp_path, key, value, said):
    energies(models[ONE], True, path := tmp_path / "e.pth")
    data = torch.load(path, weights_only=True)
    data["netE2"][key].fill_(value)
    torch.save(data, path)
    with pytest.raises(UserInputError, match=f"netE2 of .*{said}"):
        load_energies(path, models[ONE].config)


@pytest.mark.parametrize("factor", (0.0, -1.0, 1e-30, 1e-4, 300.0))
def test_spectral_norms_that_none_can_be_are_refused(models, tmp_path, factor):
    """u and v are unit vectors near the largest singular value's: neither 0, nor above |W|."""
    energies(models[ONE], True, path := tmp_path / "e.pth")
    data = torch.load(path, weights_only=True)
    data["netE1"]["t_linear.1.weight_v"] *= factor
    torch.save(data, path)
    with pytest.raises(UserInputError, match=r"netE1 of .*: the spectral norm .* 't_linear.1' is"):
        load_energies(path, models[ONE].config)


def test_groups_that_no_net_fits_are_refused_before_one_is_made(models, tmp_path):
    energies(models[ONE], False, path := tmp_path / "e.pth")
    small = replace(models[ONE].config, image_size=4)
    assert small.latent_shapes[0][1] == 2
    with pytest.raises(UserInputError, match=r"e.pth: network is .* resolution 2 do not fit"):
        load_energies(path, small)


def test_nets_too_large_for_their_file_are_refused_before_they_are_made(models, tmp_path):
    energies(models[ONE], True, path := tmp_path / "e.pth")
    data = torch.load(path, weights_only=True)
    channels = models[ONE].config.latent_shapes[0][0]
    data["netE0"]["conv_start.weight_orig"] = torch.zeros(1).expand(1024, channels, 4, 4)
    torch.save(data, path)
    with pytest.raises(
        UserInputError, match=r"netE0 of .*e.pth: its networks have \d{9,} weights"
    ):
        load_energies(path, models[ONE].config)


def test_a_refused_file_of_energies_leaves_no_folder(models, tmp_path):
    """One line of the command that names the file which is at fault."""
    write_checkpoint(ONE, tmp_path / "nvae.pt")
    (tmp_path / "e.pth").write_bytes(b"PK\x03\x04 cut")
    options = ["--out", str(tmp_path / "out"), "--energies"]
    for name, said in (("none.pth", "there is no file"), ("e.pth", "e.pth is truncated")):
        words = ["import-nvae", str(tmp_path / "nvae.pt"), *options, str(tmp_path / name)]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2 and said in result.output and result.output.count("\n") == 1
        assert not (tmp_path / "out").exists()
