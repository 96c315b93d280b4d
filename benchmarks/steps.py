r"""How few gradients give images as good as the full chain's.

    distance     Fréchet distance to the package's reference, with its standard error
    less first   distance minus that of the first setting, with the standard error of the
                 difference (jackknife; the same seeds in both)
    cost         gradients per image, seconds per image

A setting is written as the sampler's fields, such as `steps=24,start=ancestral`; what it does not
name is that of `USUAL`, whatever the model's own is, and the model's own as a whole is `own`,
after which fields may follow: `own,particles=4`. In place of steps=T*50 one may write steps=full.
Beside the sampler's fields there are `best_of=N` (candidates per image, ranked by the prior's
density, or with `rank_by=energy` by -F alone; its seconds, and no others, have decoding) and
`autoguidance=W` with the energies of `--weak` (`guided.py`); both count in the gradients.

What is done is kept in a folder: a run that was stopped goes on where it was, in steps of 500
images, and a setting that was measured is not measured again. With `--dtype bfloat16` the folder
is OUT/bfloat16.
"""

import ast
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from guided import guided

from hebm_sample import Pipeline, __version__
from hebm_sample.config.sampler import CHAINLESS, OF_CHAINS
from hebm_sample.errors import UserInputError
from hebm_sample.evaluation.context import EvaluationContext, PriorSamples, fingerprint
from hebm_sample.evaluation.reference import EvaluationSet, find_set
from hebm_sample.io.files import write_atomically
from hebm_sample.metrics.frechet import (
    FeatureStatistics,
    frechet_distance,
    jackknife_standard_error,
)
from hebm_sample.pipeline.runtime.process import tune_process

FULL = 50  # K of the paper, steps per level
USUAL: dict[str, Any] = {
    "sampler": "recovery",
    "start": "flow",
    "step_scale": 1.0,
    "momentum": 0.0,
    "particles": 1,
    "temperature": 1.0,
    "kernel": "corrected",
    "reference_variance": "sigma_next",
    "metropolis": False,
    "precondition": False,
    "early_share": 1.0,
    "step_decay": 1.0,
    "denoise": True,
}

_SHORTER = ["steps=full", *(f"steps={n}" for n in (48, 32, 24, 16, 12, 8))]
# What a name of `--set` stands for; the first is what the others are compared with.
SETS = {
    "objects": [
        *_SHORTER,
        "steps=48,start=ancestral",
        "steps=24,start=ancestral",
        "steps=24,start=ancestral,step_scale=1.5",
        "steps=24,early_share=0.25",
        "steps=24,kernel=plain,step_scale=0.5",
        "steps=16,sampler=flow",
        "steps=48,precondition=True",
        "steps=24,precondition=True",
        "steps=24,start=ancestral,precondition=True",
        "steps=48,momentum=0.5",
        "steps=48,momentum=0.8",
        "steps=24,start=ancestral,momentum=0.5",
        "steps=16,start=ancestral,momentum=0.5",
        "steps=12,start=ancestral,momentum=0.5",
        "steps=48,momentum=0.5,precondition=True",
        "steps=48,step_decay=0.25",
        "steps=48,metropolis=True",
        "steps=48,metropolis=True,step_scale=0.3",
        "steps=48,metropolis=True,step_scale=0.3,momentum=0.8",
        "steps=48,temperature=0.9",
    ],
    "faces": [
        "steps=full",
        "steps=48",
        "steps=24",
        "steps=16",
        "steps=48,start=ancestral",
        "steps=24,start=ancestral",
        "steps=16,start=ancestral",
        "steps=8,start=ancestral",
        "steps=48,momentum=0.3",
        "steps=48,momentum=0.5",
        "steps=48,momentum=0.7",
        "steps=32,start=ancestral,momentum=0.5",
        "steps=24,start=ancestral,momentum=0.5",
        "steps=24,start=ancestral,momentum=0.5,step_scale=1.5",
        "steps=24,start=ancestral,momentum=0.7",
        "steps=16,start=ancestral,momentum=0.5",
        "steps=16,start=ancestral,momentum=0.8",
        "steps=12,start=ancestral,momentum=0.5",
        "steps=48,precondition=True",
        "steps=48,momentum=0.5,precondition=True",
        "steps=16,sampler=flow",
        "steps=24,sampler=flow",
        "steps=32,sampler=flow",
        "steps=48,metropolis=True,step_scale=0.3",
        "steps=48,temperature=0.9",
    ],
    "few": [
        "steps=48",
        "steps=32,start=ancestral,momentum=0.5",
        "steps=24,start=ancestral,momentum=0.5",
        "steps=16,start=ancestral,momentum=0.5",
        "steps=16,start=ancestral,momentum=0.8",
    ],
    # What the energies know, spent in other ways; gradients alike, 64 or 16 a pair of rows.
    "search": [
        "own,particles=1",
        "own,particles=1,steps=32",
        "own,particles=1,steps=64",
        "own,particles=1,best_of=4",
        "own,particles=1,best_of=4,rank_by=energy",
        "own,particles=4",
        "own,particles=1,steps=32,best_of=2",
        "own,steps=32,particles=2",
    ],
    "own": ["own"],
}
OURS = ("best_of", "rank_by", "autoguidance")  # of a setting, and no fields of the sampler's


