"""The package's frame: light imports, one direction, one version, one manifest, a lean wheel.

Without these, `--help` would slowly come to take seconds, a sampler would learn about the trainer,
and a wheel would lack the manifest or carry a stale second copy, none of which a functional test
notices.
"""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import script

import hebm_sample
from hebm_sample._moved import MOVED

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "hebm_sample"
MANIFEST = "weights_manifest.json"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Parts of the package and the parts they may import: the image in docs/architecture.md.
# Each row may import from the rows before it, and a part from itself; what else is allowed.
ORDER = (
    ("errors",),
    ("config", "latents", "io", "metrics"),
    ("generator", "prior", "presets", "data", "align"),
    ("sampling", "hub"),
    ("pipeline",),
    ("training",),
    ("evaluation",),
    ("cli",),
    ("demo",),
)
ALSO = {
    "metrics": {"io"},
    # `python -m hebm_sample.training` is the command.
    "training/__main__.py": {"cli"},
}
# The map T and the image decoder arrive as callables.
NEVER = {("metrics", "pipeline"), ("prior", "generator"), ("sampling", "generator")}
OUTSIDE = {"__init__", "__main__", "__pycache__", "_moved", "weights", "py.typed"}
RANK = {part: row for row, parts in enumerate(ORDER) for part in parts}

HEAVY = ("torch", "numpy", "PIL", "huggingface_hub", "safetensors")
APART = ("hebm_sample.training", "hebm_sample.metrics")


def _run(*arguments: str, cwd: Path = ROOT) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _loaded_after(code: str) -> set[str]:
    report = "import json, sys; print('\\n' + json.dumps(sorted(sys.modules)))"
    return set(json.loads(_run("-c", f"{code}\n{report}").splitlines()[-1]))


# Imports


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = _loaded_after("import hebm_sample; hebm_sample.__version__")
    assert loaded.isdisjoint({*HEAVY, *APART, "click", "hebm_sample.pipeline.pipeline"})


def test_help_loads_no_torch() -> None:
    loaded = _loaded_after(
        "from hebm_sample.cli.sample import main\n"
        "try:\n    main(['--help'], prog_name='hebm-sample')\n"
        "except SystemExit as left:\n    assert left.code == 0"
    )
    assert "hebm_sample.cli.sample" in loaded
    assert loaded.isdisjoint({"torch", "huggingface_hub", *APART})


def test_the_pipeline_loads_neither_training_nor_metrics() -> None:
    loaded = _loaded_after("from hebm_sample import Pipeline, list_models")
    assert "torch" in loaded and "hebm_sample.pipeline.pipeline" in loaded
    assert loaded.isdisjoint({*APART, "accelerate", "datasets", "scipy", "sklearn", "matplotlib"})


@pytest.mark.parametrize(
    "module, command",
    [
        ("hebm_sample", "hebm-sample"),
        ("hebm_sample.cli", "hebm-sample"),
        ("hebm_sample.cli.evaluation", "hebm-eval"),
    ],
)
def test_the_package_runs_as_its_command(module: str, command: str) -> None:
    assert _run("-m", module, "--version").startswith(f"{command} ")


def test_public_names() -> None:
    assert sorted(dir(hebm_sample)) == ["Pipeline", "__version__", "list_models"]
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        hebm_sample.Pipelines  # noqa: B018


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node but those under `if TYPE_CHECKING:`, which no interpreter runs."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from _runtime_nodes(other)
        else:
            yield from _runtime_nodes(child)


def _part(name: str) -> str | None:
    """`hebm_sample.prior.network` to `prior`; None outside the package and for its version."""
    if name == "hebm_sample" or not name.startswith("hebm_sample."):
        return None
    part = name.split(".")[1]
    return {"Pipeline": "pipeline", "list_models": "hub", "__version__": None}.get(part, part)


def _imported_parts(source: str) -> set[str]:
    parts = set()
    for node in _runtime_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            parts |= {_part(alias.name) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}; write the whole name"
            parts |= {_part(f"{node.module}.{alias.name}") for alias in node.names}
    return parts - {None}


def test_reading_imports() -> None:
    source = (
        "import torch, hebm_sample.hub.weights\n"
        "from hebm_sample import __version__, Pipeline\n"
        "if TYPE_CHECKING:\n    from hebm_sample.cli.sample import main\n"
        "def late():\n    from hebm_sample.prior.joint import JointEnergy\n"
    )
    assert _imported_parts(source) == {"hub", "pipeline", "prior"}


def test_imports_point_one_way() -> None:
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE).as_posix()
        part = inside.split("/")[0].removesuffix(".py")
        if part in ("__init__", "__main__", "_moved"):  # names, resolved on first use
            continue
        assert part in RANK, f"{path}: give {part} a place in ORDER and docs/architecture.md"
        for name in _imported_parts(path.read_text(encoding="utf-8")) - {part}:
            allowed = RANK[name] < RANK[part] or name in ALSO.get(part, set()) | ALSO.get(
                inside, set()
            )
            if not allowed or (part, name) in NEVER:
                wrong.append(f"{inside} imports {name}")
    assert not wrong


def test_functions_modules_and_folders_stay_short() -> None:
    with script("tools/measure_code.py") as code:
        functions, modules, folders = code.measure(PACKAGE)
        assert functions[0][0] <= 40, functions[0]
        assert len([size for size, _ in functions if size > code.FUNCTION]) <= 5, functions[:6]
        assert modules[0][0] <= code.MODULE, modules[0]
        assert folders[0][0] <= code.FOLDER, folders[0]


