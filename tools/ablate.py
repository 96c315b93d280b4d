"""Ablations of an energy-based prior from the config alone, on a frozen generator.

    python tools/ablate.py cifar10 --data DATA --out runs/ablations --time-budget 210s -n 1000

    levels       T, that many noise levels even in log SNR, with the model's own energies
    steps        gradients in all
    step-scale   c of the Langevin step s = c B_t, which is to the corrected kernel what s_0 is to
                 the release's schedule
    width        channels of the energy nets: trained afresh, for equal time
    ema          averaged weights or the last ones: the same run of the preset's own width
    lowest       cum_sigma of the lowest level, with the model's own energies; only if asked for
    levels-mle   T once more, trained: the paper's maximum likelihood for equal time, from the
                 energies of the run that `ema` looks at; only if asked for

Score matching sees every noise level whatever T is, so `levels`, `steps` and `step-scale` train
nothing. All variants draw the same seeds and are measured in one feature space against one
reference. OUT/variants holds a file a variant, made once; OUT/runs the trainings, which resume;
OUT/results.json, index.md and figures/ are written anew after each variant.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
from ablation_page import TITLES, blocks, draw_figures

from hebm_sample import __version__
from hebm_sample.cli.data import HASH, HoldOutType
from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.trained import load_model
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.context import EvaluationContext, fingerprint
from hebm_sample.evaluation.distances import feature_spaces, open_held_out
from hebm_sample.evaluation.reference import find_set
from hebm_sample.evaluation.report.page import Code, Heading, to_markdown
from hebm_sample.io.files import write_atomically
from hebm_sample.io.kept import keep_json, kept_json
from hebm_sample.metrics.quality import measure_quality, measure_to_reference
from hebm_sample.pipeline.pipeline import Pipeline
from hebm_sample.presets.models import find_preset
from hebm_sample.presets.preset import Preset
from hebm_sample.presets.settings import parse_duration
from hebm_sample.training.checkpoint import latest_checkpoint, load_checkpoint, read_state
from hebm_sample.training.export import load_run
from hebm_sample.training.overrides import changed
from hebm_sample.training.train import train_prior
from hebm_sample.training.trainer import make_accelerator

FORMAT_VERSION = 1
DEFAULT = ("levels", "steps", "step-scale", "width", "ema")
# Of a short training: a long one's would be most of it.
WARM_UP = 20
WIDTHS = (1 / 3, 2 / 3, 1, 4 / 3)
LEVELS = (1, 2, 3, 4, 6)


@dataclass(frozen=True)
class Variant:
    """One point of an ablation.

    Arguments:
        label: On the axis.
        changes: As for `--set`.
        objective: What it is trained with; None where the model's own energies are used.
        averaged: Whether the averaged weights are measured.
        warm: Start from the energies of the preset's own run.
    """

    label: str
    changes: tuple[str, ...] = ()
    objective: str | None = None
    averaged: bool = True
    warm: bool = False


def variants(name: str, preset: Preset, model: Pipeline) -> list[Variant]:
    """The points of the ablation `name`, around the model's own settings."""
    sampling = model.config.sampling
    if name == "levels":
        return [Variant(str(t), (f"prior.num_levels={t}",)) for t in LEVELS]
    if name == "steps":
        assert model.config.prior is not None
        counts = [model.config.prior.num_levels * k for k in (1, 2, 4)]
        counts = sorted({*counts, sampling.steps, 2 * sampling.steps})
        return [Variant(str(k), (f"sampling.steps={k}",)) for k in counts]
    if name == "step-scale":
        scales = sorted({0.5, 1.0, 1.5, 2.0, sampling.step_scale})
        return [Variant(f"{c:g}", (f"sampling.step_scale={c}",)) for c in scales]
    if name == "lowest":
        assert model.config.prior is not None
        low = model.config.prior.levels[0]
        sigmas = [low * share for share in (0.5, 0.75, 1, 1.5)]
        return [Variant(f"{s:.3g}", (f"prior.levels.0={s:.6g}",)) for s in sigmas]
    if name == "width":
        widths = [max(4, 4 * round(preset.prior.width * share / 4)) for share in WIDTHS]
        return [Variant(str(w), (f"prior.width={w}",), "score") for w in widths]
    if name == "ema":
        return [Variant("averaged", (), "score"), Variant("last", (), "score", averaged=False)]
    # Chains cost most of a step: many small steps learn more in the same time.
    small = ("settings.batch_size=16", "settings.learning_rate=0.0003", "settings.patience=0")
    return [Variant(str(t), (f"prior.num_levels={t}", *small), "mle", warm=True) for t in LEVELS]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class Ablation:
    """A model, its data, and a folder in which variants are trained, drawn and measured."""

    def __init__(
        self,
        model: Pipeline,
        preset: Preset,
        sets: tuple[Any, Any, Any],
        out: Path,
        *,
        count: int,
        batch_size: int,
        show: bool,
        accelerator: Any,
    ) -> None:
        self.model, self.preset, self.out, self.count = model, preset, out, count
        self.images, self.training, self.held_out = sets
        self.batch_size, self.show, self.accelerator = batch_size, show, accelerator
        self.known = find_set(model.name, model.config.generator.image_size)
        if self.known is not None and self.known.recipe["training"] != self.training.identity:
            self.known = None
        rows = len(self.held_out) // 2
        if count > rows:
            raise UserInputError(
                f"{count} images were asked for; {len(self.held_out)} held-out ones allow {rows}"
            )

    @cached_property
    def spaces(self) -> dict[str, Any]:
        """Those that the reference is in; else the classifier's features, and principal components
        where the data have no labels.
        """
        if self.known is not None:
            return {self.known.space: (self.known.net, self.known.recipe["classifier"])}
        found = feature_spaces(self.training, model=self.model.name, progress=self.show)
        name = next(iter(found))
        return {name: found[name]}

    @cached_property
    def reference(self) -> str:
        """A digest of what all is measured against, and of the net that sees it."""
        if self.known is None:
            return "measured"
        images = np.ascontiguousarray(self.known.features)
        return hashlib.sha256(images.tobytes()).hexdigest()[:16]

    def quality(self, pipe: Pipeline, what: str = "ebm") -> dict[str, Any]:
        """Distances of a set of images, and the seconds of drawing u."""
        context = EvaluationContext(
            pipe,
            self.count,
            self.training,
            self.held_out.some(2 * self.count),
            self.batch_size,
            self.out / "draws",
            self.show,
        )
        (space,) = self.spaces
        features = context.features(what, self.spaces)[space]
        if self.known is not None:
            found = measure_to_reference(features, self.known.statistics, self.known.features)
        else:
            found = measure_quality(features, context.features("reference", self.spaces)[space])
        if what == "reconstructions":
            return found.to_dict() | {"seconds_per_image": None}
        seconds = context.samples(what).seconds / self.count  # pyright: ignore[reportArgumentType]
        return found.to_dict() | {"seconds_per_image": seconds}

    def trained(self, variant: Variant) -> tuple[Pipeline, dict[str, Any]]:
        """The model of a variant that is trained, and what its run took."""
        preset = changed(self.preset, "prior", variant.changes)
        what = [preset.prior.to_dict(), preset.prior_settings.to_dict(), variant.objective]
        key = [*what, preset.chain_steps, variant.warm, fingerprint(self.model, encoder=True)]
        key += [preset.symbol_weight, preset.condition_share, preset.sampling.to_dict()]
        if variant.warm:  # the run that it starts from
            key += [self.preset.prior_settings.to_dict(), self.preset.prior.to_dict()]
        key.append(self.images.identity)
        folder = self.out / "runs" / f"{variant.objective}-{_digest(key)}"
        train_prior(
            preset,
            self.model,
            self.images,
            folder,
            objective=variant.objective,  # pyright: ignore[reportArgumentType]
            resume=latest_checkpoint(folder) is not None,
            init=self.trained(Variant("own", (), "score"))[0] if variant.warm else None,
            accelerator=self.accelerator,
            show_progress=self.show,
        )
        pipe, checkpoint = load_run(folder), latest_checkpoint(folder)
        assert checkpoint is not None and pipe.prior is not None
        if not variant.averaged:
            load_checkpoint(checkpoint, modules={"learner": pipe.prior}, optimizer=None)
        state = read_state(checkpoint)
        parameters = sum(p.numel() for p in pipe.prior.parameters())
        run = {"steps": state["total"], "seconds": state["seconds"], "parameters": parameters}
        return pipe, {"training": run}

    def sampled(self, variant: Variant) -> Pipeline:
        """The model itself with another schedule or sampler."""
        own, config = self.model, self.model.config
        assert config.prior is not None
        base = replace(self.preset, prior=config.prior, sampling=config.sampling)
        preset = changed(base, "prior", variant.changes)
        config = replace(config, prior=preset.prior, sampling=preset.sampling)
        return Pipeline(config, own.generator, own.prior, own.encoder, device=own.device)

    def row(self, name: str, variant: Variant) -> dict[str, Any]:
        """A variant's figures: those kept, or measured now and kept."""
        key = [FORMAT_VERSION, __version__, repr(variant), self.count]
        key += [fingerprint(self.model, encoder=True)]
        key += [self.preset.prior_settings.to_dict(), self.preset.prior.to_dict()]
        key += [self.preset.symbol_weight, self.preset.condition_share, self.preset.chain_steps]
        key += [self.preset.sampling.to_dict()]
        key += [self.training.identity, self.held_out.identity]
        key += [self.reference, self.batch_size, str(self.model.device)]
        path = self.out / "variants" / f"{name}-{_name(variant)}-{_digest(key)}.json"
        if (kept := kept_json(path)) is not None:
            return kept
        extra: dict[str, Any] = {}
        if variant.objective is None:
            pipe = self.sampled(variant)
        else:
            pipe, extra = self.trained(variant)
        row = {"label": variant.label, "changes": list(variant.changes), **extra}
        row |= self.quality(pipe.to(self.model.device))
        keep_json(path, row)
        return row


