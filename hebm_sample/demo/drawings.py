"""Images to click where a visitor has none at hand: faces and a house, drawn by code. Nobody's
face is among them, and no image of a data set.
"""

import io
import math
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

__all__ = ["DrawnFace", "drawings"]

_SIDE = 360  # of a drawn face, before it is put into its scene
_SCENE = (720, 540)

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class DrawnFace:
    """A face and its scene.

    Arguments:
        skin, hair, iris, cloth, sky: Colours.
        long: Whether the hair falls beside the face.
        place: Of the face's middle, in fractions of the scene.
        size: Of the face, in pixels.
        degrees: By how much it is turned.
    """

    skin: Colour
    hair: Colour
    iris: Colour
    cloth: Colour
    sky: Colour
    long: bool
    place: tuple[float, float]
    size: int
    degrees: float


_FACES = (
    DrawnFace(
        (226, 184, 158), (70, 46, 32), (84, 110, 130), (60, 88, 122), (168, 190, 204), True,
        (0.36, 0.53), 330, 9.0,
    ),
    DrawnFace(
        (150, 104, 78), (28, 22, 20), (58, 36, 24), (168, 78, 58), (206, 196, 170), False,
        (0.6, 0.55), 360, -12.0,
    ),
    DrawnFace(
        (238, 202, 178), (196, 158, 96), (92, 122, 92), (92, 110, 84), (120, 142, 150), False,
        (0.5, 0.52), 300, 4.0,
    ),
)  # fmt: skip


def drawings(faces: bool, places: bool) -> list[bytes]:
    """PNG files, the same each time: three faces that want aligning, and a church."""
    found = [_scene(face) for face in _FACES] if faces else []
    return [_png(image) for image in [*found, *([_church()] if places else [])]]


def _png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _mixed(colour: Colour, other: Colour, share: float) -> Colour:
    r, g, b = (round(x + share * (y - x)) for x, y in zip(colour, other, strict=True))
    return (r, g, b)


def _darker(colour: Colour, share: float = 0.3) -> Colour:
    return _mixed(colour, (20, 10, 10), share)


def _lighter(colour: Colour, share: float = 0.3) -> Colour:
    return _mixed(colour, (255, 246, 236), share)


class _Paint:
    """Soft shapes on an image, in units of a hundredth of its side."""

    def __init__(self, image: Image.Image) -> None:
        self.image, self.unit = image, image.width / 100

    def ellipse(
        self,
        middle: tuple[float, float],
        radii: tuple[float, float],
        colour: Colour,
        blur: float = 0.3,
        alpha: int = 255,
    ) -> None:
        """One with soft edges."""
        (x, y), (rx, ry) = middle, radii
        self._soft("ellipse", (x - rx, y - ry, x + rx, y + ry), colour, blur, alpha)

    def polygon(
        self,
        points: list[tuple[float, float]],
        colour: Colour,
        blur: float = 0.3,
        alpha: int = 255,
    ) -> None:
        """One with soft edges."""
        self._soft("polygon", tuple(v for p in points for v in p), colour, blur, alpha)

    def _soft(
        self, shape: str, numbers: tuple[float, ...], colour: Colour, blur: float, alpha: int
    ) -> None:
        mask = Image.new("L", self.image.size)
        getattr(ImageDraw.Draw(mask), shape)([v * self.unit for v in numbers], fill=alpha)
        mask = mask.filter(ImageFilter.GaussianBlur(blur * self.unit))
        self.image.paste(Image.new("RGB", self.image.size, colour), mask=mask)


def _scene(face: DrawnFace) -> Image.Image:
    """A photograph's size: sky, and the head turned in its place."""
    scene = Image.linear_gradient("L").resize(_SCENE).convert("RGB")
    scene = Image.blend(Image.new("RGB", _SCENE, face.sky), scene, 0.25)
    turn = {"angle": face.degrees, "resample": Image.Resampling.BICUBIC}
    head = _head(face).rotate(**turn, fillcolor=face.hair).resize((face.size, face.size))
    mask = _outline(face).rotate(**turn).resize((face.size, face.size))
    x, y = (round(p * s - face.size / 2) for p, s in zip(face.place, _SCENE, strict=True))
    scene.paste(head, (x, y), mask)
    paint, to_unit = _Paint(scene), 100 / _SCENE[0]
    aside = face.size / 2 * (1 + math.sin(math.radians(face.degrees)))
    foot = ((x + aside) * to_unit, (y + 0.93 * face.size) * to_unit + 24)
    paint.ellipse(foot, (29, 24), face.cloth, 0.6)
    return scene.filter(ImageFilter.GaussianBlur(0.6))


def _outline(face: DrawnFace) -> Image.Image:
    """What of the square is head, hair and neck."""
    shape = _Paint(Image.new("RGB", (_SIDE, _SIDE)))
    white = (255, 255, 255)
    shape.ellipse((50, 46), (35, 41), white, 0.5)
    shape.polygon([(38, 70), (62, 70), (66, 100), (34, 100)], white, 0.6)
    if face.long:
        shape.ellipse((50, 58), (37, 42), white, 0.5)
    return shape.image.convert("L")


