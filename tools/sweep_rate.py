"""Which KL weights? Short fine-tunes of a model at several rates, compared by their samples.

    python tools/sweep_rate.py celebahq-64 --data DATA --out sweeps/faces \\
        --weights 5 --weights 6,10,18 --weights 8,14,24 --steps 1100,900,500

A candidate is one number, or one per scale or group, coarse to fine. From the model that there is,
each has its generator fine-tuned at these weights, then its energies, then a sharp decoder, for
equal steps; then 2 n held-out images measure it (`hebm_sample/evaluation/distances.py`).

What decides is the Fréchet distance of samples to held-out images: the gap closed, or the bits,
compare a generator with itself only. A low rate is easier for a prior and blurs reconstructions,
which the decoder makes up for in part; so it is trained before anything is measured. Weights a
group are those of Luhman and Luhman, "Optimizing Hierarchical Image VAEs for Sample Quality"
(arXiv 2210.10205).

OUT/CANDIDATE/ holds its runs, which resume, and its measurement, which is made once;
OUT/sweep.json and OUT/sweep.md are written anew after each. The table is printed at the end.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np

from hebm_sample import __version__
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.trained import load_model
from hebm_sample.config import GeneratorConfig
from hebm_sample.data.dataset import ImageDataset, load_images
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.context import fingerprint
from hebm_sample.evaluation.distances import feature_spaces, make_context, measure
from hebm_sample.generator.hierarchy import HierarchicalGenerator
from hebm_sample.io.files import mark_run_folder, write_atomically
from hebm_sample.io.kept import keep_json, kept_json
from hebm_sample.metrics import extract
from hebm_sample.metrics.quality import measure_quality
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.models import find_preset
from hebm_sample.presets.preset import Preset
from hebm_sample.presets.settings import TrainSettings
from hebm_sample.training.checkpoint import latest_checkpoint
from hebm_sample.training.decoding.train import train_decoder
from hebm_sample.training.elbo import group_weights
from hebm_sample.training.overrides import changed
from hebm_sample.training.train import train_generator, train_prior
from hebm_sample.training.trainer import make_accelerator

FORMAT_VERSION = 1
WARM_UP = 50  # of a short training: a long one's would be most of it
MOST_SAMPLES = 1000  # that a decoder is trained on: more would take longer than its steps
DEAD = 1.0  # nats: a group with fewer says nothing
KINDS = ("generator", "prior", "decoder")


@dataclass(frozen=True)
class Sweep:
    """What all candidates have in common.

    Arguments:
        model: What they are fine-tuned from.
        preset: With the settings of short runs.
        images: All rows.
        out: The sweep's folder.
        count: Images per side of a measurement.
        accelerator: accelerate's engine.
    """

    model: Pipeline
    preset: Preset
    images: ImageDataset
    out: Path
    count: int
    accelerator: Any
    show: bool = True

    @cached_property
    def rows(self) -> tuple[ImageDataset, ImageDataset]:
        """Training rows, and 2 n of those held out."""
        training, held_out = self.images.split(self.preset.generator_settings.validation)
        if len(held_out) < 2 * self.count:
            raise UserInputError(
                f"{self.count} images per side were asked for; {len(held_out)} held-out ones "
                f"allow {len(held_out) // 2}"
            )
        return training, held_out.some(2 * self.count)

    @cached_property
    def spaces(self) -> dict[str, Any]:
        """Feature spaces, the deciding one first."""
        return feature_spaces(self.rows[0], model=self.model.name, progress=self.show)

    @property
    def warm(self) -> bool:
        """Whether the model has energies to start from."""
        own, wanted = self.model.config.prior, self.preset.prior
        return own is not None and all(
            getattr(own, f.name) == getattr(wanted, f.name)
            for f in fields(wanted)
            if f.name not in ("levels", "symbols")  # which may differ
        )

    def folder(self, weights: tuple[float, ...]) -> Path:
        """A candidate's, by its weights and all that its runs depend on."""
        preset = self.preset
        key = [weights, fingerprint(self.model, encoder=True), self.images.identity]
        key += [getattr(preset, f"{kind}_settings").to_dict() for kind in KINDS]
        key += [preset.decoder.to_dict(), preset.prior.to_dict(), preset.sampling.to_dict()]
        key += [preset.symbol_weight, preset.condition_share, preset.chain_steps, self.warm]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]
        return self.out / f"{'-'.join(f'{w:g}' for w in weights)}-{digest}"

    def trained(self, weights: tuple[float, ...]) -> Pipeline:
        """The candidate's model: its runs are made, or gone on with, or there already."""
        folder, base = self.folder(weights), self.model
        preset = replace(self.preset, kl_weight=_plain(weights))
        if not _done(folder / "1-generator"):
            train_generator(
                preset, self.images, folder / "1-generator", init=base, **self._how(folder, 1)
            )
        if not _done(folder / "2-prior"):
            train_prior(
                preset,
                _model(folder / "1-generator"),
                self.images,
                folder / "2-prior",
                init=base if self.warm else None,
                **self._how(folder, 2),
            )
        if not _done(folder / "3-decoder"):
            train_decoder(
                preset,
                _model(folder / "2-prior"),
                self.images,
                folder / "3-decoder",
                **self._how(folder, 3),
            )
        return _model(folder / "3-decoder")

    def _how(self, folder: Path, number: int) -> dict[str, Any]:
        run = folder / f"{number}-{KINDS[number - 1]}"
        return {
            "resume": latest_checkpoint(run) is not None,
            "accelerator": self.accelerator,
            "show_progress": self.show,
        }

    def row(self, weights: tuple[float, ...]) -> dict[str, Any]:
        """A candidate's figures: those kept, or measured now and kept."""
        path = self.folder(weights) / f"measured-{self.count}.json"
        if (kept := kept_json(path)) is not None:
            return kept
        pipe = self.trained(weights).to(self.accelerator.device)
        context = make_context(
            pipe, *self.rows, num_images=self.count, folder=path.parent, progress=self.show
        )
        found = measure(context, self.spaces)
        row = {
            "weights": list(weights),
            "kl": found.kl,
            "bits": found.bits,
            "distances": {space: _distances(found, space) for space in self.spaces},
        }
        keep_json(path, row)
        return row

    def real(self) -> dict[str, float]:
        """The distance of other held-out images to those that all is measured against."""
        rows = self.rows[1].images
        found = {}
        for name, (net, _) in self.spaces.items():
            sides = [
                extract(net, np.asarray(part))
                for part in (rows[: self.count], rows[self.count : 2 * self.count])
            ]
            found[name] = measure_quality(*sides).frechet.value
        return found


