"""Words that hands reach for: other libraries' names of our arguments, samples as a list and on
disk, bars and callbacks. Each spelling means the same as ours, to the bit.
"""

import io
import re
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny import symbolic_pipeline, tiny_images, tiny_pipeline

from hebm_sample.cli.sample import main
from hebm_sample.errors import UserInputError
from hebm_sample.io.images import read_text
from hebm_sample.pipeline.outputs import Samples

STEPS = 8
CONDITION = {"symbols": {"Smiling": "yes"}, "guidance": 2.0}


def spelt(value) -> str:
    """As a test's name: without addresses, which every process has others of."""
    return re.sub(r"<torch._C.Generator object at 0x[0-9a-f]+>", "Generator", str(value))


@pytest.fixture(scope="module")
def pipe():
    return symbolic_pipeline(steps=STEPS)


@pytest.fixture(scope="module")
def three(pipe):
    return pipe(seeds=[4, 5, 6])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def same(a: Samples, b: Samples) -> bool:
    return a.seeds == b.seeds and all(
        torch.equal(x, y) for x, y in zip(a.latents, b.latents, strict=True)
    )


# Names of arguments


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ({"seed": 4}, {"seeds": [4]}),
        ({"seed": 4, "num_images": 3}, {"seeds": [4, 5, 6]}),
        ({"seed": [6, 4]}, {"seeds": [6, 4]}),
        ({"seed": np.int64(4)}, {"seeds": [4]}),
        ({"seed": None, "num_images": 2}, {"num_images": 2}),
        ({"generator": seeded(4)}, {"seeds": [4]}),
        ({"generator": seeded(4), "num_images": 2}, {"seeds": [4, 5]}),
        ({"generator": [seeded(9), seeded(4)]}, {"seeds": [9, 4]}),
        ({"generator": seeded(2**32 + 7)}, {"seeds": [7]}),
        ({"guidance_scale": 2.0, "symbols": {"Smiling": "yes"}}, CONDITION),
        ({"num_inference_steps": 6}, {"steps": 6}),
        ({"batch_size": 3}, {"num_images": 3}),
        ({"batch_size": 2, "seed": 4}, {"seeds": [4, 5]}),
        ({"batch_size": 3, "num_images": 1}, {"num_images": 1}),
        ({"batch_size": 3, "seeds": 5}, {"seeds": [5]}),
        (
            {"seed": 4, "symbols": [{}, {"class": "a"}]},
            {"seeds": [4, 5], "symbols": [{}, {"class": "a"}]},
        ),
    ],
    ids=spelt,
)
def test_a_call_understands_other_names(pipe, theirs, ours):
    assert same(pipe(**theirs), pipe(**ours))


def test_other_methods_understand_them_too(pipe, three):
    images = three.images[:2]
    assert same(
        pipe.vary(three[:1], 2, num_variations=2, seed=9, num_inference_steps=6),
        pipe.vary(three[:1], 2, num_variations=2, seeds=[9, 10], steps=6),
    )
    assert same(
        pipe.edit(images, {"class": "a"}, seed=3, guidance_scale=2.0, steps=4),
        pipe.edit(images, {"class": "a"}, seeds=[3, 4], guidance=2.0, steps=4),
    )
    a, b = pipe.encode(images, seed=3), pipe.encode(images, seeds=[3, 4])
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert same(pipe.layers(generator=seeded(5), columns=2), pipe.layers(5, 2))
    assert same(pipe.trajectory(batch_size=2).samples, pipe.trajectory(2).samples)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"seed": 1, "seeds": [1]}, "seed is seeds here, and both were given"),
        ({"generator": seeded(1), "seed": 1}, "generator is seeds here, and both|seed is seeds"),
        ({"generator": 7}, "generator is of type int; give a torch.Generator, or seed=7"),
        ({"guidance_scale": 2.0, "guidance": 2.0}, "guidance_scale is guidance here, and both"),
        ({"num_inference_steps": 9, "steps": 9}, "num_inference_steps is steps here, and both"),
        ({"num_images_per_prompt": 4}, "'num_images_per_prompt': num_images says how many"),
        ({"prompt": "a smiling face"}, "'prompt': conditions are symbols="),
        ({"negative_prompt": "a"}, "'negative_prompt': not to have a value is symbols="),
        ({"height": 64}, "'height': a model has one size; choose it with .*resolution="),
        ({"truncation_psi": 0.7}, "'truncation_psi': it is temperature here"),
        ({"scheduler": "ddim"}, "'scheduler': it is sampler here"),
        ({"callback_on_step_end": print}, "'callback_on_step_end': give callback=function"),
        ({"return_dict": False}, "'return_dict': there is none; a call returns Samples"),
        ({"temperatur": 0.8}, r"unknown sampler settings \['temperatur'\] \(did you mean 'temp"),
        ({"progress": 3}, "progress is 3; it can be True, False, or a function"),
        ({"callback": 3}, "callback is 3; give a function of step, total and level"),
        ({"output_type": "latent"}, "output_type is 'latent'; it can be 'pil', 'numpy', 'torch'"),
    ],
    ids=spelt,
)
def test_what_has_another_name_is_said_in_a_line(pipe, arguments, message):
    with pytest.raises(UserInputError, match=message) as error:
        pipe(**arguments)
    assert "\n" not in str(error.value)


