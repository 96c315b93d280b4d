"""Choosing faces, crops in configs, and what is said of images that are framed otherwise."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from spots import CROP, face_at, find_spots, spots
from tiny import tiny_config

from hebm_sample.align.aligner import align, crop_points, placed
from hebm_sample.align.faces import choose
from hebm_sample.align.measure import crop_of, measure_crop
from hebm_sample.align.notes import framing_note
from hebm_sample.config import FaceCrop, ModelConfig, TrainingRecord
from hebm_sample.errors import UserInputError
from hebm_sample.presets.crops import CROPS, crop_for


class TestChoose:
    faces = [face_at(50, 40), face_at(150, 80), face_at(300, 60)]

    def test_the_largest_by_default(self) -> None:
        assert choose(self.faces) is self.faces[1]

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
    def test_numbers_count_from_the_left(self, order: tuple[int, ...]) -> None:
        shuffled = [self.faces[i] for i in order]
        assert [choose(shuffled, k) for k in (1, 2, 3)] == self.faces

    @pytest.mark.parametrize("number", [0, 4, -1])
    def test_other_numbers_are_refused_in_one_line(self, number: int) -> None:
        with pytest.raises(UserInputError, match=r"3 faces were found in a\.png") as caught:
            choose(self.faces, number, "a.png")
        assert "\n" not in str(caught.value)

    def test_no_face_is_one_line(self) -> None:
        with pytest.raises(UserInputError, match=r"no face was found in a\.png") as caught:
            choose([], None, "a.png")
        assert "\n" not in str(caught.value)


class TestAlign:
    @pytest.mark.parametrize("degrees", [0, 15, -30])
    @pytest.mark.parametrize("side", [64, 256])
    def test_eyes_and_mouth_land_where_the_crop_has_them(self, degrees: int, side: int) -> None:
        turn = complex(np.exp(1j * np.radians(degrees)))
        photo = spots(face_at(210, 130, turn))
        found = align(photo, CROP, side, detector=find_spots)
        assert found.image.size == (side, side)
        assert found.to_crop.degrees == pytest.approx(-degrees, abs=0.7)
        points = placed(found.image, find_spots)
        assert points == pytest.approx(crop_points(CROP), abs=0.012)

    def test_the_photograph_comes_back_outside_and_the_edit_inside(self) -> None:
        photo = spots(face_at(210, 130))
        found = align(photo, CROP, 64, detector=find_spots)
        back = np.asarray(found.paste_back(Image.new("RGB", (64, 64), "white")))
        assert back.shape == (300, 400, 3) and (back[0] == np.asarray(photo)[0]).all()
        x, y = found.to_crop.inverse()(np.array([[0.5, 0.5]]))[0].astype(int)
        assert (back[y, x] == 255).all()

    def test_a_photograph_without_a_face_is_refused(self) -> None:
        with pytest.raises(UserInputError, match="no face was found in the image"):
            align(Image.new("RGB", (90, 80)), CROP, 64, detector=find_spots)

    def test_a_detector_that_finds_nothing_in_the_crop_leaves_the_first_fit(self) -> None:
        face = face_at(210, 130)
        found = align(spots(face), CROP, 64, detector=lambda x: [face] * (x.width == 400))
        assert found.to_crop(face.points) == pytest.approx(crop_points(CROP), abs=1e-9)


class TestMeasure:
    def test_medians_are_even_and_99_in_100_lie_within_the_spread(self) -> None:
        rng = np.random.default_rng(0)
        points = crop_points(CROP) + rng.normal(0, 0.01, (1000, 3, 2))
        found = crop_of(points)
        assert crop_points(found) == pytest.approx(crop_points(CROP), abs=2e-3)
        assert found.left_eye[0] == pytest.approx(1 - found.right_eye[0], abs=1e-4)
        assert found.left_eye[1] == found.right_eye[1] and found.mouth[0] == 0.5
        far = np.sqrt(((points - crop_points(found)) ** 2).sum(2).mean(1))
        assert (far <= found.spread).mean() == pytest.approx(0.99, abs=0.002)

    def test_it_finds_where_drawn_faces_are(self) -> None:
        faces = [face_at(200 + i % 5, 200).moved(lambda p: p + [0, 50]) for i in range(50)]
        found = measure_crop((spots(f) for f in faces), find_spots)
        middle = (faces[2].points - [50, 0]) / 300  # of the middle square
        assert crop_points(found)[:, 1] == pytest.approx(middle[:, 1], abs=0.01)
        assert found.left_eye[0] == pytest.approx(middle[0, 0], abs=0.01)

    def test_few_faces_are_refused(self) -> None:
        with pytest.raises(UserInputError, match="found in 0 images"):
            measure_crop([Image.new("RGB", (32, 32))] * 60, find_spots)


class TestNotes:
    @pytest.mark.parametrize("name", sorted(CROPS))
    def test_each_model_knows_its_own_and_the_others(self, name: str) -> None:
        for framed, crop in CROPS.items():
            note = framing_note(crop_points(crop), name, CROPS[name], CROPS, "a.png")
            if framed == name:
                assert note is None
            else:
                assert note is not None and f"a.png lies as in {framed}'s images" in note

    def test_another_framing_says_how_far(self) -> None:
        points = crop_points(CROP) * 0.5
        note = framing_note(points, "mine", CROP, CROPS, "a.png")
        assert note is not None and "% of the side" in note and "--align" in note


class TestConfig:
    def test_a_crop_goes_through_config_json(self) -> None:
        config = ModelConfig.from_dict(tiny_config().to_dict() | {"crop": CROP.to_dict()})
        assert config.crop == CROP and ModelConfig.from_dict(config.to_dict()) == config

    def test_a_model_without_says_nothing_of_it(self) -> None:
        assert "crop" not in tiny_config().to_dict() and crop_for(tiny_config()) is None

    def test_a_crop_does_not_come_with_a_presets_name(self) -> None:
        """A model of own photographs that keeps the preset's name has other frames."""
        ours = replace(tiny_config(), name="celeba64")
        record = TrainingRecord("generator", 1, 1, 1.0, "2026-01-01", "2026-01-01", 1, 16)
        assert crop_for(ours) == CROPS["celeba64"]
        assert crop_for(replace(ours, training=(record,))) is None
        assert crop_for(replace(ours, training=(record,), crop=CROP)) == CROP

    @pytest.mark.parametrize(
        "change, said",
        [
            ({"left_eye": [0.7, 0.4]}, "left of right_eye"),
            ({"mouth": [0.5, 0.3]}, "below both"),
            ({"mouth": [0.5]}, r"must be \[x, y\]"),
            ({"right_eye": [1.2, 0.4]}, "must lie in"),
            ({"nose": [0.5, 0.5]}, "unknown keys"),
        ],
    )
    def test_impossible_faces_are_refused(self, change: dict, said: str) -> None:
        with pytest.raises(UserInputError, match=said):
            FaceCrop.from_dict(CROP.to_dict() | change)
