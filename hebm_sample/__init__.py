"""hebm_sample: sample from hierarchical generators with a diffusion-learned energy-based prior.

>>> from hebm_sample import Pipeline
>>> pipe = Pipeline.from_pretrained("celebahq")
>>> pipe(num_images=16).grid().save("faces.png")
"""

from typing import TYPE_CHECKING

from hebm_sample._moved import install

if TYPE_CHECKING:
    from hebm_sample.hub.manifest import list_models
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["Pipeline", "__version__", "list_models"]

__version__ = "0.1.0"

install()
del install


def __getattr__(name: str) -> object:
    # Importing torch takes seconds: the package and `--help` stay instant by importing it on first
    # use (PEP 562).
    if name == "Pipeline":
        from hebm_sample.pipeline.pipeline import Pipeline

        return Pipeline
    if name == "list_models":
        from hebm_sample.hub.manifest import list_models

        return list_models
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
