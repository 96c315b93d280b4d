"""Evaluation sets that come with the package: a classifier, and what real pictures look like to
it.

One safetensors file a data set and picture size, listed with its sha256 in `index.json` beside:

    net.*        the `FeatureNet`, in half precision
    mean         (D,), covariance (D (D+1) / 2,): of the reference pictures' features, float64
    features     (R, D): of the first R reference pictures, in half precision, for KID and
                 precision, recall, density, coverage

and as metadata the recipe: which rows the reference are, the hash of the data, the classifier's
report with its accuracy. The statistics are those of the half-precision net, so whoever loads it
measures in the space that they were taken in.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise

from hebm_sample.errors import WeightsError
from hebm_sample.hub.files import parse_json, read_capped, sha256_of, write_atomically
from hebm_sample.metrics.features import FeatureNet, extract
from hebm_sample.metrics.frechet import FeatureStatistics

__all__ = ["SHIPPED", "EvaluationSet", "build_set", "find_set", "write_set"]

SHIPPED = Path(__file__).resolve().parents[1] / "weights" / "evaluation"
INDEX = "index.json"
FORMAT_VERSION = 1
KEPT_FEATURES = 512
MAX_BYTES = 8 * 2**20


@dataclass(frozen=True)
class EvaluationSet:
    """What one file holds.

    Arguments:
        name: Of the data set and of the model that is trained on it.
        image_size: Side of its pictures.
        net: The classifier, in evaluation mode.
        statistics: Of the reference pictures.
        features: (R, D) of the first R of them.
        recipe: Plain values: rows, data, classifier.
    """

    name: str
    image_size: int
    net: FeatureNet
    statistics: FeatureStatistics
    features: np.ndarray
    recipe: dict[str, Any]


def _in_half_precision(net: FeatureNet) -> FeatureNet:
    """A copy whose weights are rounded to half precision; in float32 again."""
    copy = FeatureNet(**net.settings())
    rounded = {
        k: v.half().float() if v.is_floating_point() else v for k, v in net.state_dict().items()
    }
    if not all(torch.isfinite(v).all() for v in rounded.values()):
        raise WeightsError("a weight of the feature net does not fit half precision")
    copy.load_state_dict(rounded)
    return copy.eval()


def build_set(
    name: str,
    net: FeatureNet,
    reference: np.ndarray,
    recipe: Mapping[str, Any],
    *,
    progress: bool = False,
) -> EvaluationSet:
    """Round the classifier and look at the reference pictures (N, 3, S, S) through it."""
    rounded = _in_half_precision(net)
    features = extract(rounded, reference, progress=progress)
    kept = features[:KEPT_FEATURES].astype(np.float16).astype(np.float64)
    statistics = FeatureStatistics.from_features(features)
    return EvaluationSet(name, reference.shape[-1], rounded, statistics, kept, dict(recipe))


def _triangle(dim: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(dim)


def _tensors(found: EvaluationSet) -> dict[str, torch.Tensor]:
    state = found.net.state_dict().items()
    tensors = {f"net.{k}": v.half() if v.is_floating_point() else v for k, v in state}
    covariance = found.statistics.covariance[_triangle(len(found.statistics.mean))]
    return {k: v.contiguous() for k, v in tensors.items()} | {
        "mean": torch.from_numpy(found.statistics.mean),
        "covariance": torch.from_numpy(covariance),
        "features": torch.from_numpy(found.features).half(),
    }


def write_set(found: EvaluationSet, folder: Path = SHIPPED) -> Path:
    """Write `<name>-<size>.safetensors` and its row of the index; raises `EnvironmentFailure`."""
    path = folder / f"{found.name}-{found.image_size}.safetensors"
    header = {
        "format_version": str(FORMAT_VERSION),
        "settings": json.dumps(found.net.settings()),
        "count": str(found.statistics.count),
        "recipe": json.dumps(found.recipe, sort_keys=True),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, serialise(_tensors(found), header))
    index = folder / INDEX
    rows = _index(folder)
    rows[path.name] = {
        "name": found.name,
        "image_size": found.image_size,
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
        "count": found.statistics.count,
        "accuracy": round(found.recipe["classifier"]["mean_accuracy"], 4),
        "features": found.net.name,
    }
    text = json.dumps({"format_version": FORMAT_VERSION, "sets": rows}, indent=2, sort_keys=True)
    write_atomically(index, (text + "\n").encode())
    return path


def _index(folder: Path) -> dict[str, Any]:
    """Rows by file name; none where there is no index."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        data = parse_json(read_capped(path, MAX_BYTES))
        if data["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format_version {data['format_version']}")
        return dict(data["sets"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is not a usable index ({error}); install again") from error


def find_set(name: str, image_size: int, folder: Path = SHIPPED) -> EvaluationSet | None:
    """The set of that name and picture size, checked against its sha256; None if there is none.

    Raises:
        WeightsError: The file is missing, corrupt, or does not fit its description.
    """
    rows = _index(folder).items()
    wanted = [f for f, r in rows if (r.get("name"), r.get("image_size")) == (name, image_size)]
    if not wanted:
        return None
    path, row = folder / wanted[0], _index(folder)[wanted[0]]
    data = read_capped(path, MAX_BYTES)
    if sha256_of(path) != row.get("sha256"):
        raise WeightsError(f"{path} is damaged: its sha256 is not the index's; install again")
    try:
        return _parsed(name, image_size, data)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path} is no usable evaluation set ({error})") from error


def _parsed(name: str, image_size: int, data: bytes) -> EvaluationSet:
    length = int.from_bytes(data[:8], "little")
    header = parse_json(data[8 : 8 + length])["__metadata__"]
    if header["format_version"] != str(FORMAT_VERSION):
        raise ValueError(f"format_version {header['format_version']}")
    tensors = deserialise(data)
    net = FeatureNet(**json.loads(header["settings"]))
    own = {k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")}
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in own.items()})
    mean = tensors["mean"].numpy()
    covariance = np.zeros((len(mean), len(mean)))
    covariance[_triangle(len(mean))] = tensors["covariance"].numpy()
    covariance += np.triu(covariance, 1).T
    statistics = FeatureStatistics(mean, covariance, int(header["count"]))
    features = tensors["features"].double().numpy()
    recipe = json.loads(header["recipe"])
    return EvaluationSet(name, image_size, net.eval(), statistics, features, recipe)
