"""`hebm-train import-nvae`: a checkpoint becomes a model folder, or one line says why not.

A checkpoint is a pickle from a stranger. Without these tests it could run code, leave half a
folder, or be taken for an architecture that it is not.
"""

import argparse
import io
import json
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from nvae_files import NAMES, checkpoint, expected, noise, write_checkpoint
from toy import draw_images, short_preset

from hebm_sample import Pipeline
from hebm_sample.cli.train import main
from hebm_sample.config import ModelConfig
from hebm_sample.data.dataset import load_images
from hebm_sample.errors import EnvironmentFailure
from hebm_sample.hub.save import NVAE_LICENCE
from hebm_sample.hub.sizes import least_bytes
from hebm_sample.training.export import export
from hebm_sample.training.imports import pickles
from hebm_sample.training.imports.nvae_checkpoint import import_nvae, load_nvae
from hebm_sample.training.train import train_prior

ONE, THREE, NORMAL = NAMES


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The smallest checkpoint, and the folder made of it by the command."""
    home = tmp_path_factory.mktemp("nvae")
    write_checkpoint(ONE, home / "nvae.pt")
    result = invoke(home / "nvae.pt", "--out", home / "model")
    assert result.exit_code == 0, result.output
    return home


def invoke(*arguments):
    return CliRunner().invoke(main, ["import-nvae", *map(str, arguments)])


def refused(tmp_path, data):
    """The one line that a checkpoint of `data`, or a file of bytes, is refused with by the
    command, with the status of what was typed wrong; nothing is written.
    """
    path = tmp_path / "x.pt"
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        torch.save(data, path)
    before = set(tmp_path.iterdir())
    result = invoke(path, "--out", tmp_path / "out")
    assert result.exit_code == 2 and set(tmp_path.iterdir()) == before, result.output
    assert result.output.startswith("Error: ") and result.output.count("\n") == 1
    assert str(path) in result.output and len(result.output) < 700
    return result.output


# What is written


def test_the_folder_is_a_model(home):
    names = {p.name for p in (home / "model").iterdir()}
    assert names == {
        "config.json",
        "generator.safetensors",
        "encoder.safetensors",
        "weights_manifest.json",
        "README.md",
    }
    data = json.loads((home / "model" / "config.json").read_text())
    config = ModelConfig.from_dict(data)
    assert config.name == "nvae-cifar10" and data["generator"]["kind"] == "nvae"
    card = (home / "model" / "README.md").read_text()
    assert "non-commercial" in card and "arxiv.org/abs/2007.03898" in card
    row = json.loads((home / "model" / "weights_manifest.json").read_text())
    assert NVAE_LICENCE in json.dumps(row)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_folder_computes_what_the_checkpoint_does(tmp_path, name):
    """Weights are kept in float32: half precision would leave the tolerance of 1e-4."""
    path = write_checkpoint(name, tmp_path / "x.pt")
    import_nvae(path, tmp_path / "model")
    pipe, model, found = (
        Pipeline.from_pretrained(tmp_path / "model"),
        load_nvae(path),
        expected(name),
    )
    for ours, theirs in ((pipe.generator, model.generator), (pipe.encoder, model.encoder)):
        for key, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[key], value), key
    with torch.no_grad():
        u = tuple(0.7 * e for e in noise(found, "prior"))
        images = pipe.decode(u, output_type="torch")
        logits = found["sample_logits"]
        wanted = pipe.generator.output(pipe.generator.transform(u).features)
        torch.testing.assert_close(wanted.logits[:, :, ::8, ::8], logits, rtol=0, atol=1e-4)
        torch.testing.assert_close(images, (wanted.mean + 1) / 2, rtol=0, atol=1e-5)


def test_adaptive_groups_are_halved_from_scale_to_scale(tmp_path):
    assert load_nvae(write_checkpoint(THREE, tmp_path / "x.pt")).config.groups == (1, 2, 4)


def test_arguments_that_older_checkpoints_lack_have_their_old_meaning(tmp_path):
    data = checkpoint(ONE)
    for name in ("ada_groups", "min_groups_per_scale", "num_mixture_dec"):
        delattr(data["args"], name)
    torch.save(data, tmp_path / "x.pt")
    config = load_nvae(tmp_path / "x.pt").config
    assert (config.groups, config.mixtures) == ((3,), 10)


def test_reading_leaves_the_random_streams_alone(home):
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    load_nvae(home / "nvae.pt")
    assert torch.equal(torch.rand(2), wanted)


def test_a_file_too_small_for_its_description_is_refused(home):
    config = ModelConfig.from_dict(json.loads((home / "model" / "config.json").read_text()))
    for name in ("generator.safetensors", "encoder.safetensors"):
        size = (home / "model" / name).stat().st_size
        assert 0.3 * size < least_bytes(config, name) < size


# What goes on from there


@pytest.mark.slow
def test_samplers_edits_and_training_take_it_as_any_other_generator(home, tmp_path):
    model = Pipeline.from_pretrained(home / "model")
    draw_images(tmp_path / "images", count=24)
    images = load_images(
        tmp_path / "images", size=32, cache_dir=tmp_path / "cache", progress=False
    )
    train_prior(
        short_preset(steps=4, validation=4, batch_size=4),
        model,
        images,
        tmp_path / "run",
        show_progress=False,
    )
    pipe = Pipeline.from_pretrained(tmp_path / "run" / "model")
    options = {"steps": 6, "output_type": "torch"}
    drawn = pipe(seeds=[0, 1], **options)
    assert drawn.images.shape == (2, 3, 32, 32) and bool(torch.isfinite(drawn.images).all())
    again = pipe(seeds=[1], **options)
    torch.testing.assert_close(drawn.images[1:], again.images, rtol=0, atol=1e-4)
    gaussian = pipe(seeds=[0], prior="gaussian", output_type="torch")
    assert not torch.allclose(gaussian.images, drawn.images[:1])
    edited = pipe.edit(drawn.images, **options)
    assert edited.images.shape == (2, 3, 32, 32)
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[:, 8:16, 8:16] = True
    filled = pipe.inpaint(drawn.images, masks, **options)
    assert bool(torch.isfinite(filled.images).all())
    assert pipe.energy(drawn.images).shape == (2,)
    row = export(tmp_path / "run", tmp_path / "exported")
    assert row.licence == NVAE_LICENCE
    card = (tmp_path / "exported" / "README.md").read_text()
    assert NVAE_LICENCE in card and "an imported [NVAE]" in card


# What is refused


class Harmful:
    """Runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_with_anything_else_in_it_is_not_run(tmp_path):
    mark = tmp_path / "mark"
    data = checkpoint(ONE) | {"optimizer": Harmful(f"touch {mark}")}
    text = refused(tmp_path, data)
    assert "system, which could run code" in text and not mark.exists()


