"""`hebm-sample --verify`: every file of a model, or of all that are here, against its row.

No file that is here is repaired, and torch is not needed. Of a model that is named, files that the
Hub's cache lacks are fetched first.
"""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hebm_sample.cli.printing import say
from hebm_sample.errors import HubError, UserInputError, WeightsError

if TYPE_CHECKING:
    from hebm_sample.hub.resolve import ResolvedModel

__all__ = ["verify"]

_REPAIR = "to sample from it downloads the file again"


def verify(dataset: str | None, *, as_json: bool, quiet: bool, **where: Any) -> None:
    """Print a line per file, or one JSON object.

    Arguments:
        dataset: A model; None for all of the manifest that are embedded or in the Hub's cache.
        quiet: Only the lines of files that differ.
        where: Other arguments of `hub.resolve.locate`.

    Raises:
        UserInputError: There is no such model.
        WeightsError: A file is missing or differs; all lines were printed.
        HubError: The model is not in the cache, and the Hub did not deliver.
    """
    if dataset is None and (where["resolution"] is not None or where["revision"] is not None):
        raise UserInputError("--resolution and --revision are of one model; add --dataset")
    models = _models_here(where) if dataset is None else [_locate(dataset, where)]
    found: list[dict[str, Any]] = []
    remedies: list[str] = []
    for model in models:
        for name in model.filenames:
            size, fault = model.row.files[name].size, model.fault(name)
            found.append(
                {
                    "model": model.row.name,
                    "resolution": model.row.resolution,
                    "file": name,
                    "size": size,
                    "fault": fault,
                }
            )
            if fault is not None:
                remedies.append(_REPAIR if model.refetch else model.remedy)
            if not as_json and (fault is not None or not quiet):
                result = fault or f"{size} bytes, as published"
                say(f"{model.row.name} {model.row.resolution}: {name}: {result}")
    if as_json:
        say(json.dumps({"files": found, "faults": len(remedies)}))
    if remedies:
        raise WeightsError(
            f"{len(remedies)} of {len(found)} files are not as published; {remedies[0]}"
        )


def _locate(name: str, where: Mapping[str, Any]) -> "ResolvedModel":
    from hebm_sample.hub.resolve import locate

    return locate(name, **where)


def _models_here(where: Mapping[str, Any]) -> "Iterator[ResolvedModel]":
    from hebm_sample.hub.manifest import list_models
    from hebm_sample.hub.resolve import EMBEDDED, ResolvedModel

    for row in list_models():
        if row.folder is None and row.repo_id is None:
            continue  # listed before it is published
        try:
            yield _locate(
                row.name, {**where, "resolution": row.resolution, "local_files_only": True}
            )
        except HubError:  # never downloaded
            continue
        except WeightsError as error:  # its folder is gone
            folder = EMBEDDED / (row.folder or row.name)
            yield ResolvedModel(folder, row, "embedded", remedy=str(error))
