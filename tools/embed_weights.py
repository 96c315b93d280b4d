"""Put a measured model folder into the package: its weights, and a row of the manifest.

    hebm-train export --run runs/prior --out model
    hebm-train evaluate model --data DATA --json figures.json
    hebm-train evaluate model --data DATA --control --json control.json
    python tools/embed_weights.py model --figures figures.json --control control.json \
        --licence "..." --notes FILE

Or, in place of the two calls of `evaluate`, both from one report:

    hebm-eval report model --data DATA --out report
    python tools/embed_weights.py model --figures report/results.json \
        --control report/results.json --licence "..." --notes FILE

The card's table of figures is made from the JSON files, so that no figure is typed by hand. Files
that another embedded model has too, such as the energies of another resolution, are kept once; the
largest resolution of a name is its default.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hebm_sample.config import LangevinConfig, ModelConfig
from hebm_sample.evaluation.control_results import STEERING_GUIDANCE
from hebm_sample.evaluation.control_results import steering as which_steer
from hebm_sample.hub.card import NOT_PICKED, SAMPLES_NAME, card_for, model_card
from hebm_sample.hub.manifest import (
    KNOWN_FILES,
    MANIFEST_NAME,
    WEAK,
    FileRow,
    Manifest,
    ModelRow,
    read_row,
    write_manifest,
    write_row,
)
from hebm_sample.io.files import sha256_of
from hebm_sample.pipeline.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "hebm_sample" / "weights"


def headline(measured: dict[str, Any]) -> dict[str, Any]:
    """The figures of card and manifest out of what `hebm-train evaluate --json` wrote."""
    if not measured.get("gaps"):
        raise click.ClickException("the figures have no gap; measure with --data")
    space, gap = next(iter(measured["gaps"].items()))
    if gap["gap_closed"] is None:
        raise click.ClickException(
            f"there is no gap to close in {space}: N(0, I) is no further from the data than "
            "reconstructions are"
        )
    return {
        "gap_closed": round(gap["gap_closed"], 3),
        "gap_closed_error": round(gap["gap_closed_error"], 3),
        "features": space,
        "fd_reconstruction": round(gap["fd_recon"], 3),
        "fd_gaussian_prior": round(gap["fd_gauss"], 3),
        "fd_ebm_prior": round(gap["fd_model"], 3),
        "images_per_side": gap["num_images"],
        "bits_a_dimension_gaussian_prior_elbo": round(measured["bits"], 3),
        "kl_a_group_nats": [round(v, 1) for v in measured["kl"]],
        "sampler": LangevinConfig.from_dict(measured["sampling"]).words,
    }


def steering(measured: dict[str, Any]) -> dict[str, Any]:
    """Of `hebm-train evaluate --control --json`: how often the classifier predicts the
    target values, by guidance, "0" without a condition; and which variables steer.
    """
    found, bounds = {}, {}
    for name, variable in measured["variables"].items():
        if len(variable["asked"]) > 1:
            found[name] = variable["found"]
            accuracy = variable["reconstructed"]["accuracy"]
            bounds[f"judge's accuracy on reconstructions, {name}"] = round(accuracy, 2)
            continue
        (asked,) = variable["asked"]
        found[_spelt(asked["symbols"])] = asked["found"]
    for asked in measured["combinations"]:
        found[_spelt(asked["symbols"])] = asked["found"]
    shares = {
        f"judge finds {name}, by guidance": ", ".join(
            f"{g}: {s['share']:.2f}" for g, s in by_guidance.items()
        )
        for name, by_guidance in found.items()
    }
    known = which_steer(measured)
    names = {
        f"steers at guidance {STEERING_GUIDANCE:g}": [n for n, strong in known.items() if strong],
        WEAK: [n for n, strong in known.items() if not strong],
    }
    return shares | bounds | {title: ", ".join(those) for title, those in names.items() if those}


def _spelt(symbols: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in symbols.items())


def with_defaults(rows: list[ModelRow]) -> list[ModelRow]:
    """The rows, largest resolution first and default among those of a name."""
    rows = sorted(rows, key=lambda row: (row.name, -row.resolution))
    sides = {row.name: row.resolution for row in reversed(rows)}
    return [replace(row, default=row.resolution == sides[row.name]) for row in rows]


def holders(name: str, file: FileRow, rows: list[ModelRow]) -> list[Path]:
    """Folders of embedded models in which a file of this name and content lies."""
    folders = [WEIGHTS / row.folder for row in rows if row.folder is not None]
    return [
        folder
        for folder in folders
        if (folder / name).is_file() and sha256_of(folder / name) == file.sha256
    ]


def figures_of(file: Path, part: str) -> dict[str, Any]:
    """What `hebm-train evaluate --json` wrote, or that part of a report's results."""
    found = json.loads(file.read_text())
    if "parts" not in found:
        return found
    if part not in found["parts"]:
        raise click.ClickException(f"the report {file} has no part {part}; measure it, too")
    return found["parts"][part] | {"weights": found["weights"]}