@pytest.mark.parametrize("protocol", (2, 4))
def test_a_bare_pickle_is_not_run(tmp_path, protocol):
    mark = tmp_path / "mark"
    text = refused(tmp_path, pickle.dumps(Harmful(f"touch {mark}"), protocol))
    assert "supported are files of torch.save" in text and not mark.exists()


def test_objects_of_other_classes_are_refused(tmp_path):
    text = refused(tmp_path, checkpoint(ONE) | {"extra": np.float64(1.0)})
    assert "numpy" in text and "with tensors, numbers, text and an argparse.Namespace" in text


@pytest.mark.parametrize("share", (0.01, 0.1, 0.5, 0.99))
def test_a_truncated_file_is_said_to_be(home, tmp_path, share):
    whole = (home / "nvae.pt").read_bytes()
    size = int(share * len(whole))
    text = refused(tmp_path, whole[:size])
    assert f"is truncated: the end of its zip archive is missing after {size} bytes" in text


def zipped(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "x")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"# a page\nof text", "it starts with b'# a page'"),
        (b"\x89PNG\r\n\x1a\n0000", "is no file of torch.save: it starts with b'\\x89PNG"),
        (zipped("a.txt"), "is a zip archive of ['a.txt'], without torch.save's data.pkl"),
        (zipped("a/data.pkl"), "is "),
        (pickle.dumps({"state_dict": 1}, 4), "is another kind of pickle"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, data, said):
    text = refused(tmp_path, data)
    assert said in text and "supported are files of torch.save" in text
    assert "miniz" not in text and "Errno" not in text


