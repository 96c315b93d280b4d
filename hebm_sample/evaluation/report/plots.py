"""A report's figures, drawn with matplotlib (extra [eval]) into files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hebm_sample.io.extras import import_extra

__all__ = ["bars", "histograms", "lines", "scatter_named", "scatter_pairs"]

WIDTH, HEIGHT = 6.4, 3.6
DPI = 120


def _figure(path: Path, rows: int, columns: int, draw: Callable[[Any], None], **size: Any) -> None:
    """Draw into a grid of axes, (rows, columns), and save."""
    shape = size.get("size", (WIDTH * columns, HEIGHT * rows))
    figure = import_extra("matplotlib.figure", "eval").Figure(figsize=shape, layout="constrained")
    draw(figure.subplots(rows, columns, squeeze=False))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the date the same figures are the same bytes.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def lines(
    path: Path,
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]],
    *,
    x: str,
    y: str,
    level: float | None = None,
    markers: bool = True,
) -> None:
    """A panel a title, in it a line (xs, ys) a name; with a dotted line at `level`."""

    def draw(axes: Any) -> None:
        for axis, (title, named) in zip(axes.flat, panels.items(), strict=True):
            for name, (xs, ys) in named.items():
                axis.plot(xs, ys, marker="o" if markers else None, markersize=4, label=name)
            if level is not None:
                axis.axhline(level, color="grey", linestyle=":", linewidth=1)
            axis.set(title=title, xlabel=x, ylabel=y)
            if all(isinstance(xs, range) for xs, _ in named.values()):
                axis.xaxis.get_major_locator().set_params(integer=True)
            axis.legend(fontsize=8)

    _figure(path, 1, len(panels), draw)


def bars(
    path: Path,
    points: Mapping[str, tuple[float, float | None]],
    *,
    x: str,
    y: str,
    levels: Mapping[str, float],
    colours: Sequence[str] = ("#88aacc",),
) -> None:
    """Values with their standard errors by name, from 0, with a dotted line a named level.

    Arguments:
        colours: Of the bars, in turn.
    """

    def draw(axes: Any) -> None:
        axis = axes[0, 0]
        heights = [value for value, _ in points.values()]
        errors = [error or 0.0 for _, error in points.values()]
        shades = [colours[i % len(colours)] for i in range(len(points))]
        axis.bar(range(len(points)), heights, yerr=errors, width=0.6, capsize=3, color=shades)
        axis.set_xticks(range(len(points)), list(points))
        for name, value in levels.items():
            axis.axhline(value, color="grey", linestyle=":", linewidth=1)
            axis.annotate(
                name,
                (1, value),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 2),
                textcoords="offset points",
                ha="right",
                fontsize=8,
                bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
            )
        axis.set(xlabel=x, ylabel=y)

    _figure(path, 1, 1, draw)


def histograms(
    path: Path, panels: Mapping[str, Mapping[str, np.ndarray]], *, bins: int = 50
) -> None:
    """A panel a quantity, in it the distribution of each named set over the range of all."""

    def draw(axes: Any) -> None:
        for axis, (title, named) in zip(axes.flat, panels.items(), strict=True):
            low, high = np.quantile(np.concatenate(list(named.values())), [0.002, 0.998])
            edges = np.linspace(low, max(high, low + 1e-12), bins + 1)
            for name, values in named.items():
                axis.hist(
                    np.clip(values, low, high), edges, density=True, histtype="step", label=name
                )
            axis.set(xlabel=title, yticks=[])
            axis.legend(fontsize=8)

    _figure(path, 1, len(panels), draw)


def scatter_named(
    path: Path,
    points: Mapping[str, tuple[float, float, float | None]],
    *,
    x: str,
    y: str,
) -> None:
    """A point (x, y, standard error of y) a name; x is logarithmic."""

    def draw(axes: Any) -> None:
        axis = axes[0, 0]
        for name, (across, up, error) in points.items():
            axis.errorbar([across], [up], yerr=[error or 0.0], marker="o", capsize=3, label=name)
        axis.set(xlabel=x, ylabel=y, xscale="log")
        axis.legend(fontsize=7)

    _figure(path, 1, 1, draw)


def scatter_pairs(
    path: Path,
    named: Mapping[str, np.ndarray],
    pairs: Sequence[tuple[int, int]],
    labels: Sequence[str],
    *,
    most: int = 1000,
) -> None:
    """A row a pair of columns and a column a set of points, all on one scale."""

    def draw(axes: Any) -> None:
        for row, (i, j) in zip(axes, pairs, strict=True):
            for axis, (name, points) in zip(row, named.items(), strict=True):
                axis.plot(points[:most, i], points[:most, j], ".", markersize=2, alpha=0.5)
                axis.set(
                    title=name, xlim=(-4, 4), ylim=(-4, 4), xlabel=labels[i], ylabel=labels[j]
                )
                axis.set_aspect("equal")

    _figure(path, len(pairs), len(named), draw, size=(3.2 * len(named), 3.2 * len(pairs)))