def test_a_method_without_seeds_says_so_as_python_does(pipe):
    with pytest.raises(TypeError, match="seeds"):
        pipe.classify(tiny_images(pipe.config) / 2 + 0.5, seeds=[1])
    with pytest.raises(UserInputError, match="'seeds': it is one image's, seed=7"):
        pipe.layers(seeds=[1])


@pytest.mark.parametrize(
    "method, arguments, message",
    [
        ("vary", {"num_images": 2}, "'num_images': num_variations says how many of each image"),
        ("vary", {"num_images_per_prompt": 2}, "num_variations says how many of each image"),
        ("vary", {"image": 2}, "'image': what is varied is source, the first argument"),
        ("edit", {"num_images": 2}, "'num_images': there is one edit an image"),
        ("edit", {"num_images_per_prompt": 2}, "there is one edit an image"),
        ("inpaint", {"num_images": 2}, "'num_images': there is one filling an image"),
        ("layers", {"num_images": 3}, "'num_images': columns says how many in a row"),
        ("layers", {"n": 3}, "'n': columns says how many in a row"),
        ("interpolate", {"steps": 5}, "'steps': num_images says how many images"),
        ("interpolate", {"num_steps": 5}, "'num_steps': num_images says how many images"),
        ("interpolate", {"num_inference_steps": 5}, "num_images says how many images"),
        ("trajectory", {"output_type": "np"}, "'output_type': a trajectory is PIL images"),
        ("trajectory", {"best_of": 2}, "'best_of': a trajectory is of one candidate"),
        ("__call__", {"num_images": "a cat"}, "num_images is 'a cat'; conditions are symbols="),
        ("__call__", {"num_images": ["a", "b"]}, "num_images is .*; conditions are symbols="),
        ("to", {"device_map": "cpu"}, "'device_map': it is device here"),
        ("from_pretrained", {"device_map": "cpu"}, "'device_map': it is device here"),
        ("from_pretrained", {"use_safetensors": True}, "weights are in safetensors always"),
        ("set_progress_bar_config", {"foo": 3}, "no option 'foo'; it has .*leave"),
        ("set_progress_bar_config", {"disabled": 3}, r"'disabled' \(did you mean 'disable'"),
    ],
    ids=spelt,
)
def test_every_method_names_its_own_argument(pipe, three, method, arguments, message):
    given = {
        "vary": (three[:1], 2),
        "edit": (three, {"class": "a"}),
        "inpaint": (three, Image.new("L", (16, 16), 255)),
        "interpolate": (three[:1], three[1:2]),
        "from_pretrained": ("tiny",),
    }.get(method, ())
    with pytest.raises(UserInputError, match=message) as error:
        getattr(pipe, method)(*given, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "method, name",
    [("mix", "seed"), ("classify", "output_type"), ("from_pretrained", "revisoin")]
    + [(m, n) for m in ("__call__", "edit", "stream", "layers") for n in ("facts", "only_last")],
)
def test_what_nobody_knows_is_a_type_error_with_the_arguments(pipe, three, method, name):
    given = {"mix": (three, three, 1), "classify": (three,), "edit": (three,)}.get(method, ())
    with pytest.raises(TypeError, match=f"{method} has no argument '{name}'.*; it has .*"):
        getattr(pipe, method)(*given, **{name: 3})


def test_a_prompt_in_the_first_place_is_told_what_conditions_are(pipe):
    for prompt in ("a cat", ["a cat", "a dog"]):
        with pytest.raises(UserInputError, match="conditions are symbols="):
            pipe(prompt)