def test_a_missing_file_is_what_was_typed_wrong(tmp_path):
    result = invoke(tmp_path / "none.pt", "--out", tmp_path / "out")
    assert result.exit_code == 2 and "there is no file" in result.output
    result = invoke(tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "is a folder" in result.output


@pytest.mark.parametrize("data", ([1, 2], {"state_dict": {}}, {"model": {"a": 1}}))
def test_other_checkpoints_are_refused(tmp_path, data):
    assert "a checkpoint of NVAE has state_dict" in refused(tmp_path, data)


def test_parts_of_another_type_are_named(tmp_path):
    data = checkpoint(ONE)
    data["args"] = vars(data["args"])
    assert "holds {'arch_instance': 'dict', 'args': 'dict', 'state_dict'" in refused(
        tmp_path, data
    )


def test_missing_and_extra_keys_and_shapes_are_named(tmp_path):
    data = checkpoint(ONE)
    del data["state_dict"]["enc0.1.bias"]
    data["state_dict"]["surprise"] = torch.zeros(1)
    data["state_dict"]["stem.bias"] = torch.zeros(9)
    text = refused(tmp_path, data)
    assert "lacks enc0.1.bias" in text and "also has surprise" in text
    assert "stem.bias is (9,) and not (8,)" in text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.full((8,), torch.nan), "not finite"),
        (torch.zeros(8, dtype=int), "of int64"),
        (torch.zeros(8).to(torch.float8_e4m3fn), "of float8_e4m3fn"),
        (torch.zeros(0), "empty"),
        (torch.zeros(8).to_sparse(), "not stored number by number"),
        (torch.zeros(1).expand(8), "not stored number by number"),
        (3.0, "of type float"),
    ],
)
def test_what_is_no_finite_float_tensor_is_refused(tmp_path, value, said):
    data = checkpoint(ONE)
    data["state_dict"]["stem.bias"] = value
    text = refused(tmp_path, data)
    assert f"'stem.bias' is {said}; weights are finite tensors of float16, bfloat16" in text


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(tmp_path):
    data = checkpoint(ONE)
    data["state_dict"]["stem.bias"] = torch.nested.nested_tensor([torch.zeros(8), torch.zeros(1)])
    assert "'stem.bias' is not stored number by number" in refused(tmp_path, data)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float64))
def test_floats_of_other_widths_are_weights_too(tmp_path, dtype):
    data = checkpoint(ONE)
    bias = data["state_dict"]["stem.bias"] = data["state_dict"]["stem.bias"].to(dtype)
    torch.save(data, tmp_path / "x.pt")
    assert torch.equal(load_nvae(tmp_path / "x.pt").encoder.stem.bias.detach(), bias.float())


def test_counts_of_batches_are_numbers(tmp_path):
    data = checkpoint(ONE)
    key = next(key for key in data["state_dict"] if key.endswith("num_batches_tracked"))
    for value, said in (("abc", "of type str"), (torch.zeros(2, dtype=int), "of int64")):
        data["state_dict"][key] = value
        assert f"is {said}, and no single number" in refused(tmp_path, data)
    del data["state_dict"][key]
    torch.save(data, tmp_path / "y.pt")
    load_nvae(tmp_path / "y.pt")


@pytest.mark.parametrize(
    ("kind", "value"), [("running_var", -1.0), ("log_weight_norm", 200.0), ("bn_act.weight", 3e38)]
)
def test_norms_that_fold_into_no_finite_weights_are_refused(tmp_path, kind, value):
    data = checkpoint(ONE)
    key = next(key for key in data["state_dict"] if key.endswith(kind))
    data["state_dict"][key].fill_(value)
    text = refused(tmp_path, data)
    assert "with its norms folded in, " in text and "is not finite in float32" in text


def test_arguments_of_a_huge_network_are_refused_before_it_is_made(tmp_path):
    """Without the comparison this takes 120 GB."""
    data = checkpoint(ONE)
    vars(data["args"]).update(
        num_channels_enc=1024, num_channels_dec=1024, num_groups_per_scale=60
    )
    text = refused(tmp_path, data)
    assert re.search(r"its networks have \d{10,} weights, and its tensors \d{5} numbers", text)


def test_unknown_cells_are_named_with_those_that_are_known(tmp_path):
    data = checkpoint(ONE)
    data["arch_instance"]["normal_dec"] = ["mconv_e6k9g0"]
    text = refused(tmp_path, data)
    assert "normal_dec have the operation 'mconv_e6k9g0'; known are res_elu, res_bnelu" in text
    data["arch_instance"] |= {3: ["res_elu"], "other": ["res_elu"]}
    assert "arch_instance has unknown keys ['3', 'other']" in refused(tmp_path, data)
    for long in ({"normal_dec": ["x" * 3000]}, {"q" * 5000: ["res_elu"]}):
        odd = checkpoint(ONE)
        odd["arch_instance"] |= long
        assert "...; known are" in refused(tmp_path, odd)
    data["arch_instance"] = {"normal_enc": ["res_elu"]}
    assert "the checkpoint's arch_instance lacks the keys" in refused(tmp_path, data)


