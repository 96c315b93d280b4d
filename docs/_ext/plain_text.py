"""Docstrings, help and pages as they are written for people, read as Sphinx wants them.

Docstrings here are plain text: formulas stand indented, |u| is a norm, `name` is code. The same
in reStructuredText would be quotes, substitutions and citations. Pages link to Markdown outside
of `docs/` as a Git host follows it.
"""

import re

from click import Context
from sphinx.application import Sphinx

_CODE = re.compile(r"(`[^`]+`)")
_SIGN = re.compile(r"([|]|\*(?=\w)(?![^*]*\w\*))")  # *this* stays
_SECTION = re.compile(r"(Arguments|Attributes|Returns|Raises|Yields):$")
_OPTION = re.compile(r"(?<![\w`-])(--?[a-z][\w-]*)")
_OUTSIDE = re.compile(r"\]\((\.\./[^)#\s]+\.md)\)")


def escaped(line: str) -> str:
    """Bars and lonely stars outside of code as themselves; examples as they are."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = _CODE.split(line)
    return "".join(part if part.startswith("`") else _SIGN.sub(r"\\\1", part) for part in parts)


def with_formulas(lines: list[str]) -> list[str]:
    """Indented paragraphs of a text become literal blocks; the rest is escaped."""
    found: list[str] = []
    literal = item = False
    for before, line in zip(["", *lines], lines, strict=False):
        starts = not before.strip()
        if starts and line.strip():
            # Below a list's item, what is indented continues it.
            deep = 6 if item else 4
            was, literal = literal, line.startswith(" " * deep)
            if literal and not was:
                found += ["" if not item else "  ", ("  " if item else "") + "::", ""]
            if not literal:
                item = line.startswith("- ") or (item and line.startswith("  "))
        found.append(line if literal else escaped(line))
    return found


def _docstring(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    if what in ("property", "attribute"):  # what stands before a colon would become its type
        lines[:1] = [line.replace(": ", " – ") for line in lines[:1]]
    first = next((i for i, line in enumerate(lines) if _SECTION.match(line)), len(lines))
    lines[:] = with_formulas(lines[:first]) + [escaped(line) for line in lines[first:]]


def _is_left_out(
    app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object
) -> bool | None:
    """Fields of named tuples have a docstring that says nothing."""
    return True if (obj.__doc__ or "").startswith("Alias for field number") else None


def _options(app: Sphinx, ctx: Context, lines: list[str]) -> None:
    """Options that a help text names are code, and their hyphens no dash."""
    lines[:] = [
        line if line.lstrip().startswith("..") else _OPTION.sub(r"``\1``", line) for line in lines
    ]


def _epilog(app: Sphinx, ctx: Context, lines: list[str]) -> None:
    """Examples as they are typed."""
    if any(lines):
        lines[:] = ["", "::", "", *("    " + line.removeprefix("| ") for line in lines), ""]


def _page(app: Sphinx, name: str, source: list[str]) -> None:
    source[0] = _OUTSIDE.sub(r"](path:\1)", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    # Before napoleon, which makes reStructuredText of the sections.
    app.connect("autodoc-process-docstring", _docstring, priority=400)
    app.connect("autodoc-skip-member", _is_left_out)
    app.connect("source-read", _page)
    if "sphinx-click-process-epilog" in app.events.events:
        app.connect("sphinx-click-process-epilog", _epilog)
        app.connect("sphinx-click-process-options", _options)
        app.connect("sphinx-click-process-description", _options)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
