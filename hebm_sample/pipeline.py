"""The way in: load a model, draw pictures, read pictures.

    u ~ p(u) ∝ exp(F(T(u))) N(u; 0, I)      by the model's sampler
    picture = mean of p(x | h_{L+1}(u))

`Pipeline` chooses seeds, batches, device and precision; `sampling` does the walking and
`generator` the pictures.
"""

import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from hebm_sample.config import LangevinConfig, ModelConfig, require_choice, require_integer
from hebm_sample.device import pick_device
from hebm_sample.errors import NonFiniteSampleError, UserInputError
from hebm_sample.generator.encoder import Encoder, encode
from hebm_sample.generator.hierarchy import HierarchicalGenerator, Latents, check_latents
from hebm_sample.hub.load import build_model, load_encoder
from hebm_sample.hub.save import write_model_folder
from hebm_sample.images import prepare
from hebm_sample.prior.conditional import net_level
from hebm_sample.prior.joint import JointEnergy
from hebm_sample.prior.schedule import DiffusionSchedule
from hebm_sample.samples import OutputType, Samples, choose_seeds, to_output
from hebm_sample.sampling.driver import sample_prior
from hebm_sample.sampling.noise import NoiseStreams
from hebm_sample.seeds import MAX_SEEDS

__all__ = ["OutputType", "Pipeline", "Prior", "Samples"]

EncodeMode = Literal["sample", "mean"]
Prior = Literal["ebm", "gaussian"]
Groups = slice | Sequence[int] | int
Pictures = Tensor | Any

FLOW_START = 0.99  # cum_sigma where the probability flow begins


def _concatenate(parts: Sequence[Latents]) -> Latents:
    return tuple(torch.cat(group) for group in zip(*parts, strict=True))


