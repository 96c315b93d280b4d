"""Where the faces of our models' images have eyes and mouth, measured on their training data:

hebm-train crop FOLDER --data SOURCE -n 2000
"""

from hebm_sample.config import FaceCrop, ModelConfig

__all__ = ["CROPS", "crop_for"]

CROPS = {
    "celebahq": FaceCrop((0.3328, 0.3251), (0.6672, 0.3251), (0.5, 0.6882), spread=0.0672),
    "celeba64": FaceCrop((0.3891, 0.5159), (0.6109, 0.5159), (0.5, 0.7482), spread=0.0426),
}


def crop_for(config: ModelConfig) -> FaceCrop | None:
    """What a model's description states; of our own models that were written before descriptions
    stated it, what was measured. None for a model of other things.
    """
    return config.crop or CROPS.get(config.name)
