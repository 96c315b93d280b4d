r"""The way in: load a model, sample images, steer them, read images.

A `Pipeline` holds a `Model`, its networks and what they say, and a `Sampler`; what it does is in
files of its own:

    model        images and latents: `encode`, `decode`, `classify`
    scores       densities: `energy`, `log_density`, `rate`, `score`
    sampler      a call, `stream`, `trajectory`
    layers       `vary`, `layers`, `mix`, `interpolate`, `reconstruct`
    alignment    `align`, `framing_notes`
    editing      `edit`
    inpainting   `inpaint`
"""

import os
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import torch

from hebm_sample.config import ModelConfig
from hebm_sample.errors import UserInputError
from hebm_sample.generator.protocol import Generator, ImageEncoder
from hebm_sample.hub.manifest import ModelRow
from hebm_sample.pipeline import alignment, editing, inpainting, request, scores
from hebm_sample.pipeline import layers as of_layers
from hebm_sample.pipeline.editing import EditMethod
from hebm_sample.pipeline.model import Model, pretrained
from hebm_sample.pipeline.outputs import OutputType, Samples
from hebm_sample.pipeline.progress import check_bar_options
from hebm_sample.pipeline.request import Prior
from hebm_sample.pipeline.sampler import Sampler
from hebm_sample.pipeline.words import in_anybodys_words, own_words
from hebm_sample.prior.joint import JointEnergy

if TYPE_CHECKING:
    from hebm_sample.metrics.typicality import Calibration

