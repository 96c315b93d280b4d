"""How an image came about: what its file's text, `--json` and the demo's files say of it.

One owner of the keys, of the model's defaults that go in where nothing was asked for, and of how
values are written: `Smiling=yes Male=no`, `1.0,0.8`, `0-15,20`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, cast

from hebm_sample import __version__
from hebm_sample.config import DecoderName, LangevinConfig
from hebm_sample.io.seeds import format_seeds
from hebm_sample.pipeline.identity import description_hash, encoder_hash

if TYPE_CHECKING:
    from hebm_sample.pipeline.model import Model
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = [
    "Provenance",
    "begun_from",
    "made_of",
    "said_of_mode",
    "settings_of",
    "together",
]


@dataclass(frozen=True)
class Provenance:
    """Facts about images.

    Arguments:
        facts: What all of them have in common, as JSON can hold it; None: does not apply.
        seeds: The seed of each; empty where none was used.
    """

    facts: Mapping[str, Any]
    seeds: tuple[int, ...] = field(default=())

    @classmethod
    def of_model(cls, pipe: "Pipeline | Model") -> "Provenance":
        """Which model, by name and by the hashes of its weights and its description, in which
        number format, and which release of the package.
        """
        return cls(
            {
                "model": pipe.name,
                "resolution": pipe.config.generator.image_size,
                "revision": pipe.revision,
                "version": f"hebm_sample {__version__}",
                "weights": pipe.weights_hash,
                "description": description_hash(pipe.config),
                "dtype": str(pipe.dtype).removeprefix("torch."),
            }
        )

    @classmethod
    def of_decoded(
        cls,
        pipe: "Pipeline | Model",
        decoder: DecoderName | None = None,
        *,
        encoder: bool = False,
    ) -> "Provenance":
        """Which model, and which of its decoders; None is the one that shows images.

        Arguments:
            encoder: Whether images were read, so that the encoder's weights count.

        Raises:
            UserInputError: A decoder that the model has not.
        """
        found = cls.of_model(pipe).saying(decoder=pipe.generator.chosen_decoder(decoder))
        return (
            found.saying(encoder=encoder_hash(cast("Model", getattr(pipe, "model", pipe))))
            if encoder
            else found
        )

    @classmethod
    def of_samples(
        cls,
        pipe: "Pipeline | Model",
        *,
        sampler: str | None = None,
        steps: int | None = None,
        temperature: float | Sequence[float] | None = None,
        decoder: DecoderName | None = None,
        prior: str | None = None,
        particles: int | None = None,
        encoder: bool = False,
    ) -> "Provenance":
        """Which model, how it was sampled and what decoded it: None is the model's own; the
        Gaussian prior has no chain. `sampling` are all other settings of the chain.

        Raises:
            UserInputError: A decoder that the model has not.
        """
        default, has_chain = pipe.config.sampling, prior != "gaussian"
        how = {
            "sampler": (sampler or default.sampler) if has_chain else None,
            "steps": (steps or default.steps) if has_chain else None,
            "temperature": default.temperature if temperature is None else temperature,
        }
        chosen: dict[str, Any] = {} if prior is None else {"prior": prior}
        if has_chain:
            typed = {"sampler": sampler, "temperature": temperature, "particles": particles}
            resolved = default.changed(**{k: v for k, v in typed.items() if v is not None})
            chosen |= said_of_particles(resolved, default)
            chosen["sampling"] = settings_of(resolved)
            encoder = encoder or resolved.precondition  # whose steps follow the posterior
        return cls.of_decoded(pipe, decoder, encoder=encoder).saying(**how, **chosen)

    def saying(self, **facts: Any) -> "Provenance":
        """With further facts."""
        return replace(self, facts={**self.facts, **facts})

    def of_seeds(self, *seeds: int) -> "Provenance":
        """Of the images of these seeds."""
        return replace(self, seeds=seeds)

    def text(self, single: bool = False) -> dict[str, str]:
        """For the file's text: `seed` of a single image, `seeds` of a grid or of what is made of
        several, and the facts that apply.
        """
        key = "seed" if single and len(self.seeds) == 1 else "seeds"
        seeds = {key: format_seeds(self.seeds)} if self.seeds else {}
        facts = {key: _shown(value) for key, value in self.facts.items() if value is not None}
        return {**seeds, **facts}


def settings_of(config: LangevinConfig) -> dict[str, Any]:
    """Those of a chain that have no key of their own."""
    own = {"sampler", "steps", "temperature", "particles"}
    return {f.name: getattr(config, f.name) for f in fields(config) if f.name not in own}


def said_of_particles(config: LangevinConfig, default: LangevinConfig) -> dict[str, Any]:
    """What files say of particles: nothing where there is one of them, as the model has it."""
    usual = config.particles == default.particles == 1
    return {} if usual else {"particles": config.particles}


def together(each: Sequence[Provenance]) -> Provenance:
    """Of images that are in one file, or that one is made of: where a fact is not the same of all,
    it is a list, with "-" where it does not apply.
    """
    facts: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in each for name in one.facts):
        values = [one.facts.get(name) for one in each]
        same = all(value == values[0] for value in values)
        facts[name] = values[0] if same else ["-" if v is None else v for v in values]
    return Provenance(facts, tuple(seed for one in each for seed in one.seeds))


def made_of(made: Provenance, *sources: Provenance) -> Provenance:
    """What a file says, with how the images were made that it is made of, and their seeds, if each
    has one.
    """
    found = together(sources)
    facts = {k: v for k, v in found.facts.items() if made.facts.get(k) is None}
    seeds = found.seeds if len(found.seeds) == len(sources) else ()
    return made.saying(**facts).of_seeds(*seeds)


def begun_from(made: Provenance, source: Provenance) -> Provenance:
    """What a file says, with the seed of the image that it began from, and `source`: how that was
    made otherwise. Of an image that was read it is what its reading says.
    """
    first = source.seeds[0] if source.seeds else None
    if set(source.facts) <= {"align", "face"}:
        return made.saying(**source.facts, from_seed=first)
    other = {
        name: value
        for name, value in source.facts.items()
        if name != "decoder" and value not in (None, made.facts.get(name))
    }
    return made.saying(from_seed=first, source=other or None)


def said_of_mode(mode: str) -> dict[str, Any]:
    """What files say of how images were read: nothing of a sample, as the commands read them."""
    return {} if mode == "sample" else {"mode": mode}


def _shown(value: object) -> str:
    """As it would be typed."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(_shown, value))
    return str(value)
