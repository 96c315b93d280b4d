r"""What the hierarchy of latents is good for: layers of a sample, kept, exchanged or blended.

vary, layers      clamp some groups of u_0, resample the others       (`sampling/constraints.py`)
mix               the coarse groups of one image with the fine ones of another
interpolate       great circles in u, group by group
reconstruct       all groups, as they are read
"""

import math
import operator
from collections.abc import Iterable, Sequence, Sized
from contextlib import closing
from dataclasses import replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from hebm_sample.config import DecoderName, plain, require_choice, require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.io.seeds import MAX_SEEDS
from hebm_sample.latents import Latents, check_latents
from hebm_sample.pipeline.alignment import frame
from hebm_sample.pipeline.conditions import Guidance, Symbols
from hebm_sample.pipeline.identity import encoder_hash
from hebm_sample.pipeline.model import EncodeMode, ImagesLike, Model
from hebm_sample.pipeline.outputs import (
    OutputType,
    Samples,
    are_latents,
    choose_seeds,
    decoded,
    reads_images,
    refuse_idle_align,
    said_of,
    to_output,
)
from hebm_sample.pipeline.progress import Callback, Progress, Watch, check_watchers
from hebm_sample.pipeline.provenance import Provenance, begun_from, made_of, said_of_mode
from hebm_sample.pipeline.request import read_request, total_steps
from hebm_sample.pipeline.sampler import Sampler
from hebm_sample.sampling.constraints import LatentConstraint

__all__ = ["interpolate", "latents_of", "layers", "mix", "reconstruct", "vary"]


def latents_of(
    model: Model,
    source: Samples | Latents | ImagesLike,
    *,
    mode: EncodeMode = "sample",
    align: bool = False,
    face: int | None = None,
) -> Latents:
    """u of what variations and mixtures take: `Samples`, latents, or images, which are encoded.

    Arguments:
        align, face: Of images, as of `edit`.
    """
    if isinstance(source, Samples):
        return source.latents
    if are_latents(source):
        check_latents(source, model.generator.latent_shapes)
        return source
    return model.encode(source, mode=mode, align=align, face=face)


def reconstruct(
    model: Model,
    images: ImagesLike,
    *,
    decoder: DecoderName | None = None,
    output_type: OutputType = "pil",
    mode: EncodeMode = "sample",
    batch_size: int = 16,
    align: bool = False,
    face: int | None = None,
) -> Samples:
    """decode(encode(images)): what the generator can say about an image.

    Arguments as for `encode` and `decode`; the `Samples` have no seeds and energies.
    """
    chosen = model.generator.chosen_decoder(decoder)
    framed = frame(model, images, align=align, face=face, photographs=False)
    u = model.encode(framed, mode=mode, batch_size=batch_size)
    facts: dict[str, Any] = {"sheet": "reconstruction", **said_of_mode(mode)}
    how: dict[str, Any] = {"output_type": output_type, "batch_size": batch_size, "encoder": True}
    return decoded(model, u, chosen, {**facts, **framed.facts(face)}, **how)


def vary(
    sampler: Sampler,
    /,
    source: Samples | Latents | ImagesLike,
    keep: int | slice | Sequence[int],
    num_variations: int = 8,
    *,
    seeds: int | Iterable[int] | None = None,
    symbols: Symbols | None = None,
    guidance: Guidance = 1.0,
    batch_size: int = 16,
    output_type: OutputType = "pil",
    align: bool = False,
    face: int | None = None,
    **options: Any,
) -> Samples:
    """Variations that keep some groups and resample the others.

    What is kept is returned bit by bit; in between it is clamped to its diffused values,
    an approximation (`sampling/constraints.py`).

    Arguments:
        source: What to vary: samples, latents or N images.
        keep: The groups to keep: 3 for the top three, as `--keep-top 3`; or a slice, or a list
            of some. 0 and what is empty keep none.
        num_variations: V.
        seeds: Of the variations, V of them, the same for each image. If None, 0 ... V-1, or
            for samples the V that follow their largest seed: new noise.
        symbols, guidance: As of a call: one mapping, or one each of the N * V images.
        align, face: Of images, as of `edit`.
        options: `decoder`, `progress` and fields of `LangevinConfig`.

    Returns:
        N * V images, those of the first source first.
    """
    require_integer("num_variations", num_variations := plain(num_variations), 1, MAX_SEEDS)
    refuse_idle_align(align, face, source)
    model = sampler.model
    u, clamped = latents_of(model, source, align=align, face=face), _clamped(model, keep)
    count = check_latents(u, model.generator.latent_shapes)
    chosen = _seeds_of_variations(source, num_variations, seeds) * count
    conditions: dict[str, Any] = {"symbols": symbols, "guidance": guidance}
    facts: dict[str, Any] = {"sheet": "variations", "kept_groups": list(clamped)}
    facts |= {"keep_top": len(clamped)} if clamped == tuple(range(len(clamped))) else {}
    facts |= {"encoder": encoder_hash(model)} if reads_images(source) else {}
    request = read_request(
        model, None, chosen, batch_size=batch_size, facts=facts, **conditions, **options
    )
    require_choice("output_type", output_type, OutputType)
    rows = torch.arange(count, device="cpu").repeat_interleave(num_variations)
    constraint = LatentConstraint(tuple(g[rows] for g in u), clamped)
    found = sampler.best(replace(request, constraint=constraint))
    samples = sampler.samples(found, request, output_type)
    said = tuple(
        begun_from(made, said_of(source, row, align, face))
        for row, made in zip(rows.tolist(), samples.provenance, strict=True)
    )
    return replace(samples, columns=num_variations, provenance=said)