def read_setting(text: str, levels: int) -> dict[str, Any]:
    """Fields of the sampler's config of such a text."""
    parts = text.split(",")
    own = parts[0] == "own"
    found: dict[str, Any] = {} if own else dict(USUAL)
    for part in parts[own:]:
        name, equals, value = part.partition("=")
        if not equals:
            raise UserInputError(f"setting {text!r} must be name=value,name=value,...")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    if found.get("sampler") in CHAINLESS:
        found = {k: v for k, v in found.items() if k not in OF_CHAINS}
    if found.get("steps") == "full":
        found["steps"] = FULL * levels
    return found


def best_samples(context: EvaluationContext, best_of: int, rank_by: Any) -> PriorSamples:
    """`EvaluationContext.samples` of the best of several candidates an image; seconds with
    decoding.
    """
    pipe, size = context.pipe, context.batch_size
    key: list[Any] = [
        best_of,
        rank_by,
        fingerprint(pipe),
        pipe.sampling_config(**context.sampling).to_dict(),
        *context.unusual(),
    ]

    def make(start: int, stop: int) -> dict[str, torch.Tensor]:
        began = time.perf_counter()
        options = {"batch_size": size, "output_type": "torch", "progress": False}
        options |= {"best_of": best_of, "rank_by": rank_by}
        u = pipe(seeds=range(start, stop), **options, **context.sampling).latents
        seconds = torch.tensor([time.perf_counter() - began])
        return {f"u{i}": g for i, g in enumerate(u)} | {"seconds": seconds}

    found = context.cached("ebm-best", key, context.num_images, make)
    return PriorSamples(context.latents_of(found), float(found["seconds"].sum()))


