"""Known pixels stay what they are, masks mean what is documented, and only the rest is drawn."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import symbolic_config, tiny_images, tiny_latents, tiny_modules, tiny_pipeline

from hebm_sample import Pipeline
from hebm_sample.config import EDIT_STEPS, SamplerName
from hebm_sample.errors import UserInputError
from hebm_sample.io.images import prepare, prepare_masks, to_pil
from hebm_sample.io.seeds import continued_seed
from hebm_sample.pipeline.inpainting import (
    GUIDANCE_SCALE,
    KnownPixels,
    blend,
    blend_weight,
    fill_smoothly,
    known_cells,
)

CONFIG = symbolic_config(steps=6)
SIZE = CONFIG.generator.image_size


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(CONFIG)


@pytest.fixture(scope="module")
def images():
    return to_pil(tiny_images(CONFIG, 2))


def box(size=SIZE):
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[size // 4 : size // 2, size // 4 :] = True
    return mask


def as_image(mask, mode="L"):
    return Image.fromarray(mask.numpy().astype(np.uint8) * 255).convert(mode)


# ---- the likelihood


def test_the_likelihood_is_the_formula():
    generator, _, _ = tiny_modules(CONFIG)
    images, u = tiny_images(CONFIG, 2), tiny_latents(CONFIG)
    known = torch.stack([box(), ~box()])[:, None]
    sigma = torch.tensor([0.3, 0.9])
    term = KnownPixels(generator, lambda level: level, images, known, weight=0.7)
    found = term(u, sigma)
    for i in range(2):
        a = math.sqrt(1 - float(sigma[i]) ** 2)
        mean = generator(tuple(a * g[i : i + 1] for g in u))[0]
        scale = generator.likelihood.log_scale.exp().reshape(-1, 1, 1)
        square = (images[i] - mean) ** 2 + scale**2 * math.pi**2 / 3
        expected = -0.7 * GUIDANCE_SCALE * (square * known[i]).sum().sqrt()
        assert found[i].item() == pytest.approx(expected.item(), rel=1e-4)


def test_unknown_pixels_have_no_say():
    generator, _, _ = tiny_modules(CONFIG)
    images, u = tiny_images(CONFIG, 2), tiny_latents(CONFIG)
    known = (~box()).expand(2, 1, -1, -1)
    level = torch.tensor([0.5, 0.5])
    plain = KnownPixels(generator, lambda x: x, images, known)
    other = KnownPixels(generator, lambda x: x, torch.where(known, images, -images), known)
    assert torch.equal(plain(u, level), other(u, level))
    half = KnownPixels(generator, lambda x: x, images, known, weight=0.5)
    assert torch.allclose(half(u, level), 0.5 * plain(u, level))
    nothing = KnownPixels(generator, lambda x: x, images, torch.zeros_like(known))
    assert nothing(u, level).abs().max() < 1e-5
    assert torch.allclose(
        plain.rows(1, 2)(tuple(g[1:] for g in u), level[1:]), plain(u, level)[1:]
    )


def test_cells_are_held_whose_patch_is_known():
    shapes = ((4, 2, 2), (2, 4, 4))
    known = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    known[..., 15, 3] = False  # one pixel: bottom left of 2x2, bottom row's first of 4x4
    coarse, fine = known_cells(known, shapes)
    assert coarse[0, 0].tolist() == [[True, True], [False, True]]
    assert (~fine).nonzero().tolist() == [[0, 0, 3, 0]]


def test_a_smooth_filling_keeps_what_is_known_and_lies_between():
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    known = (~box()).expand(2, 1, -1, -1)
    found = fill_smoothly(x, known)
    assert torch.equal(torch.where(known, found, x), torch.where(known, x, x))
    assert found.min() >= x.min() - 1e-6 and found.max() <= x.max() + 1e-6
    flat = torch.where(known, torch.full_like(x, 0.3), x)
    assert torch.allclose(fill_smoothly(flat, known), torch.tensor(0.3))
    assert torch.equal(fill_smoothly(x, torch.zeros_like(known)), torch.zeros_like(x))


def test_latents_that_see_only_known_pixels_are_the_posteriors(pipe):
    x = (tiny_images(CONFIG, 2) + 1) / 2
    mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    mask[:, SIZE // 2 :] = True
    found = pipe.inpaint(x, mask, output_type="torch").latents
    other = pipe.inpaint(x, mask, output_type="torch", sampler="flow").latents
    for a, b in zip(found, other, strict=True):
        half = a.shape[-1] // 2
        assert torch.equal(a[..., :half], b[..., :half])
        assert not torch.allclose(a[..., half:], b[..., half:], atol=1e-3)


# ---- masks


def test_masks_in_every_form(images):
    expected = box()[None, None].expand(2, 1, -1, -1)
    for masks in (
        box(),
        box()[None],
        torch.stack([box()] * 2),
        expected,
        as_image(box()),
        [as_image(box())],
        (as_image(box(), "RGB"), as_image(box(), "1")),
    ):
        assert torch.equal(prepare_masks(masks, images, SIZE, 2), expected)
    grey = Image.fromarray(np.array([[127, 128]], dtype=np.uint8)).resize((SIZE, SIZE), 0)
    assert prepare_masks(grey, images, SIZE, 2).float().mean() == 0.5


def test_masks_of_the_images_own_size_are_cropped_as_they_are(tmp_path):
    wide = np.zeros((40, 64, 3), dtype=np.uint8)
    wide[10:30, 20:50] = 255
    image = Image.fromarray(wide)
    square = prepare(image, SIZE)[0, 0] > 0
    for mask in (image, image.convert("L")):
        found = prepare_masks(mask, image, SIZE, 1)[0, 0]
        assert (found != square).float().mean() < 0.1 and 0.2 < found.float().mean() < 0.6
    image.save(tmp_path / "mask.png")
    again = prepare_masks(tmp_path / "mask.png", [image], SIZE, 1)[0, 0]
    assert torch.equal(again, found)
    small = image.crop((12, 0, 52, 40)).resize((SIZE, SIZE), 0)
    nearest = prepare_masks(small, image, SIZE, 1)[0, 0]
    assert not bool((nearest & ~found).any())  # a pixel that is masked in part is masked


def test_thin_masks_are_not_lost():
    """Every masked pixel of a large image lies in a masked one of the model's."""
    large = SIZE * 64
    wide = np.zeros((large, large), dtype=bool)
    wide[:, [5, 64 * 3 + 63, 64 * 7]] = True
    wide[64 * 2 + 1, 64 * 9 + 40] = True
    found = prepare_masks(wide[None], Image.new("RGB", (large, large)), SIZE, 1)[0, 0].numpy()
    parts = wide.reshape(SIZE, 64, SIZE, 64).any((1, 3))
    assert np.array_equal(found, parts) and parts[:, [0, 3, 7]].all() and parts[2, 9]


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(8, 8, dtype=torch.bool), r"the mask has 8 x 8 pixels; the image has 16 x 16"),
        (torch.zeros(16, 16), r"masks are torch.float32"),
        (torch.zeros(3, 16, 16, dtype=torch.bool), r"another number of masks than of images"),
        (torch.zeros(0, 16, 16, dtype=torch.bool), r"another number of masks"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.bool), r"torch.bool .*booleans \(N, 16, 16\)"),
        (Image.new("L", (8, 8)), r"the mask has 8 x 8 pixels; the image has 16 x 16"),
        (Image.new("L", (16, 17)), r"the mask has 16 x 17"),
        ([Image.new("L", (16, 16))] * 3, r"another number of masks"),
        ([], r"another number of masks"),
        (3, r"of type int"),
        ("no-such-mask.png", r"no-such-mask.png"),
    ],
)
def test_masks_that_do_not_fit(pipe, images, masks, message):
    with pytest.raises(UserInputError, match=message) as caught:
        pipe.inpaint(images, masks)
    assert "\n" not in str(caught.value)


