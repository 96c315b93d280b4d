r"""The way in: load a model, draw images, steer them, read images.

vary, layers      keep some groups of u_0, resample the others        (`sampling/constraints.py`)
mix               the coarse groups of one image with the fine ones of another
interpolate       great circles in u, group by group
edit              u_0 ~ q(u | x) carried or diffused to a level, and back down with what is asked
inpaint           the prior times the likelihood of the known pixels
"""

import math
from collections.abc import Iterable, Sequence, Sized
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from hebm_sample.config import EDIT_STEPS, require_choice, require_integer, require_range
from hebm_sample.errors import UserInputError
from hebm_sample.io.images import prepare_masks
from hebm_sample.io.seeds import MAX_SEEDS, derived_seed
from hebm_sample.latents import Latents, check_latents
from hebm_sample.pipeline.conditions import Guidance, Symbols
from hebm_sample.pipeline.inpainting import KnownPixels, fill_smoothly, known_cells
from hebm_sample.pipeline.model import EncodeMode, Groups, ImagesLike
from hebm_sample.pipeline.outputs import OutputType, Samples, choose_seeds, to_output
from hebm_sample.pipeline.sampler import Drawer, Prior, Request
from hebm_sample.sampling.constraints import Given

__all__ = ["EditMethod", "OutputType", "Pipeline", "Prior", "Samples"]

EditMethod = Literal["flow", "noise"]

# Streams of an image's seed that are not its chain's: for the posterior draw before an edit.
ENCODE_STREAM = 0x656E63


def _slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The great circle from a (C, H, W) to b at t in [0, 1]; its length goes evenly too."""
    x, y = a.flatten().double(), b.flatten().double()
    cosine = (x @ y / (x.norm() * y.norm()).clamp(min=1e-12)).clamp(-1, 1)
    angle = torch.acos(cosine)
    if float(angle) < 1e-4 or math.pi - float(angle) < 1e-4:
        return torch.lerp(a, b, t)
    weights = torch.sin((1 - t) * angle) / angle.sin(), torch.sin(t * angle) / angle.sin()
    return (weights[0] * x + weights[1] * y).reshape(a.shape).to(a.dtype)


def _with_edit_steps(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with `EDIT_STEPS` where they leave the steps open."""
    steps = options.get("steps")
    return options | {"steps": EDIT_STEPS if steps is None else steps}


