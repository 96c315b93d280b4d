"""A loaded model: its networks, and what they say about images and latents.

    q(u | x)                     `encode`, `decode`
    p(y_v = j | u) = softmax_j   `classify`

`sampler` samples it, `scores` asks it for densities, `pipeline` is the way in to all of them.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from hebm_sample.config import DecoderName, ModelConfig, require_choice, require_integer
from hebm_sample.errors import UserInputError
from hebm_sample.generator.encoder import encode
from hebm_sample.generator.protocol import Generator, ImageEncoder
from hebm_sample.hub.load import build_model, load_calibration, load_encoder
from hebm_sample.hub.manifest import ModelRow
from hebm_sample.hub.save import UNSTATED_LICENCE, write_model_folder
from hebm_sample.io.seeds import MAX_SEEDS, posterior_seed
from hebm_sample.latents import Latents, check_latents, concatenate
from hebm_sample.pipeline.alignment import Framed, crops
from hebm_sample.pipeline.device import pick_device
from hebm_sample.pipeline.identity import (
    calibration_to_save,
    state_of,
    weights_hash,
)
from hebm_sample.pipeline.outputs import (
    OutputType,
    as_floats,
    seeds_of,
    to_output,
)
from hebm_sample.pipeline.posterior_variance import posterior_variance
from hebm_sample.pipeline.runtime.batch_size import check_memory
from hebm_sample.pipeline.scoring import group_indices, samples_of
from hebm_sample.prior.density import cum_sigma_of, net_level
from hebm_sample.prior.joint import JointEnergy
from hebm_sample.prior.schedule import DiffusionSchedule
from hebm_sample.prior.symbols import Condition, GroupOutputs
from hebm_sample.sampling.noise import NoiseStreams

if TYPE_CHECKING:
    from hebm_sample.metrics.typicality import Calibration

__all__ = ["EncodeMode", "Groups", "ImagesLike", "Model", "pretrained"]

EncodeMode = Literal["sample", "mean"]
Groups = slice | Sequence[int] | int
ImagesLike = Tensor | Any
MOST_PIXELS = (2**22, 2**18)  # decoded at a time, elsewhere and on the CPU
_Module = TypeVar("_Module", bound=nn.Module)


def pretrained(
    name: str | os.PathLike[str], device: str | torch.device = "auto", **options: Any
) -> dict[str, Any]:
    """A stored model as arguments of `Model`, and of `Pipeline`.

    Arguments:
        name: As for `Pipeline.from_pretrained`.
        device: Likewise.
        options: Those of `hub.load.build_model`.
    """
    chosen = pick_device(device)
    model = build_model(name, **options)
    check_memory(model.config, model.generator, model.prior, chosen)
    card = model.resolved.folder / "README.md"

    def encoder() -> ImageEncoder:
        return load_encoder(model.resolved, model.config)

    return {
        "config": model.config,
        "generator": model.generator,
        "prior": model.prior,
        "encoder": encoder if "encoder.safetensors" in model.resolved.row.files else None,
        "device": chosen,
        "revision": model.resolved.revision,
        "card": card if card.is_file() else None,
        "row": model.resolved.row,
        "calibration": lambda: load_calibration(model.resolved),
    }


class Model:
    """What `Pipeline` knows without sampling. Arguments as there.

    Attributes:
        schedule: Noise levels of the prior; None without one.
        hashes: Those of weights by name, each with the state of the weights that it is of.
    """

    def __init__(
        self,
        config: ModelConfig,
        generator: Generator,
        prior: JointEnergy | None = None,
        encoder: ImageEncoder | Callable[[], ImageEncoder] | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        card: Path | None = None,
        row: ModelRow | None = None,
        calibration: "Calibration | Callable[[], Calibration | None] | None" = None,
    ) -> None:
        self.revision = revision
        self.prior = prior
        self._generator, self._encoder = generator, encoder
        self._card, self._row, self._calibration = card, row, calibration
        self._posterior_variance: tuple[object, Latents] | None = None
        self.describe(config)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.to(pick_device(device), dtype or torch.float32)

    def describe(self, config: ModelConfig) -> None:
        """Another description of the same networks, such as other levels or a sampler."""
        self.config = config
        self.hashes: dict[str, tuple[object, str]] = {}
        self.schedule = DiffusionSchedule(config.prior.levels) if config.prior else None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.config.name

    @property
    def generator(self) -> Generator:
        """The generator; with another one, what was found of the old one is forgotten."""
        return self._generator

    @generator.setter
    def generator(self, generator: Generator) -> None:
        self._generator, self._posterior_variance, self.hashes = generator, None, {}

    @property
    def weights_hash(self) -> str:
        """The sha256 of every weight of generator and energies; `pipeline/identity.py`."""
        return weights_hash(self)

    @property
    def encoder(self) -> ImageEncoder:
        """The encoder; loaded when first needed."""
        if self._encoder is None:
            raise UserInputError(
                f"{self.name} has no encoder, so it cannot read images; use a model that has one"
            )
        if not isinstance(self._encoder, ImageEncoder):
            self._encoder = self._settle(self._encoder())
        return self._encoder

    @property
    def calibration(self) -> "Calibration | None":
        """What its scores are on held-out images; loaded when first needed, None without."""
        if callable(self._calibration):
            self._calibration = self._calibration()
        return self._calibration

    @torch.inference_mode(False)
    def _settle(self, module: _Module) -> _Module:
        moved = module.to(self.device, torch.float32, memory_format=torch.channels_last)  # pyright: ignore
        return moved.requires_grad_(False).eval()

    def to(
        self, device: str | torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Move the networks, or choose their precision; as `Pipeline.to`."""
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise UserInputError(f"dtype is {dtype}; it can be torch.float32 or torch.bfloat16")
        self.device = pick_device(device) if device is not None else self.device
        self.dtype = dtype or self.dtype
        self.generator = self._settle(self.generator)
        self.prior = self._settle(self.prior) if self.prior is not None else None
        if isinstance(self._encoder, ImageEncoder):
            self._encoder = self._settle(self._encoder)

    def precision(self) -> AbstractContextManager[Any]:
        """What the networks run under: autocast, or nothing."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    @property
    def symbols(self) -> dict[str, tuple[str, ...]]:
        """The symbol table: each variable's values, in the order of `classify`'s columns."""
        table = self.config.prior.symbols if self.config.prior is not None else ()
        return {symbol.name: symbol.values for symbol in table}

    def energies(self) -> JointEnergy:
        """The prior; `UserInputError` for a model without one."""
        if self.prior is None:
            raise UserInputError(
                f"{self.name} has no energy-based prior, so no energies; sample it with "
                "--gaussian-prior (prior='gaussian'), or train one on it: hebm-train prior"
            )
        return self.prior

    def energy_terms(
        self, u: Latents, level: Tensor, condition: Condition | None = None
    ) -> Tensor:
        """Terms that sum to F at u and noise level, as `JointEnergy` gives them; differentiable in
        u. Level as in `prior.density.net_level`.
        """
        prior = self.energies()
        with self.precision():
            return prior(self.generator.transform(u), level, condition).float()

    def cum_sigma_of_level(self, level: Tensor) -> Tensor:
        """cum_sigma (B,) of what the nets are told about a level, (B,)."""
        assert self.schedule is not None and self.config.prior is not None
        return cum_sigma_of(self.schedule, self.config.prior.parametrization, level)

    def level_near(self, cum_sigma: float, *, below_noise: bool = False) -> int:
        """The level 1 ... T whose noise is nearest.

        Arguments:
            cum_sigma: The noise, in (0, 1].
            below_noise: Leave out T itself, pure noise.
        """
        self.energies()
        assert self.schedule is not None
        levels = self.schedule.levels
        return min(range(1, len(levels) - below_noise), key=lambda t: abs(levels[t] - cum_sigma))

    def lowest_level(self) -> float:
        """What the nets are told about the lowest noise level."""
        self.energies()
        assert self.schedule is not None and self.config.prior is not None
        return float(net_level(self.schedule, 0, self.config.prior.parametrization))

    @torch.no_grad()
    def lowest_outputs(self, u: Latents, batch_size: int) -> GroupOutputs:
        """b_i and g_i of u at the lowest noise level, on the CPU."""
        prior, level, parts = self.energies(), self.lowest_level(), []
        for i in range(0, check_latents(u, self.generator.latent_shapes), batch_size):
            rows = tuple(g[i : i + batch_size].to(self.device, torch.float32) for g in u)
            levels = torch.full((len(rows[0]),), level, dtype=torch.float32, device=self.device)
            with self.precision():
                found = prior.outputs(self.generator.transform(rows), levels)
            parts.append([x.float().cpu() for x in found])
        return GroupOutputs(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def posterior_variance(self) -> Latents:
        """w of every coordinate, (1, C_i, H_i, W_i) a group, on the model's device: how wide
        q(u | x) is there, averaged over images (`pipeline/posterior_variance.py`). The steps of
        `precondition=True` follow it. Found once, and again where a weight was changed.

        Raises:
            UserInputError: the model has no encoder.
        """
        state, known = state_of(self.generator, self.encoder), self._posterior_variance
        if known is None or state is None or known[0] != state:
            with self.precision():
                found = posterior_variance(self.generator, self.encoder, self.device)
            known = self._posterior_variance = (state, found)
        return known[1]

    # Images and latents

    @torch.no_grad()
    def images(self, u: Latents, decoder: DecoderName | None = None) -> Tensor:
        """Images (N, 3, S, S) on the CPU, a few at a time: at 256x256 the decoder's maps, and no
        chain, are what memory is needed for. `decoder` as of `decode`.
        """
        most = MOST_PIXELS[self.device.type == "cpu"]
        count = max(1, most // self.config.generator.image_size**2)
        with torch.inference_mode(False), self.precision():
            parts = [
                self._shown(tuple(g[i : i + count] for g in u), decoder).float().cpu()
                for i in range(0, len(u[0]), count)
            ]
        return torch.cat(parts)

    def _shown(self, u: Latents, decoder: DecoderName | None) -> Tensor:
        return self.generator.render(self.generator.transform(u).features, decoder)

    def decode(
        self,
        latents: Latents,
        *,
        decoder: DecoderName | None = None,
        output_type: OutputType = "pil",
        batch_size: int = 16,
    ) -> Any:
        """Images of u: N PIL images, or arrays as in `Samples`.

        Arguments:
            latents: (N, C_i, H_i, W_i) a group; raises `UserInputError` for other shapes, and for
                values whose images are not finite.
            decoder: "sharp", or "likelihood" for the mean of p(x | u), which bits and scores are
                of; raises `UserInputError` for one that the model has not. If None, "sharp" where
                there is one.
        """
        self.generator.chosen_decoder(decoder)
        require_choice("output_type", output_type, OutputType)
        batch_size = require_integer("batch_size", batch_size, 1, MAX_SEEDS)
        count = check_latents(latents, self.generator.latent_shapes)
        parts = [
            self.images(
                tuple(g[i : i + batch_size].to(self.device, torch.float32) for g in latents),
                decoder,
            )
            for i in range(0, count, batch_size)
        ]
        images = torch.cat(parts)
        if not bool(torch.isfinite(images).all()):
            raise UserInputError(
                "the images of these latents are not finite; the latents are not, or too large"
            )
        return to_output(images, output_type)

    @torch.no_grad()
    def encode(
        self,
        images: ImagesLike,
        *,
        mode: EncodeMode = "sample",
        seeds: int | Iterable[int] | None = None,
        batch_size: int = 16,
        align: bool = False,
        face: int | None = None,
    ) -> Latents:
        """u of images, on the CPU: a sample of q(u | x), or its mean.

        The encoder of a variational autoencoder, "Auto-Encoding Variational Bayes" (arXiv
        1312.6114), top-down as in "NVAE: A Deep Hierarchical Variational Autoencoder" (arXiv
        2007.03898).

        Arguments:
            images: PIL images or paths (cropped to the middle square and resized); floats (N, 3,
                S, S) or (N, S, S, 3) in [0, 1], as "torch" and "numpy" output is; `Samples`; faces
                that `align` cut; or a list of any of these.
            mode: "sample" or "mean".
            seeds: Of the sample, one per image; 0 ... N-1 if None. Its noise is not that of the
                samples with these seeds.
            align, face: As of `edit`.

        Raises:
            UserInputError: The model has no encoder, these are no images of its size, or what
                `edit` raises of `align`.
        """
        batch_size = require_integer("batch_size", batch_size, 1, MAX_SEEDS)
        require_choice("mode", mode, EncodeMode)
        x = self.read_images(crops(self, images, align, face))
        chosen = seeds_of(len(x), seeds)
        shapes, parts = self.generator.latent_shapes, []
        for i in range(0, len(x), batch_size):
            rows = x[i : i + batch_size].to(self.device)
            noise = None
            if mode == "sample":
                own = [posterior_seed(seed) for seed in chosen[i : i + batch_size]]
                noise = NoiseStreams(own, shapes, device=self.device).normal()
            with self.precision():
                u = encode(self.generator, self.encoder, rows, noise).u
            parts.append(tuple(g.float().cpu() for g in u))
        return concatenate(parts)

    def read_images(self, images: ImagesLike) -> Tensor:
        """Floats (N, 3, S, S) in [-1, 1]; nothing is said of how they are framed."""
        images = images.images if isinstance(images, Framed) else images
        return as_floats(images, self.config.generator.image_size)

    def classify(
        self,
        images: ImagesLike | None = None,
        *,
        latents: Latents | None = None,
        groups: Groups | None = None,
        mode: EncodeMode = "sample",
        batch_size: int = 16,
        align: bool = False,
        face: int | None = None,
    ) -> dict[str, Tensor]:
        """p(y_v = j | u) at the lowest noise level: (N, values) a variable, values as in
        `symbols`.

        Classifiers in the energies: "Latent Space Energy-Based Model of Symbol-Vector Coupling for
        Text Generation and Classification" (arXiv 2108.11556).

        Arguments as for `energy`. Raises `UserInputError` for a model without symbols.
        """
        chosen, prior = self.group_indices(groups), self.energies()
        if not len(prior.table):
            raise UserInputError(
                f"{self.name} has no symbols; `hebm-sample --list` shows the models that have"
            )
        found = [
            prior.table.probabilities(self.lowest_outputs(u, batch_size).logits[:, chosen].sum(1))
            for u in samples_of(self, images, latents, mode, batch_size, align, face)
        ]
        return {name: torch.stack([p[name] for p in found]).mean(0) for name in found[0]}

    def group_indices(self, groups: Groups | None) -> list[int]:
        """Indices of the groups that a slice, indices, one index or None (all) name."""
        return group_indices(groups, len(self.generator.latent_shapes))

    # Saving

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        dtype: torch.dtype = torch.float16,
        overwrite: bool = False,
    ) -> None:
        """Write a folder that `from_pretrained` accepts, with its manifest row; weights in half
        precision. Licence, figures and card are those of the model that was loaded, and so is its
        calibration, unless it is of other weights than these.

        Arguments:
            overwrite: Replace the files of a model that is there.

        Raises:
            UserInputError: The folder holds a model, or other files of these names.
            EnvironmentFailure: The folder cannot be written.
            WeightsError: A weight does not fit the precision; nothing is half-written.
        """
        encoder = self.encoder if self._encoder is not None else None
        write_model_folder(
            Path(folder).expanduser(),
            self.config,
            self.generator,
            self.prior,
            encoder,
            dtype=dtype,
            licence=UNSTATED_LICENCE if self._row is None else self._row.licence,
            figures=None if self._row is None else self._row.figures,
            card=self._card,
            calibration=calibration_to_save(self, dtype),
            overwrite=overwrite,
        )

    def __reduce__(self) -> Any:
        """Refused: a pipeline's weights live in safetensors, not in pickles."""
        raise UserInputError(
            "a Pipeline cannot be pickled; use save_pretrained and from_pretrained"
        )