def _seeds_of_variations(
    source: Any, count: int, seeds: int | Iterable[int] | None
) -> tuple[int, ...]:
    if seeds is None and isinstance(source, Samples) and source.seeds:
        first = max(source.seeds) + 1
        seeds = range(first, first + count)
    return choose_seeds(count, seeds)


def _clamped(model: Model, keep: int | slice | Sequence[int]) -> tuple[int, ...]:
    """Indices of the groups to keep, fewer than all."""
    keep = plain(keep)
    if isinstance(keep, SupportsIndex) and not hasattr(keep, "ndim"):
        count, top = len(model.generator.latent_shapes), operator.index(keep)
        if isinstance(keep, bool) or not 0 <= top <= count:
            raise UserInputError(
                f"keep is {keep}; give how many top groups to keep, 0 to {count - 1}, or a list "
                "of groups"
            )
        keep = slice(0, top)
    if isinstance(keep, slice):  # slice(0, 0) is nothing; slice(7, 9) of six is a mistake
        nothing = keep.stop is not None and keep.stop == (keep.start or 0)
    else:
        nothing = isinstance(keep, Sized) and len(keep) == 0
    clamped = () if nothing else tuple(model.group_indices(keep))
    count = len(model.generator.latent_shapes)
    if len(clamped) == count:
        raise UserInputError(
            f"all {count} groups are kept, so nothing would change; keep at most {count - 1}"
        )
    return clamped


def layers(
    sampler: Sampler,
    /,
    seed: int = 0,
    columns: int = 8,
    *,
    cuts: Sequence[int] | None = None,
    output_type: OutputType = "pil",
    **options: Any,
) -> Samples:
    """The hierarchical figure of "Learning Latent Space Hierarchical EBM Diffusion Models" (arXiv
    2405.13910): each row frees one more group, from the bottom up.

    The first image of every row is the seed's own; the others keep its top groups and
    resample those below, so that rows go from changes of detail to other images.

    Arguments:
        seed: Of the image, and of nothing else: the variations have seeds 0, 1, ...
        columns: Images per row, at least 2.
        cuts: How many top groups each row keeps; L-1 ... 0 if None.
        options: As for `vary`.
    """
    require_integer("columns", columns := plain(columns), 2, MAX_SEEDS)
    count = len(sampler.model.generator.latent_shapes)
    cuts = range(count - 1, -1, -1) if cuts is None else cuts
    cuts = [require_integer("cut", cut, 0, count - 1) for cut in cuts]
    if not cuts:
        raise UserInputError("cuts is empty; give how many top groups each row keeps")
    options["output_type"] = "torch"
    others = [s for s in range(columns) if s != seed][: columns - 1]
    rows: list[Samples] = []
    with closing(_watch(sampler, options, len(cuts), columns)) as watch:
        options |= {"progress": False, "callback": lambda step, total, level: watch.step(1, level)}
        own = sampler(seeds=[seed], **options)
        for cut in cuts:
            row = [own, vary(sampler, own, slice(0, cut), columns - 1, seeds=others, **options)]
            rows += [_of_row(samples, own.seeds[0], cut) for samples in row]
    return Samples(
        to_output(torch.cat([r.images for r in rows]) * 2 - 1, output_type),
        tuple(torch.cat(g) for g in zip(*(r.latents for r in rows), strict=True)),
        torch.cat([r.energies for r in rows if r.energies is not None]),
        tuple(s for r in rows for s in r.seeds),
        columns=columns,
        decoder=own.decoder,
        provenance=tuple(p for r in rows for p in r.provenance),
    )


def _watch(sampler: Sampler, options: dict[str, Any], rows: int, columns: int) -> Watch:
    """Who is told of the gradients of all rows of `layers`, and of the seed's own image."""
    progress: Progress | bool | None = options.get("progress")
    callback: Callback | None = options.get("callback")
    check_watchers(progress, callback)
    names = ("batch_size", "steps", "prior")
    how: dict[str, Any] = {name: options[name] for name in names if name in options}
    each = [total_steps(sampler.model, num_images=n, **how) for n in (1, columns - 1)]
    return Watch(each[0] + rows * each[1], progress, callback, sampler.bar_options)


def _of_row(samples: Samples, seed: int, cut: int) -> Samples:
    """A row's images, whose files say that they belong to it."""
    facts = {"sheet": "layers", "from_seed": seed, "keep_top": cut}
    return replace(samples, provenance=tuple(p.saying(**facts) for p in samples.provenance))


