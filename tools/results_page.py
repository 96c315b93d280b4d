"""docs/results.md and the figures of the model cards, from docs/results/*.json.

    python tools/results_page.py --report cifar10-32=OUT      # take over a report's folder
    python tools/results_page.py --part cifar10-32.control=FILE --part celeba64-64.edit=FILE
    python tools/results_page.py                              # write page, figures, cards anew
    python tools/results_page.py --check                      # 1 if what is committed differs

A model's JSON is named by its folder of weights. It holds what `hebm-train evaluate --report`
writes as results.json, without times of whole parts and traces, numbers to six digits; taking
over replaces the parts that the new one has and keeps the others, as long as all are of the
weights that are embedded: a file that says that it is of other weights is refused, and parts of
weights that were embedded before are dropped with a line. `weights` says of each part which
weights it is of, "unknown" where its file did not say; `files` are the hashes of those that were
embedded when it was taken over. Prose is in docs/results/page.md.in; a line `{{kind model}}` of it
becomes tables, of `results_blocks.py`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from embed_weights import card_text, headline, steering
from PIL import Image
from results_blocks import BLOCKS, headline_gap, image_path, section, summary

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.config import ModelConfig
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.report.ood import KINDS, auroc_by_groups
from hebm_sample.evaluation.report.page import to_markdown
from hebm_sample.evaluation.report.plots import bars, lines, scatter_named
from hebm_sample.hub.manifest import MANIFEST_NAME, Manifest, write_manifest
from hebm_sample.io.files import write_atomically
from hebm_sample.pipeline.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = "page.md.in"
PARTS = ("gap", "baselines", "control", "hole", "ood", "memorisation", "diagnostics")
# Of a report: what the machine did, and lists that no table shows.
DROPPED = {"part_seconds", "seconds", "table", "traces", "log_density", "gradient_norm"}
DIGITS = 6
WIDEST = 1400
UNKNOWN = "unknown"
# Not nearest.png: it shows images of the data.
TAKEN = {"memorisation", "hole", "ood-histograms"}
ORDER = ("celebahq-256", "celebahq-64", "cifar10-32", "celeba64-64", "church64-64")


def trimmed(value: Any) -> Any:
    """A report's figures as they are kept."""
    if isinstance(value, Mapping):
        kept = {k: trimmed(v) for k, v in value.items() if k not in DROPPED}
        if "mean_accuracy" in kept:  # a classifier of many columns: their mean is enough
            kept.pop("columns", None)
        return kept
    if isinstance(value, list):
        return [trimmed(v) for v in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


class Docs:
    """The folder of the docs, with every model's results; those of weights that are not embedded
    any more are stale, and neither on the page nor in a card.
    """

    def __init__(self, docs: Path, weights: Path, manifest: Path) -> None:
        self.docs, self.weights, self.manifest = docs, weights, manifest
        self.folder, self.images = docs / "results", docs / "images" / "results"
        paths = {path.stem: path for path in self.folder.glob("*.json")}
        order = [k for k in ORDER if k in paths] + sorted(paths.keys() - set(ORDER))
        found = {k: json.loads(paths[k].read_text(encoding="utf-8")) for k in order}
        self.stale = {k for k, r in found.items() if r.get("files") != self.files_of(k)}
        self.models = {k: r for k, r in found.items() if k not in self.stale}

    # Taking over

    def take(self, key: str, parts: Mapping[str, Any], weights: str, **more: Any) -> None:
        """Put parts and other entries into a model's file.

        Arguments:
            weights: The hash of the weights that they are of, "" where their file does not say.
        """
        config = self.weights / key / "config.json"
        if not config.is_file():
            raise UserInputError(f"there are no weights {key}; there are {self._known()}")
        data = json.loads(config.read_text(encoding="utf-8"))
        sampling = ModelConfig.from_dict(data).sampling.to_dict()
        for name in {"gap", "control"} & parts.keys():
            if parts[name].get("sampling", sampling) != sampling:
                raise UserInputError(
                    f"the part {name} was measured with other settings than {key} has; measure "
                    "again"
                )
        own = {"model": data["name"], "resolution": data["generator"]["image_size"]}
        known = self._still_true(key)
        self._check_weights(key, weights, known)
        names = dict.fromkeys([*parts, *more], weights or UNKNOWN)
        own |= {"files": self.files_of(key), "weights": known.get("weights", {}) | names}
        merged = known | own | trimmed(more) | {"parts": known["parts"] | trimmed(dict(parts))}
        if not merged["parts"].get("gap", {}).get("gaps"):
            raise UserInputError(
                f"{key} would have no distances, which its page and card begin with; first take "
                "over a report that was measured with --data"
            )
        self.models[key] = merged
        text = json.dumps(merged, indent=1, allow_nan=False)
        write_atomically(self.folder / f"{key}.json", (text + "\n").encode())

    def files_of(self, key: str) -> dict[str, str]:
        """Hashes of the embedded files that decide what a model makes and reads."""
        rows = [r for r in Manifest.load(self.manifest).models if r.folder == key]
        files = rows[0].files if rows else {}
        return {name: file.sha256 for name, file in files.items() if name.endswith(".safetensors")}

    def hash_of(self, key: str) -> str:
        """The hash of the embedded weights, as images and figures carry it."""
        (row,) = [r for r in Manifest.load(self.manifest).models if r.folder == key]
        pipe = Pipeline.from_pretrained(row.name, resolution=row.resolution, device="cpu")
        return pipe.weights_hash

    def _still_true(self, key: str) -> dict[str, Any]:
        """What is kept of a model, without what is of weights that were embedded before."""
        if key in self.stale:
            click.echo(f"{key}: what was kept is of other weights, and is dropped")
            self.stale = self.stale - {key}
        return self.models.get(key, {"parts": {}})

    def _check_weights(self, key: str, weights: str, known: Mapping[str, Any]) -> None:
        """`UserInputError` for figures of other weights than are embedded, and for those that do
        not say so where the embedded ones are new.
        """
        if not weights and not known["parts"]:
            raise UserInputError(
                f"these figures do not say which weights they are of, and nothing else is kept of "
                f"{key}'s; measure again"
            )
        if weights and weights != (embedded := self.hash_of(key)):
            raise UserInputError(
                f"these figures are of other weights ({weights[:12]}) than the embedded {key} "
                f"({embedded[:12]}); embed those first (tools/embed_weights.py), or measure again"
            )

    def _known(self) -> str:
        return ", ".join(sorted(p.name for p in self.weights.iterdir() if p.is_dir()))

    def take_report(self, key: str, out: Path) -> None:
        """A report's folder: its numbers and some of its figures."""
        found = json.loads((out / "results.json").read_text(encoding="utf-8"))
        self.take(key, found["parts"], found.get("weights", ""))
        for path in sorted((out / "figures").glob("*.png")):
            if path.stem in TAKEN:
                self._copy(path, key)

    def take_ablations(self, key: str, out: Path) -> None:
        """A folder of tools/ablate.py."""
        found = json.loads((out / "results.json").read_text())
        self.take(key, {}, found.get("weights", ""), ablations=found)
        for path in (out / "figures").glob("ablation-*.png"):
            self._copy(path, key)

    def take_part(self, key: str, part: str, path: Path) -> None:
        """One part out of a file of `hebm-train evaluate --json`; edits are added up."""
        found = json.loads(path.read_text(encoding="utf-8"))
        weights = str(found.get("weights", ""))
        if part in PARTS:
            self.take(key, {part: found}, weights)
        elif part == "edit":
            known = self._still_true(key).get("edits", [])
            new = trimmed(found["edit"])
            self.take(key, {}, weights, edits=[*(e for e in known if e != new), new])
        elif part == "ablations":
            self.take_ablations(key, path.parent)
        else:
            raise UserInputError(
                f"{part!r} is no part; there are {', '.join((*PARTS, 'edit', 'ablations'))}"
            )

    def _copy(self, path: Path, key: str) -> None:
        """A figure as WebP, no wider than a page."""
        target = self.docs / image_path(key, path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            plain = image.convert("RGB")
        plain.thumbnail((WIDEST, WIDEST))
        plain.save(target, quality=80, method=6)

    # What is written

    def page(self) -> str:
        """docs/results.md."""
        lines = (self.folder / TEMPLATE).read_text(encoding="utf-8").split("\n")
        text = "\n".join(self._line(line) for line in lines)
        while "\n\n\n" in text:  # where nothing was measured
            text = text.replace("\n\n\n", "\n\n")
        return text

    def _line(self, line: str) -> str:
        if not (line.startswith("{{") and line.endswith("}}")):
            return line
        kind, *keys = line.strip("{}").split()
        if kind == "summary":
            return to_markdown(summary(self.models)).rstrip()
        if kind not in BLOCKS or len(keys) != 1:
            raise UserInputError(f"{TEMPLATE} has the line {line}, which means nothing")
        if not self._has(*keys):
            return ""
        results = self.models[keys[0]] | self._trained(keys[0])
        return section(kind, keys[0], results, self.docs)

    def _trained(self, key: str) -> dict[str, float]:
        """Seconds that the energies were trained for, where the config says so."""
        data = json.loads((self.weights / key / "config.json").read_text(encoding="utf-8"))
        runs = [r for r in data.get("training", ()) if r["part"] == "prior"]
        return {"trained": sum(r["seconds"] for r in runs)} if runs else {}

    def _has(self, key: str) -> bool:
        return key in self.models

    def figures(self, key: str) -> dict[str, Any]:
        """A model's figures, of its card and its row of the manifest."""
        parts = self.models[key]["parts"]
        return headline(parts["gap"]) | (steering(parts["control"]) if "control" in parts else {})

    def cards(self) -> dict[Path, str]:
        """Each measured model's card, by its path."""
        found = {}
        for row in Manifest.load(self.manifest).models:
            notes = self.docs / "cards" / f"{self._notes(row)}.md"
            if row.folder is None or row.folder not in self.models or not notes.is_file():
                continue
            folder = self.weights / row.folder
            config = ModelConfig.from_dict(json.loads((folder / "config.json").read_text()))
            found[folder / "README.md"] = card_text(
                folder,
                config,
                row.licence,
                self.figures(row.folder),
                notes.read_text(encoding="utf-8"),
                row.default,
            )
        return found

    @staticmethod
    def _notes(row: Any) -> str:
        return row.name if row.default else f"{row.name}-{row.resolution}"

    def write_manifests(self) -> None:
        """The figures of the package's manifest and of each folder's."""
        rows = []
        for row in Manifest.load(self.manifest).models:
            if row.folder in self.models:
                row = replace(row, figures=self.figures(row.folder))
                own = self.weights / row.folder / MANIFEST_NAME
                (known,) = Manifest.load(own).models
                write_manifest(own, [replace(known, figures=row.figures)])
            rows.append(row)
        write_manifest(self.manifest, rows)

    def differing(self) -> list[str]:
        """Files that are not what the JSON files make."""
        wanted = {self.docs / "results.md": self.page(), **self.cards()}
        found = [
            path
            for path, text in wanted.items()
            if not path.is_file() or path.read_text(encoding="utf-8") != text
        ]
        names = [str(path.relative_to(self.docs.parent)) for path in found]
        names += [f"docs/results/{key}.json (of other weights)" for key in sorted(self.stale)]
        rows = Manifest.load(self.manifest).models
        if any(r.figures != self.figures(r.folder) for r in rows if r.folder in self.models):
            names.append(self.manifest.name)
        return names

    def write(self) -> None:
        """Figures first: the page shows those that exist."""
        draw(self)
        for path, text in {self.docs / "results.md": self.page(), **self.cards()}.items():
            write_atomically(path, text.encode())
        self.write_manifests()


# Figures that the numbers alone make


def draw(docs: Docs) -> None:
    """Bars of gap and hole, AUROC by groups, quality against seconds."""
    for key, results in docs.models.items():
        _as_webp(docs, key, "gap", lambda path, r=results: _draw_gap(r, path))
        if "hole" in results["parts"]:
            _as_webp(docs, key, "hole-bars", lambda path, r=results: _draw_hole(r, path))
        if "ood" in results["parts"]:
            _as_webp(docs, key, "ood", lambda path, r=results: _draw_ood(r, path))
        if "baselines" in results["parts"]:
            _as_webp(docs, key, "quality", lambda path, r=results: _draw_quality(r, path))


def _as_webp(docs: Docs, key: str, name: str, make: Callable[[Path], None]) -> None:
    path = docs.images / f"{name}.png"
    make(path)
    docs._copy(path, key)
    path.unlink()


def _draw_gap(results: Mapping[str, Any], path: Path) -> None:
    space, x = headline_gap(results)
    titles = {"fd_gauss": "N(0, I)", "fd_model": "energy-based", "fd_recon": "reconstructions"}
    points = {title: (x[n], x[f"{n}_error"]) for n, title in titles.items()}
    bars(path, points, x=f"in {space}", y="Fréchet distance", levels={})


def _draw_hole(results: Mapping[str, Any], path: Path) -> None:
    hole = results["parts"]["hole"]
    points = {}
    for i, _ in enumerate(hole["rate"]):
        for name, title in (("gaussian", "N"), ("ebm", "E")):
            figure = hole[name]["groups"][i]
            points[f"{i} {title}"] = (figure["accuracy"], figure["accuracy_error"])
    for name, title in (("gaussian", "N"), ("ebm", "E")):
        figure = hole[name]["joint"]
        points[f"all {title}"] = (figure["accuracy"], figure["accuracy_error"])
    x = "group, N(0, I) (N) or energy-based prior (E)"
    y, shades = "accuracy in telling q(u)", ("#bbbbbb", "#88aacc")
    bars(path, points, x=x, y=y, levels={"closed": 0.5}, colours=shades)


def _draw_ood(results: Mapping[str, Any], path: Path) -> None:
    named = {"energy": "u from the encoder", "energy after the chain": "u_0 after the chain"}
    panels = auroc_by_groups(results["parts"]["ood"], {k: named.get(k, k) for k in KINDS})
    lines(path, panels, x="top groups kept", y="AUROC", level=0.5)


def _draw_quality(results: Mapping[str, Any], path: Path) -> None:
    rows = next(iter(results["parts"]["baselines"]["spaces"].values()))
    points = {
        name: (row["seconds_per_image"], row["frechet"], row["frechet_error"])
        for name, row in rows.items()
        if row["seconds_per_image"]
    }
    scatter_named(path, points, x="seconds per image", y="Fréchet distance")


def _pairs(texts: tuple[str, ...], option: str) -> list[tuple[str, Path]]:
    pairs = [text.partition("=") for text in texts]
    if any(not (name and path) for name, _, path in pairs):
        raise UserInputError(f"{option} takes MODEL=PATH, such as cifar10-32=out")
    return [(name, Path(path)) for name, _, path in pairs]


@click.command(cls=OneLineErrors)
@click.option("--report", "reports", multiple=True, metavar="MODEL=DIR")
@click.option("--part", "parts", multiple=True, metavar="MODEL.PART=FILE")
@click.option("--ablations", multiple=True, metavar="MODEL=DIR")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if something differs.")
def main(
    reports: tuple[str, ...], parts: tuple[str, ...], ablations: tuple[str, ...], check: bool
) -> None:
    """Make the page of results, and the cards' figures."""
    docs = Docs(ROOT / "docs", ROOT / "hebm_sample" / "weights", ROOT / MANIFEST_NAME)
    if check:
        if names := docs.differing():
            raise click.ClickException(
                f"{', '.join(names)}: not what docs/results/*.json make; "
                "run python tools/results_page.py"
            )
        return
    for key, out in _pairs(reports, "--report"):
        docs.take_report(key, out)
    for name, path in _pairs(parts, "--part"):
        key, _, part = name.rpartition(".")
        docs.take_part(key, part, path)
    for key, out in _pairs(ablations, "--ablations"):
        docs.take_ablations(key, out)
    Docs(docs.docs, docs.weights, docs.manifest).write()
    click.echo("docs/results.md")


if __name__ == "__main__":
    main()
