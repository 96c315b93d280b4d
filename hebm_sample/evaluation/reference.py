"""Evaluation sets that come with the package: a classifier, and what real images look like to
it.

One safetensors file a data set and image size, listed with its sha256 in `index.json` beside:

    net.*        the `FeatureNet`, in half precision
    mean         (D,), covariance (D (D+1) / 2,): of the reference images' features, float64
    features     (R, D): of the first R reference images, in half precision, for KID and
                 precision, recall, density, coverage

and as metadata the recipe: which rows the reference are, the hash of the data, the classifier's
report with its accuracy. The statistics are those of the half-precision net, so whoever loads it
measures in the space that they were taken in. A set may do without a net of its own and name the
file of another set, with its sha256, whose net sees these images, too.

Without the data nothing can be reconstructed; so the recipe can hold the distance of one model's
reconstructions, named by its fingerprint, and then the gap it closes is known.
"""

import hashlib
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
from hebm_sample.io.defaults import usual_defaults
from hebm_sample.io.files import parse_json, read_capped, sha256_of, write_atomically
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
        image_size: Side of its images.
        net: The classifier, in evaluation mode.
        statistics: Of the reference images.
        features: (R, D) of the first R of them.
        recipe: Plain values: rows, data, classifier, maybe one model's reconstructions.
        net_of: The name of the set whose classifier it is, where it has none of its own.
    """

    name: str
    image_size: int
    net: FeatureNet
    statistics: FeatureStatistics
    features: np.ndarray
    recipe: dict[str, Any]
    net_of: str | None = None

    @property
    def space(self) -> str:
        """What to print beside a figure."""
        return self.net.name if self.net_of is None else f"{self.net.name} of {self.net_of}"

    def reconstructions(self, fingerprint: str, count: int) -> dict[str, float] | None:
        """`frechet` and `frechet_error` of so many reconstructions of the model with this
        fingerprint, if the recipe has them.
        """
        known = self.recipe.get("reconstructions")
        if known is None:
            return None
        (images,) = (n for name, n in known.items() if name.startswith("num_"))  # of earlier sets
        if (known["model"], images) != (fingerprint, count):
            return None
        return {k: known[k] for k in ("frechet", "frechet_error")}


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


@usual_defaults()
def build_set(
    name: str,
    net: FeatureNet,
    reference: np.ndarray,
    recipe: Mapping[str, Any],
    *,
    net_of: str | None = None,
    progress: bool = False,
) -> EvaluationSet:
    """Round the classifier and look at the reference images (N, 3, S, S) through it.

    Arguments:
        net_of: The name of the set whose net this is; it is not written a second time.
    """
    rounded = _in_half_precision(net)
    features = extract(rounded, reference, progress=progress)
    kept = features[:KEPT_FEATURES].astype(np.float16).astype(np.float64)
    statistics = FeatureStatistics.from_features(features)
    size = reference.shape[-1]
    return EvaluationSet(name, size, rounded, statistics, kept, dict(recipe), net_of)


def _triangle(dim: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(dim)


def _tensors(found: EvaluationSet) -> dict[str, torch.Tensor]:
    state = found.net.state_dict().items() if found.net_of is None else ()
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
    index, rows = folder / INDEX, _index(folder)
    if found.net_of is not None:
        owners = [f for f, r in rows.items() if r["name"] == found.net_of and "net" not in r]
        if not owners:
            raise WeightsError(f"{folder} has no set {found.net_of} with a classifier")
        header |= {"net": owners[0], "net_sha256": rows[owners[0]]["sha256"]}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, serialise(_tensors(found), header))
    rows[path.name] = {
        "name": found.name,
        "image_size": found.image_size,
        "size": path.stat().st_size,
        "sha256": sha256_of(path),
        "count": found.statistics.count,
        "accuracy": round(found.recipe["classifier"]["mean_accuracy"], 4),
        "features": found.space,
    } | ({"net": header["net"]} if found.net_of is not None else {})
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


@usual_defaults()
def find_set(name: str, image_size: int, folder: Path = SHIPPED) -> EvaluationSet | None:
    """The set of that name and image size, checked against its sha256; None if there is none.

    Raises:
        WeightsError: The file is missing, corrupt, or does not fit its description.
    """
    rows = _index(folder).items()
    wanted = [f for f, r in rows if (r.get("name"), r.get("image_size")) == (name, image_size)]
    if not wanted:
        return None
    try:
        return _parsed(name, image_size, folder, wanted[0])
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{folder / wanted[0]} is no usable evaluation set ({error})"
        ) from error


def _read(folder: Path, file: str) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Header and tensors of a file that matches its row."""
    path = folder / file
    data = read_capped(path, MAX_BYTES)
    if hashlib.sha256(data).hexdigest() != _index(folder)[file].get("sha256"):
        raise WeightsError(f"{path} is damaged: its sha256 is not the index's; install again")
    length = int.from_bytes(data[:8], "little")
    header = parse_json(data[8 : 8 + length])["__metadata__"]
    if header["format_version"] != str(FORMAT_VERSION):
        raise ValueError(f"format_version {header['format_version']}")
    return header, deserialise(data)


def _parsed(name: str, image_size: int, folder: Path, file: str) -> EvaluationSet:
    header, tensors = _read(folder, file)
    nets, net_of = tensors, None
    if (owner := header.get("net")) is not None:
        row = _index(folder)[owner]
        if row["sha256"] != header["net_sha256"]:
            raise WeightsError(f"{folder / file} goes with another {owner}; install again")
        nets, net_of = _read(folder, owner)[1], row["name"]
    net = FeatureNet(**json.loads(header["settings"]))
    own = {k.removeprefix("net."): v for k, v in nets.items() if k.startswith("net.")}
    net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in own.items()})
    mean = tensors["mean"].numpy()
    covariance = np.zeros((len(mean), len(mean)))
    covariance[_triangle(len(mean))] = tensors["covariance"].numpy()
    covariance += np.triu(covariance, 1).T
    statistics = FeatureStatistics(mean, covariance, int(header["count"]))
    features = tensors["features"].double().numpy()
    recipe = json.loads(header["recipe"])
    return EvaluationSet(name, image_size, net.eval(), statistics, features, recipe, net_of)