class Pipeline(Drawer):
    """A loaded model.

    Build it with `from_pretrained`; the constructor takes modules that exist already.

    Arguments:
        config: The model's description.
        generator: The generator.
        prior: The energies; None for a generator without a prior of its own.
        encoder: The encoder, or a function that loads it when it is first needed.
        revision: Commit on the Hub; None for embedded and local models.
        calibration: What its scores are on held-out images, or a function that loads it.

    >>> from hebm_sample import Pipeline
    >>> pipe = Pipeline.from_pretrained("cifar10")
    >>> ships = pipe(seeds=[3, 8], symbols={"class": "ship"}, guidance=4.0, steps=12)
    >>> ships.images[0].size, tuple(ships.energies.shape)
    ((32, 32), (2, 4))
    >>> [tuple(group.shape) for group in ships.latents]
    [(2, 16, 4, 4), (2, 16, 4, 4), (2, 8, 8, 8), (2, 8, 8, 8)]

    Variations that keep the top two groups, and what the model sees in an image:

    >>> varied = pipe.vary(ships, slice(0, 2), 2, steps=12)
    >>> bool((varied.latents[0][:2] == ships.latents[0][:1]).all())
    True
    >>> pipe.classify(ships.images)["class"].shape == (2, len(pipe.symbols["class"]))
    True
    """

    def latents_of(
        self, source: Samples | Latents | ImagesLike, *, mode: EncodeMode = "sample"
    ) -> Latents:
        """u of what the methods below take: `Samples`, latents, or images, which are encoded."""
        if isinstance(source, Samples):
            return source.latents
        if isinstance(source, tuple) and source and isinstance(source[0], Tensor):
            check_latents(source, self.generator.latent_shapes)
            return source
        return self.encode(source, mode=mode)

    # Layers

    def vary(
        self,
        source: Samples | Latents | ImagesLike,
        keep: Groups,
        num_variations: int = 8,
        *,
        seeds: int | Iterable[int] | None = None,
        symbols: Symbols | None = None,
        guidance: Guidance = 1.0,
        batch_size: int = 16,
        output_type: OutputType = "pil",
        **options: Any,
    ) -> Samples:
        """Variations that keep some groups and resample the others.

        The kept groups are returned bit by bit; in between they are held at their diffused values,
        an approximation (`sampling/constraints.py`).

        Arguments:
            source: What to vary: samples, latents or N images.
            keep: The groups to keep, such as slice(0, 3) for the top three; an empty slice keeps
                none.
            num_variations: V.
            seeds: Of the variations, V of them, the same for each image. If None, 0 ... V-1, or
                for samples the V that follow their largest seed: new noise.
            symbols, guidance: As of a call: one mapping, or one each of the N * V images.
            options: `progress` and fields of `LangevinConfig`.

        Returns:
            N * V images, those of the first source first.
        """
        require_integer("num_variations", num_variations, 1, MAX_SEEDS)
        u, kept = self.latents_of(source), self._kept(keep)
        count = check_latents(u, self.generator.latent_shapes)
        if seeds is None and isinstance(source, Samples):
            first = max(source.seeds) + 1
            seeds = range(first, first + num_variations)
        chosen = choose_seeds(num_variations, seeds) * count
        request, batch_size = self._request(
            None,
            chosen,
            symbols=symbols,
            guidance=guidance,
            batch_size=batch_size,
            **options,
        )
        rows = torch.arange(count).repeat_interleave(num_variations)
        request = replace(request, given=Given(tuple(g[rows] for g in u), kept))
        return self._finish(request, batch_size, output_type, num_variations)

    def _kept(self, keep: Groups) -> tuple[int, ...]:
        """Indices of the kept groups, fewer than all."""
        if isinstance(keep, slice):  # slice(0, 0) is nothing; slice(7, 9) of six is a mistake
            nothing = keep.stop is not None and keep.stop == (keep.start or 0)
        else:
            nothing = isinstance(keep, Sized) and len(keep) == 0
        kept = () if nothing else tuple(self._group_indices(keep))
        count = len(self.generator.latent_shapes)
        if len(kept) == count:
            raise UserInputError(
                f"all {count} groups are kept, so nothing would change; keep at most {count - 1}"
            )
        return kept

    def _finish(
        self, request: Request, batch_size: int, output_type: OutputType, columns: int | None
    ) -> Samples:
        require_choice("output_type", output_type, OutputType)
        drawn = self._best(request, 1, batch_size)
        return replace(self._samples(drawn, request.seeds, output_type), columns=columns)

    def layers(
        self,
        seed: int = 0,
        columns: int = 8,
        *,
        cuts: Sequence[int] | None = None,
        output_type: OutputType = "pil",
        **options: Any,
    ) -> Samples:
        """The paper's hierarchical figure: each row frees one more group, from the bottom up.

        The first image of every row is the seed's own; the others keep its top groups and
        resample those below, so that rows go from changes of detail to other images.

        Arguments:
            seed: Of the image, and of nothing else: the variations have seeds 0, 1, ...
            columns: Images a row, at least 2.
            cuts: How many top groups each row keeps; L-1 ... 0 if None.
            options: As for `vary`.
        """
        require_integer("columns", columns, 2, MAX_SEEDS)
        count = len(self.generator.latent_shapes)
        cuts = range(count - 1, -1, -1) if cuts is None else cuts
        for cut in cuts:
            require_integer("cut", cut, 0, count - 1)
        own = self(seeds=[seed], output_type="torch", **options)
        others = [s for s in range(columns) if s != seed][: columns - 1]
        rows = []
        for cut in cuts:
            kept = slice(0, cut)
            drawn = self.vary(own, kept, columns - 1, seeds=others, output_type="torch", **options)
            rows += [own, drawn]
        if not rows:
            raise UserInputError("cuts is empty; give how many top groups each row keeps")
        return Samples(
            to_output(torch.cat([r.images for r in rows]) * 2 - 1, output_type),
            tuple(torch.cat(g) for g in zip(*(r.latents for r in rows), strict=True)),
            torch.cat([r.energies for r in rows if r.energies is not None]),
            tuple(s for r in rows for s in r.seeds),
            columns=columns,
        )

    def mix(
        self,
        coarse: Samples | Latents | ImagesLike,
        fine: Samples | Latents | ImagesLike,
        cut: int,
        *,
        output_type: OutputType = "pil",
        batch_size: int = 16,
    ) -> Any:
        """Images with the top `cut` groups of u from `coarse` and the others from `fine`.

        Arguments:
            coarse, fine: Samples, latents or images, as many in both, or one in one of them.
            cut: 0 is `fine` itself, L is `coarse`.

        Returns:
            Images as `decode` gives them.
        """
        count = len(self.generator.latent_shapes)
        require_integer("cut", cut, 0, count)
        a, b = self._paired(coarse, fine)
        return self.decode((*a[:cut], *b[cut:]), output_type=output_type, batch_size=batch_size)

    def _paired(self, a: Any, b: Any) -> tuple[Latents, Latents]:
        """u of both, as many in both; one in one of them goes with all of the other's."""
        u, v = self.latents_of(a), self.latents_of(b)
        counts = len(u[0]), len(v[0])
        if counts[0] != counts[1] and 1 not in counts:
            raise UserInputError(
                f"{counts[0]} images were given with {counts[1]}; give as many, or one"
            )
        most = max(counts)
        u, v = (tuple(g.expand(most, -1, -1, -1) if len(g) == 1 else g for g in x) for x in (u, v))
        return u, v

    def interpolate(
        self,
        a: Samples | Latents | ImagesLike,
        b: Samples | Latents | ImagesLike,
        num_images: int = 9,
        *,
        output_type: OutputType = "pil",
        batch_size: int = 16,
    ) -> Any:
        """Images on the great circle between two, in u and group by group, ends included.

        Arguments:
            a, b: Samples, latents or images, one or as many in both.
            num_images: A pair, at least 2.

        Returns:
            Images as `decode` gives them, those of the first pair first.
        """
        require_integer("num_images", num_images, 2, MAX_SEEDS)
        u, v = self._paired(a, b)
        path = [i / (num_images - 1) for i in range(num_images)]
        between = tuple(
            torch.stack([_slerp(x, y, t) for x, y in zip(g, h, strict=True) for t in path])
            for g, h in zip(u, v, strict=True)
        )
        return self.decode(between, output_type=output_type, batch_size=batch_size)

    # Real images

    def edit(
        self,
        images: ImagesLike,
        symbols: Symbols | None = None,
        *,
        groups: Groups | None = None,
        strength: float = 0.77,
        guidance: Guidance = 32.0,
        method: EditMethod = "flow",
        seeds: int | Iterable[int] | None = None,
        mode: EncodeMode = "sample",
        batch_size: int = 16,
        output_type: OutputType = "pil",
        **options: Any,
    ) -> Samples:
        """Change what is asked and keep the rest: u_0 ~ q(u | x), brought to a noise level, from
        which the conditional density leads back down on some groups.

        Arguments:
            images: As for `encode`.
            symbols, guidance: As of a call; None only redraws what the noise wiped out.
            groups: The groups that may change; all if None. The others keep their u_0.
            strength: cum_sigma of the level to start from, in (0, 1]; the model's nearest level is
                taken.
            method: "flow": the flow, with nothing asked, carries u_0 up, and back down with what
                is asked, with half of the gradients each, `EDIT_STEPS` in all unless `steps` says
                otherwise. Nothing is drawn, so what is not asked for comes back. "noise": u_0 is
                diffused by drawn noise and the model's sampler draws u_0 anew; a `strength` of 1
                keeps nothing of the groups but what the others say.
            seeds: One per image; 0 ... N-1 if None.
            mode: "sample" or "mean" of q(u | x).
            options: `progress` and fields of `LangevinConfig`.
        """
        require_range("strength", strength, 0.0, 1.0)
        require_choice("method", method, EditMethod)
        lifted = method == "flow"
        if lifted:
            options = self._flow_options(options)
        free, level = self._group_indices(groups), self._level_near(strength, lifted)
        x, chosen = self._seeded(images, seeds)
        weight = 1.0 if symbols is None else guidance
        request, batch_size = self._request(
            None, chosen, symbols=symbols, guidance=weight, batch_size=batch_size, **options
        )
        u = self._posterior(x, chosen, mode, batch_size)
        given = Given(u, tuple(i for i in range(len(u)) if i not in free), level)
        request = replace(request, given=given, lifted=lifted)
        return self._finish(request, batch_size, output_type, None)

    def _flow_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of an edit by the flow, which has no sampler to choose."""
        if options.get("sampler") not in (None, "flow"):
            raise UserInputError(
                f"sampler is {options['sampler']!r}, but method 'flow' draws nothing; leave the "
                "sampler out, or take method='noise'"
            )
        if self._energies().config.parametrization == "release":
            raise UserInputError(
                "method 'flow' needs energies conditioned on log SNR; this model has the "
                "release's parametrisation: use method='noise'"
            )
        if len(self._energies().config.levels) < 3:
            raise UserInputError(
                "method 'flow' needs a level between data and noise; this model has one level: "
                "use method='noise'"
            )
        options = _with_edit_steps(options)
        steps = self.sampling_config(steps=options["steps"]).steps
        if steps < 2:
            raise UserInputError(f"steps is {steps}; an edit by the flow takes at least 2")
        return options | {"sampler": "flow"}

    def _seeded(self, images: ImagesLike, seeds: Any) -> tuple[Tensor, tuple[int, ...]]:
        """Images (N, 3, S, S) in [-1, 1], and one seed each."""
        x = self._read(images)
        chosen = choose_seeds(None, range(len(x)) if seeds is None else seeds)
        if len(chosen) != len(x):
            raise UserInputError(
                f"{len(chosen)} seeds were given for {len(x)} images; give one per image"
            )
        return x, chosen

    def _posterior(
        self, x: Tensor, seeds: tuple[int, ...], mode: EncodeMode, batch_size: int
    ) -> Latents:
        """u_0 of images in [-1, 1]; the draw's noise is not the chain's."""
        own = [derived_seed(seed, ENCODE_STREAM) for seed in seeds]
        return self.encode((x + 1) / 2, mode=mode, seeds=own, batch_size=batch_size)

    def _level_near(self, cum_sigma: float, below_noise: bool = False) -> int:
        """The level 1 ... T whose noise is nearest; T itself, pure noise, can be left out."""
        self._energies()
        assert self._schedule is not None
        levels = self._schedule.levels
        return min(range(1, len(levels) - below_noise), key=lambda t: abs(levels[t] - cum_sigma))

    def inpaint(
        self,
        images: ImagesLike,
        masks: ImagesLike,
        *,
        symbols: Symbols | None = None,
        guidance: Guidance = 1.0,
        weight: float = 1.0,
        strength: float = 0.9,
        seeds: int | Iterable[int] | None = None,
        batch_size: int = 16,
        output_type: OutputType = "pil",
        **options: Any,
    ) -> Samples:
        """Fill in the masked pixels: Langevin on the prior times a likelihood of the known ones.

        Latents that see only known pixels are held (`pipeline/inpainting.py`). The known pixels
        of the result are the image's own.

        Arguments:
            images: N, as for `encode`.
            masks: N, or one for all: white (or True) where a pixel is to be filled in; of the
                image's own size, or the model's. PIL pasted, paths, or booleans (N, S, S).
            symbols, guidance: As of a call.
            weight: Of the known pixels' log likelihood.
            strength: Level to start from, as for `edit`. The masked region begins as a smooth
                filling from what is known around it; less than 1 keeps some of its colours.
            seeds: One per image; 0 ... N-1 if None.
            options: `progress` and fields of `LangevinConfig`; steps are `EDIT_STEPS` unless said.
        """
        require_range("strength", strength, 0.0, 1.0)
        require_range("weight", weight, 0.0, 1e3)
        options = _with_edit_steps(options)
        x, chosen = self._seeded(images, seeds)
        unknown = prepare_masks(masks, images, self.config.generator.image_size, len(x))
        filled = fill_smoothly(x, ~unknown)
        request, batch_size = self._request(
            None, chosen, symbols=symbols, guidance=guidance, batch_size=batch_size, **options
        )
        u = self._posterior(filled, chosen, "sample", batch_size)
        start = self._level_near(strength) if strength < 1 else None
        known = KnownPixels(self.generator, self._cum_sigma_of, x, ~unknown, weight)
        cells = known_cells(~unknown, self.generator.latent_shapes)
        given = Given(u, (), start, cells)
        request = replace(request, given=given, likelihood=known)
        drawn = self._best(request, 1, batch_size)
        pasted = torch.where(unknown, drawn.images, x)
        return self._samples(replace(drawn, images=pasted), chosen, output_type)