def refuse_to_lose(model: Path, folder: Path, rows: list[ModelRow]) -> None:
    """Raise if another model shares a file of `folder` that `model` would replace."""
    for row in rows:
        lost = [
            name
            for name, file in row.files.items()
            if holders(name, file, rows) == [folder] and sha256_of(model / name) != file.sha256
        ]
        if row.folder not in (None, folder.name) and lost:
            raise click.ClickException(
                f"{row.folder} shares {', '.join(lost)} with {folder.name}, which would be "
                f"replaced; first embed a new {row.folder}, one that goes with {model.name}"
            )


def refuse_other_weights(model: Path, folder: Path, file: Path, measured: dict[str, Any]) -> None:
    """Raise if figures are of other weights than the model's. Files that do not say are taken only
    for weights that are embedded already.
    """
    said = measured.get("weights")
    if said is None:
        embedded = folder / MANIFEST_NAME
        same = embedded.is_file() and _weights_of(read_row(folder)) == _weights_of(read_row(model))
        if not same:
            raise click.ClickException(
                f"{file} does not say which weights it is of; measure again with hebm-eval"
            )
    elif said != Pipeline.from_pretrained(model, device="cpu").weights_hash:
        raise click.ClickException(
            f"{file} was measured with other weights than {model} has; measure again"
        )


def refuse_other_sampler(config: ModelConfig, file: Path, measured: dict[str, Any]) -> None:
    """Raise if figures are of another sampler than the model's."""
    if measured.get("sampling", {}) != config.sampling.to_dict():
        raise click.ClickException(
            f"{file} was measured with other settings than the model has; measure again"
        )


def _weights_of(row: ModelRow) -> dict[str, str]:
    return {name: file.sha256 for name, file in row.files.items() if name.endswith(".safetensors")}


def card_text(
    folder: Path,
    config: ModelConfig,
    licence: str,
    figures: dict[str, Any],
    notes: str,
    default: bool,
) -> str:
    """The card of an embedded model, with its samples if they lie beside it.

    Arguments:
        default: Whether its name alone means this resolution.
    """
    shown = NOT_PICKED if (folder / SAMPLES_NAME).is_file() else None
    text = model_card(config, licence=licence, figures=figures, notes="\n" + notes, samples=shown)
    card = card_for(text, config.name)
    if not default:
        size, name = config.generator.image_size, config.name
        for words, more in (
            (f'from_pretrained("{name}"', f", resolution={size}"),
            (f"--dataset {name}", f" --resolution {size}"),
        ):
            card = card.replace(words, words + more)
    return card


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--figures", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--control", type=click.Path(exists=True, path_type=Path))
@click.option("--licence", required=True)
@click.option("--notes", required=True, type=click.Path(exists=True, path_type=Path))
def main(model: Path, figures: Path, control: Path | None, licence: str, notes: Path) -> None:
    """Embed MODEL in the package."""
    config = ModelConfig.from_dict(json.loads((model / "config.json").read_text()))
    measured = figures_of(figures, "gap")
    refuse_other_sampler(config, figures, measured)
    size, chosen = config.generator.image_size, headline(measured)
    folder, path = WEIGHTS / f"{config.name}-{size}", ROOT / "weights_manifest.json"
    refuse_other_weights(model, folder, figures, measured)
    if control is not None:
        steered = figures_of(control, "control")
        refuse_other_weights(model, folder, control, steered)
        refuse_other_sampler(config, control, steered)
        chosen |= steering(steered)
    known = Manifest.load(path).models
    refuse_to_lose(model, folder, list(known))
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*KNOWN_FILES, SAMPLES_NAME):
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
        else:  # of the model that lay there before
            (folder / name).unlink(missing_ok=True)
    default = all(r.resolution <= size for r in known if r.name == config.name)
    words = notes.read_text(encoding="utf-8")
    text = card_text(folder, config, licence, chosen, words, default)
    (folder / "README.md").write_text(text, encoding="utf-8")
    row = write_row(folder, name=config.name, resolution=size, licence=licence, figures=chosen)
    others = [r for r in known if (r.name, r.resolution) != (row.name, size)]
    for name, file in row.files.items():
        if holders(name, file, others):
            (folder / name).unlink()
    write_manifest(path, with_defaults([*others, replace(row, folder=folder.name)]))
    total = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    click.echo(f"{folder.relative_to(ROOT)}: {total:.2f} MiB")


if __name__ == "__main__":
    main()
