"""Photographs through a pipeline and through `hebm-edit`: aligned, edited, put back; and what is
said of those that are not aligned. The detector is that of drawn faces (`spots.py`).
"""

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from spots import CROP, face_at, find_spots, spots
from tiny import symbolic_config, tiny_modules

from hebm_sample.align import aligner
from hebm_sample.cli.edit import main
from hebm_sample.errors import UserInputError
from hebm_sample.hub.save import write_config
from hebm_sample.pipeline import alignment
from hebm_sample.pipeline.alignment import FramingWarning
from hebm_sample.pipeline.pipeline import Pipeline

_SETTINGS = {"steps": 4, "seeds": [5]}


def _pipeline() -> Pipeline:
    config = replace(symbolic_config(), crop=CROP)
    generator, encoder, prior = tiny_modules(config)
    return Pipeline(config, generator, prior, encoder)


@pytest.fixture(autouse=True)
def detector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "default_detector", lambda: find_spots)
    monkeypatch.setattr(alignment, "detector_works", lambda: True)
    monkeypatch.setattr(alignment, "placed", lambda image: aligner.placed(image, find_spots))


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return _pipeline()


@pytest.fixture
def photo() -> Image.Image:
    return spots(face_at(210, 130, complex(np.exp(0.26j))))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("aligned") / "model"
    _pipeline().save_pretrained(folder)
    return str(folder)


