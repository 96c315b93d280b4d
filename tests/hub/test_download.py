"""What is cached is used without a request, what is corrupt is fetched again, and whatever a
server does becomes one line without the token. The real client talks to a loopback server."""

import logging
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from click.testing import CliRunner
from hub.loopback import REPO, SECRET, damage, flip

from hebm_sample.cli.sample import main
from hebm_sample.errors import HubError, UserInputError, WeightsError
from hebm_sample.hub import client, manifest
from hebm_sample.hub.resolve import resolve
from hebm_sample.io import files


def test_download_then_offline_without_a_request(published):
    hub, where, row = published
    model = resolve("tiny", **where)
    assert (model.source, model.revision, model.row) == ("hub", row.revision, row)
    model.path("encoder.safetensors")
    fetched = {seen.path.rsplit("/", 1)[1] for seen in hub.requests if seen.method == "GET"}
    assert fetched - {row.revision} == set(manifest.MODEL_FILES)
    assert all("hebm-sample/" in seen.agent for seen in hub.requests)
    assert all(seen.authorization == f"Bearer {SECRET}" for seen in hub.requests)
    hub.requests.clear()
    for _ in range(2):
        assert resolve("tiny", **where).folder == model.folder
        assert resolve("tiny", local_files_only=True, **where).folder == model.folder
    assert hub.requests == []


def test_token_false_sends_none(published):
    hub, where, _ = published
    resolve("tiny", token=False, **where)
    assert {seen.authorization for seen in hub.requests} == {None}


def test_repository_id(published, model_files):
    hub, where, row = published
    model = resolve(REPO, resolution=32, **where)
    assert model.row == replace(row, repo_id=None, revision=None)
    assert model.revision == row.revision
    assert resolve(REPO, local_files_only=True, **where).folder == model.folder
    with pytest.raises(UserInputError, match="makes images of 32 pixels, not 64"):
        resolve(REPO, resolution=64, **where)
    paths = {seen.path for seen in hub.requests}
    assert not [path for path in paths if path.endswith((".bin", "README.md", ".gitattributes"))]


def test_other_revision_has_its_own_row(published, model_folder, model_files):
    hub, where, row = published
    damage(model_folder / "config.json")
    other = manifest.write_row(model_folder, name="tiny", resolution=32, licence="CC0-1.0")
    new = {path.name: path.read_bytes() for path in model_folder.iterdir()}
    commit = hub.publish(REPO, new, branch="next")
    assert resolve("tiny", revision="next", **where).row == other
    assert resolve("tiny", revision="next", **where).revision == commit
    assert resolve("tiny", **where).row == row


def test_repository_without_a_manifest(published, model_files):
    hub, where, _ = published
    hub.publish("somebody/plain", {"config.json": b"{}"})
    with pytest.raises(WeightsError, match="there is no .*weights_manifest.json"):
        resolve("somebody/plain", **where)


@pytest.mark.parametrize("name", ["prior.safetensors", "encoder.safetensors"])
def test_flipped_cached_bit_is_repaired_online(name, published, caplog):
    hub, where, row = published
    folder = resolve("tiny", **where).folder
    damage(folder / name)
    hub.requests.clear()
    with caplog.at_level(logging.WARNING):
        path = resolve("tiny", **where).path(name)
    assert files.sha256_of(path) == row.files[name].sha256
    assert f"{name} is corrupt: its sha256 is" in caplog.text
    assert "downloading it again" in caplog.text
    assert {seen.path.rsplit("/", 1)[1] for seen in hub.requests} == {name}


def test_flipped_cached_bit_is_reported_offline(published):
    hub, where, _ = published
    folder = resolve("tiny", **where).folder
    damage(folder / "config.json")
    hub.requests.clear()
    message = "config.json is corrupt: its sha256 .*; load it once with the network allowed"
    with pytest.raises(WeightsError, match=message):
        resolve("tiny", local_files_only=True, **where)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("port", "message"), [(None, "the server answered 500"), (9, "no connection; check the net")]
)
def test_corrupt_while_the_hub_is_down(port, message, published, monkeypatch):
    hub, where, _ = published
    damage(resolve("tiny", **where).folder / "config.json")
    with monkeypatch.context() as down:
        hub.refuse = (500, {})
        if port is not None:
            down.setattr(client, "ENDPOINT", f"http://127.0.0.1:{port}")
        with pytest.raises(HubError, match="config.json is corrupt: .*; it could not") as caught:
            resolve("tiny", **where)
    assert message in str(caught.value)
    hub.refuse = None
    resolve("tiny", **where)


def test_broken_row_of_a_repository_is_repaired(published):
    hub, where, _ = published
    row = resolve(REPO, **where).folder / manifest.MANIFEST_NAME
    row.resolve().write_bytes(b"{")
    with pytest.raises(WeightsError, match="no valid model manifest: .*; load it once"):
        resolve(REPO, local_files_only=True, **where)
    assert resolve(REPO, **where).row.name == "tiny"


