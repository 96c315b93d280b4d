"""How long functions and modules are: `python tools/measure_code.py [FOLDER]`.

Lines of a function are those of its body that are not blank, without the docstring; of a module,
all lines that are not blank. Prints what is over the limits that docs/contributing.md names, which
`tests/test_package.py` holds.
"""

import ast
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

FUNCTION, MODULE, FOLDER = 30, 400, 20


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef, text: list[str]) -> int:
    """Lines of the body that are not blank, without the docstring."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        return 0
    lines = text[body[0].lineno - 1 : node.end_lineno]
    return sum(bool(line.strip()) for line in lines)


class Sizes(NamedTuple):
    """(size, name) of each, largest first."""

    functions: list[tuple[int, str]]
    modules: list[tuple[int, str]]
    folders: list[tuple[int, str]]


def measure(folder: Path) -> Sizes:
    """Lines of all functions and modules in a folder, and modules of each folder inside."""
    functions, modules, folders = [], [], {}
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8").splitlines()
        modules.append((sum(bool(line.strip()) for line in text), str(path)))
        folders[str(path.parent)] = folders.get(str(path.parent), 0) + 1
        for node in ast.walk(ast.parse("\n".join(text))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append((body_lines(node, text), f"{path}:{node.lineno} {node.name}"))
    counts = [(count, name) for name, count in folders.items()]
    return Sizes(*(sorted(found, reverse=True) for found in (functions, modules, counts)))


def main(folder: Path) -> None:
    """Print the figures."""
    functions, modules, folders = measure(folder)
    sizes = sorted(size for size, _ in functions)
    print(
        f"{len(sizes)} functions: median {statistics.median(sizes)}, "
        f"p90 {sizes[int(0.9 * len(sizes))]}, longest {sizes[-1]}"
    )
    for size, name in functions:
        if size > FUNCTION:
            print(f"  {size} {name}")
    print(f"{len(modules)} modules, longest {modules[0][0]}")
    for size, name in modules:
        if size > MODULE:
            print(f"  {size} {name}")
    for count, name in folders:
        if count > FOLDER:
            print(f"  {count} modules in {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "hebm_sample"))
