"""`--verify` reads every byte and says which file differs. If it passed over one, a user would be
told that a corrupt model is sound."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hub.loopback import REPO, damage

from hebm_sample.cli.sample import main
from hebm_sample.hub import manifest
from hebm_sample.hub.resolve import resolve


def verify(*arguments):
    return CliRunner().invoke(main, ["--verify", *map(str, arguments)])


def test_a_line_a_file(model_folder):
    result = verify("--dataset", model_folder)
    assert result.exit_code == 0
    sizes = [(model_folder / name).stat().st_size for name in manifest.MODEL_FILES]
    assert result.output.splitlines() == [
        f"tiny 32: {name}: {size} bytes, as published"
        for name, size in zip(manifest.MODEL_FILES, sizes, strict=True)
    ]
    assert verify("--dataset", model_folder, "--quiet").output == ""


@pytest.mark.parametrize("name", manifest.MODEL_FILES)
def test_the_file_that_differs_is_named(name, model_folder):
    damage(model_folder / name)
    result = verify("--dataset", model_folder)
    assert result.exit_code == 1
    assert [line.split(": ")[1] for line in result.stdout.splitlines() if "corrupt" in line] == [
        name
    ]
    assert result.stderr == (
        "Error: 1 of 4 files are not as published; copy or export the model again\n"
    )
    result = verify("--dataset", model_folder, "--json")
    answer = json.loads(result.stdout)
    faults = {file["file"]: file["fault"] for file in answer["files"]}
    assert answer["faults"] == 1 and "its sha256 is" in faults.pop(name)
    assert result.exit_code == 1 and set(faults.values()) == {None}
    (model_folder / name).unlink()
    assert f"{name} is missing" in verify("--dataset", model_folder).stdout


def test_all_that_are_here(published, model_folder, install):
    """Embedded models and those in the cache; the others, and the network, are let be."""
    hub, where, row = published
    embedded = replace(row, name="embedded", folder="tiny", repo_id=None, revision=None)
    elsewhere = replace(row, name="elsewhere", repo_id="somebody/else")
    unpublished = replace(row, name="unpublished", repo_id=None, revision=None)
    install(embedded, row, elsewhere, unpublished, embedded=model_folder.parent)
    cache = ("--cache-dir", where["cache_dir"])
    assert {line.split()[0] for line in verify(*cache).output.splitlines()} == {"embedded"}
    folder = resolve("tiny", **where).folder
    hub.requests.clear()
    lines = verify(*cache).output.splitlines()
    assert [line.split()[0] for line in lines] == ["embedded"] * 4 + ["tiny"] * 4
    damage(folder / "encoder.safetensors")
    result = verify(*cache)
    assert result.exit_code == 1 and "load it once with the network allowed" in result.stderr
    assert hub.requests == []


def test_a_model_whose_folder_is_gone_does_not_hide_the_others(published, model_folder, install):
    _, where, row = published
    gone = replace(row, name="gone", folder="gone", repo_id=None, revision=None)
    embedded = replace(row, name="embedded", folder="tiny", repo_id=None, revision=None)
    install(gone, embedded, embedded=model_folder.parent)
    result = verify("--json", "--cache-dir", where["cache_dir"])
    files = json.loads(result.stdout)["files"]
    faults = {(f["model"], f["fault"] is not None) for f in files}
    assert result.exit_code == 1 and faults == {("gone", True), ("embedded", False)}


def test_nothing_is_repaired(published):
    hub, where, _ = published
    folder = resolve(REPO, **where).folder
    damage(folder / "prior.safetensors")
    arguments = ("--dataset", REPO, "--cache-dir", where["cache_dir"])
    for _ in range(2):
        result = verify(*arguments)
        assert result.exit_code == 1 and "prior.safetensors is corrupt" in result.stdout
        assert "to sample from it downloads the file again" in result.stderr
    resolve(REPO, **where)
    assert verify(*arguments).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "3"], "--verify goes with what says where a model lies"),
        (["--list"], "--list goes with --json at most"),
        (["--revision", "main"], "--resolution and --revision are of one model; add --dataset"),
        (["--dataset", "absent"], "there is no model 'absent'"),
    ],
)
def test_what_is_refused(arguments, message):
    result = verify(*arguments)
    assert result.exit_code == 2 and message in result.stderr


def test_torch_is_not_loaded():
    code = (
        "import sys; from hebm_sample.cli.sample import main\n"
        "try: main(['--verify', '--dataset', 'cifar10'])\n"
        "except SystemExit as left: assert not left.code and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