def _plain(weights: tuple[float, ...]) -> float | tuple[float, ...]:
    """One number where there is one: it counts for all groups."""
    return weights if len(weights) > 1 else sum(weights)


def _done(run: Path) -> bool:
    return (run / "model" / "weights_manifest.json").exists()


def _model(run: Path) -> Pipeline:
    return Pipeline.from_pretrained(run / "model", device="cpu")


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _distances(found: Any, space: str) -> dict[str, float]:
    gap, quality = found.gaps[space], found.quality[space]["ebm"].to_dict()
    return {
        "samples": gap.fd_model,
        "samples_error": gap.fd_model_error,
        "reconstructions": gap.fd_recon,
        "gaussian": gap.fd_gauss,
        "recall": quality.get("recall", math.nan),
    }


def table(rows: Sequence[dict[str, Any]], real: dict[str, float], scales: Sequence[int]) -> str:
    """The sweep in Markdown; the nearest samples of each space in bold.

    Arguments:
        rows: Of `Sweep.row`.
        real: Of `Sweep.real`.
        scales: Groups of each scale, for the KL's sums.
    """
    spaces = list(real)
    head = ["KL weights", "nats per scale", "nats", "bits"]
    head += [f"{what} ({i})" for i in range(1, len(spaces) + 1) for what in _COLUMNS]
    best = {s: min(rows, key=lambda row: _samples(row, s))["weights"] for s in spaces}
    lines = [head, ["---"] * len(head)]
    lines += [[*_rate_cells(row, scales), *_cells(row, best)] for row in rows]
    rest = [""] * (len(_COLUMNS) - 1)
    own = [cell for s in spaces for cell in (f"{real[s]:.3g}", *rest)]
    lines.append(["other real images", "", "", "", *own])
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([*text, "", *(f"({i}) {s}" for i, s in enumerate(spaces, 1))])


def _samples(row: dict[str, Any], space: str) -> float:
    return row["distances"][space]["samples"]


_COLUMNS = ("samples", "reconstructions", "N(0, I)", "recall")


def _rate_cells(row: dict[str, Any], scales: Sequence[int]) -> list[str]:
    kl, sums, start = row["kl"], [], 0
    for count in scales:
        part = kl[start : start + count]
        dead = sum(v < DEAD for v in part)
        sums.append(f"{sum(part):.0f}" + (f" ({dead} dead)" if dead else ""))
        start += count
    weights = ", ".join(f"{w:g}" for w in row["weights"])
    return [weights, " / ".join(sums), f"{sum(kl):.0f}", f"{row['bits']:.3f}"]


