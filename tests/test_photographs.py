"""What photographs go through: one way in for images of every kind, whatever is done with them;
and back into the photograph, of which all that was not changed stays as it is, to the bit.

The detector is that of drawn faces (`spots.py`).
"""

import io
import struct
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageCms
from spots import CROP, face_at, find_spots, spots
from tiny import symbolic_config, tiny_modules

from hebm_sample.align import aligner
from hebm_sample.align.geometry import softened
from hebm_sample.cli.edit import main
from hebm_sample.config import FaceCrop
from hebm_sample.errors import UserInputError
from hebm_sample.io.images import open_image, read_text, save_image, to_rgb
from hebm_sample.pipeline import alignment
from hebm_sample.pipeline.alignment import FramingWarning
from hebm_sample.pipeline.outputs import Samples
from hebm_sample.pipeline.pipeline import Pipeline

STEPS = {"steps": 4}
SMILE = {"Smiling": "yes"}
OTHER = FaceCrop((0.4, 0.5), (0.6, 0.5), (0.5, 0.7), spread=0.02)


def pipeline(crop: FaceCrop | None = CROP) -> Pipeline:
    config = replace(symbolic_config(), crop=crop)
    generator, encoder, prior = tiny_modules(config)
    return Pipeline(config, generator, prior, encoder)


@pytest.fixture(autouse=True)
def detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "default_detector", lambda: find_spots)
    monkeypatch.setattr(alignment, "detector_works", lambda: True)
    monkeypatch.setattr(alignment, "placed", lambda image: aligner.placed(image, find_spots))


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return pipeline()


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return spots(face_at(210, 130, complex(np.exp(0.26j))))


@pytest.fixture(scope="module")
def two(pipe) -> Samples:
    return pipe(seeds=[3, 4], **STEPS)


def flat(found: object) -> torch.Tensor:
    """Numbers of whatever a method gives."""
    if isinstance(found, Samples):
        return flat(found.latents)
    if isinstance(found, dict):
        return torch.cat([v.flatten() for v in found.values()])
    if isinstance(found, tuple):
        return torch.cat([v.flatten() for v in found])
    return found if isinstance(found, torch.Tensor) else found.log_density


# All that takes images, two of them.
METHODS = {
    "encode": lambda p, x, **a: p.encode(x, **a),
    "reconstruct": lambda p, x, **a: p.reconstruct(x, **a),
    "classify": lambda p, x, **a: p.classify(x, **a),
    "energy": lambda p, x, **a: p.energy(x, **a),
    "log_density": lambda p, x, **a: p.log_density(x, **a),
    "rate": lambda p, x, **a: p.rate(x, draws=1, **a),
    "score": lambda p, x, **a: p.score(x, **a),
    "edit": lambda p, x, **a: p.edit(x, SMILE, **STEPS, **a),
    "inpaint": lambda p, x, **a: p.inpaint(x, Image.new("L", (16, 16), 255), **STEPS, **a),
    "vary": lambda p, x, **a: p.vary(x, 1, 1, **STEPS, **a),
    "mix": lambda p, x, **a: p.mix(x, x, 1, **a),
    "interpolate": lambda p, x, **a: p.interpolate(x, x, 2, **a),
}


