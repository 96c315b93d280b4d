"""Takes the images of docs/demo.md: the page in a browser, at two widths.

    python docs/figures/demo_screenshots.py

Needs the extra `demo`, selenium, and Debian's chromium and chromium-driver. The faces are drawn by
the model; none is of a data set.
"""

import io
import sys
from pathlib import Path

import click
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
sys.path.insert(0, str(ROOT / "tests"))

from demo import browser  # noqa: E402  (a part of the tests)


@click.command()
@click.option("--dataset", default="celebahq", show_default=True)
@click.option("--seeds", default="0-4", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=IMAGES, show_default=True)
def main(dataset: str, seeds: str, out: Path) -> None:
    with browser.serve("--dataset", dataset) as address:
        for width, height in ((1280, 960), (390, 1560)):
            with browser.visitor(address, (width, height)) as visitor:
                take(visitor, seeds, out / f"demo-{width}.png")


def take(visitor: browser.Visitor, seeds: str, path: Path) -> None:
    """Smiling faces, one of them large, its lines opened."""
    visitor.choose("#hebm-draw-target-6", "yes")
    visitor.write("#hebm-seeds :is(input, textarea)", seeds)
    visitor.do("#hebm-draw")
    visitor.click("[data-pick='1']")
    visitor.until(
        lambda: visitor.js("return document.querySelector('[data-pick=\"1\"][aria-pressed=true]')")
    )
    visitor.lines("python")
    visitor.js("window.scrollTo(0, 0); document.activeElement.blur()")
    with Image.open(io.BytesIO(visitor.driver.get_screenshot_as_png())) as shot:
        shot.convert("RGB").save(path, optimize=True)
    print(path, shot.size, path.stat().st_size)


if __name__ == "__main__":
    main()