def mix(
    model: Model,
    /,
    coarse: Samples | Latents | ImagesLike,
    fine: Samples | Latents | ImagesLike,
    cut: int,
    *,
    decoder: DecoderName | None = None,
    output_type: OutputType = "pil",
    batch_size: int = 16,
    align: bool = False,
    face: int | None = None,
) -> Samples:
    """Images with the top `cut` groups of u from `coarse` and the others from `fine`.

    Arguments:
        coarse, fine: Samples, latents or images, as many in both, or one in one of them.
        cut: 0 is `fine` itself, L is `coarse`.
        decoder: As of `decode`.
        align, face: Of images, as of `edit`.

    Returns:
        `Samples` without seeds and energies.
    """
    count = len(model.generator.latent_shapes)
    cut = require_integer("cut", cut, 0, count)
    decoder = model.generator.chosen_decoder(decoder)
    framing: dict[str, Any] = {"align": align, "face": face}
    a, b = _paired(model, coarse, fine, framing)
    u, facts = (*a[:cut], *b[cut:]), {"sheet": "mix", "keep_top": cut}
    how: dict[str, Any] = {"output_type": output_type, "batch_size": batch_size}
    mixed = decoded(model, u, decoder, facts, encoder=reads_images(coarse, fine), **how)
    return replace(mixed, provenance=_of_pairs(mixed.provenance, coarse, fine, framing))


def _of_pairs(
    made: Sequence[Provenance], a: Any, b: Any, framing: dict[str, Any]
) -> tuple[Provenance, ...]:
    """What the file of each pair says, with what there is to say of both."""
    return tuple(
        made_of(said, said_of(a, row, **framing), said_of(b, row, **framing))
        for row, said in enumerate(made)
    )


def _paired(model: Model, a: Any, b: Any, framing: dict[str, Any]) -> tuple[Latents, Latents]:
    """u of both, as many in both; one in one of them goes with all of the other's."""
    refuse_idle_align(framing["align"], framing["face"], a, b)
    u, v = latents_of(model, a, **framing), latents_of(model, b, **framing)
    counts = len(u[0]), len(v[0])
    if counts[0] != counts[1] and 1 not in counts:
        raise UserInputError(
            f"{counts[0]} images were given with {counts[1]}; give as many, or one"
        )
    most = max(counts)
    u, v = (tuple(g.expand(most, -1, -1, -1) if len(g) == 1 else g for g in x) for x in (u, v))
    return u, v


def interpolate(
    model: Model,
    /,
    a: Samples | Latents | ImagesLike,
    b: Samples | Latents | ImagesLike,
    num_images: int = 9,
    *,
    decoder: DecoderName | None = None,
    output_type: OutputType = "pil",
    batch_size: int = 16,
    align: bool = False,
    face: int | None = None,
) -> Samples:
    """Images on the great circle between two, in u and group by group, ends included.

    Spherical interpolation, as "Sampling Generative Networks" (arXiv 1609.04468) has it for
    Gaussian latents.

    Arguments:
        a, b: Samples, latents or images, one or as many in both.
        num_images: A pair, at least 2.
        decoder: As of `decode`.
        align, face: Of images, as of `edit`.

    Returns:
        `Samples` without seeds and energies, those of the first pair first, a row a pair.
    """
    num_images = require_integer("num_images", num_images, 2, MAX_SEEDS)
    decoder = model.generator.chosen_decoder(decoder)
    framing: dict[str, Any] = {"align": align, "face": face}
    u, v = _paired(model, a, b, framing)
    path = [i / (num_images - 1) for i in range(num_images)]
    between = tuple(
        torch.stack([_slerp(x, y, t) for x, y in zip(g, h, strict=True) for t in path])
        for g, h in zip(u, v, strict=True)
    )
    facts = {"sheet": "interpolation"}
    how: dict[str, Any] = {"output_type": output_type, "batch_size": batch_size}
    found = decoded(model, between, decoder, facts, encoder=reads_images(a, b), **how)
    pairs = _of_pairs(found.provenance[::num_images], a, b, framing)
    said = tuple(pair.saying(position=round(t, 6)) for pair in pairs for t in path)
    return replace(found, columns=num_images, provenance=said)


def _slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The great circle from a (C, H, W) to b at t in [0, 1], in even turns; its length goes evenly
    too.
    """
    x, y = a.flatten().double(), b.flatten().double()
    lengths = x.norm(), y.norm()
    cosine = (x @ y / (lengths[0] * lengths[1]).clamp(min=1e-12)).clamp(-1, 1)
    angle = torch.acos(cosine)
    straight = float(angle) < 1e-4 or math.pi - float(angle) < 1e-4 or float(min(lengths)) < 1e-12
    if straight:
        return torch.lerp(a, b, t)
    weights = torch.sin((1 - t) * angle) / angle.sin(), torch.sin(t * angle) / angle.sin()
    direction = weights[0] * x / lengths[0] + weights[1] * y / lengths[1]
    return (torch.lerp(*lengths, t) * direction).reshape(a.shape).to(a.dtype)
