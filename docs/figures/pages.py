"""Pages whose Python blocks run: their blocks in order, in one namespace, in one folder.

A block of text right under a block of Python is what that prints:

    ```python
    print(1 + 1)
    ```

    ```text
    2
    ```

    python docs/figures/pages.py docs/scoring.md ...     # run pages, and write what they print
"""

import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Ran", "run_page", "same_text", "with_outputs"]

_BLOCK = re.compile(
    r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


class Ran(NamedTuple):
    """A page that was run.

    Arguments:
        names: What its blocks have defined.
        outputs: What each block printed, and what the page says it prints.
    """

    names: dict[str, Any]
    outputs: list[tuple[str, str]]


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """`contextlib.chdir`, which Python 3.10 lacks."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run_page(page: Path, folder: Path) -> Ran:
    """Run the blocks of a page; relative paths lie in `folder`."""
    names: dict[str, Any] = {"__name__": page.stem}
    outputs = []
    text = page.read_text(encoding="utf-8")
    with _inside(folder):
        for block in _BLOCK.finditer(text):
            line = text.count("\n", 0, block.start()) + 1
            code = compile("\n" * line + block[1], str(page), "exec")
            printed = io.StringIO()
            with redirect_stdout(printed):
                exec(code, names)
            outputs.append((printed.getvalue(), block[2] or ""))
    return Ran(names, outputs)


def same_text(found: str, said: str, tolerance: float = 0.05) -> bool:
    """Whether two outputs have the same words, and numbers that agree to `tolerance`, relative
    above 1 and absolute below, and one unit of the last place. Machines round differently.
    """
    if _NUMBER.sub("#", found).split() != _NUMBER.sub("#", said).split():
        return False
    pairs = zip(_NUMBER.findall(found), _NUMBER.findall(said), strict=True)
    return all(
        abs(float(a) - float(b)) <= tolerance * max(1.0, abs(float(b))) + _unit(b)
        for a, b in pairs
    )


def _unit(number: str) -> float:
    """One in the last place: 0.1 of 2.5."""
    return 0.0 if "e" in number else 10.0 ** -len(number.partition(".")[2])


def with_outputs(page: Path, outputs: list[tuple[str, str]]) -> str:
    """The page's text with what its blocks have printed."""
    printed = iter(outputs)

    def replaced(block: re.Match[str]) -> str:
        found, _ = next(printed)
        shown = f"\n```text\n{found}```\n" if found else ""
        return f"```python\n{block[1]}```\n{shown}"

    return _BLOCK.sub(replaced, page.read_text(encoding="utf-8"))


def main() -> None:
    for page in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            ran = run_page(page.resolve(), Path(folder))
        page.write_text(with_outputs(page, ran.outputs), encoding="utf-8")


if __name__ == "__main__":
    main()
