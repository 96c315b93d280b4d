"""Inception features, which FID ("GANs Trained by a Two Time-Scale Update Rule Converge to a Local
Nash Equilibrium", arXiv 1706.08500) and KID ("Demystifying MMD GANs", arXiv 1801.01401) are
published in.

Network and weights come through torch-fidelity: the TensorFlow graph of 2015 ported to PyTorch,
which resizes the bytes of an image to 299x299 as that graph did. The weights are downloaded on
first use. `protocol` says everything that a published figure depends on; images are the bytes
that a user would save.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hebm_sample.errors import EnvironmentFailure, UserInputError
from hebm_sample.io.extras import import_extra

__all__ = ["InceptionFeatures"]

DIMENSIONS = "2048"  # torch-fidelity's name of the pooled features that FID uses


class InceptionFeatures(nn.Module):
    """The 2,048 pooled features.

    Arguments:
        weights: torch-fidelity's weight file; downloaded if None.

    Raises:
        EnvironmentFailure: torch-fidelity is not installed, or the weights cannot be had.
        UserInputError: There is no such weight file.
    """

    kind = "inception"

    def __init__(self, weights: str | Path | None = None) -> None:
        super().__init__()
        if weights is not None and not Path(weights).is_file():
            raise UserInputError(f"there is no weight file {weights}")
        module = import_extra("torch_fidelity.feature_extractor_inceptionv3", "inception")
        package = import_extra("torch_fidelity", "inception")
        self.version = str(getattr(package, "__version__", "unknown"))
        try:
            self.net = module.FeatureExtractorInceptionV3(
                "inception-v3-compat",
                [DIMENSIONS],
                feature_extractor_weights_path=None if weights is None else str(weights),
            )
        except Exception as error:  # whatever the download or the file's reader raises
            raise EnvironmentFailure(
                f"the Inception weights could not be loaded ({error}); download "
                "weights-inception-2015-12-05-6726825d.pth from torch-fidelity's releases and "
                "name it"
            ) from error

    @property
    def name(self) -> str:
        """What to print beside a figure."""
        return f"{DIMENSIONS} Inception features (torch-fidelity {self.version})"

    def protocol(self) -> dict[str, Any]:
        """What the features depend on, as plain values."""
        return {
            "features": f"InceptionV3 of 2015-12-05 (TensorFlow's graph), pool, {DIMENSIONS}",
            "implementation": f"torch-fidelity {self.version}",
            "resizing": "bytes to 299x299, bilinear as in TensorFlow 1",
            "images": "8-bit RGB, rounded as when saved as PNG",
            "arithmetic": "network in float32, moments and distances in float64",
        }

    def features(self, images: Tensor) -> Tensor:
        """Features (B, 2048) of float images (B, 3, H, W) in [-1, 1], rounded to bytes."""
        pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        (found,) = self.net(pixels)
        return found