class TestOneWayIn:
    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.filterwarnings("ignore::hebm_sample.pipeline.alignment.FramingWarning")
    @pytest.mark.filterwarnings("ignore:the mask covers")
    def test_images_of_every_kind_are_the_same_images(self, pipe, two, tmp_path, method):
        images = two.images
        units = np.stack([np.asarray(image, np.float32) / 255 for image in images])
        images[1].save(tmp_path / "b.png")
        kinds = {
            "list": images,
            "numpy": units,
            "torch": torch.from_numpy(units).movedim(-1, 1),
            "arrays": list(units),
            "paths": [images[0], tmp_path / "b.png"],
            "mixed": [torch.from_numpy(units[0]).movedim(-1, 0), str(tmp_path / "b.png")],
            "lists": [images[:1], units[1:]],
        }
        if method not in ("vary", "mix", "interpolate"):  # those have latents of their own
            kinds["Samples"] = two
            kinds["Samples of arrays"] = replace(two, images=units)
        first = flat(METHODS[method](pipe, kinds.pop("list")))
        for kind, given in kinds.items():
            found = flat(METHODS[method](pipe, given))
            assert torch.allclose(found, first, atol=1e-3, rtol=1e-3), kind

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.filterwarnings("ignore:the mask covers")
    def test_aligned_by_the_call_or_before_it(self, pipe, photo, tmp_path, method):
        photo.save(tmp_path / "b.png")
        cut = pipe.align([photo, tmp_path / "b.png"])
        first = flat(METHODS[method](pipe, cut))
        for given in ([photo, tmp_path / "b.png"], [cut[0], str(tmp_path / "b.png")]):
            with warnings.catch_warnings():
                warnings.simplefilter("error", FramingWarning)
                assert torch.equal(flat(METHODS[method](pipe, given, align=True, face=1)), first)
        with pytest.raises(UserInputError, match="face need align=True"):
            METHODS[method](pipe, [photo, photo], face=1)

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.filterwarnings("ignore:the mask covers")
    def test_what_is_not_aligned_is_said_once_a_call_where_it_was_called(
        self, pipe, photo, two, method
    ):
        with pytest.warns(FramingWarning) as told:
            METHODS[method](pipe, [photo, photo])
        notes = [w for w in told if w.category is FramingWarning]
        calls = 2 if method in ("mix", "interpolate") else 1  # of two images each
        assert len(notes) == calls and all(w.filename == __file__ for w in notes)
        assert "image 1" in str(notes[0].message) and "1 more: pipe.framing_notes" in str(
            notes[0].message
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", FramingWarning)
            METHODS[method](pipe, two)
            METHODS[method](pipe, torch.zeros(2, 3, 16, 16))

    @pytest.mark.parametrize("method", [*METHODS, "align"])
    def test_a_face_cut_for_another_model_is_refused(self, pipe, photo, method):
        cut = pipeline(OTHER).align([photo, photo])
        call = METHODS.get(method, lambda p, x, **a: p.align(x))
        for options in ({}, {"align": True}):
            with pytest.raises(UserInputError, match="the face in image 1 was cut for another"):
                call(pipe, cut, **options)

    def test_align_takes_samples_and_gives_back_what_is_cut(self, pipe, photo, two):
        cut = pipe.align(photo)
        assert pipe.align(cut) == cut and pipe.framing_notes(cut) == []
        assert len(pipe.framing_notes([photo, cut[0], np.zeros((16, 16, 3))])) == 1
        black = replace(two, images=[Image.new("RGB", (16, 16))] * 2)
        with pytest.raises(UserInputError, match="no face was found in image 1"):
            pipe.align(black)
        with pytest.raises(UserInputError, match="arrays and tensors are taken as they are"):
            pipe.encode(np.zeros((1, 16, 16, 3), np.float32), align=True)

    @pytest.mark.parametrize(
        "call, said",
        [
            (lambda p, s: p.vary(s, 1, 1, align=True), "align is for images"),
            (lambda p, s: p.mix(s, s.latents, 1, face=1), "face is for images"),
            (lambda p, s: p.energy(latents=s.latents, align=True), "align is for images"),
            (lambda p, s: p.align(s, face="1"), "face is '1'"),
            (lambda p, s: p.align(s, face=1.5), "face is 1.5"),
        ],
    )
    def test_words_that_would_be_ignored_or_mean_nothing(self, pipe, two, call, said):
        with pytest.raises(UserInputError, match=said):
            call(pipe, two)

    def test_a_face_cannot_be_chosen_among_those_that_are_cut(self, pipe, photo):
        with pytest.raises(UserInputError, match="leave face out"):
            pipe.edit(pipe.align(photo), SMILE, align=True, face=1)

    def test_open_files_are_read_once(self, pipe, photo):
        file = io.BytesIO()
        photo.save(file, "PNG")
        with pytest.warns(FramingWarning):
            found = pipe.encode(io.BytesIO(file.getvalue()))
        with pytest.warns(FramingWarning):
            assert torch.equal(found[0], pipe.encode(photo)[0])


def box_mask(photo, cut, at=(0.5, 0.7), half=12):
    """White around a place of the crop's unit square."""
    mask = Image.new("L", photo.size)
    x, y = cut.to_crop.inverse()(np.array([at]))[0]
    mask.paste(255, tuple(int(v) for v in (x - half, y - half, x + half, y + half)))
    return mask


class TestFilledPhotographs:
    def test_only_the_mask_and_its_band_change(self, pipe, photo):
        (cut,) = pipe.align(photo)
        mask = box_mask(photo, cut)
        found = pipe.inpaint(photo, mask, align=True, paste_back=True, **STEPS).images[0]
        changed = (np.asarray(found) != np.asarray(photo)).any(-1)
        reach = round(1 / cut.to_crop.scale / 64)
        touched = softened(np.asarray(mask) > 0, reach) > 0
        assert not changed[~touched].any() and changed[np.asarray(mask) > 0].mean() > 0.9
        alone = pipe.inpaint(photo, mask, align=True, **STEPS).images[0]
        assert cut.paste_back(alone, mask=mask).tobytes() == found.tobytes()

    def test_a_mask_of_nothing_gives_the_photograph(self, pipe, photo):
        with pytest.warns(UserWarning, match="covers nothing"):
            found = pipe.inpaint(
                photo, Image.new("L", photo.size), align=True, paste_back=True, **STEPS
            )
        assert found.images[0].tobytes() == photo.tobytes()

    def test_what_lies_outside_the_crop_is_said_and_left(self, pipe, photo):
        (cut,) = pipe.align(photo)
        mask = box_mask(photo, cut, at=(0.5, 0.0), half=20)
        y, x = np.nonzero(np.asarray(mask))
        at = cut.to_crop(np.stack([x, y], -1) + 0.5)
        out = ((at < 0) | (at > 1)).any(1)
        with pytest.warns(UserWarning, match=f"^{out.mean():.0%} of the mask lies outside"):
            found = pipe.inpaint(photo, mask, align=True, paste_back=True, **STEPS)
        changed = (np.asarray(found.images[0]) != np.asarray(photo)).any(-1)
        deep = ((at < -0.02) | (at > 1.02)).any(1)
        assert not changed[y[deep], x[deep]].any()
        drawn = np.asarray(cut.paste_back(Image.new("RGB", (16, 16), "white"), mask=mask))
        within = ((at > 0.1) & (at < 0.9)).all(1)
        assert (drawn[y[within], x[within]] == 255).all()
        # Towards the crop's border it fades: the square has no edge in the photograph.
        near = (np.abs(at - 0.5).max(1) > 0.49) & ~out
        assert near.any()
        moved = np.abs(drawn.astype(float) - np.asarray(photo, dtype=float))[y[near], x[near]]
        assert moved.max() < 40

    def test_a_pixel_of_a_photograph_is_a_pixel_of_its_crop(self, pipe, photo):
        """A mask that covers less than one of the crop's covers that one."""
        (cut,) = pipe.align(photo)
        assert cut.to_crop.scale * cut.image.width < 0.2  # many pixels a pixel of the crop
        place = cut.to_crop.inverse()(np.array([[0.53, 0.4]]))[0].astype(int)
        mask = np.zeros((300, 400), dtype=bool)
        mask[place[1], place[0]] = True
        found = np.asarray(cut.cut_mask(mask)) > 0
        assert found.sum() == 1 and found[int(0.4 * 16), int(0.53 * 16)]

    @pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
    def test_masks_of_booleans(self, pipe, photo, kind):
        (cut,) = pipe.align(photo)
        mask = box_mask(photo, cut)
        given = kind(np.asarray(mask) > 0)
        options = {"align": True, "paste_back": True, **STEPS}
        first = pipe.inpaint(photo, mask, **options).images[0]
        assert pipe.inpaint(photo, given, **options).images[0].tobytes() == first.tobytes()
        assert pipe.inpaint(photo, given[None], **options).images[0].tobytes() == first.tobytes()
        small = kind(np.eye(16, dtype=bool))
        one = pipe.inpaint(cut.image, small, **STEPS).images[0]
        assert pipe.inpaint(photo, small, align=True, **STEPS).images[0].tobytes() == one.tobytes()

    @pytest.mark.parametrize("mask", [Image.new("L", (200, 150)), np.zeros((150, 200), bool)])
    def test_a_mask_of_another_size_is_told_the_photographs(self, pipe, photo, mask):
        said = "the mask has 200 x 150 pixels; the photograph has 400 x 300: .* crop's 16 x 16"
        with pytest.raises(UserInputError, match=said):
            pipe.inpaint(photo, mask, align=True)
        with pytest.raises(UserInputError, match=r"a mask is uint8 \(300, 400\); give booleans"):
            pipe.inpaint(photo, np.zeros((300, 400), np.uint8), align=True)

    def test_the_command_gives_what_python_gives(self, pipe, photo, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        photo.save("scene.png")
        (cut,) = pipe.align(photo)
        box_mask(photo, cut).save("mask.png")
        pipe.save_pretrained("model", dtype=torch.float32)
        words = ["scene.png", "--mask", "mask.png", "--dataset", "./model", "--align"]
        words += ["--paste-back", "--steps", "4", "--device", "cpu", "--out", "out.png"]
        done = CliRunner().invoke(main, ["inpaint", *words, "--quiet"])
        assert done.exit_code == 0 and not done.stderr, done.output
        own = pipe.inpaint("scene.png", "mask.png", align=True, paste_back=True, **STEPS)
        with Image.open("out.png") as image:
            difference = np.asarray(image).astype(int) - np.asarray(own.images[0])
        assert np.abs(difference).max() <= 1


class TestTransparency:
    def test_a_photograph_keeps_it(self, pipe, photo, tmp_path):
        alpha = np.full((300, 400), 255, np.uint8)
        alpha[:, :40] = 200 + np.arange(40)  # little of the white below is seen
        clear = photo.convert("RGBA")
        clear.putalpha(Image.fromarray(alpha))
        clear.save(tmp_path / "clear.png")
        for given in (clear, tmp_path / "clear.png"):
            (cut,) = pipe.align(given)
            assert cut.image.mode == "RGB"
            out = pipe.edit(given, SMILE, align=True, paste_back=True, **STEPS)
            found = out.images[0]
            assert (np.asarray(found.getchannel("A")) == alpha).all()
            same = np.asarray(found)[:, :40] == np.asarray(clear)[:, :40]
            assert same.all()  # the colours are not laid on white
            assert out.grid().tobytes() == found.tobytes()
        for ending in (".png", ".webp"):
            (path,) = out.save(tmp_path / f"kept{ending}")
            with Image.open(path) as image:
                assert image.convert("RGBA").tobytes() == found.tobytes()
        with pytest.warns(UserWarning, match="keeps no transparency"):
            out.save(tmp_path / "laid.jpg")
        with Image.open(tmp_path / "laid.jpg") as image:
            assert np.abs(np.asarray(image)[:, 0].astype(int) - 55).max() < 9

    def test_the_command_keeps_it(self, pipe, photo, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        clear = photo.convert("RGBA")
        clear.putalpha(220)
        clear.save("clear.png")
        pipe.save_pretrained("model")
        words = ["clear.png", "--dataset", "./model", "--align", "--paste-back", "--steps", "4"]
        words += ["--attr", "Smiling", "--device", "cpu", "--out", "out.png"]
        done = CliRunner().invoke(main, ["edit", *words])
        assert done.exit_code == 0, done.output
        with Image.open("out.png") as image:
            assert image.mode == "RGBA" and image.getextrema()[3] == (220, 220)


# Colour profiles


def linear_profile(name: bytes = b"linear") -> bytes:
    """An ICC profile with the primaries of sRGB, whose numbers are light itself."""

    def xyz(*values):
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    text = name + b"\0"
    described = b"desc" + bytes(4) + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {
        b"desc": described + bytes(-len(described) % 4),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4360, 0.2225, 0.0139),
        b"gXYZ": xyz(0.3851, 0.7169, 0.0971),
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        **{t: b"curv" + bytes(8) for t in (b"rTRC", b"gTRC", b"bTRC")},
        b"cprt": b"text" + bytes(4) + b"none",
    }
    table, data, start = b"", b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(data), len(content))
        data += content
    body = struct.pack(">I", len(tags)) + table + data
    head = struct.pack(">I", 128 + len(body)) + bytes(4) + struct.pack(">I", 0x02400000)
    head += b"mntrRGB XYZ " + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += struct.pack(">3i", round(0.9642 * 65536), 65536, round(0.8249 * 65536))
    return head + bytes(128 - len(head)) + body


def encoded(light: np.ndarray) -> np.ndarray:
    """sRGB's numbers of light, IEC 61966-2-1."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


class TestProfiles:
    LIGHT = np.tile(np.arange(256, dtype=np.uint8)[None, :, None], (8, 1, 3))

    def test_colours_become_those_of_srgb(self, tmp_path):
        image = Image.fromarray(self.LIGHT)
        image.save(tmp_path / "a.png", icc_profile=linear_profile())
        image.info["icc_profile"] = linear_profile()
        expected = 255 * encoded(self.LIGHT / 255.0)
        for found in (open_image(tmp_path / "a.png"), to_rgb(image)):
            assert np.abs(np.asarray(found) - expected).max() < 2
            assert not found.info.get("icc_profile") and to_rgb(found) is found
        image.putalpha(99)
        image.save(tmp_path / "b.png", icc_profile=linear_profile())
        found = open_image(tmp_path / "b.png", alpha=True)
        assert found.mode == "RGBA" and np.abs(np.asarray(found)[..., :3] - expected).max() < 2
        assert found.getextrema()[3] == (99, 99)

    def test_a_turned_image_keeps_its_profile_until_it_is_read(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        image = Image.fromarray(self.LIGHT)
        image.save(tmp_path / "a.png", icc_profile=linear_profile(), exif=exif)
        read = open_image(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as lazy:
            again = to_rgb(alignment.upright(lazy))
        assert read.size == (8, 256) and again.tobytes() == read.tobytes()
        assert np.asarray(read)[128, 0, 0] > 180

    @pytest.mark.parametrize(
        "profile",
        [
            linear_profile(b"sRGB built-in"),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
            b"no profile",
            linear_profile()[:200],
        ],
    )
    def test_those_of_srgb_and_damaged_ones_change_nothing(self, tmp_path, profile):
        Image.fromarray(self.LIGHT).save(tmp_path / "a.png", icc_profile=profile)
        assert (np.asarray(open_image(tmp_path / "a.png")) == self.LIGHT).all()


# Commands


class TestInterpolate:
    @pytest.fixture
    def run(self, pipe, photo, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        photo.save("a.png")
        spots(face_at(190, 110)).save("b.png")
        pipe.save_pretrained("model", dtype=torch.float32)
        ready = ["--dataset", "./model", "--device", "cpu", "-n", "3", "--out", "out.png"]
        return lambda *words: CliRunner().invoke(
            main, ["interpolate", "a.png", "b.png", *ready, *words]
        )

    def test_it_aligns_says_so_and_is_what_python_gives(self, run, pipe):
        done = run("--align", "--face", "1")
        assert done.exit_code == 0 and not done.stderr, done.output
        text = read_text("out.png")
        assert text["align"] == "True" and "--align --face 1" in text["command"]
        own = pipe.interpolate("a.png", "b.png", 3, align=True, face=1)
        with Image.open("out.png") as image:
            difference = np.asarray(image).astype(int) - np.asarray(own.grid())
        assert np.abs(difference).max() <= 1

    def test_what_is_not_aligned_is_said_with_quiet_too(self, run):
        for words in ((), ("--quiet",)):
            lines = run(*words).stderr.splitlines()
            assert len(lines) == 2 and all(x.startswith("warning: the face in") for x in lines)
        done = run("--face", "1")
        assert done.exit_code == 2 and "--face needs --align" in done.stderr


def test_a_jpeg_whose_note_is_too_long_says_so_and_is_there(tmp_path):
    seeds = ",".join(str(7 * i) for i in range(20_000))
    with pytest.warns(UserWarning, match="does not say how it was made"):
        save_image(Image.new("RGB", (8, 8)), tmp_path / "a.jpg", {"seeds": seeds})
    assert (tmp_path / "a.jpg").exists() and read_text(tmp_path / "a.jpg") == {}
    save_image(Image.new("RGB", (8, 8)), tmp_path / "a.webp", {"seeds": seeds})
    assert read_text(tmp_path / "a.webp") == {"seeds": seeds}

    def test_a_profile_of_grey_leaves_colours_alone(self):
        grey = linear_profile().replace(b"mntrRGB XYZ ", b"mntrGRAYXYZ ").replace(b"rTRC", b"kTRC")
        red = Image.new("RGB", (4, 4), (254, 0, 0))
        red.info["icc_profile"] = grey
        assert to_rgb(red).getpixel((0, 0)) == (254, 0, 0)
        shade = Image.new("L", (4, 4), 100)
        shade.info["icc_profile"] = grey
        expected = 255 * float(encoded(np.array(100 / 255.0)))
        assert abs(to_rgb(shade).getpixel((0, 0))[0] - expected) < 3