class Pipeline:
    """A loaded model.

    Build it with `from_pretrained`; the constructor takes modules that exist already.

    Arguments:
        config: The model's description.
        generator: The generator.
        prior: The energies; None for a generator without a prior of its own.
        encoder: The encoder, or a function that loads it when it is first needed.
        revision: Commit on the Hub; None for embedded and local models.
    """

    def __init__(
        self,
        config: ModelConfig,
        generator: HierarchicalGenerator,
        prior: JointEnergy | None = None,
        encoder: Encoder | Callable[[], Encoder] | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        card: Path | None = None,
    ) -> None:
        self.config, self.revision = config, revision
        self.generator, self.prior = generator, prior
        self._encoder, self._card = encoder, card
        self._schedule = DiffusionSchedule(config.prior.levels) if config.prior else None
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.to(pick_device(device), dtype or torch.float32)

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        resolution: int | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
    ) -> "Pipeline":
        """Load a model; every file is checked against its manifest's size and sha256 first.

        Arguments:
            name: A name of `hebm_sample.list_models()`, a Hub repository id, or a local folder.
            resolution: Side in pixels, where a name comes in several.
            revision: Branch, tag or commit of a Hub repository.
            cache_dir: The Hub cache's folder.
            local_files_only: Never use the network.
            token: The Hub's access token.
            device: "auto", "cpu", "cuda" or a torch device.
            dtype: float32 (default), or bfloat16 for the networks.

        Raises:
            UserInputError: There is no such model, resolution or device name.
            WeightsError: A file is missing or corrupt.
            HubError: The Hub did not deliver.
        """
        chosen = pick_device(device)
        model = build_model(
            name,
            resolution=resolution,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        card = model.resolved.folder / "README.md"
        return cls(
            model.config,
            model.generator,
            model.prior,
            lambda: load_encoder(model.resolved, model.config),
            device=chosen,
            dtype=dtype,
            revision=model.resolved.revision,
            card=card if card.is_file() else None,
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self.config.name

    @property
    def encoder(self) -> Encoder:
        """The encoder; loaded when first asked for."""
        if self._encoder is None:
            raise UserInputError(
                f"{self.name} has no encoder, so it cannot read pictures; use a model that has one"
            )
        if not isinstance(self._encoder, Encoder):
            self._encoder = self._settle(self._encoder())
        return self._encoder

    @torch.inference_mode(False)
    def _settle(self, module: Any) -> Any:
        module = module.to(self.device, memory_format=torch.channels_last)
        return module.requires_grad_(False).eval()

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> "Pipeline":
        """Move to a device, and choose the networks' precision: float32 or bfloat16. Returns the
        pipeline.

        With bfloat16 the networks compute under autocast; weights, latents and energies stay
        float32.
        """
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise UserInputError(f"dtype is {dtype}; it can be torch.float32 or torch.bfloat16")
        self.device = pick_device(device) if device is not None else self.device
        self.dtype = dtype or self.dtype
        self.generator = self._settle(self.generator)
        self.prior = self._settle(self.prior) if self.prior is not None else None
        if isinstance(self._encoder, Encoder):
            self._encoder = self._settle(self._encoder)
        return self

    def _precision(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def energy_terms(self, u: Latents, level: Tensor) -> Tensor:
        """F_i at u and noise level, (B, L); differentiable in u. Level as in
        `prior.conditional.net_level`.
        """
        if self.prior is None:
            raise UserInputError(
                f"{self.name} has no energy-based prior; sample with prior='gaussian'"
            )
        with self._precision():
            return self.prior(self.generator.transform(u), level).float()

    # Sampling

    def sampling_config(self, **overrides: Any) -> LangevinConfig:
        """The model's sampler settings with those that are given (not None) in their place."""
        given = {k: v for k, v in overrides.items() if v is not None}
        known = set(LangevinConfig.__dataclass_fields__)
        if set(given) - known:
            raise UserInputError(
                f"unknown sampler settings {sorted(set(given) - known)}; known are {sorted(known)}"
            )
        return replace(self.config.sampling, **given)

    def total_steps(
        self,
        *,
        num_images: int = 1,
        batch_size: int = 16,
        steps: int | None = None,
        prior: Prior = "ebm",
    ) -> int:
        """Gradient evaluations of such a call, over all its batches; 0 under the Gaussian
        prior.
        """
        require_integer("batch_size", batch_size, 1, MAX_SEEDS)
        if prior == "gaussian":
            return 0
        return self.sampling_config(steps=steps).steps * -(-num_images // batch_size)

    def __call__(
        self,
        num_images: int | None = None,
        seeds: int | Iterable[int] | None = None,
        *,
        prior: Prior = "ebm",
        batch_size: int = 16,
        output_type: OutputType = "pil",
        progress: Callable[[int], object] | None = None,
        **settings: Any,
    ) -> Samples:
        """Draw pictures.

        Arguments:
            num_images: How many, with seeds 0 ... n-1 (default 1).
            seeds: One a picture: the same seed is the same picture, in any batch.
            prior: "ebm", or "gaussian" for u ~ N(0, I): the generator without its energies.
            batch_size: Most pictures at a time.
            output_type: "pil", "numpy" or "torch"; see `Samples`.
            progress: Called with the number of gradients just evaluated.
            settings: Fields of `LangevinConfig` (sampler, steps, temperature, ...); None means the
                model's own.

        Raises:
            UserInputError: A setting out of range, or an unknown one.
            NonFiniteSampleError: A chain left the finite numbers.
        """
        *_, last = self.stream(
            num_images,
            seeds,
            prior=prior,
            batch_size=batch_size,
            output_type=output_type,
            progress=progress,
            only_last=True,
            **settings,
        )
        return last

    def stream(
        self,
        num_images: int | None = None,
        seeds: int | Iterable[int] | None = None,
        *,
        prior: Prior = "ebm",
        batch_size: int = 16,
        output_type: OutputType = "pil",
        progress: Callable[[int], object] | None = None,
        only_last: bool = False,
        **settings: Any,
    ) -> Iterator[Samples]:
        """As a call, but yields `Samples` after each noise level; the last one is what a call
        returns.

        Arguments:
            only_last: Yield nothing but the result, and decode nothing else.
        """
        require_choice("prior", prior, Prior)
        require_choice("output_type", output_type, OutputType)
        require_integer("batch_size", batch_size, 1, MAX_SEEDS)
        idle = sorted(k for k, v in settings.items() if v is not None and k != "temperature")
        if prior == "gaussian" and idle:
            raise UserInputError(
                f"prior='gaussian' draws u at once, without {', '.join(idle)}; leave them out"
            )
        config, chosen = self.sampling_config(**settings), choose_seeds(num_images, seeds)
        chunks = [chosen[i : i + batch_size] for i in range(0, len(chosen), batch_size)]
        walks = [self._walk(chunk, prior, config, progress, only_last) for chunk in chunks]
        # Built eagerly: what is wrong with the request is said now, not when the first picture is
        # asked for.
        return self._collect(walks, chosen, output_type)

    def _collect(
        self,
        walks: list[Iterator[tuple[int, Latents, Tensor | None, Tensor]]],
        seeds: tuple[int, ...],
        output_type: OutputType,
    ) -> Iterator[Samples]:
        for states in zip(*walks, strict=True):
            levels, latents, terms, pictures = zip(*states, strict=True)
            energies = None if terms[0] is None else -torch.cat(cast("tuple[Tensor, ...]", terms))
            yield Samples(
                to_output(torch.cat(pictures), output_type),
                _concatenate(latents),
                energies,
                seeds,
                levels[0],
            )

    def _walk(
        self,
        seeds: tuple[int, ...],
        prior: Prior,
        config: LangevinConfig,
        progress: Callable[[int], object] | None,
        only_last: bool,
    ) -> Iterator[tuple[int, Latents, Tensor | None, Tensor]]:
        """(level, u, F_i, pictures) of one batch after each level, everything on the CPU."""
        noise = NoiseStreams(seeds, self.generator.latent_shapes, device=self.device)
        if prior == "gaussian":
            states = iter([(0, noise.normal(config.temperature), None)])
        else:
            states = ((s.level, s.u, s.terms) for s in self._levels(noise, config, progress))
        return self._pictures(states, seeds, only_last)

    def _levels(self, noise: NoiseStreams, config: LangevinConfig, progress: Any) -> Iterator[Any]:
        if self.config.prior is None or self._schedule is None:
            raise UserInputError(
                f"{self.name} has no energy-based prior; sample with prior='gaussian'"
            )
        return sample_prior(
            self.energy_terms,
            self._schedule,
            noise,
            config,
            parametrization=self.config.prior.parametrization,
            step_size_0=self.config.prior.step_size_0,
            sigma_high=min(FLOW_START, self.config.prior.sigma_max),
            progress=cast("Callable[[int], None] | None", progress),
        )

    def _pictures(
        self,
        states: Iterator[tuple[int, Latents, Tensor | None]],
        seeds: tuple[int, ...],
        only_last: bool,
    ) -> Iterator[tuple[int, Latents, Tensor | None, Tensor]]:
        for level, u, terms in states:
            if only_last and level > 0:
                continue
            if terms is None and self.prior is not None:
                terms = self._lowest_terms(u)
            pictures = self._decode(u)
            finite = torch.isfinite(pictures).flatten(1).all(1)
            if terms is not None:
                terms = terms.detach().float().cpu()
                finite &= torch.isfinite(terms).all(1)
            if not bool(finite.all()):
                bad = [seed for seed, fine in zip(seeds, finite.tolist(), strict=True) if not fine]
                raise NonFiniteSampleError(bad, level, 0)
            yield level, tuple(g.detach().float().cpu() for g in u), terms, pictures

    @torch.no_grad()
    def _lowest_terms(self, u: Latents) -> Tensor:
        """F_i at the lowest noise level, (B, L)."""
        assert self._schedule is not None and self.config.prior is not None
        level = net_level(self._schedule, 0, self.config.prior.parametrization)
        return self.energy_terms(u, torch.full((len(u[0]),), float(level), device=self.device))

    # Pictures and latents

    @torch.no_grad()
    def _decode(self, u: Latents) -> Tensor:
        with torch.inference_mode(False), self._precision():
            return self.generator(u).float().cpu()

    def decode(
        self, latents: Latents, *, output_type: OutputType = "pil", batch_size: int = 16
    ) -> Any:
        """Mean pictures of u: N PIL pictures, or arrays as in `Samples`.

        Arguments:
            latents: (N, C_i, H_i, W_i) a group; raises `UserInputError` for other shapes.
        """
        require_choice("output_type", output_type, OutputType)
        require_integer("batch_size", batch_size, 1, MAX_SEEDS)
        count = check_latents(latents, self.generator.latent_shapes)
        parts = [
            self._decode(tuple(g[i : i + batch_size].to(self.device) for g in latents))
            for i in range(0, count, batch_size)
        ]
        return to_output(torch.cat(parts), output_type)

    @torch.no_grad()
    def encode(
        self,
        images: Pictures,
        *,
        mode: EncodeMode = "sample",
        seeds: int | Iterable[int] | None = None,
        batch_size: int = 16,
    ) -> Latents:
        """u of pictures, on the CPU: a draw of q(u | x), or its mean.

        Arguments:
            images: PIL pictures or paths (cropped to the middle square and resized), or floats (N,
                3, S, S) in [0, 1], as "torch" output is.
            mode: "sample" or "mean".
            seeds: Of the draw, one a picture; 0 ... N-1 if None.
        """
        require_integer("batch_size", batch_size, 1, MAX_SEEDS)
        require_choice("mode", mode, EncodeMode)
        x = self._read(images)
        chosen = choose_seeds(len(x), seeds)
        shapes, parts = self.generator.latent_shapes, []
        for i in range(0, len(x), batch_size):
            rows = x[i : i + batch_size].to(self.device)
            noise = None
            if mode == "sample":
                noise = NoiseStreams(
                    chosen[i : i + batch_size], shapes, device=self.device
                ).normal()
            with self._precision():
                u = encode(self.generator, self.encoder, rows, noise).u
            parts.append(tuple(g.float().cpu() for g in u))
        return _concatenate(parts)

    def _read(self, images: Pictures) -> Tensor:
        """Floats (N, 3, S, S) in [-1, 1]."""
        size = self.config.generator.image_size
        if not isinstance(images, Tensor):
            return prepare(images, size)
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, size, size) or len(images) == 0:
            raise UserInputError(
                f"images have shape {tuple(images.shape)}; this model reads (N, 3, {size}, {size})"
            )
        if not images.is_floating_point() or not bool(((images >= 0) & (images <= 1)).all()):
            raise UserInputError("images must be floats in [0, 1]")
        return images.float() * 2 - 1

    def reconstruct(
        self,
        images: Pictures,
        *,
        output_type: OutputType = "pil",
        mode: EncodeMode = "sample",
        batch_size: int = 16,
    ) -> Any:
        """decode(encode(images)): what the generator can say about a picture."""
        u = self.encode(images, mode=mode, batch_size=batch_size)
        return self.decode(u, output_type=output_type, batch_size=batch_size)

    def energy(
        self,
        images: Pictures | None = None,
        *,
        latents: Latents | None = None,
        groups: Groups | None = None,
        mode: EncodeMode = "sample",
        batch_size: int = 16,
    ) -> Tensor:
        """The energy -F_G at the lowest noise level, (N,): low for pictures like the training
        data.

        Arguments:
            images: Pictures, as for `encode`; or give `latents`.
            latents: u, as `encode` or a call returns it.
            groups: The groups G that count: a slice, indices or one index; all if None.
        """
        if (images is None) == (latents is None):
            raise UserInputError("give either images or latents, and not both")
        u = self.encode(images, mode=mode, batch_size=batch_size) if latents is None else latents
        require_integer("batch_size", batch_size, 1, MAX_SEEDS)
        count = check_latents(u, self.generator.latent_shapes)
        chosen = self._group_indices(groups)
        if self.prior is None:
            raise UserInputError(f"{self.name} has no energy-based prior, so no energy")
        terms = [
            self._lowest_terms(
                tuple(g[i : i + batch_size].to(self.device, torch.float32) for g in u)
            ).cpu()
            for i in range(0, count, batch_size)
        ]
        return -torch.cat(terms)[:, chosen].sum(1)

    def _group_indices(self, groups: Groups | None) -> list[int]:
        count = len(self.generator.latent_shapes)
        every = range(count)
        try:
            if groups is None or isinstance(groups, slice):
                chosen = list(every if groups is None else every[groups])
            else:
                asked = [groups] if isinstance(groups, int) else groups
                chosen = [every[operator.index(i)] for i in asked]
        except (IndexError, TypeError, ValueError):
            chosen = []
        if not chosen or len(set(chosen)) < len(chosen):
            raise UserInputError(
                f"groups {groups} asked for; this model has {count}, "
                f"numbered 0 (top) to {count - 1}, each to be named once"
            )
        return chosen

    # Saving

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float16
    ) -> None:
        """Write a folder that `from_pretrained` accepts, with its manifest row; weights in half
        precision.

        Raises:
            EnvironmentFailure: The folder cannot be written.
            WeightsError: A weight does not fit the precision; nothing is half-written.
        """
        encoder = self.encoder if self._encoder is not None else None
        write_model_folder(
            Path(folder),
            self.config,
            self.generator,
            self.prior,
            encoder,
            dtype=dtype,
            card=self._card,
        )

    def __reduce__(self) -> Any:
        """Refused: a pipeline's weights live in safetensors, not in pickles."""
        raise UserInputError(
            "a Pipeline cannot be pickled; use save_pretrained and from_pretrained"
        )