def _cells(row: dict[str, Any], best: dict[str, list[float]]) -> list[str]:
    cells = []
    for space, found in row["distances"].items():
        shown = f"{found['samples']:.3g} ± {found['samples_error']:.2g}"
        bold = row["weights"] == best[space]
        cells.append(f"**{shown}**" if bold else shown)
        cells += [f"{found[k]:.3g}" for k in ("reconstructions", "gaussian", "recall")]
    return cells


def _numbers(_: Any, option: click.Parameter, texts: Any) -> Any:
    """Comma-separated numbers above 0."""
    several = isinstance(texts, tuple)
    found = []
    for text in texts if several else (texts,):
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        if not numbers or not all(0 < n < 1e6 for n in numbers):
            raise click.BadParameter(f"{text!r}; write numbers above 0, such as 8,14,24")
        found.append(numbers)
    return tuple(dict.fromkeys(found)) if several else found[0]


def _short(preset: Preset, steps: Sequence[float]) -> Preset:
    """The preset with runs of so many steps, of which the last weights are kept."""

    def cut(settings: TrainSettings, count: float) -> TrainSettings:
        warm_up = min(settings.warmup_steps, WARM_UP)
        return replace(
            settings,
            steps=int(count),
            time_budget=None,
            warmup_steps=warm_up,
            evaluate_every=0,
            patience=0,
        )

    runs = {
        f"{kind}_settings": cut(getattr(preset, f"{kind}_settings"), count)
        for kind, count in zip(KINDS, steps, strict=True)
    }
    samples = min(preset.decoder.samples, MOST_SAMPLES)
    return replace(preset, **runs, decoder=replace(preset.decoder, samples=samples))


def _base(preset: Preset, name: str | None) -> Pipeline:
    """The model to fine-tune, without a sharp decoder: that of another rate is of no use."""
    size = preset.generator.image_size
    if name is None:
        found = Pipeline.from_pretrained(preset.model_name, resolution=size, device="cpu")
    else:
        found = load_model(name)
    described = found.config.generator
    if isinstance(described, GeneratorConfig):
        described = described.without_sharp_decoder
    if described != preset.generator:
        raise UserInputError(f"{found.name} has another generator than preset {preset.name}")
    generator = HierarchicalGenerator(preset.generator)
    known = found.generator.state_dict().items()
    generator.load_state_dict({k: v for k, v in known if not k.startswith("sharp.")})
    config = replace(found.config, generator=described)
    return Pipeline(config, generator, found.prior, found.encoder)


def run(sweep: Sweep, candidates: Sequence[tuple[float, ...]]) -> str:
    """Train and measure all candidates; returns the table, which is written after each."""
    rows, scales = [], [s.groups for s in sweep.preset.generator.scales]
    text = ""
    for weights in candidates:
        click.echo(f"KL weights {', '.join(f'{w:g}' for w in weights)}", err=True)
        rows.append(sweep.row(weights))
        text = table(rows, real := sweep.real(), scales)
        results = {
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "model": sweep.model.name,
            "num_images": sweep.count,
            "steps": [getattr(sweep.preset, f"{kind}_settings").steps for kind in KINDS],
            "real": real,
            "candidates": rows,
        }
        write_atomically(sweep.out / "sweep.json", _json(results))
        write_atomically(sweep.out / "sweep.md", (text + "\n").encode())
    return text


@click.command(cls=OneLineErrors)
@click.argument("preset")
@click.option("--data", required=True, help="What the preset is trained on.")
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--weights", multiple=True, required=True, callback=_numbers, metavar="W[,W...]")
@click.option("--model", help="To fine-tune.  [default: the preset's own]")
@click.option("--steps", default="1100,900,500", show_default=True, callback=_numbers)
@click.option("--set", "changes", type=(click.Choice(KINDS), str), multiple=True)
@click.option("-n", "count", type=click.IntRange(10), default=1000, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--quiet", is_flag=True)
def main(
    preset: str, data: str, out: Path, weights: Sequence[tuple[float, ...]], **options: Any
) -> None:
    """Compare KL weights for PRESET by the samples of short fine-tunes."""
    if len(options["steps"]) != 3:
        raise UserInputError("--steps takes three numbers, of generator, energies and decoder")
    found = find_preset(preset)
    for kind, change in options["changes"]:
        found = changed(found, kind, [change])
    for candidate in weights:  # a wrong number of them is known before anything is trained
        group_weights(found.generator, _plain(candidate))
    size = found.generator.image_size
    model = _base(found, options["model"])
    show, accelerator = not options["quiet"], make_accelerator(options["device"])
    images = load_images(data, size=size, progress=show)
    out.mkdir(parents=True, exist_ok=True)
    mark_run_folder(out)
    found = _short(found, options["steps"])
    click.echo(run(Sweep(model, found, images, out, options["count"], accelerator, show), weights))


if __name__ == "__main__":
    main()