def test_corruption_on_the_way(published):
    hub, where, _ = published
    hub.corrupt.add("generator.safetensors")
    message = "generator.safetensors is corrupt: .* also after asking the Hub .*hf cache rm model/"
    with pytest.raises(WeightsError, match=message):
        resolve("tiny", **where)
    hub.corrupt.clear()
    resolve("tiny", **where)


def test_repair_without_symbolic_links(published):
    hub, where, row = published
    path = resolve("tiny", **where).folder / "config.json"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(flip(data))
    assert resolve("tiny", **where).path("config.json").read_bytes() == data


def test_not_cached_and_offline(published):
    hub, where, _ = published
    for name in ("tiny", REPO):
        with pytest.raises(HubError, match="not complete in the cache and no request may be sent"):
            resolve(name, local_files_only=True, **where)
    assert hub.requests == []


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "the Hub shows no repository somebody/tiny"),
        (403, "GatedRepo", "is gated: accept its terms"),
        (404, "RevisionNotFound", "somebody/tiny has no revision [0-9a-f]{40}"),
        (404, "EntryNotFound", "the server answered 404|lacks a file"),
        (401, None, "the server answered 401; log in with"),
        (403, None, "the server answered 403; the token may not do that"),
        (500, None, "the server answered 500; try again later"),
        (503, None, "the server answered 503; try again later"),
        (400, None, "the server answered 400"),
        (429, None, "the server answered 429; too many requests"),
    ],
)
def test_server_errors(status, code, message, published):
    hub, where, _ = published
    echo = {"X-Error-Message": f"you sent {SECRET}"}
    hub.refuse = (status, echo | ({"X-Error-Code": code} if code else {}))
    with pytest.raises(HubError, match=message) as caught:
        resolve("tiny", token=SECRET, **where)
    assert_one_clean_line(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "EntryNotFound", "lacks a file that it lists"),
        (403, "GatedRepo", "is gated: accept its terms"),
        (200, None, "not complete in the cache, and the Hub did not deliver: the answers are not"),
    ],
)
def test_server_errors_at_a_file(status, code, message, published):
    hub, where, _ = published
    hub.refuse, hub.refuse_at = (status, {"X-Error-Code": code} if code else {}), "/resolve/"
    with pytest.raises(HubError, match=message) as caught:
        resolve("tiny", **where)
    assert_one_clean_line(caught.value)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "the Hub shows no repository somebody/tiny"),
        (403, "GatedRepo", "somebody/tiny is gated: accept its terms"),
        (429, "", "the server answered 429; too many requests"),
        (500, "", "the server answered 500; try again later"),
    ],
)
def test_the_command_says_it_in_one_line(status, code, message, published, monkeypatch):
    hub, where, _ = published
    monkeypatch.chdir(where["cache_dir"].parent)
    hub.refuse = (status, {"X-Error-Code": code, "X-Error-Message": f"you sent {SECRET}"})
    arguments = ["--dataset", REPO, "--cache-dir", str(where["cache_dir"])]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and hub.requests[0].authorization == f"Bearer {SECRET}"
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ") and message in line and SECRET not in result.output


def assert_one_clean_line(error):
    chain, found = [], error
    while found is not None:
        chain.append(f"{found!r}")
        found = found.__cause__ or found.__context__
    assert not [text for text in chain if SECRET in text] and str(error).isprintable()
    assert error.exit_code == 1


def test_unreachable(published, monkeypatch):
    _, where, _ = published
    monkeypatch.setattr(client, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="no connection; check the network") as caught:
        resolve("tiny", **where)
    assert_one_clean_line(caught.value)


def test_cache_folder_that_cannot_be_written(published, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(HubError, match="could not be downloaded: .*check the cache folder"):
        resolve("tiny", cache_dir=tmp_path / "file")


def test_malformed_repository_id(published):
    _, where, _ = published
    with pytest.raises(UserInputError, match="'a--b/c' is no Hub repository"):
        resolve("a--b/c", **where)


def test_environment_offline(published, tmp_path):
    """HF_HUB_OFFLINE and HF_ENDPOINT are read on import, so a new process has to show it."""
    hub, where, row = published
    resolve(REPO, **where)
    hub.requests.clear()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": hub.endpoint}
    code = (
        "import sys; from hebm_sample.hub.resolve import resolve\n"
        "for cache in sys.argv[2:]:\n"
        "    try: print(resolve(sys.argv[1], cache_dir=cache).revision)\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    arguments = [sys.executable, "-c", code, REPO, str(where["cache_dir"]), str(tmp_path / "new")]
    run = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    warm, cold = run.stdout.splitlines()
    assert warm == row.revision
    assert cold.startswith("HubError somebody/tiny is not complete in the cache and no request")
    assert hub.requests == []


def test_no_token_stored(published, monkeypatch):
    _, where, _ = published
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="no token is stored on this machine"):
        resolve("tiny", token=True, **where)