def test_base_classes_have_two_children_or_are_used_alone() -> None:
    """One of the package's own with a single child that nothing makes is half of that child."""
    bases: dict[str, list[str]] = {}
    made = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [ast.unparse(b).split("[")[0] for b in node.bases]
            elif isinstance(node, ast.Call):
                made.add(ast.unparse(node.func).split(".")[-1])
    children = {name: [c for c, b in bases.items() if name in b] for name in bases}
    assert not [name for name, c in children.items() if len(c) == 1 and name not in made]

    def depth(name: str) -> int:
        return 1 + max((depth(base) for base in bases.get(name, []) if base in bases), default=0)

    assert max(map(depth, bases)) <= 3


def test_every_folder_has_its_place() -> None:
    found = {p.name.removesuffix(".py") for p in PACKAGE.iterdir()}
    assert set(RANK) == found - OUTSIDE


@pytest.mark.parametrize("old, new", MOVED.items())
def test_moved_modules_are_found_by_their_old_names(old: str, new: str) -> None:
    with pytest.warns(DeprecationWarning, match=re.escape(f"is hebm_sample.{new} now")):
        found = importlib.import_module(f"hebm_sample.{old}")
    assert found is importlib.import_module(f"hebm_sample.{new}")
    assert found.__name__ == f"hebm_sample.{new}"
    del sys.modules[f"hebm_sample.{old}"]


def test_metrics_still_finds_what_needs_a_model() -> None:
    import hebm_sample.metrics as metrics
    from hebm_sample.evaluation.reference import find_set

    assert metrics.find_set is find_set
    assert all(callable(getattr(metrics, name)) for name in metrics._MOVED)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        metrics.nothing  # noqa: B018


# Metadata


def test_one_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = re.search(r"^## (\S+)", changelog, flags=re.MULTILINE)
    card = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    citation = re.search(r"^version: (\S+)$", card, flags=re.MULTILINE)
    assert heading is not None and heading[1] == hebm_sample.__version__
    assert citation is not None and citation[1] == hebm_sample.__version__
    metadata = json.loads(_run("-m", "hatchling", "metadata"))
    assert metadata["version"] == hebm_sample.__version__


def test_base_dependencies_are_six() -> None:
    names = [re.split(r"[^\w-]", line)[0] for line in PROJECT["project"]["dependencies"]]
    assert sorted(names) == ["click", "huggingface_hub", "numpy", "pillow", "safetensors", "torch"]


@pytest.mark.parametrize("script", sorted(PROJECT["project"]["scripts"]))
def test_scripts_point_at_commands(script: str) -> None:
    import click

    module, _, name = PROJECT["project"]["scripts"][script].partition(":")
    assert isinstance(getattr(importlib.import_module(module), name), click.Command)


def test_strict_paths_of_the_type_checker_exist() -> None:
    settings = PROJECT["tool"]["pyright"]
    missing = [p for p in settings["include"] + settings["strict"] if not (ROOT / p).exists()]
    assert not missing


def test_constraints_are_plain_pins() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    odd = [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line)]
    assert not odd, "a constraint is name==version: no local version, address or path"
    names = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in pins}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = PROJECT["project"]["dependencies"] + [
        line
        for extra in ("train", "eval", "demo", "align", "dev", "docs")
        for line in extras[extra]
        if ";" not in line
    ]
    asked = {re.sub(r"[-_.]+", "-", re.split(r"[><=\[]", line)[0]).lower() for line in wanted}
    assert asked <= names


# What ships


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    _run("-m", "hatchling", "build", "-t", "wheel", "-d", str(folder))
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_manifest_is_kept_once() -> None:
    assert (ROOT / MANIFEST).is_file()
    assert not (PACKAGE / MANIFEST).exists(), "the top-level file is the only copy"


def test_the_wheel_carries_the_manifest_once(wheel: zipfile.ZipFile) -> None:
    # Each embedded model has a file of that name, too: its own row, in its own folder.
    copies = [n for n in wheel.namelist() if n.endswith(MANIFEST) and "/weights/" not in n]
    assert copies == [f"hebm_sample/{MANIFEST}"]
    assert wheel.read(copies[0]) == (ROOT / MANIFEST).read_bytes()


def test_the_wheel_carries_what_the_manifest_names(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    rows = json.loads(wheel.read(f"hebm_sample/{MANIFEST}"))["models"]
    embedded = [row for row in rows if row.get("folder")]
    for row in embedded:
        for name, file in row["files"].items():
            # Two resolutions of a model share files, which lie in the folder of one of them.
            folders = [r["folder"] for r in embedded if r["files"].get(name) == file]
            paths = {f"hebm_sample/weights/{folder}/{name}" for folder in folders} & names
            assert len(paths) == 1, (row["folder"], name)
            assert wheel.getinfo(paths.pop()).file_size == file["size"]
    weights = [n for n in names if n.startswith("hebm_sample/weights/")]
    assert sum(wheel.getinfo(n).file_size for n in weights) < 64 * 2**20
    assert "hebm_sample/py.typed" in names


def test_the_wheel_is_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"hebm_sample", f"hebm_sample-{hebm_sample.__version__}.dist-info"}
    assert not [n for n in names if n.endswith((".pyc", ".pt", ".pth", ".ckpt", ".pkl"))]
    assert [n for n in names if n.endswith("licenses/LICENSE")]
    assert [n for n in names if n.endswith("licenses/LICENSE-WEIGHTS.md")]


@pytest.mark.slow
def test_the_sdist_can_build_the_wheel(tmp_path: Path) -> None:
    _run("-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path))
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    needed = {MANIFEST, "pyproject.toml", "README.md", "LICENSE", "LICENSE-WEIGHTS.md"}
    assert needed <= inside
    assert "hebm_sample/__init__.py" in inside
