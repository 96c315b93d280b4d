"""A Hub on 127.0.0.1, read side only: enough of the protocol for the real client to download from.

Answers `GET /api/models/{repo}[/revision/{rev}]`, `GET .../tree/{sha}` and `HEAD|GET
/{repo}/resolve/{rev}/{file}`. It records what it saw (`requests`), can refuse (`refuse`), flip a
bit of a body without changing its length (`corrupt`) and cut a body short (`cut`). Files ending in
.safetensors are served as LFS ones, with their sha256.
"""

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SECRET = "hf_secretsecretsecret"


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    authorization: str | None
    agent: str


def flip(data: bytes) -> bytes:
    """The same length, one bit off in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def damage(path: str | Path) -> None:
    """Flip a bit of what a path leads to, through symbolic links."""
    target = Path(path).resolve()
    target.write_bytes(flip(target.read_bytes()))


class LoopbackHub:
    """A context manager; `endpoint` is its address while it is open."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[Seen] = []
        self.corrupt: set[str] = set()
        self.cut: set[str] = set()
        self.refuse: tuple[int, dict[str, str]] | None = None
        self.refuse_files_only = False
        self._server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self})
        )
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def publish(self, repo_id: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit these files to a branch; returns the commit."""
        repository = self.repositories.setdefault(repo_id, Repository())
        content = repo_id.encode() + b"".join(n.encode() + d for n, d in sorted(files.items()))
        commit = hashlib.sha1(content).hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        return commit

    def __enter__(self) -> "LoopbackHub":
        threading.Thread(
            target=lambda: self._server.serve_forever(poll_interval=0.01), daemon=True
        ).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/agent-harnesses":  # the client's daily best-effort call, not ours
            return self.send(404, b"")
        headers = self.headers
        self.hub.requests.append(
            Seen(self.command, path, headers.get("Authorization"), headers.get("User-Agent", ""))
        )
        is_file = "/resolve/" in path
        if self.hub.refuse is not None and (is_file or not self.hub.refuse_files_only):
            status, extra = self.hub.refuse
            return self.send(status, b"{}", extra)
        if is_file:
            return self.file(*path[1:].split("/resolve/"))
        return self.api(path.removeprefix("/api/models/"))

    def api(self, path: str) -> None:
        for kind in ("/tree/", "/revision/", ""):
            if kind in path:
                break
        repo_id, _, revision = path.partition(kind) if kind else (path, "", "main")
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        commit = repository.branches.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if kind == "/tree/":
            body: object = [self.entry(name, data) for name, data in files.items()]
        else:
            siblings = [{"rfilename": name} for name in files]
            body = {"id": repo_id, "sha": commit, "siblings": siblings}
        return self.send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def entry(self, name: str, data: bytes) -> dict[str, object]:
        oid = hashlib.sha1(data).hexdigest()
        found: dict[str, object] = dict(type="file", path=name, size=len(data), oid=oid)
        if name.endswith(".safetensors"):
            digest = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return found

    def file(self, repo_id: str, rest: str) -> None:
        revision, _, name = rest.partition("/")
        repository = self.hub.repositories.get(repo_id, Repository())
        commit = repository.branches.get(revision, revision)
        data = repository.commits.get(commit, {}).get(name)
        if data is None:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        extra = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
        if name.endswith(".safetensors"):
            extra["X-Linked-Etag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            extra["X-Linked-Size"] = str(len(data))
        self.send(
            200, flip(data) if name in self.hub.corrupt else data, extra, name in self.hub.cut
        )

    def send(
        self, status: int, body: bytes, extra: dict[str, str] | None = None, cut: bool = False
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for key, value in (extra or {}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = cut
