"""Guards: an animation has the frames of the chain in their order, ends with the image that
a call returns, lasts as long as was asked, and repeats; notebooks are shown bounded images.

Without it a viewer would show the first frame, a frame too few, or an image that no seed has.
"""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageSequence
from tiny import tiny_pipeline

from hebm_sample.errors import UserInputError
from hebm_sample.io.animation import HOLD, MAX_SECONDS, frame_times, save_animation
from hebm_sample.pipeline.outputs import SHOWN_IMAGES, SHOWN_SIDE, Samples, Trajectory

ENDINGS = (".gif", ".webp")


@pytest.fixture(scope="module")
def trajectory() -> Trajectory:
    return tiny_pipeline().trajectory(seeds=[3, 5, 8], steps=12, sampler="flow")


def difference(a: Image.Image, b: Image.Image) -> float:
    """Mean absolute difference, of 255."""
    pair = (np.asarray(x.convert("RGB"), dtype=float) for x in (a, b))
    return float(np.abs(np.subtract(*pair)).mean())


def test_it_ends_with_the_images_of_a_call(trajectory):
    samples = tiny_pipeline()(seeds=[3, 5, 8], steps=12, sampler="flow")
    assert len(trajectory) == len(trajectory.frames) == 12
    assert trajectory.samples.seeds == samples.seeds and trajectory.samples.level == 0
    for ours, theirs in zip(trajectory.samples.images, samples.images, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_the_grid_has_a_row_per_image(trajectory):
    grid = trajectory.grid()
    assert grid.size == (12 * 18 - 2, 3 * 18 - 2)
    for row, image in enumerate(trajectory.samples.images):
        box = (11 * 18, row * 18, 11 * 18 + 16, row * 18 + 16)
        assert grid.crop(box).tobytes() == image.tobytes()


def smooth(k: int) -> Image.Image:
    """An image that codecs keep: a slope in red and green, one blue a number."""
    rows, columns = np.mgrid[0:32, 0:32]
    colours = np.stack([6 * rows, 6 * columns, np.full_like(rows, 20 * k)], axis=-1)
    return Image.fromarray(colours.astype(np.uint8))


def path_of(images: list[Image.Image]) -> Trajectory:
    levels = reversed(range(len(images)))
    return Trajectory(
        tuple(Samples([p], (), None, (7,), level=t) for p, t in zip(images, levels, strict=True))
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_frames_times_and_loop(tmp_path, ending):
    images = [smooth(k) for k in range(12)]
    path = tmp_path / f"way{ending}"
    path_of(images).save(path, seconds=1.1, text={"seeds": "7"})
    with Image.open(path) as animation:
        assert animation.n_frames == 12 and animation.info["loop"] == 0
        assert animation.size == images[0].size
        frames, times = [], []
        for frame in ImageSequence.Iterator(animation):
            frames.append(frame.convert("RGB"))
            times.append(animation.info["duration"])
        note = animation.info.get("comment") or animation.getexif()[0x010E]
    assert times == [100] * 11 + [HOLD * 1000]
    assert json.loads(note) == {"seeds": "7"}
    for frame, own in zip(frames, images, strict=True):
        assert difference(frame, own) < 4  # neighbours are 20 / 3 apart


def test_the_files_are_of_the_trajectory(trajectory, tmp_path):
    trajectory.save(tmp_path / "way.gif")
    with Image.open(tmp_path / "way.gif") as animation:
        assert animation.n_frames == 12 and animation.size == trajectory.samples.grid().size


@pytest.mark.parametrize("name", ["way.gif", "way.webp", "way.png"])
def test_no_file_is_replaced_unasked(trajectory, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserInputError, match="is there already.*overwrite=True"):
        trajectory.save(tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"
    trajectory.save(tmp_path / name, overwrite=True)
    with Image.open(tmp_path / name) as written:
        assert written.format.lower() == name[4:]
    assert len(list(tmp_path.iterdir())) == 1


def test_the_grid_is_exact(trajectory, tmp_path):
    trajectory.save(tmp_path / "strip.png", text={"seeds": "3,5,8"})
    with Image.open(tmp_path / "strip.png") as grid:
        assert grid.tobytes() == trajectory.grid().tobytes()
        assert grid.text == {"seeds": "3,5,8"}


@pytest.mark.parametrize("count", [1, 2, 6, 48, 5000])
def test_frame_times_add_up(count):
    times = frame_times(count, 2.5)
    assert len(times) == count and times[-1] == HOLD * 1000
    assert all(t % 10 == 0 and t >= 20 for t in times)
    if 1 < count < 100:
        assert abs(sum(times[:-1]) - 2500) <= 5 * (count - 1)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), MAX_SECONDS + 1])
def test_impossible_times_are_refused(trajectory, tmp_path, seconds):
    with pytest.raises(UserInputError, match="above 0 and at most 600"):
        trajectory.save(tmp_path / "way.gif", seconds=seconds)
    assert not list(tmp_path.iterdir())


def test_impossible_files_are_refused(trajectory, tmp_path):
    with pytest.raises(UserInputError, match=r"end the name in .png, .jpg"):
        trajectory.save(tmp_path / "way.mp4")
    with pytest.raises(UserInputError, match="0 frames"):
        save_animation([], tmp_path / "way.gif")
    with pytest.raises(UserInputError, match=r"\.webp holds at most 16,383 on a side"):
        save_animation([Image.new("RGB", (16384, 1))], tmp_path / "wide.webp")
    assert not list(tmp_path.iterdir())


# Notebooks


def test_notebooks_show_the_grid(trajectory):
    samples = trajectory.samples
    with Image.open(io.BytesIO(samples._repr_png_())) as shown:
        assert shown.format == "PNG" and shown.tobytes() == samples.grid().tobytes()
    with Image.open(io.BytesIO(trajectory._repr_png_())) as shown:
        assert shown.tobytes() == trajectory.grid().tobytes()


def test_notebooks_are_shown_no_more_than_they_can_bear():
    count, size = 3 * SHOWN_IMAGES, 300
    images = [Image.new("RGB", (size, size), (i, 0, 0)) for i in range(count)]
    samples = Samples(images, (), None, tuple(range(0, 7 * count, 7)))
    with Image.open(io.BytesIO(samples._repr_png_())) as shown:
        assert max(shown.size) == SHOWN_SIDE
        pixels = np.asarray(shown)
        assert pixels[pixels[..., 1] == 0].max() == SHOWN_IMAGES - 1  # the gutter is white
    assert len(repr(samples)) < 100
    assert repr(samples).startswith(f"<Samples: {count} images, seeds 0,7,14,")


def test_what_they_are_called(trajectory):
    assert repr(trajectory.samples) == "<Samples: 3 images, seeds 3,5,8, level 0>"
    assert repr(trajectory).startswith("<Trajectory: 12 steps to <Samples: 3 images")
