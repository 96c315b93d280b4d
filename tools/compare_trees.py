"""Two source trees, the same images: `python tools/compare_trees.py OLD NEW [--quick]`.

Runs the same work with either tree on the path and compares hashes: samples of every embedded
model with every sampler, variations, layers, reconstructions, edits, inpainting, energies, and a
training run of the preset `tiny`, generator and energies. For changes that move code and must not
change what it computes. Ends with 1 and says what differs.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

THREADS = "1"  # sums are rounded differently with another number


def _digest(*arrays: Any) -> str:
    import numpy as np

    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(np.asarray(array)).tobytes())
    return found.hexdigest()[:16]


def _of(samples: Any) -> str:
    return _digest(samples.images, samples.energies, *samples.latents)


def _model(name: str, resolution: int, quick: bool) -> dict[str, str]:
    import torch

    from hebm_sample import Pipeline

    pipe = Pipeline.from_pretrained(name, resolution=resolution, device="cpu")
    n = 2 if quick else 8
    samples = pipe(n, output_type="numpy")
    found = {
        "samples": _of(samples),
        "gaussian": _of(pipe(n, prior="gaussian", output_type="numpy")),
    }
    for sampler in ("recovery", "annealed", "flow"):
        found[sampler] = _of(pipe(n, sampler=sampler, steps=14, output_type="numpy"))
    found["best of 2"] = _of(pipe(2, best_of=2, output_type="numpy"))
    for option in ({"momentum": 0.5}, {"metropolis": True}, {"precondition": True}):
        found[str(option)] = _of(pipe(2, steps=20, output_type="numpy", **option))
    images = torch.from_numpy(samples.images).permute(0, 3, 1, 2).float()
    found["varied"] = _of(
        pipe.vary(samples, keep=slice(0, 2), num_variations=2, output_type="numpy")
    )
    found["layers"] = _of(pipe.layers(seed=7, output_type="numpy"))
    again = pipe.reconstruct(images, output_type="torch")
    found["reconstructed"] = _digest(getattr(again, "images", again))  # older trees: the images
    found["energy"] = _digest(pipe.energy(images))
    if pipe.symbols:
        variable, values = next(iter(pipe.symbols.items()))
        condition = {variable: values[-1]}
        found["asked"] = _of(pipe(n, symbols=condition, guidance=2.0, output_type="numpy"))
        for method in ("flow", "noise"):
            edited = pipe.edit(images[:2], symbols=condition, method=method, output_type="numpy")
            found[f"edit by {method}"] = _of(edited)
    masks = torch.zeros(2, *images.shape[-2:], dtype=torch.bool)
    masks[..., : images.shape[-1] // 2] = True
    found["inpainted"] = _of(pipe.inpaint(images[:2], masks, output_type="numpy"))
    return found


def _training(folder: Path) -> dict[str, str]:
    import numpy as np
    from PIL import Image

    data = folder / "data"
    data.mkdir()
    random = np.random.default_rng(0)
    for i in range(40):
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(data / f"{i:02}.png")
    command = [sys.executable, "-m", "hebm_sample.training"]
    common = ["--preset", "tiny", "--data", str(data), "--device", "cpu", "--quiet", "--out"]
    for kind, more in (
        ("generator", []),
        ("prior", ["--generator", str(folder / "generator/model")]),
    ):
        done = [*command, kind, *more, *common, str(folder / kind)]
        subprocess.run(done, check=True, stdout=subprocess.DEVNULL)
    files = sorted(folder.glob("*/model/*.safetensors"))
    return {
        str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest()[:16] for f in files
    }


def _hashes(quick: bool) -> dict[str, Any]:
    """Of the tree on the path."""
    from hebm_sample import list_models

    found: dict[str, Any] = {}
    for row in list_models():
        if row.folder is not None:
            key = f"{row.name}-{row.resolution}"
            found[key] = _model(row.name, row.resolution, quick)
            click.echo(key, err=True)
    with tempfile.TemporaryDirectory() as home:
        os.environ["HEBM_CACHE"] = f"{home}/cache"
        found["training"] = _training(Path(home))
    return found


@click.command()
@click.argument("trees", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--quick", is_flag=True, help="Fewer images.")
@click.option("--hashes", is_flag=True, help="Of the tree on the path, as JSON.")
def main(trees: tuple[Path, ...], quick: bool, hashes: bool) -> None:
    """Compare the trees with the first of them; a JSON file of hashes may stand for a tree."""
    if hashes:
        click.echo(json.dumps(_hashes(quick)))
        return
    found = []
    for tree in trees:
        if tree.is_file():
            found.append(json.loads(tree.read_text()))
            continue
        path = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": THREADS}
        command = [sys.executable, __file__, "--hashes", *(["--quick"] if quick else [])]
        done = subprocess.run(command, env=path, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise click.ClickException(f"{tree} cannot be measured; what it said stands above")
        found.append(json.loads(done.stdout))
    if len(found) == 1:
        click.echo(json.dumps(found[0], indent=1))
        return
    first, differing = found[0], []
    for other in found[1:]:
        for model, rows in first.items():
            for name, value in rows.items():
                if other.get(model, {}).get(name) != value:
                    differing.append(f"{model}: {name}")
    click.echo("\n".join(differing) or f"{sum(map(len, first.values()))} hashes agree")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
