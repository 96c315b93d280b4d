"""What is published is one whole model: one commit, its bytes those that were checked.

Otherwise a repository holds half of a model for a moment, or for ever, or weights that nobody may
use. The real client publishes to a loopback Hub; what it holds is then loaded like any model.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from hub.loopback import SECRET, LoopbackHub, damage
from PIL import Image
from tiny import tiny_config, tiny_modules

from hebm_sample.cli import push as command
from hebm_sample.hub import client, load
from hebm_sample.hub.manifest import MODEL_FILES, ModelRow, read_row, write_row
from hebm_sample.hub.save import write_model_folder
from hebm_sample.pipeline.pipeline import Pipeline

REPO = "acme/faces"
PUBLISHED = {*MODEL_FILES, "README.md", "weights_manifest.json", ".gitattributes"}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "tiny"
    generator, encoder, prior = tiny_modules()
    write_model_folder(folder, tiny_config(), generator, prior, encoder, licence="CC0-1.0")
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "tiny")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    # As HF_HUB_DISABLE_XET=1, which other tests may have been too early for.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's retries
    huggingface_hub.close_session()
    with LoopbackHub() as server:
        monkeypatch.setattr(client, "ENDPOINT", server.endpoint)
        yield server
    huggingface_hub.close_session()


def push(folder, *arguments):
    return CliRunner().invoke(command.push, [str(folder), "--repo-id", REPO, *arguments])


def pushed(folder, *arguments):
    """The row that was printed."""
    result = push(folder, *arguments)
    assert result.exit_code == 0, result.output
    row = ModelRow.from_dict(json.loads(result.stdout))
    assert f"{REPO}: commit {row.revision}, {len(row.files)} files" in result.stderr
    return row


def refused(result, exit_code, message):
    """The client may have announced its retries; the last line says what became of it."""
    assert result.exit_code == exit_code and result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ") and message in line, line
    assert result.stderr.count("Error: ") == 1 and SECRET not in result.stderr


def commits(hub):
    """How many were asked for."""
    return len([s for s in hub.requests if "/commit/" in s.path and s.method == "POST"])


# --- what is published ---------------------------------------------------------------------------


def test_one_commit_with_the_folders_bytes(hub, folder):
    row = pushed(folder)
    repository = hub.repositories[REPO]
    assert repository.branches == {"main": row.revision} and commits(hub) == 1
    files = repository.commits[row.revision]
    assert set(files) == PUBLISHED and not repository.private
    for name in {*MODEL_FILES, "weights_manifest.json"}:
        assert files[name] == (folder / name).read_bytes()
    card = files["README.md"].decode()
    assert 'license: "cc0-1.0"' in card and f"hebm-sample --dataset {REPO}`" in card
    assert f'from_pretrained("{REPO}")' in card and "In this folder" not in card
    assert (row.repo_id, row.files) == (REPO, read_row(folder).files)
    sent = {(seen.host, seen.authorization) for seen in hub.requests}
    assert sent == {(hub.endpoint, f"Bearer {SECRET}"), (hub.storage, None)}


def test_the_image_that_the_card_shows_is_published(hub, folder):
    (folder / "samples.png").write_bytes(b"an image")
    row = pushed(folder)
    assert set(hub.repositories[REPO].commits[row.revision]) == PUBLISHED
    with (folder / "README.md").open("a") as card:
        card.write("![Samples](samples.png)\n")
    row = pushed(folder)
    assert hub.repositories[REPO].commits[row.revision]["samples.png"] == b"an image"


def test_pushed_and_pulled_back_draws_the_same(hub, folder, tmp_path):
    row = pushed(folder)
    pulled = Pipeline.from_pretrained(REPO, cache_dir=tmp_path / "cache")
    assert pulled.revision == row.revision
    drawn = [
        pipe(seeds=[3, 5], output_type="torch").images
        for pipe in (Pipeline.from_pretrained(folder), pulled)
    ]
    assert torch.equal(*drawn)


def test_only_the_model_is_published(hub, folder):
    (folder / "generator.pt").write_bytes(b"pickle")
    (folder / ".env").write_text(SECRET)
    row = pushed(folder)
    assert set(hub.repositories[REPO].commits[row.revision]) == PUBLISHED


def test_the_same_again_is_no_new_commit(hub, folder):
    first = pushed(folder)
    assert pushed(folder) == first and commits(hub) == 1
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\nanother card\n")
    second = pushed(folder)
    assert second.revision != first.revision and second.files == first.files
    assert len([s for s in hub.requests if s.method == "PUT"]) == 3, "each weights file once"


def test_files_of_an_older_model_are_deleted(hub, folder):
    first = pushed(folder)
    (folder / "encoder.safetensors").unlink()
    write_row(folder, name="tiny", resolution=16, licence="CC0-1.0")
    second = pushed(folder)
    files = hub.repositories[REPO].commits
    assert set(files[first.revision]) - set(files[second.revision]) == {"encoder.safetensors"}


def test_a_branch(hub, folder):
    pushed(folder, "--revision", "next")
    repository = hub.repositories[REPO]
    assert set(repository.branches) == {"main", "next"}
    assert set(repository.commits[repository.branches["main"]]) == {".gitattributes"}
    assert set(repository.commits[repository.branches["next"]]) == PUBLISHED


def test_private_means_private(hub, folder):
    pushed(folder, "--private")
    assert hub.repositories[REPO].private
    pushed(folder, "--private")
    hub.repositories[REPO].private = False
    before = commits(hub)
    refused(push(folder, "--private"), 2, f"{REPO} exists and is public; make it private in")
    assert commits(hub) == before


def test_a_token_of_its_own(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    pushed(folder, "--token", "hf_other")
    assert {seen.authorization for seen in hub.requests} == {"Bearer hf_other", None}


# --- what is refused before anything is sent -----------------------------------------------------


def _unstated(folder):
    text, stated = (folder / "README.md").read_text(), 'license: "cc0-1.0"'
    assert stated in text
    unstated = text.replace(stated, "license: other\nlicense_name: unstated")
    (folder / "README.md").write_text(unstated)


def _another_name(folder):
    write_row(folder, name="other", resolution=16, licence="CC0-1.0")


def _another_file(folder):
    path = folder / "weights_manifest.json"
    data = json.loads(path.read_text())
    data["models"][0]["files"]["notes.txt"] = {"size": 0, "sha256": "0" * 64}
    path.write_text(json.dumps(data))


def _weights_of_another(folder):
    shutil.copy(folder / "prior.safetensors", folder / "generator.safetensors")
    write_row(folder, name="tiny", resolution=16, licence="CC0-1.0")


def _a_run(folder):
    (folder / "model").mkdir()
    for name in PUBLISHED - {".gitattributes"}:
        (folder / name).rename(folder / "model" / name)


FAULTS = {
    "flipped bit": (lambda f: damage(f / "encoder.safetensors"), 1, "encoder.safetensors is corr"),
    "missing": (lambda f: (f / "prior.safetensors").unlink(), 1, "prior.safetensors is missing"),
    "no row": (lambda f: (f / "weights_manifest.json").unlink(), 1, "weights_manifest.json"),
    "other weights": (_weights_of_another, 1, "does not fit its config.json"),
    "other name": (_another_name, 1, "is of other at 16, config.json of tiny at 16"),
    "other file": (_another_file, 1, "lists notes.txt, which no model consists of"),
    "no card": (lambda f: (f / "README.md").unlink(), 1, "there is no"),
    "bare card": (lambda f: (f / "README.md").write_text("# x"), 2, "states no licence; export"),
    "unstated": (_unstated, 2, "states no licence; export the model with --licence"),
    "no YAML": (lambda f: (f / "README.md").write_text("---\na: [\n---\n"), 2, "begins with YAML"),
    "a list": (lambda f: (f / "README.md").write_text("---\n- a\n---\n"), 2, "begins with YAML"),
    "a run": (_a_run, 2, "is a training run; its model is in"),
    "no folder": (shutil.rmtree, 2, "there is no folder"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_that_is_refused(fault, hub, folder):
    change, exit_code, message = FAULTS[fault]
    change(folder)
    refused(push(folder), exit_code, message)
    assert hub.requests == []


def test_a_file_that_changes_after_it_was_checked(hub, folder, monkeypatch):
    monkeypatch.setattr(load, "load_encoder", lambda *_: damage(folder / "prior.safetensors"))
    refused(push(folder), 1, "prior.safetensors changed while it was checked")


def test_a_manifest_that_changes_after_it_was_read(hub, folder, monkeypatch):
    """Such as by a calibration that ends in between: its file would not be sent."""
    path = folder / "weights_manifest.json"

    def change(*_):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("non-commercial", "commercial") + " ", encoding="utf-8")
        manifest = json.loads(text)
        manifest["models"][0]["licence"] = "another"
        path.write_text(json.dumps(manifest), encoding="utf-8")

    monkeypatch.setattr(load, "load_encoder", change)
    refused(push(folder), 1, "weights_manifest.json changed while it was checked")
    assert hub.requests == []
    assert hub.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repo-id", "a/b/c"], "--repo-id is 'a/b/c'; it must be owner/name"),
        (["--repo-id", "faces"], "--repo-id is 'faces'; it must be owner/name"),
        (["--revision", "../x"], "revision is '../x'; it must be a branch"),
        (["--revision", "0" * 40], "is a commit; name a branch"),
        (["--token", "two words"], "the token is empty or holds spaces"),
    ],
)
def test_arguments_that_are_refused(arguments, message, hub, folder):
    refused(push(folder, *arguments), 2, message)
    assert hub.requests == []


# --- what the Hub can do -------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["/create", "/preupload/", "/batch", "/stored/", "/commit/"])
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (403, f"the Hub does not let you publish to {REPO}: check the name"),
        (500, f"{REPO} could not be published: the server answered 500; try again later"),
    ],
)
def test_a_server_that_refuses_publishes_nothing(at, status, message, hub, folder):
    hub.publish(REPO, {".gitattributes": b""})
    before = dict(hub.repositories[REPO].branches)
    hub.refuse, hub.refuse_at = (status, {"X-Error-Message": f"you sent {SECRET}"}), at
    if (at, status) == ("/create", 403):
        hub.repositories.clear()  # else the client goes on: one may write and not create
        before = None
    refused(push(folder), 1, message)
    assert before is None or hub.repositories[REPO].branches == before


@pytest.mark.parametrize(
    ("status", "at", "code", "message"),
    [
        (401, "", "", "the Hub does not let you publish"),
        (404, "/preupload/", "RepoNotFound", "the Hub does not let you publish"),
        (400, "/validate-yaml", "", "the Hub refuses the metadata of the folder's README.md"),
        (429, "/commit/", "", "the server answered 429; too many requests"),
        (500, "/tree/", "", "was made, but could not be read again"),
    ],
)
def test_other_answers(status, at, code, message, hub, folder):
    hub.refuse, hub.refuse_at = (status, {"X-Error-Code": code}), at
    refused(push(folder), 1 if status != 400 else 2, message)


def test_two_publishers(hub, folder):
    pushed(folder)
    (folder / "README.md").write_text("---\nlicense: cc0-1.0\n---\nanother card\n")

    def before(seen):
        if "/commit/" in seen.path:
            hub.publish(REPO, {".gitattributes": b"theirs"})

    hub.before = before
    refused(push(folder), 1, f"somebody else published to {REPO} meanwhile")
    commit = hub.repositories[REPO].branches["main"]
    assert hub.repositories[REPO].commits[commit] == {".gitattributes": b"theirs"}


def test_a_repository_that_leaves_files_out(hub, folder):
    hub.publish(REPO, {"!prior.safetensors": b""})  # the loopback Hub's .gitignore
    refused(push(folder), 1, "was made, but lacks prior.safetensors; look into")


def test_no_server(hub, folder, monkeypatch):
    monkeypatch.setattr(client, "ENDPOINT", "http://127.0.0.1:9")
    refused(push(folder), 1, f"{REPO} could not be published: no connection; check the network")


# --- as it is typed ------------------------------------------------------------------------------


@pytest.mark.slow
def test_publish_sample_stop_the_server_flip_a_byte(folder, tmp_path):
    """New processes, HF_ENDPOINT and a cache, as a user has them."""
    home = tmp_path / "home"
    settings = {"HF_HOME": str(home), "HF_TOKEN": SECRET, "HF_HUB_DISABLE_XET": "1"}
    settings |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(module, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", f"hebm_sample.{module}", *map(str, arguments)],
            env={**os.environ, "HF_ENDPOINT": endpoint, **settings},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert SECRET not in done.stdout + done.stderr and "Traceback" not in done.stderr
        return done

    def sample(name, *arguments):
        out = tmp_path / f"{name}.png"
        done = run("cli", "--dataset", REPO, "-n", 1, "--steps", 4, "--out", out, *arguments)
        if not out.exists():
            return done, None
        with Image.open(out) as written:  # its text names the file
            return done, written.convert("RGB").tobytes()

    with LoopbackHub() as hub:
        endpoint = hub.endpoint
        row = json.loads(run("training", "push", folder, "--repo-id", REPO).stdout)
        first, image = sample("first")
        assert first.returncode == 0 and image is not None
        assert hub.repositories[REPO].branches["main"] == row["revision"]
    stopped, again = sample("stopped")
    assert stopped.returncode == 0 and again == image
    (prior,) = (path for path in home.rglob("prior.safetensors"))
    damage(prior)
    offline, nothing = sample("offline", "--offline")
    assert offline.returncode == 1 and nothing is None
    assert "prior.safetensors is corrupt: its sha256 is" in offline.stderr
    with LoopbackHub() as again_open:
        again_open.repositories, endpoint = hub.repositories, again_open.endpoint
        repaired, again = sample("repaired")
    assert repaired.returncode == 0 and again == image
    assert "downloading it again" in repaired.stderr