def test_images_masks_and_precision_have_other_names(pipe, three, tmp_path):
    mask, how = Image.new("L", (16, 16), 255), {"steps": 4}
    with pytest.warns(UserWarning, match="the mask covers everything"):
        a = pipe.inpaint(image=three.images, mask_image=mask, **how)
        assert same(a, pipe.inpaint(three.images, mask, **how))
    a = pipe.edit(init_image=three.images, symbols={"class": "a"}, **how)
    assert same(a, pipe.edit(three.images, {"class": "a"}, **how))
    with pytest.raises(UserInputError, match="image is images here, and both were given"):
        pipe.edit(three.images, {"class": "a"}, image=three.images)
    pipe.save_pretrained(tmp_path / "model")
    half = type(pipe).from_pretrained(tmp_path / "model", torch_dtype=torch.bfloat16, device="cpu")
    assert half.dtype == torch.bfloat16
    assert half.to(torch_dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize(
    "options, message",
    [
        ({"guidance": 5.0}, "guidance is given, but no symbols"),
        ({"symbols": {"class": "a"}, "temperature": 0.3}, "temperature is 0.3, but method 'flow'"),
        ({"symbols": {"class": "a"}, "step_scale": 0.7}, "step_scale is 0.7, but method 'flow'"),
    ],
)
def test_what_an_edit_would_ignore_is_refused(pipe, three, options, message):
    with pytest.raises(UserInputError, match=message):
        pipe.edit(three.images, **options)
    neutral = pipe.edit(three.images, {"class": "a"}, temperature=1.0, steps=4)
    assert same(neutral, pipe.edit(three.images, {"class": "a"}, steps=4))
    assert "temperature" not in neutral.provenance[0].text()


def test_keep_is_a_number_of_top_groups_as_keep_top_is(pipe, three):
    for count in range(3):
        found = pipe.vary(three[:1], count, 2, seeds=[8, 9])
        assert same(found, pipe.vary(three[:1], slice(0, count), 2, seeds=[8, 9]))
    for wrong in (-1, 4, True):
        with pytest.raises(UserInputError, match=f"keep is {wrong}; give how many top groups"):
            pipe.vary(three[:1], wrong)


@pytest.mark.parametrize("theirs, ours", [("pt", "torch"), ("np", "numpy")])
def test_output_types_of_other_libraries(pipe, theirs, ours):
    a, b = pipe(2, output_type=theirs), pipe(2, output_type=ours)
    assert type(a.images) is type(b.images) and bool((a.images == b.images).all())
    assert a.grid().tobytes() == b.grid().tobytes()


# Samples


def test_samples_are_a_sequence_of_their_images(three):
    assert list(three) == three.images and three[-1] is three.images[2]
    assert len(three) == 3 and three[np.int64(1)] is three.images[1]
    with pytest.raises(IndexError):
        three[3]
    part = three[1:]
    assert part.seeds == (5, 6) and part.images == three.images[1:]
    assert torch.equal(part.energies, three.energies[1:])
    assert all(torch.equal(x, y[1:]) for x, y in zip(part.latents, three.latents, strict=True))
    assert [*three[:1], three] == [three.images[0], three]
    assert [1] + three == [1, *three.images] and three + [1] == [*three.images, 1]
    assert repr(part) == "<Samples: 2 images, seeds 5-6, level 0>"


@pytest.mark.parametrize("output_type", ["pil", "numpy", "torch"])
def test_what_is_decoded_is_samples_too(pipe, three, output_type):
    found = {
        "mix": pipe.mix(three[:1], three[1:], 2, output_type=output_type),
        "interpolation": pipe.interpolate(three[:1], three[1:2], 3, output_type=output_type),
        "reconstruction": pipe.reconstruct(three.images, output_type=output_type),
    }
    for kind, samples in found.items():
        assert isinstance(samples, Samples) and samples.energies is None and samples.seeds == ()
        again = pipe.decode(samples.latents, output_type=output_type)
        pairs = zip(samples, again, strict=True)
        assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs)
        assert samples.provenance[0].facts["sheet"] == kind
        assert repr(samples) == f"<Samples: {len(samples)} images, level 0>"
    assert found["interpolation"].columns == 3


@pytest.mark.parametrize("output_type", ["pil", "numpy", "torch"])
def test_samples_are_read_as_images(pipe, output_type):
    samples = pipe(2, output_type=output_type)
    plain = pipe(2, output_type="torch").images
    assert torch.allclose(pipe.energy(samples), pipe.energy(plain), atol=1e-2)