# ---- seams


def test_the_blend_has_no_seam_and_keeps_what_is_far():
    size, stream = 256, torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, size, size, generator=stream) * 0.2 - 0.1
    unknown = torch.zeros(2, 1, size, size, dtype=torch.bool)
    unknown[..., 100:160, 80:200] = True
    weight = blend_weight(unknown, 4)
    near = torch.nn.functional.max_pool2d(unknown.float(), 17, 1, 8) > 0
    assert (weight[unknown] == 1).all() and (weight[~near] == 0).all()
    assert (weight[near & ~unknown] > 0).all()
    assert weight.diff(dim=-1).abs().max() <= 0.25 and weight.diff(dim=-2).abs().max() <= 0.25
    # What is drawn is the image, but for its brightness: the blend is the image everywhere.
    again = blend(x + 0.4, x, unknown)
    assert (again - x)[:, :, 100:160, 80:200].abs().max() < 1e-3
    assert torch.equal(torch.where(weight > 0, x, blend(x + 0.4, x, unknown)), x)
    # Nor has a brightness that differs from side to side, which it follows without steps.
    ramp = torch.linspace(-0.4, 0.4, size).expand(2, 3, size, size)
    offset = blend(x + ramp, x, unknown) - x
    assert offset[..., 100:160, 80:200].abs().max() < 0.03
    wave = 0.4 * torch.sin(5 * torch.linspace(0, 1, size))
    wave = (wave[:, None] + wave.roll(90)).expand(2, 3, size, size)
    offset = (blend(x + wave, x, unknown) - x - wave)[..., 100:160, 80:200]
    assert max(offset.diff(dim=-1).abs().max(), offset.diff(dim=-2).abs().max()) < 0.04
    # What lies under the mask has no say.
    other = blend(x + 0.4, torch.where(unknown, 1 - x, x), unknown)
    assert torch.equal(again, other)