def _name(variant: Variant) -> str:
    return re.sub(r"[^0-9A-Za-z.]+", "-", variant.label)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def _write(results: dict[str, Any], out: Path, command: str) -> None:
    write_atomically(out / "results.json", _json(results))
    draw_figures(results, out / "figures")
    page = [Heading(f"{results['model']}: ablations", 1), Code(command), *blocks(results)]
    write_atomically(out / "index.md", to_markdown(page).encode())


def run(ablation: Ablation, names: Sequence[str], budget: str, command: str) -> dict[str, Any]:
    """Measure the ablations, writing the page after each variant."""
    ends = {
        what: ablation.quality(ablation.model, what) for what in ("gaussian", "reconstructions")
    }
    results: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": ablation.model.name,
        "weights": ablation.model.weights_hash,
        "features": next(iter(ablation.spaces)),
        "num_images": ablation.count,
        "num_reference": ends["gaussian"]["num_reference"],
        "training_budget": budget,
        "command": command,
        "ends": ends,
        "ablations": {},
    }
    for name in names:
        rows = results["ablations"].setdefault(name, [])
        for variant in variants(name, ablation.preset, ablation.model):
            click.echo(f"{name}: {variant.label}", err=True)
            rows.append(ablation.row(name, variant))
            _write(results, ablation.out, command)
    return results


