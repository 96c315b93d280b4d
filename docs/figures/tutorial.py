"""The tutorial's images: its blocks are run, and what they save is kept, enlarged twice.

    python docs/figures/tutorial.py                # into docs/images/tutorial
    python docs/figures/tutorial.py --outputs      # and what the blocks print, into the page

The plot of energies shows the values that the blocks have computed. Needs the extra
`eval`; takes about a minute on two cores.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
from pages import run_page, with_outputs
from PIL import Image

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

PAGE = Path(__file__).resolve().parents[1] / "tutorial.md"
OUT = PAGE.parent / "images" / "tutorial"


def keep(source: Path, target: Path) -> None:
    """An image of small samples, twice as large, pixel by pixel."""
    with Image.open(source) as image:
        size = (2 * image.width, 2 * image.height)
        image.convert("RGB").resize(size, Image.Resampling.NEAREST).save(target, optimize=True)


def plot_energies(names: dict[str, Any]) -> None:
    """Histograms of -F."""
    figure, axis = plt.subplots(figsize=(6.8, 2.2), dpi=80)
    for values, label in ((names["low"], "energy-based prior"), (names["high"], "N(0, I)")):
        axis.hist(values.numpy(), bins=24, alpha=0.7, label=label)
    axis.set(xlabel="energy -F", yticks=[])
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(OUT / "energies.png", metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        ran = run_page(PAGE, Path(folder))
        for image in sorted(Path(folder).glob("*.png")):
            keep(image, OUT / image.name)
    plot_energies(ran.names)
    if "--outputs" in sys.argv[1:]:
        PAGE.write_text(with_outputs(PAGE, ran.outputs), encoding="utf-8")


if __name__ == "__main__":
    main()