def test_masks_of_nothing_and_of_everything_are_said(pipe, images):
    for mask, message in (
        (torch.zeros(SIZE, SIZE, dtype=torch.bool), "the mask covers nothing"),
        (torch.ones(SIZE, SIZE, dtype=torch.bool), "the mask covers everything"),
    ):
        with pytest.warns(UserWarning, match=message) as said:
            pipe.inpaint(images, mask, steps=6)
        assert len(said) == 1 and "\n" not in str(said[0].message)


# ---- filling in


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_known_pixels_are_left_byte_by_byte(pipe, images, sampler):
    found = pipe.inpaint(images, box(), sampler=sampler, symbols={"class": "a"})
    assert found.energies.shape == (2, 3)
    for before, after in zip(images, found.images, strict=True):
        a, b = np.asarray(before), np.asarray(after)
        assert np.array_equal(a[~box()], b[~box()]) and (a != b)[box()].mean() > 0.5


def test_known_pixels_of_images_of_any_size(pipe):
    random = np.random.default_rng(0)
    large = Image.fromarray(random.integers(0, 256, (37, 50, 3), dtype=np.uint8))
    found = pipe.inpaint(large, box())
    prepared = np.asarray(to_pil(prepare(large, SIZE))[0])
    assert np.array_equal(np.asarray(found.images[0])[~box()], prepared[~box()])


def test_what_lies_under_the_mask_does_not_matter(pipe):
    x = (tiny_images(CONFIG, 2) + 1) / 2
    first = pipe.inpaint(x, box(), output_type="torch")
    other = pipe.inpaint(torch.where(box(), 1 - x, x), box(), output_type="torch")
    assert torch.equal(first.images, other.images)


@pytest.mark.filterwarnings("ignore:the mask covers")
def test_nothing_known_is_a_new_image(pipe, images):
    everything = torch.ones(SIZE, SIZE, dtype=torch.bool)
    condition = {"class": "a"}
    found = pipe.inpaint(images, everything, output_type="torch", symbols=condition, strength=1.0)
    seeds = [continued_seed(0), continued_seed(1)]
    fresh = pipe(seeds=seeds, output_type="torch", symbols=condition, steps=EDIT_STEPS)
    assert (found.images - fresh.images).abs().max() <= 2.01 / 255
    assert all(
        torch.allclose(a, b, atol=1e-3) for a, b in zip(found.latents, fresh.latents, strict=True)
    )


@pytest.mark.filterwarnings("ignore:the mask covers")
def test_everything_known_is_the_image(pipe, images):
    found = pipe.inpaint(images, torch.zeros(SIZE, SIZE, dtype=torch.bool))
    for before, after in zip(images, found.images, strict=True):
        assert np.array_equal(np.asarray(before), np.asarray(after))


def test_the_likelihood_pulls_towards_the_known_pixels(pipe):
    """An image that the generator can make: the decoded result comes nearer to it."""
    u = tiny_latents(CONFIG, 4, seed=3)
    x = pipe.decode(u, output_type="torch")
    errors = []
    for weight in (0.0, 10.0):
        found = pipe.inpaint(x, box(), weight=weight, strength=1.0, steps=18)
        decoded = pipe.decode(found.latents, output_type="torch")
        errors.append(float(((decoded - x) * ~box()).square().mean()))
    assert errors[1] < 0.85 * errors[0]


def test_settings_out_of_range(pipe, images):
    for options, message in (
        ({"weight": -1.0}, "weight is -1.0"),
        ({"strength": 1.5}, "strength is 1.5"),
        ({"symbols": {"class": "d"}}, "no value 'd'"),
        ({"guidance": 2.0}, "guidance is given"),
    ):
        with pytest.raises(UserInputError, match=message):
            pipe.inpaint(images, box(), **options)


# ---- with trained weights


@pytest.mark.slow
@pytest.mark.parametrize("name", ["celeba64", "cifar10"])
def test_chains_stay_where_the_prior_lives(name):
    """A measurement likelihood that is too stiff drives u away, or out of the finite numbers."""
    model = Pipeline.from_pretrained(name, device="cpu")
    size = model.config.generator.image_size
    images = model(seeds=[0, 1], output_type="torch").images
    mask = torch.zeros(2, size, size, dtype=torch.bool)
    mask[:, size // 2 :] = True
    out = model.inpaint(images, mask, seeds=[5, 6], output_type="torch")
    assert all(float(u.square().mean()) < 1.4 for u in out.latents)
    # What the latents say of the known half is the known half; of the other, something else.
    redrawn = model.decode(out.latents, output_type="torch")
    error = (redrawn - images).abs().mean(dim=1)
    assert float(error[~mask].mean()) < 0.06
    assert float(error[mask].mean()) > 2 * float(error[~mask].mean())