@pytest.mark.parametrize("dataset", ("mnist", "omniglot", "stacked_mnist", "lsun_cat_999", None))
def test_other_data_sets_heads_are_refused(tmp_path, dataset):
    data = checkpoint(ONE)
    data["args"].dataset = dataset
    text = refused(tmp_path, data)
    assert f"of dataset {dataset!r}; supported are the colour images of cifar10" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_groups_per_scale": 1}, "groups are 1 in all"),
        ({"num_groups_per_scale": 65}, "num_groups_per_scale is 65"),
        ({"num_latent_scales": 10**9}, "num_latent_scales is 1000000000"),
        ({"num_channels_enc": "8"}, "args.num_channels_enc is '8'"),
        ({"num_postprocess_blocks": 2}, "1 preprocessing and 2 postprocessing blocks"),
        ({"num_x_bits": 16}, "num_x_bits is 16"),
        ({"use_se": 1}, "args.use_se is 1"),
        ({"ada_groups": "False"}, "args.ada_groups is 'False'; it must be of type bool"),
        ({"ada_groups": torch.zeros(2)}, "args.ada_groups is tensor([0., 0.])"),
        ({"num_preprocess_blocks": torch.zeros(2)}, "num_preprocess_blocks is tensor([0., 0.])"),
        ({"num_nf": torch.zeros(3, 3)}, "args.num_nf is tensor([[0., 0., 0.], "),
        ({"num_x_bits": 10**400}, "num_x_bits is 10000000"),
        ({"num_nf": argparse.Namespace()}, "args.num_nf is Namespace()"),
    ],
)
def test_arguments_that_are_not_supported_are_named(tmp_path, changes, said):
    data = checkpoint(ONE)
    vars(data["args"]).update(changes)
    assert said in refused(tmp_path, data)


def test_arguments_that_hold_themselves_are_told_in_short(tmp_path):
    data = checkpoint(ONE)
    data["args"].num_latent_per_group = data["args"]
    assert "args.num_latent_per_group is a nested Namespace" in refused(tmp_path, data)


@pytest.mark.parametrize("role", ("normal_pre", "normal_dec"))
def test_groups_of_channels_need_a_width_that_they_divide(tmp_path, role):
    data = checkpoint(ONE)
    data["arch_instance"][role] = ["mconv_e3k5g8"]
    vars(data["args"]).update(num_channels_enc=9, num_channels_dec=9)
    text = refused(tmp_path, data)
    width = {"normal_pre": 9, "normal_dec": 18}[role]
    assert f"cells {role} have the operation 'mconv_e3k5g8' on {width} channels" in text


def test_missing_arguments_are_named(tmp_path):
    data = checkpoint(ONE)
    data["args"] = argparse.Namespace(dataset="cifar10")
    assert "args lack num_cell_per_cond_dec" in refused(tmp_path, data)


def test_weights_of_another_architecture_do_not_fit(tmp_path):
    data = checkpoint(ONE)
    data["args"].num_groups_per_scale = 4
    assert "does not fit its own arguments: it lacks" in refused(tmp_path, data)


def test_an_old_torch_is_asked_to_be_newer(home, tmp_path, monkeypatch):
    monkeypatch.setattr(pickles.torch, "__version__", "2.6.0")
    with pytest.raises(EnvironmentFailure, match=r"torch is 2.6.0; .* needs 2.10 or newer"):
        import_nvae(home / "nvae.pt", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_folders_place_is_kept(home, tmp_path):
    (tmp_path / "out").write_text("mine")
    result = invoke(home / "nvae.pt", "--out", tmp_path / "out")
    assert result.exit_code == 2 and (tmp_path / "out").read_text() == "mine"


def test_a_model_in_the_folder_is_replaced_only_if_that_is_asked(home, tmp_path):
    out = tmp_path / "a b"
    hint = f"hebm-sample --dataset '{out}' --gaussian-prior\n"
    assert invoke(home / "nvae.pt", "--out", out, "--name", "one").output.endswith(hint)
    wanted = (out / "config.json").read_bytes()
    again = (home / "nvae.pt", "--out", out, "--name", "two")
    result = invoke(*again)
    assert result.exit_code == 2 and "--overwrite" in result.output
    result = invoke(tmp_path / "none.pt", *again[1:], "--overwrite")
    assert result.exit_code == 2 and (out / "config.json").read_bytes() == wanted
    assert invoke(*again, "--overwrite").exit_code == 0
    assert json.loads((out / "config.json").read_text())["name"] == "two"