__all__ = ["EditMethod", "OutputType", "Pipeline", "Prior", "Samples"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Self = TypeVar("_Self", bound="Pipeline")


def _of_model(
    function: Callable[Concatenate[Model, _P], _R],
) -> Callable[Concatenate["Pipeline", _P], _R]:
    """A function of a model as a method of the pipeline that holds it, in anybody's words."""

    @wraps(function)
    def method(self: "Pipeline", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        call: Any = function
        return call(self.model, *args, **own_words(function, args, kwargs))

    return method


def _of_sampler(
    function: Callable[Concatenate[Sampler, _P], _R],
) -> Callable[Concatenate["Pipeline", _P], _R]:
    """A function of a sampler as a method of the pipeline that holds it, in anybody's words."""

    @wraps(function)
    def method(self: "Pipeline", /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        call: Any = function
        return call(self.sampler, *args, **own_words(function, args, kwargs))

    return method


class Pipeline:
    """A loaded model.

    Build it with `from_pretrained`; the constructor takes modules that exist already.

    Arguments:
        config: The model's description.
        generator: The generator.
        prior: The energies; None for a generator without a prior of its own.
        encoder: The encoder, or a function that loads it when it is first needed.
        device: As for `from_pretrained`.
        dtype: As for `from_pretrained`.
        revision: Commit on the Hub; None for embedded and local models.
        card: The model card that `save_pretrained` copies.
        row: Its manifest's row, of which `save_pretrained` keeps licence and figures.
        calibration: What its scores are on held-out images, or a function that loads it.

    Attributes:
        model: The networks, and what they say about images and latents.
        sampler: What samples them.

    >>> from hebm_sample import Pipeline
    >>> pipe = Pipeline.from_pretrained("cifar10")
    >>> ships = pipe(seeds=[3, 8], symbols={"class": "ship"}, guidance=4.0, steps=12)
    >>> ships.images[0].size, tuple(ships.energies.shape)
    ((32, 32), (2, 4))
    >>> [tuple(group.shape) for group in ships.latents]
    [(2, 16, 4, 4), (2, 16, 4, 4), (2, 8, 8, 8), (2, 8, 8, 8)]

    Variations that keep the top two groups, and what the model says of an image:

    >>> varied = pipe.vary(ships, 2, 2, steps=12)
    >>> bool((varied.latents[0][:2] == ships.latents[0][:1]).all())
    True
    >>> pipe.classify(ships.images)["class"].shape == (2, len(pipe.symbols["class"]))
    True
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
        self.model = Model(
            config,
            generator,
            prior,
            encoder,
            device=device,
            dtype=dtype,
            revision=revision,
            card=card,
            row=row,
            calibration=calibration,
        )
        self.sampler = Sampler(self.model)

    @classmethod
    @in_anybodys_words
    def from_pretrained(
        cls: type[_Self],
        name: str | os.PathLike[str],
        *,
        resolution: int | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        device: str | torch.device = "auto",
        dtype: torch.dtype | None = None,
    ) -> _Self:
        """Load a model; every file is checked against its manifest's size and sha256 first.

        Arguments:
            name: A name of `hebm_sample.list_models()`, maybe with its resolution as in
                "celebahq-64", a Hub repository id, or a local folder.
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
        stored = pretrained(
            name,
            device,
            resolution=resolution,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        return cls(**stored, dtype=dtype)

    @in_anybodys_words
    def to(
        self: _Self,
        device: str | torch.device | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> _Self:
        """Move to a device, and choose the networks' precision: float32 or bfloat16. Returns the
        pipeline.

        With bfloat16 the networks compute under autocast; weights, latents and energies stay
        float32. `to("cuda")`, `to(torch.bfloat16)` and `to("cuda", torch.bfloat16)` are all
        understood.
        """
        if isinstance(device, torch.dtype):
            if dtype is not None:
                raise UserInputError(f"{device} and {dtype} were both given; give one dtype")
            device, dtype = None, device
        self.model.to(device, dtype)
        return self

    def set_progress_bar_config(self, **options: Any) -> None:
        """How the bar of calls with progress=None looks, and whether there is one.

        Arguments:
            options: Of `tqdm`: disable=True for none, disable=False for one that goes to files,
                too; leave, desc, file, ... What was set before is forgotten.

        Raises:
            UserInputError: `tqdm` has no such option.
        """
        check_bar_options(options)
        self.sampler.bar_options = options

    # What it is made of

    @property
    def config(self) -> ModelConfig:
        """The model's description."""
        return self.model.config

    @config.setter
    def config(self, config: ModelConfig) -> None:
        self.model.describe(config)

    @property
    def generator(self) -> Generator:
        """The generator."""
        return self.model.generator

    @generator.setter
    def generator(self, generator: Generator) -> None:
        self.model.generator = generator

    @property
    def prior(self) -> JointEnergy | None:
        """The energies; None for a generator without a prior of its own."""
        return self.model.prior

    @prior.setter
    def prior(self, prior: JointEnergy | None) -> None:
        self.model.prior = prior

    @property
    def has_encoder(self) -> bool:
        """Whether the model has an encoder, which is loaded to see."""
        try:
            return self.model.encoder is not None
        except UserInputError:
            return False

    @property
    def encoder(self) -> ImageEncoder:
        """The encoder; loaded when first needed."""
        return self.model.encoder

    @property
    def calibration(self) -> "Calibration | None":
        """What its scores are on held-out images; loaded when first needed, None without."""
        return self.model.calibration

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The networks' precision."""
        return self.model.dtype

    @property
    def revision(self) -> str | None:
        """Commit on the Hub; None for embedded and local models."""
        return self.model.revision

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def weights_hash(self) -> str:
        """The sha256 of every weight of generator and energies, whatever they were loaded from:
        with it and the settings a seed is an image.
        """
        return self.model.weights_hash

    @property
    def symbols(self) -> dict[str, tuple[str, ...]]:
        """The symbol table: each variable's values, in the order of `classify`'s columns."""
        return self.model.symbols

    @property
    def compile_chains(self) -> bool:
        """Whether `torch.compile` has the chains' energies. Compiling takes long, so it can pay
        for many images only; off at first.
        """
        return self.sampler.compile_chains

    @compile_chains.setter
    def compile_chains(self, compile_chains: bool) -> None:
        self.sampler.compile_chains = compile_chains

    # What it does

    encode = _of_model(Model.encode)
    decode = _of_model(Model.decode)
    reconstruct = _of_model(of_layers.reconstruct)
    classify = _of_model(Model.classify)
    energy_terms = _of_model(Model.energy_terms)
    posterior_variance = _of_model(Model.posterior_variance)
    save_pretrained = _of_model(Model.save_pretrained)

    energy = _of_model(scores.energy)
    log_density = _of_model(scores.log_density)
    rate = _of_model(scores.rate)
    score = _of_model(scores.score)
    p_value_note = _of_model(scores.p_value_note)

    sampling_config = _of_model(request.sampling_config)
    total_steps = _of_model(request.total_steps)
    __call__ = _of_sampler(Sampler.__call__)
    stream = _of_sampler(Sampler.stream)
    trajectory = _of_sampler(Sampler.trajectory)

    latents_of = _of_model(of_layers.latents_of)
    vary = _of_sampler(of_layers.vary)
    layers = _of_sampler(of_layers.layers)
    mix = _of_model(of_layers.mix)
    interpolate = _of_model(of_layers.interpolate)

    align = _of_model(alignment.aligned_images)
    framing_notes = _of_model(alignment.framing_notes)
    edit = _of_sampler(editing.edit)
    inpaint = _of_sampler(inpainting.inpaint)

    def __repr__(self) -> str:
        """Model, size, device, precision, groups and attributes."""
        config, sides = (
            self.config.generator,
            [shape[1:] for shape in self.generator.latent_shapes],
        )
        scales = [f"{sides.count(s)} at {s[0]}x{s[1]}" for s in dict.fromkeys(sides)]
        dtype = str(self.dtype).removeprefix("torch.")
        named = ", ".join(
            name if set(values) == {"no", "yes"} else f"{name} ({', '.join(values)})"
            for name, values in self.symbols.items()
        )
        return (
            f"<Pipeline {self.name}: {config.image_size}x{config.image_size} images, on "
            f"{self.device} in {dtype}; {len(sides)} groups: {', '.join(scales)}; "
            f"{'prior: energies' if self.prior is not None else 'prior: N(0, I)'}; "
            f"attributes: {named or 'none'}>"
        )

    def __reduce__(self) -> Any:
        """Refused: a pipeline's weights live in safetensors, not in pickles."""
        return self.model.__reduce__()