def _head(face: DrawnFace) -> Image.Image:
    paint = _Paint(Image.new("RGB", (_SIDE, _SIDE), face.hair))
    paint.ellipse((42, 20), (16, 10), _lighter(face.hair, 0.25), 5, 150)
    shadow = _darker(face.skin, 0.35)
    paint.polygon([(37, 66), (63, 66), (66, 100), (34, 100)], shadow, 1)
    paint.ellipse((50, 52), (27, 35), face.skin, 0.8)
    paint.ellipse((66, 56), (10, 26), shadow, 5, 110)
    paint.ellipse((42, 34), (14, 8), _lighter(face.skin, 0.4), 5, 140)
    for side in (-1, 1):
        paint.ellipse((50 + 16 * side, 62), (6, 5), _mixed(face.skin, (200, 80, 70), 0.4), 3, 110)
        _eye(paint, face, 50 + 12 * side)
    _nose_and_mouth(paint, face)
    return paint.image


def _eye(paint: _Paint, face: DrawnFace, x: float) -> None:
    shadow = _darker(face.skin, 0.4)
    paint.ellipse((x, 46.2), (8, 4.6), shadow, 1.6, 150)
    paint.ellipse((x, 47), (5.6, 2.9), (244, 240, 234), 0.3)
    paint.ellipse((x, 46.8), (2.7, 2.8), face.iris, 0.25)
    paint.ellipse((x, 46.8), (1.3, 1.4), (12, 10, 10), 0.2)
    paint.ellipse((x + 0.9, 45.9), (0.6, 0.6), (255, 255, 255), 0.1)
    lid = [
        (x + 6 * math.cos(t), 46.6 - 3.3 * math.sin(t)) for t in (0, 0.5, 1, 1.57, 2.1, 2.6, 3.14)
    ]
    below = [(px, py + 1.1) for px, py in reversed(lid)]
    paint.polygon(lid + below, _darker(face.hair, 0.4), 0.25)
    brow = [
        (x - 7, 40.5),
        (x - 2, 38.4),
        (x + 3, 38.4),
        (x + 7, 40.5),
        (x + 3, 40.2),
        (x - 2, 40.2),
    ]
    paint.polygon(brow, _darker(face.hair, 0.2), 0.5)


def _nose_and_mouth(paint: _Paint, face: DrawnFace) -> None:
    shadow, lips = _darker(face.skin, 0.4), _mixed(face.skin, (168, 52, 58), 0.62)
    paint.ellipse((53, 54), (2, 9), shadow, 1.8, 120)
    paint.ellipse((49.4, 55), (1.6, 8), _lighter(face.skin, 0.45), 1.4, 150)
    paint.ellipse((50, 62), (5.4, 3), shadow, 1.2, 120)
    paint.ellipse((49.6, 60.6), (3.4, 2.8), _lighter(face.skin, 0.25), 1.2, 170)
    for side in (-1, 1):
        paint.ellipse((50 + 2.7 * side, 63.2), (1.2, 0.8), _darker(face.skin, 0.75), 0.4)
    paint.polygon(
        [(39.5, 71.6), (47, 69.4), (50, 70.2), (53, 69.4), (60.5, 71.6), (50, 73)], lips, 0.5
    )
    paint.polygon(
        [(40, 72), (50, 73), (60, 72), (54, 76.6), (46, 76.6)], _lighter(lips, 0.12), 0.6
    )
    paint.polygon([(39.5, 71.6), (50, 72.6), (60.5, 71.6), (50, 73.6)], _darker(lips, 0.6), 0.3)
    paint.ellipse((50, 80.4), (6, 1.6), shadow, 1.4, 110)


def _church() -> Image.Image:
    """A church under a sky, for models of places."""
    scene = Image.linear_gradient("L").resize((480, 480)).convert("RGB")
    paint = _Paint(Image.blend(Image.new("RGB", (480, 480), (120, 160, 206)), scene, 0.35))
    paint.ellipse((26, 20), (16, 5), (246, 246, 248), 2.5, 200)
    paint.ellipse((72, 28), (20, 5), (246, 246, 248), 2.5, 180)
    paint.polygon(
        [(0, 80), (30, 74), (70, 76), (100, 72), (100, 100), (0, 100)], (92, 124, 62), 0.8
    )
    stone, roof = (206, 192, 168), (112, 66, 52)
    paint.polygon([(34, 50), (86, 50), (86, 82), (34, 82)], stone, 0.3)
    paint.polygon([(30, 51), (40, 36), (82, 36), (90, 51)], roof, 0.3)
    paint.polygon([(18, 34), (36, 34), (36, 82), (18, 82)], _darker(stone, 0.15), 0.3)
    paint.polygon([(15, 35), (27, 8), (39, 35)], _darker(roof, 0.2), 0.3)
    for x in (44, 55, 66, 77):
        paint.polygon(
            [(x - 2, 74), (x - 2, 60), (x, 56), (x + 2, 60), (x + 2, 74)], (52, 58, 72), 0.3
        )
    paint.polygon([(24, 82), (24, 70), (27, 66), (30, 70), (30, 82)], (70, 48, 36), 0.3)
    paint.ellipse((27, 45), (3, 3), (52, 58, 72), 0.3)
    return paint.image.filter(ImageFilter.GaussianBlur(0.8))