class TestPipeline:
    def test_an_aligned_edit_is_the_edit_of_the_crop(self, pipe, photo) -> None:
        (cut,) = pipe.align(photo)
        assert cut.image.size == (16, 16)
        of_photo = pipe.edit(photo, {"Smiling": "yes"}, align=True, **_SETTINGS)
        of_crop = pipe.edit(cut.image, {"Smiling": "yes"}, **_SETTINGS)
        assert of_photo.images[0].tobytes() == of_crop.images[0].tobytes()
        of_cut = pipe.edit([cut], {"Smiling": "yes"}, **_SETTINGS)
        assert of_cut.images[0].tobytes() == of_crop.images[0].tobytes()

    def test_pasting_back_gives_the_photograph_with_the_edit(self, pipe, photo) -> None:
        plain = pipe.edit(photo, {"Smiling": "yes"}, align=True, **_SETTINGS)
        back = pipe.edit(photo, {"Smiling": "yes"}, align=True, paste_back=True, **_SETTINGS)
        (cut,) = pipe.align(photo)
        assert back.images[0].size == photo.size
        assert back.images[0].tobytes() == cut.paste_back(plain.images[0]).tobytes()
        assert torch.equal(back.latents[0], plain.latents[0])

    def test_encode_energy_and_score_see_the_crop(self, pipe, photo) -> None:
        (cut,) = pipe.align(photo)
        assert torch.equal(pipe.encode(photo, align=True)[0], pipe.encode(cut.image)[0])
        assert torch.equal(pipe.energy(photo, align=True), pipe.energy(cut.image))
        assert torch.equal(pipe.score(photo, align=True).bound, pipe.score(cut.image).bound)
        assert not torch.equal(pipe.energy(photo), pipe.energy(cut.image))

    def test_photographs_are_kept_for_masks_and_pasting_only(self, pipe, photo) -> None:
        """Many of a camera's do not fit into memory together."""
        for kept in (False, True):
            framed = alignment.frame(pipe.model, [photo], align=True, photographs=kept)
            assert framed.aligned[0].photo.size == (photo.size if kept else (16, 16))
        (cut,) = pipe.align(photo)
        assert cut.photo.size == photo.size

    def test_a_mask_of_the_photograph_is_aligned_with_it(self, pipe, photo) -> None:
        (cut,) = pipe.align(photo)
        mask = Image.new("L", photo.size)
        mouth = np.array(cut.to_crop.inverse()(np.array([[0.5, 0.7]]))[0])
        mask.paste(255, tuple(int(v) for v in (*(mouth - 20), *(mouth + 20))))
        found = pipe.inpaint(photo, mask, align=True, **_SETTINGS).images[0]
        changed = np.asarray(found).astype(int) != np.asarray(cut.image).astype(int)
        at = np.argwhere(changed.any(-1)) / 16 + 1 / 32  # rows and columns, as fractions
        assert len(at) and np.abs(at - [0.7, 0.5]).max() < 0.25

    def test_an_image_as_the_models_images_is_taken_without_a_word(self, pipe, photo) -> None:
        big = aligner.align(photo, CROP, 256, detector=find_spots).image
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pipe.edit(big, None, **_SETTINGS)
            pipe.edit(photo, None, align=True, **_SETTINGS)
            pipe.edit(torch.zeros(1, 3, 16, 16), None, **_SETTINGS)

    def test_another_framing_is_said(self, pipe, photo) -> None:
        with pytest.warns(FramingWarning, match="align=True"):
            pipe.edit(photo, None, **_SETTINGS)
        (note,) = pipe.framing_notes([photo])
        assert "the image" in note and "\n" not in note

    @pytest.mark.parametrize(
        "options, said",
        [
            ({"face": 1}, "face need"),
            ({"paste_back": True}, "paste_back need"),
            ({"align": True, "face": 2}, "1 face was found in the image"),
            ({"align": True, "paste_back": True, "output_type": "numpy"}, "output_type is 'pil'"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, pipe, photo, options, said) -> None:
        with pytest.raises(UserInputError, match=said):
            pipe.edit(photo, None, **options, **_SETTINGS)

    def test_a_model_without_a_crop_and_tensors_are_refused(self, pipe, photo) -> None:
        plain = Pipeline(replace(pipe.config, crop=None), pipe.generator, pipe.prior, pipe.encoder)
        with pytest.raises(UserInputError, match="hebm-train crop"):
            plain.align(photo)
        with pytest.raises(UserInputError, match="tensors are taken as they are"):
            pipe.encode(torch.zeros(1, 3, 16, 16), align=True)


class TestUnusual:
    """Where no face is known, the model's calibration speaks."""

    @pytest.fixture
    def calibrated(self, pipe, photo, monkeypatch) -> Pipeline:
        from hebm_sample.evaluation.calibration import calibrate

        rng = np.random.default_rng(0)
        smooth = rng.integers(90, 160, (240, 3, 1, 1)) + rng.integers(-4, 5, (240, 3, 16, 16))
        plain = Pipeline(replace(pipe.config, crop=None), pipe.generator, pipe.prior, pipe.encoder)
        found = calibrate(plain, smooth.astype(np.uint8))
        return Pipeline(plain.config, pipe.generator, pipe.prior, pipe.encoder, calibration=found)

    def test_an_image_unlike_held_out_ones_is_said_and_one_of_them_is_not(self, calibrated):
        grey = Image.fromarray(
            (120 + np.random.default_rng(9).integers(-4, 5, (16, 16, 3))).astype(np.uint8)
        )
        noise = Image.fromarray(
            np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        )
        (note,) = calibrated.framing_notes([grey, noise])
        assert note.startswith("image 2 looks unlike tiny's images, it reconstructs worse")

    def test_a_model_without_a_calibration_says_nothing(self, pipe) -> None:
        plain = Pipeline(replace(pipe.config, crop=None), pipe.generator, pipe.prior, pipe.encoder)
        assert plain.framing_notes([Image.new("RGB", (40, 40))]) == []


class TestCommand:
    @pytest.fixture
    def run(self, model, tmp_path, photo, monkeypatch):
        monkeypatch.chdir(tmp_path)
        photo.save("scene.png")
        ready = ["--dataset", model, "--steps", "4", "--device", "cpu"]

        def run(command: str, *words: str):
            given = ready if command != "score" else [*ready[:2], *ready[4:]]
            return CliRunner().invoke(main, [command, *words, *given])

        return run

    def test_the_scene_comes_back_and_is_what_python_gives(self, run, model, photo) -> None:
        words = ["scene.png", "--attr", "Smiling", "--align", "--paste-back", "--out", "out.png"]
        done = run("edit", *words, "--json")
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert facts["align"] is True and facts["paste_back"] is True and facts["face"] is None
        with Image.open("out.png") as image:
            assert image.size == photo.size
            assert "--align --paste-back" in image.info["command"]
            first = image.tobytes()
        loaded = Pipeline.from_pretrained(model, device="cpu")
        again = loaded.edit(
            "scene.png", {"Smiling": "yes"}, align=True, paste_back=True, seeds=[0], steps=4
        )
        assert again.images[0].tobytes() == first

    def test_inpaint_and_score_take_it_too(self, run, photo) -> None:
        Image.new("L", photo.size, 255).save("mask.png")
        words = ["scene.png", "--mask", "mask.png", "--align", "--paste-back", "--out", "out.png"]
        done = run("inpaint", *words)
        assert done.exit_code == 0, done.output
        with Image.open("out.png") as image:
            assert image.size == photo.size
        done = run("score", "scene.png", "--align")
        assert done.exit_code == 0 and "warning" not in done.stderr, done.output

    def test_a_line_says_what_is_framed_otherwise(self, run) -> None:
        done = run("score", "scene.png")
        assert done.exit_code == 0
        assert "warning: the face in scene.png lies" in done.stderr

    @pytest.mark.parametrize(
        "words, said",
        [
            (["--face", "1"], "--face needs --align"),
            (["--paste-back"], "--paste-back needs --align"),
            (["--align", "--face", "4"], "face 4 was asked for"),
        ],
    )
    def test_refused_in_one_line(self, run, words, said) -> None:
        done = run("edit", "scene.png", *words, "--out", "out.png")
        assert done.exit_code == 2 and done.stderr.count("\n") == 1 and said in done.stderr

    def test_several_photographs_need_a_folder(self, run) -> None:
        Image.open("scene.png").save("other.png")
        both = ["scene.png", "other.png", "--align", "--paste-back"]
        done = run("edit", *both, "--out", "out.png")
        assert done.exit_code == 2 and "--outdir" in done.stderr
        done = run("edit", *both, "--outdir", "out")
        assert done.exit_code == 0, done.output
        with Image.open("out/other.png") as image:
            assert image.size == (400, 300)


def test_a_crop_written_into_a_folder_is_that_of_the_model_loaded_from_it(model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    config = Pipeline.from_pretrained(folder, device="cpu").config
    crop = replace(CROP, spread=0.02)
    row = write_config(folder, replace(config, crop=crop))
    loaded = Pipeline.from_pretrained(folder, device="cpu")  # checked against the manifest's row
    assert loaded.config == replace(config, crop=crop)
    assert row.files["config.json"].size == (folder / "config.json").stat().st_size
