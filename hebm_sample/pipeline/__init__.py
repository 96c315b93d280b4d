"""The way in: load a model, sample images, steer them, read images."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hebm_sample.pipeline.pipeline import Pipeline

__all__ = ["Pipeline"]


def __getattr__(name: str) -> Any:
    """Load torch and the rest when `Pipeline` is first needed: conditions need none of it."""
    if name == "Pipeline":
        from hebm_sample.pipeline.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
