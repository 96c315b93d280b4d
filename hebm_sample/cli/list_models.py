"""`hebm-sample --list`: the models of the manifest, and the symbols that they can be asked for."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hebm_sample.cli.printing import say

if TYPE_CHECKING:
    from hebm_sample.hub.manifest import ModelRow

__all__ = ["aligned", "list_models"]


def list_models(as_json: bool) -> None:
    """Print the models, as a table or as one JSON object."""
    import hebm_sample

    rows = sorted(hebm_sample.list_models(), key=lambda row: (row.name, row.resolution))
    if as_json:
        keys = ("name", "resolution", "default", "repo_id", "revision", "licence")
        models = [
            {key: getattr(row, key) for key in keys}
            | {"embedded": row.folder is not None, "symbols": _symbols(row)}
            | {"weak": list(row.weak)}
            | {"training": _config(row).get("training", []), "figures": dict(row.figures)}
            for row in rows
        ]
        say(json.dumps({"models": models}))
        return
    table = [("name", "resolution", "where", "licence", "gap closed", "symbols")]
    for row in rows:
        where = "embedded" if row.folder is not None else row.repo_id or "not published"
        gap = row.figures.get("gap_closed")
        shown = f"{gap:.2f}" if isinstance(gap, (int, float)) else "-"
        names = [
            _short(name, values) + (" (weak)" if name in row.weak else "")
            for name, values in (_symbols(row) or {}).items()
        ]
        symbols = ", ".join(names) or "-"
        table.append((row.name, str(row.resolution), where, row.licence, shown, symbols))
    say(aligned(table))
    if any(row.weak for row in rows):
        say("(weak): guidance moves it less than half of the way; see the model's card")


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Lines with the cells of each column under each other."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        for cells in table
    )
    return "\n".join(line.rstrip() for line in lines)


def _short(name: str, values: Sequence[str]) -> str:
    """`Smiling` for a yes or no, `class (10)` for more."""
    return name if set(values) == {"no", "yes"} else f"{name} ({len(values)})"


def _symbols(row: "ModelRow") -> Mapping[str, Sequence[str]] | None:
    """Each variable's values, of an embedded model's config; None where there is none to read."""
    try:
        table = (_config(row)["prior"] or {}).get("symbols", [])
        return {symbol["name"]: list(symbol["values"]) for symbol in table}
    except (KeyError, TypeError, AttributeError):
        return None


def _config(row: "ModelRow") -> dict[str, Any]:
    """An embedded model's config; empty where there is none to read: a listing does not fail over
    one model, loading it says what is wrong.
    """
    from hebm_sample.hub.resolve import EMBEDDED

    try:
        text = (EMBEDDED / (row.folder or "") / "config.json").read_text(encoding="utf-8")
        config = json.loads(text)
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