def test_samples_are_saved_a_file_each_which_tells_all(pipe, tmp_path):
    samples = pipe(seeds=[3, 12], steps=6, step_scale=1.25, **CONDITION)
    folder = tmp_path / "deep" / "er"
    files = samples.save(folder)
    assert [f.name for f in files] == ["seed0003.png", "seed0012.png"]
    for path, image, seed in zip(files, samples, samples.seeds, strict=True):
        text = read_text(path)
        assert Image.open(path).tobytes() == image.tobytes()
        assert text["seed"] == str(seed) and text["model"] == pipe.name
        assert text["steps"] == "6" and "step_scale=1.25" in text["sampling"]
        assert (text["symbols"], text["guidance"]) == ("Smiling=yes", "Smiling=2.0")
        assert text["prior"] == "ebm" and text["decoder"] == samples.decoder
    particles = pipe(1, start="ancestral", particles=2)
    assert particles.provenance[0].facts["particles"] == 2
    edited = pipe.edit(samples, {"class": "a"}, groups=[1], steps=4).provenance[1]
    assert (
        edited.text(single=True).items() >= {"groups": "1", "method": "flow", "seed": "1"}.items()
    )
    with pytest.raises(UserInputError, match=r"seed0012.png is there already \(1 of 2 files"):
        pipe(seeds=[12, 13]).save(folder)
    assert not (folder / "seed0013.png").exists()
    assert samples[1:].save(folder, overwrite=True) == files[1:]


def test_one_image_can_be_saved_as_a_file(three, tmp_path):
    for ending in ("png", "jpg", "webp", "gif"):
        (path,) = three[1:2].save(tmp_path / f"five.{ending}")
        assert path == tmp_path / f"five.{ending}" and read_text(path)["seed"] == "5"
        with pytest.raises(UserInputError, match="is there already; give another name"):
            three[1:2].save(path)
    for wrong in ("three.png", "three.JPG"):
        with pytest.raises(UserInputError, match=r"one file for 3 images; .*grid\(\).save"):
            three.save(tmp_path / wrong)
        assert not (tmp_path / wrong).exists()
    (tmp_path / "old.png").mkdir()  # as a release before this one made them
    assert len(three.save(tmp_path / "old.png")) == 3


def test_samples_are_equal_to_themselves_alone(pipe, three):
    assert three == three and three != pipe(seeds=[4, 5, 6])
    assert len({three, three[:1]}) == 2
    trajectory = pipe.trajectory(1)
    assert trajectory == trajectory and trajectory != pipe.trajectory(1)


def test_a_notebook_shows_images_of_several_sizes(three):
    wide = replace(three, images=[three[0], three[1].resize((40, 20)), three[2]])
    with Image.open(io.BytesIO(wide._repr_png_())) as image:
        assert image.format == "PNG" and max(image.size) <= 1024


def test_files_of_equal_seeds_and_of_none_have_names_of_their_own(pipe, three, tmp_path):
    varied = pipe.vary(three[:2], keep=1, num_variations=2)
    names = [f.name for f in varied.save(tmp_path)]
    assert names == ["0000-seed0006.png", "0001-seed0007.png"] + [
        "0002-seed0006.png",
        "0003-seed0007.png",
    ]
    assert read_text(tmp_path / names[0])["kept_groups"] == "0"
    mixed = pipe.mix(three[0:1], three[1:2], 2, output_type="torch").save(tmp_path)
    assert [f.name for f in mixed] == ["image0000.png"]
    assert read_text(mixed[0])["keep_top"] == "2" and "seed" not in read_text(mixed[0])
    assert read_text(mixed[0])["seeds"] == "4-5"


# The pipeline


def test_a_pipeline_says_what_it_is(pipe):
    assert repr(pipe) == (
        "<Pipeline tiny: 16x16 images, on cpu in float32; 3 groups: 1 at 2x2, 2 at 4x4; "
        "prior: energies; attributes: class (a, b, c), Smiling>"
    )


@pytest.mark.parametrize(
    "arguments, dtype",
    [
        ((torch.bfloat16,), torch.bfloat16),
        (("cpu",), torch.float32),
        (("cpu", torch.bfloat16), torch.bfloat16),
        ((torch.device("cpu"),), torch.float32),
    ],
    ids=spelt,
)
def test_to_takes_a_device_a_dtype_or_both(arguments, dtype):
    pipe = tiny_pipeline()
    assert pipe.to(*arguments) is pipe
    assert pipe.dtype == dtype and pipe.device.type == "cpu"
    with pytest.raises(UserInputError, match="both given; give one dtype"):
        pipe.to(torch.float32, torch.bfloat16)