def _names(_: Any, __: Any, text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    unknown = [name for name in names if name not in TITLES]
    if unknown:
        raise click.BadParameter(
            f"no ablation {', '.join(unknown)}; there are {', '.join(TITLES)}"
        )
    return names


@click.command(cls=OneLineErrors)
@click.argument("model")
@click.option("--data", required=True, help="What MODEL was trained on.")
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--preset", help="Of the trainings.  [default: the model's name]")
@click.option("--only", default=",".join(DEFAULT), callback=_names, show_default=True)
@click.option("--time-budget", default="210s", show_default=True, help="Of each training.")
@click.option("--max-steps", type=click.IntRange(1), help="Instead of a time.")
@click.option("--set", "changes", multiple=True, help="Of all trainings, as for hebm-train prior.")
@click.option("-n", "count", type=click.IntRange(10), default=1000, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=50, show_default=True)
@click.option("--validation", type=HoldOutType(), help="[default: the preset's]")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--quiet", is_flag=True)
def main(model: str, data: str, out: Path, only: tuple[str, ...], **options: Any) -> None:
    """Ablate the energy-based prior of MODEL."""
    pipe, show = load_model(model), not options["quiet"]
    if pipe.prior is None:
        raise UserInputError(f"{pipe.name} has no energy-based prior")
    preset = changed(find_preset(options["preset"] or pipe.name), "prior", options["changes"])
    steps = options["max_steps"]
    budget = None if steps else parse_duration(options["time_budget"])
    settings = replace(preset.prior_settings, steps=steps, time_budget=budget)
    settings = replace(settings, warmup_steps=min(settings.warmup_steps, WARM_UP))
    if options["validation"] is not None:
        rows = options["validation"]
        settings = replace(settings, validation=None if rows == HASH else rows)
    preset = replace(preset, prior_settings=settings)
    sets = open_held_out(
        data,
        size=pipe.config.generator.image_size,
        model=pipe.name,
        validation=options["validation"],  # if it is not typed, the model's own rows or split
        records=pipe.config.training,
        progress=show,
    )
    images = _all_rows(data, pipe, sets[0], settings.validation, show)
    accelerator = make_accelerator(options["device"])
    ablation = Ablation(
        pipe.to(accelerator.device),
        preset,
        (images, *sets),
        out,
        count=options["count"],
        batch_size=options["batch"],
        show=show,
        accelerator=accelerator,
    )
    out.mkdir(parents=True, exist_ok=True)
    command = f"python tools/ablate.py {model} --data {Path(data).name} --out {out.name}"
    command += f" --time-budget {options['time_budget']}" if budget else f" --max-steps {steps}"
    run(
        ablation,
        only,
        f"{steps} steps" if steps else options["time_budget"],
        f"{command} -n {options['count']}",
    )
    click.echo(f"{out / 'index.md'}; numbers in {out / 'results.json'}")


def _all_rows(data: str, pipe: Pipeline, training: Any, validation: int | None, show: bool) -> Any:
    """What `train_prior` splits for itself."""
    from hebm_sample.data.dataset import load_images

    if validation == 0:
        return training
    return load_images(data, size=pipe.config.generator.image_size, progress=show)


if __name__ == "__main__":
    main()