def features_of(
    pipe: Any,
    known: EvaluationSet,
    setting: dict[str, Any],
    images: int,
    batch: int,
    out: Path,
    weak: Any = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Features (N, D) of a setting's images, and what they cost."""
    sampling = {k: v for k, v in setting.items() if k not in OURS}
    best_of, weight = setting.get("best_of", 1), setting.get("autoguidance", 0.0)
    rank_by = setting.get("rank_by", "density")
    if best_of == 1 and "rank_by" in setting:
        raise UserInputError("rank_by ranks the candidates of best_of=N; give both")
    context = EvaluationContext(
        guided(pipe, weak, weight) if weight else pipe,
        images,
        batch_size=batch,
        folder=out / "latents",
        sampling=sampling,
    )
    cpu, fresh = time.process_time(), not any((out / "latents").glob("ebm-*"))
    before = set((out / "latents").glob("ebm-*"))
    drawn = context.samples("ebm") if best_of == 1 else best_samples(context, best_of, rank_by)
    cpu = time.process_time() - cpu
    new = len(set((out / "latents").glob("ebm-*")) - before)
    spaces = {known.space: (known.net, {})}
    features = context.features_of("ebm", drawn.u, spaces)[known.space]
    whole = fresh or new == -(-images // 500)
    config = context.pipe.sampling_config(**sampling)
    return features, {
        "gradients": config.steps * config.particles * best_of * (2 if weight else 1),
        "seconds_per_image": drawn.seconds / images,
        # a setting that was gone on with has no CPU time of the whole
        "cpu_seconds_per_image": cpu / images if whole else None,
        "u_square": [float(g.double().square().mean()) for g in drawn.u],
    }


def distances(
    found: np.ndarray, full: np.ndarray | None, reference: FeatureStatistics
) -> dict[str, float | None]:
    """Distance, its difference from that of `full`, and both errors."""

    def distance(a: FeatureStatistics) -> float:
        return frechet_distance(a, reference)

    groups = min(20, len(found) // 2)
    row: dict[str, float | None] = {
        "distance": distance(FeatureStatistics.from_features(found)),
        "error": jackknife_standard_error(distance, found, num_groups=groups),
        "less_full": None,
        "less_full_error": None,
    }
    if full is not None:
        a, b = (FeatureStatistics.from_features(x) for x in (found, full))
        row["less_full"] = distance(a) - distance(b)
        row["less_full_error"] = jackknife_standard_error(
            lambda a, b: distance(a) - distance(b), found, full, num_groups=groups
        )
    return row


def table(result: dict[str, Any]) -> str:
    """The figures as text."""
    machine = result["machine"]
    lines = [
        f"{machine['model']}, {result['images']} images a setting, {result['space']}; "
        f"{machine['threads']} threads of {machine['cores']} cores, torch {machine['torch']}, "
        f"hebm_sample {machine['version']}",
        "",
        f"{'setting':<42}{'gradients':>10}{'distance':>18}{'less first':>18}{'s/img':>8}"
        f"{'cpu s/img':>10}{'u^2':>12}",
    ]
    for text, row in result["settings"].items():
        less = row["less_full"]
        squares = f"{min(row['u_square']):.2f}-{max(row['u_square']):.2f}"
        cpu = row["cpu_seconds_per_image"]
        lines.append(
            f"{text:<42}{row['gradients']:>10}"
            + f"{row['distance']:.2f} ± {row['error']:.2f}".rjust(18)
            + ("" if less is None else f"{less:+.2f} ± {row['less_full_error']:.2f}").rjust(18)
            + f"{row['seconds_per_image']:8.3f}"
            + (f"{cpu:10.3f}" if cpu is not None else "-".rjust(10))
            + squares.rjust(12)
        )
    return "\n".join(lines)


def measure(
    pipe: Any,
    known: EvaluationSet,
    settings: Iterable[str],
    images: int,
    batch: int,
    out: Path,
    weak: Any = None,
) -> dict[str, Any]:
    """All settings; the JSON is written after each."""
    chosen = list(settings)
    # Differences are from the first setting.
    path, key = out / "steps.json", [fingerprint(pipe), images, __version__, chosen[0]]
    seen = hashlib.sha256(np.ascontiguousarray(known.features).tobytes()).hexdigest()
    key += [seen[:16], known.space, batch, str(pipe.device)]
    key += [] if weak is None else [fingerprint(weak)]
    result: dict[str, Any] = {
        "key": key,
        "images": images,
        "space": known.space,
        "settings": {},
        "machine": {
            "model": pipe.name,
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "version": __version__,
        },
    }
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if old.get("key") == key:
        result["settings"] = old["settings"]
    first = read_setting(chosen[0], pipe.config.prior.num_levels)
    full: np.ndarray | None = None
    for i, text in enumerate(chosen):
        if text in result["settings"] and (i > 0 or len(chosen) == 1):
            continue
        click.echo(f"[{i + 1}/{len(chosen)}] {text}", err=True)
        setting = read_setting(text, pipe.config.prior.num_levels)
        if i > 0 and full is None:
            full, _ = features_of(pipe, known, first, images, batch, out, weak)
        known_row = result["settings"].get(text)
        found, row = features_of(pipe, known, setting, images, batch, out, weak)
        if known_row is None:
            result["settings"][text] = row | distances(found, full, known.statistics)
        full = found if i == 0 else full
        write_atomically(path, (json.dumps(result, indent=2) + "\n").encode())
    result["settings"] = {k: result["settings"][k] for k in chosen}
    return result


@click.command()
@click.option("--dataset", default="cifar10", show_default=True, help="Name, Hub id or folder.")
@click.option(
    "--set", "name", type=click.Choice(sorted(SETS)), default="objects", show_default=True
)
@click.option("--setting", "extra", multiple=True, metavar="TEXT", help="One more.")
@click.option("--weak", help="Model of an earlier step of the same run, for autoguidance.")
@click.option("--images", "--pictures", type=click.IntRange(20), default=1000, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=50, show_default=True)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True
)
@click.option(
    "--reference-size",
    type=click.IntRange(1),
    help="Size of the evaluation set, in place of the model's; for a classifier that averages "
    "images of any size.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def main(
    dataset: str,
    name: str,
    extra: tuple[str, ...],
    weak: str | None,
    images: int,
    batch: int,
    dtype: str,
    reference_size: int | None,
    out: Path,
) -> None:
    """Measure sampler settings; the first is what the others are compared with."""
    tune_process()
    pipe = Pipeline.from_pretrained(dataset, dtype=getattr(torch, dtype))
    out = out / dtype if dtype != "float32" else out
    chosen = list(dict.fromkeys([*SETS[name], *extra]))
    if pipe.config.prior is None:
        raise click.ClickException(f"{pipe.name} has no energy-based prior")
    poor = None if weak is None else Pipeline.from_pretrained(weak, dtype=getattr(torch, dtype))
    for text in chosen:
        setting = read_setting(text, pipe.config.prior.num_levels)
        if "autoguidance" in setting:
            if poor is None:
                raise click.ClickException(f"setting {text!r} needs --weak, a model")
            guided(pipe, poor, setting["autoguidance"])
        pipe.sampling_config(**{k: v for k, v in setting.items() if k not in OURS})
    size = reference_size or pipe.config.generator.image_size
    known = find_set(pipe.name, size)
    if known is None:
        raise click.ClickException(
            f"the package has no evaluation set for {pipe.name} at {size}x{size}"
        )
    out.mkdir(parents=True, exist_ok=True)
    text = table(measure(pipe, known, chosen, images, batch, out, poor))
    (out / "steps.txt").write_text(text + "\n", encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
