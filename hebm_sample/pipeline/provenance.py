"""How an image came about: what its file's text, `--json` and the demo's files say of it.

One owner of the keys, of the model's defaults that go in where nothing was asked for, and of how
values are written: `Smiling=yes Male=no`, `1.0,0.8`, `0-15,20`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from hebm_sample import __version__
from hebm_sample.config import DecoderName
from hebm_sample.io.seeds import format_seeds

if TYPE_CHECKING:
    from hebm_sample.pipeline.model import Model
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["Provenance"]


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
        """Which model, at which resolution and revision, and which release of the package."""
        return cls(
            {
                "model": pipe.name,
                "resolution": pipe.config.generator.image_size,
                "revision": pipe.revision,
                "version": f"hebm_sample {__version__}",
            }
        )

    @classmethod
    def of_decoded(
        cls, pipe: "Pipeline | Model", decoder: DecoderName | None = None
    ) -> "Provenance":
        """Which model, and which of its decoders; None is the one that shows images.

        Raises:
            UserInputError: A decoder that the model has not.
        """
        return cls.of_model(pipe).saying(decoder=pipe.generator.chosen_decoder(decoder))

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
    ) -> "Provenance":
        """Which model, how it was sampled and what decoded it: None is the model's own; the
        Gaussian prior has no chain.

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
            settings = {"sampler": sampler, "temperature": temperature, "particles": particles}
            count = default.changed(
                **{k: v for k, v in settings.items() if v is not None}
            ).particles
            chosen |= {} if count == 1 else {"particles": count}
        return cls.of_decoded(pipe, decoder).saying(**how, **chosen)

    def saying(self, **facts: Any) -> "Provenance":
        """With further facts."""
        return replace(self, facts={**self.facts, **facts})

    def of_seeds(self, *seeds: int) -> "Provenance":
        """Of the images of these seeds."""
        return replace(self, seeds=seeds)

    def text(self, single: bool = False) -> dict[str, str]:
        """For the file's text: `seed` of a single image, `seeds` of a grid, and the facts that
        apply.
        """
        key = "seed" if single else "seeds"
        seeds = {key: format_seeds(self.seeds)} if self.seeds else {}
        facts = {key: _shown(value) for key, value in self.facts.items() if value is not None}
        return {**seeds, **facts}


def _shown(value: object) -> str:
    """As it would be typed."""
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_shown(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value)
