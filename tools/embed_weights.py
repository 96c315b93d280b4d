"""Put a measured model folder into the package: its weights, and a row of the manifest.

    hebm-train export --run runs/prior --out model
    hebm-train evaluate model --data DATA --json figures.json
    hebm-train evaluate model --data DATA --control --json control.json
    python tools/embed_weights.py model --figures figures.json --control control.json \
        --licence "..." --notes FILE

The card's table of figures is made from the JSON files, so that no figure is typed by hand.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from hebm_sample.config import ModelConfig
from hebm_sample.hub.card import model_card
from hebm_sample.hub.manifest import MODEL_FILES, Manifest, write_manifest, write_row

ROOT = Path(__file__).resolve().parents[1]


def headline(measured: dict[str, Any]) -> dict[str, Any]:
    """The figures of card and manifest out of what `hebm-train evaluate --json` wrote."""
    space, gap = next(iter(measured["gaps"].items()))
    return {
        "gap_closed": round(gap["gap_closed"], 3),
        "gap_closed_error": round(gap["gap_closed_error"], 3),
        "features": space,
        "fd_reconstruction": round(gap["fd_recon"], 3),
        "fd_gaussian_prior": round(gap["fd_gauss"], 3),
        "fd_ebm_prior": round(gap["fd_model"], 3),
        "pictures_a_side": gap["num_pictures"],
        "bits_a_dimension_gaussian_prior_elbo": round(measured["bits"], 3),
        "kl_a_group_nats": [round(v, 1) for v in measured["kl"]],
        "sampler": f"{measured['sampling']['sampler']}, {measured['sampling']['steps']} gradients",
    }


def steering(measured: dict[str, Any]) -> dict[str, Any]:
    """Of `hebm-train evaluate --control --json`: how often the judge finds what is asked, by
    guidance, "0" without asking.
    """
    found, ceilings = {}, {}
    for name, variable in measured["variables"].items():
        if len(variable["asked"]) > 1:
            found[name] = variable["found"]
            accuracy = variable["reconstructed"]["accuracy"]
            ceilings[f"judge's accuracy on reconstructions, {name}"] = round(accuracy, 2)
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
    return shares | ceilings


def _spelt(symbols: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in symbols.items())


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--figures", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--control", type=click.Path(exists=True, path_type=Path))
@click.option("--licence", required=True)
@click.option("--notes", required=True, type=click.Path(exists=True, path_type=Path))
def main(model: Path, figures: Path, control: Path | None, licence: str, notes: Path) -> None:
    """Embed MODEL in the package."""
    config = ModelConfig.from_dict(json.loads((model / "config.json").read_text()))
    measured = json.loads(figures.read_text())
    if measured["sampling"] != config.sampling.to_dict():
        raise click.ClickException(
            "the figures were measured with other settings than the model has"
        )
    size, chosen = config.generator.image_size, headline(measured)
    if control is not None:
        chosen |= steering(json.loads(control.read_text()))
    folder = ROOT / "hebm_sample" / "weights" / f"{config.name}-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODEL_FILES:
        if (model / name).is_file():
            shutil.copyfile(model / name, folder / name)
    text = model_card(config, licence=licence, figures=chosen, notes="\n" + notes.read_text())
    (folder / "README.md").write_text(text, encoding="utf-8")
    row = write_row(folder, name=config.name, resolution=size, licence=licence, figures=chosen)
    path = ROOT / "weights_manifest.json"
    others = [r for r in Manifest.load(path).models if (r.name, r.resolution) != (row.name, size)]
    write_manifest(path, [*others, replace(row, folder=folder.name)])
    total = sum(file.size for file in row.files.values()) / 2**20
    click.echo(f"{folder.relative_to(ROOT)}: {total:.2f} MiB")


if __name__ == "__main__":
    main()