# Bars and callbacks


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "progress, config, stream, shown",
    [
        (None, {}, Terminal, True),
        (None, {}, io.StringIO, False),
        (True, {}, io.StringIO, True),
        (False, {}, Terminal, False),
        (None, {"disable": True}, Terminal, False),
        (None, {"disable": False}, io.StringIO, True),
        (True, {"disable": True}, io.StringIO, True),
    ],
)
def test_a_bar_is_shown_in_a_terminal_and_where_it_is_asked_for(
    monkeypatch, progress, config, stream, shown
):
    pipe = tiny_pipeline(symbolic_pipeline(steps=STEPS).config)
    monkeypatch.setattr("sys.stderr", stream())
    pipe.set_progress_bar_config(**config, mininterval=0)
    pipe(3, batch_size=2, progress=progress)
    text = sys.stderr.getvalue()
    assert bool(text) == shown
    assert not shown or f"{2 * STEPS}/{2 * STEPS}" in text


def test_a_bar_is_shown_in_a_notebook(pipe, monkeypatch):
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr("sys.stderr", io.StringIO())
    pipe(1)
    assert f"/{STEPS}" in sys.stderr.getvalue()


@pytest.mark.parametrize("sampler", ["recovery", "flow"])
def test_a_callback_is_told_of_each_step(pipe, sampler):
    told = []
    pipe(
        3,
        batch_size=2,
        sampler=sampler,
        best_of=2,
        progress=False,
        callback=lambda *x: told.append(x),
    )
    total = 2 * 2 * STEPS
    assert [step for step, _, _ in told] == list(range(1, total + 1))
    assert {n for _, n, _ in told} == {total}
    levels = [level for _, _, level in told[:STEPS]]
    count = STEPS if sampler == "flow" else len(pipe.config.prior.levels) - 1
    assert levels == sorted(levels, reverse=True)
    assert set(levels) == set(range(count))
    assert [level for _, _, level in told] == 4 * levels  # two batches, two candidates each


@pytest.mark.parametrize("batch_size", [2, 16])
def test_layers_are_one_walk_with_one_bar(pipe, monkeypatch, batch_size):
    told, counted = [], []
    options = {"steps": 4, "batch_size": batch_size, "mininterval": 0}
    monkeypatch.setattr("sys.stderr", Terminal())
    options.pop("mininterval")
    pipe.layers(7, 4, progress=True, callback=lambda *x: told.append(x), **options)
    rows = 3  # of the tiny model's groups
    total = 4 * (1 + rows * -(-3 // batch_size))
    assert [step for step, _, _ in told] == list(range(1, total + 1))
    assert {n for _, n, _ in told} == {total}
    assert f"/{total}" in sys.stderr.getvalue() and "/4 " not in sys.stderr.getvalue()
    pipe.layers(7, 4, progress=counted.append, **options)
    assert sum(counted) == total


@pytest.mark.parametrize("what", ["call", "edit", "stream"])
def test_an_exception_in_the_callback_ends_the_chain_cleanly(pipe, three, what):
    class Enough(Exception):
        pass

    def stop(step, total, level):
        if step == 3:
            raise Enough

    before = threading.active_count()
    with pytest.raises(Enough):
        if what == "edit":
            pipe.edit(three.images, {"class": "a"}, steps=4, callback=stop)
        elif what == "stream":
            list(pipe.stream(3, callback=stop))
        else:
            pipe(9, progress=True, callback=stop)
    assert same(pipe(seeds=[4, 5, 6]), three)
    assert threading.active_count() <= before + 1  # tqdm's own monitor


def test_keep_in_python_and_in_the_shell_are_one(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model", dtype=torch.float32)
    words = ["--dataset", tmp_path / "model", "--from-seed", 4, "--keep-top", 2, "-n", 2]
    words += ["--outdir", tmp_path / "shell", "--device", "cpu", "--quiet"]
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    found = pipe.vary(pipe(seeds=[4]), keep=2, num_variations=2)
    for path in found.save(tmp_path / "python"):
        a, b = (np.asarray(Image.open(p), int) for p in (path, tmp_path / "shell" / path.name))
        assert np.abs(a - b).max() <= 2
