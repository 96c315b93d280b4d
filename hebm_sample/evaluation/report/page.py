"""A report's page, written once and rendered twice: as Markdown and as one HTML file.

A page is a list of blocks. Numbers are put into words here and nowhere else, so that a table and
its JSON cannot differ by more than rounding.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from hebm_sample.metrics.statistics import Figure

__all__ = [
    "Block",
    "Code",
    "Heading",
    "ReportImage",
    "Table",
    "Text",
    "number",
    "to_html",
    "to_markdown",
    "with_error",
]

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:62em;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #bbb;padding:.25em .6em}"
    "td+td{text-align:right}img{max-width:100%}pre{background:#f4f4f4;padding:.8em;overflow:auto}"
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}"
    "pre{background:#262626}a{color:#8bf}img{background:#fff}}"
)


@dataclass(frozen=True)
class Heading:
    """Level 1 is the page's title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Code:
    """Commands, word for word."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class ReportImage:
    """A file beside the page."""

    path: str
    caption: str


Block: TypeAlias = Heading | Text | Code | Table | ReportImage


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """A number with its standard error, as far as there is one."""
    if value is None or error is None or error != error:
        return number(value, digits)
    return f"{Figure(value, error).value:.{digits}f} ± {error:.{digits}f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return "#" * block.level + " " + block.text
    if isinstance(block, Text):
        return block.text
    if isinstance(block, Code):
        return f"```bash\n{block.text.rstrip()}\n```"
    if isinstance(block, ReportImage):
        return f"![{block.caption}]({block.path})"
    lines = [block.header, ["---"] * len(block.header), *block.rows]
    return "\n".join("| " + " | ".join(_cell(x) for x in line) + " |" for line in lines)


def to_markdown(blocks: Sequence[Block]) -> str:
    """The page as Markdown."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Code):
        return f"<pre>{html.escape(block.text.rstrip())}</pre>"
    if isinstance(block, ReportImage):
        path, caption = (html.escape(x, quote=True) for x in (block.path, block.caption))
        image = f'<img src="{path}" alt="{caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    head = "".join(f"<th>{html.escape(x)}</th>" for x in block.header)
    rows = ("".join(f"<td>{html.escape(x)}</td>" for x in row) for row in block.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def to_html(blocks: Sequence[Block]) -> str:
    """The page as one HTML file, without scripts."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "Report")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><body>\n" + "\n".join(map(_html, blocks)) + "\n</body></html>\n"
    )
