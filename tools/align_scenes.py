"""Photograph-like scenes of held-out faces, aligned: how near eyes land to where the model's data
have them.

    python tools/align_scenes.py celebahq --data SOURCE -n 50

Each scene is 1200 x 800, with a face pasted off-centre, 180 to 330 pixels wide and turned by 15
degrees to either side. Eyes are found in the face's own image before it is pasted, and followed
through the scene into the crop (followed); and found in the crop (found). Both are the farther of
the two eyes, as a fraction of the crop's side. Needs the extras `train` and `align`.
"""

import argparse
import math

import numpy as np
from PIL import Image

from hebm_sample.align.aligner import align, crop_points, placed
from hebm_sample.align.geometry import Similarity, paste
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.distances import open_held_out
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.crops import crop_for

WIDTH, HEIGHT, DEGREES, LIMIT = 1200, 800, 15.0, 0.03


def scene(face: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Similarity]:
    """A photograph-like image with the face in it, and the way from the face's unit square."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    colours = [60 + 80 * x / WIDTH, 90 + 60 * y / HEIGHT, 120 + 40 * np.sin(x / 90 + y / 70)]
    grain = rng.normal(0, 6, (HEIGHT, WIDTH, 1))
    behind = Image.fromarray((np.stack(colours, -1) + grain).clip(0, 255).astype(np.uint8))
    side, turn = rng.uniform(180, 330), math.radians(DEGREES * rng.choice([-1, 1]))
    a = side * complex(math.cos(turn), math.sin(turn))
    middle = complex(rng.uniform(250, WIDTH - 250), rng.uniform(240, HEIGHT - 240))
    there = Similarity(a, middle - a * (0.5 + 0.5j))
    return paste(behind, face, there.inverse(), 0.05), there


def eye_distances(points: np.ndarray | None, target: np.ndarray) -> float:
    """The farther eye of points (3, 2); infinite where there is no face."""
    if points is None:
        return math.inf
    return float(np.linalg.norm(points[:2] - target[:2], axis=1).max())


def measure(faces: list[Image.Image], pipe: Pipeline) -> np.ndarray:
    """(N, 3): in the face's own image, followed, and found."""
    crop, rng, rows = crop_for(pipe.config), np.random.default_rng(0), []
    if crop is None:
        raise SystemExit(f"{pipe.name} states no face crop")
    target, side = crop_points(crop), pipe.config.generator.image_size
    for face in faces:
        photo, there = scene(face, rng)
        own = placed(face)
        try:
            aligned = align(photo, crop, side)
        except UserInputError:  # no face was found: a miss in all that follows
            rows.append([eye_distances(own, target), math.inf, math.inf])
            continue
        followed = None if own is None else aligned.to_crop(there(own))
        found = placed(aligned.image)
        rows.append([eye_distances(points, target) for points in (own, followed, found)])
    return np.array(rows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", help="name or folder")
    parser.add_argument("--data", required=True, help="what it was trained on")
    parser.add_argument("-n", type=int, default=50, help="scenes")
    options = parser.parse_args()
    pipe = Pipeline.from_pretrained(options.model, device="cpu")
    size = pipe.config.generator.image_size
    _, held_out = open_held_out(options.data, size=size, model=pipe.name)
    faces = [Image.fromarray(x.transpose(1, 2, 0)) for x in held_out.images[: options.n]]
    rows = measure(faces, pipe)
    print("eyes beside where the data have them, of the side   median   90%   largest   within 3%")
    for name, column in zip(("in the face's own image", "followed", "found"), rows.T, strict=True):
        figures = np.quantile(column, [0.5, 0.9, 1.0], method="higher")  # a miss is infinite
        within = int((column <= LIMIT).sum())
        print(f"{name:30} {' '.join(f'{v:.4f}' for v in figures)} {within} of {len(column)}")


if __name__ == "__main__":
    main()
