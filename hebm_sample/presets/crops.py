"""Where the faces of our models' images have eyes and mouth, measured on their training data:

hebm-train crop FOLDER --data SOURCE -n 1000
"""

from hebm_sample.config import FaceCrop, ModelConfig

__all__ = ["CROPS", "crop_for"]

CROPS = {
    "celebahq": FaceCrop((0.3334, 0.3253), (0.6666, 0.3253), (0.5, 0.6882), spread=0.0632),
    "celeba64": FaceCrop((0.3889, 0.5163), (0.6111, 0.5163), (0.5, 0.7484), spread=0.0377),
}


def crop_for(config: ModelConfig) -> FaceCrop | None:
    """What a model's description states, which is of its own data. Our models that were written
    before descriptions stated it are known by name; they say nothing of their training, as every
    model does that was trained since. None for a model of other things.
    """
    return config.crop or (None if config.training else CROPS.get(config.name))
