"""A Hub on 127.0.0.1: enough of the protocol for the real client to download from and publish to.

What a repository is (`info`), its files in pages (`tree`), `HEAD|GET .../resolve/...`; how it is
written to is in `publishing`.

It records what it saw (`requests`). What can be made to go wrong, and what a hook may do meanwhile
(move a branch, let a test kill the client), are the attributes of `LoopbackHub`. Files ending in
.safetensors are LFS ones: served with their sha256, and, if `elsewhere`, from a second origin.
"""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from hub.publishing import Headers, Publishing, git_sha1, is_large, sha256

SECRET = "hf_secretsecretsecret"
REPO = "somebody/tiny"


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    authorization: str | None
    agent: str
    range: str | None
    host: str


def flip(data: bytes) -> bytes:
    """The same length, one bit off in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def damage(path: str | Path) -> None:
    """Flip a bit of what a path leads to, through symbolic links."""
    target = Path(path).resolve()
    target.write_bytes(flip(target.read_bytes()))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that was killed while it read


class LoopbackHub:
    """A context manager; `endpoint` is its address while it is open."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}  # LFS objects that were uploaded
        self.requests: list[Seen] = []
        self.corrupt: set[str] = set()  # files whose body has one bit flipped
        self.cut: dict[str, Iterator[int]] = {}  # file: bytes sent, GET by GET, before the cut
        self.midway: Callable[[], object] = lambda: None  # called just before a cut
        self.before: Callable[[Seen], object] = lambda seen: None  # called before each answer
        self.refuse: tuple[int, Headers] | None = None  # answer this
        self.refuse_at = ""  # to paths that contain this
        self.omit: set[str] = set()  # headers left out
        self.ranges = True  # whether `Range` is honoured
        self.page_size = 1000  # files in a page of a tree
        self.elsewhere = False  # LFS files from a second origin
        handler = type("Bound", (_Handler,), {"hub": self})
        self._servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
        self.endpoint = f"http://127.0.0.1:{self._servers[0].server_port}"
        # By another name: the oldest clients tell origins apart by the name alone.
        self.storage = f"http://localhost:{self._servers[1].server_port}"

    def publish(self, repo_id: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Commit these files to a branch; returns the commit."""
        repository = self.repositories.setdefault(repo_id, Repository())
        content = repo_id.encode() + b"".join(n.encode() + d for n, d in sorted(files.items()))
        commit = hashlib.sha1(content).hexdigest()
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        return commit

    def __enter__(self) -> "LoopbackHub":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Handler(Publishing, BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        if path == "/api/agent-harnesses":  # the client's daily best-effort call, not ours
            return self.send(404)
        get = self.headers.get
        sent = get("Authorization"), get("User-Agent", ""), get("Range"), f"http://{get('Host')}"
        seen = Seen(self.command, unquote(path), *sent)
        self.hub.requests.append(seen)
        self.hub.before(seen)
        if self.hub.refuse is not None and self.hub.refuse_at in seen.path:
            return self.send(self.hub.refuse[0], b"{}", self.hub.refuse[1])
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method.split("|"):
                return answer(self, *(unquote(part or "main") for part in match.groups()))
        return self.send(404)

    do_HEAD = do_GET = do_POST = do_PUT = answer

    def send(self, status: int, body: bytes = b"", extra: Headers | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (extra or {})).items():
            if key not in self.hub.omit:
                self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply(self, value: object, extra: Headers | None = None) -> None:
        self.send(
            200, json.dumps(value).encode(), {"Content-Type": "application/json"} | (extra or {})
        )

    def fail(self, status: int, code: str = "", extra: Headers | None = None) -> None:
        self.send(status, b"{}", {"X-Error-Code": code} | (extra or {}))

    # Reading

    def find(self, repo_id: str, revision: str) -> tuple[Repository, str] | None:
        """The repository and the commit; None after an error was sent."""
        repository = self.hub.repositories.get(repo_id)
        if repository is None or (repository.private and "Authorization" not in self.headers):
            return self.fail(404, "RepoNotFound")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self.fail(404, "RevisionNotFound")
        return repository, commit

    def info(self, repo_id: str, revision: str) -> None:
        if found := self.find(repo_id, revision):
            repository, commit = found
            siblings = [{"rfilename": name} for name in repository.commits[commit]]
            self.reply(dict(id=repo_id, sha=commit, private=repository.private, siblings=siblings))

    def tree(self, repo_id: str, revision: str) -> None:
        if found := self.find(repo_id, revision):
            files = found[0].commits[found[1]]
            first = int(parse_qs(urlsplit(self.path).query).get("cursor", ["0"])[0])
            last = first + self.hub.page_size
            page = [_entry(name, files[name]) for name in list(files)[first:last]]
            more = f'<{self.hub.endpoint}{urlsplit(self.path).path}?cursor={last}>; rel="next"'
            self.reply(page, {"Link": more} if last < len(files) else {})

    def file(self, repo_id: str, revision: str, name: str) -> None:
        if not (found := self.find(repo_id, revision)):
            return
        repository, commit = found
        data = repository.commits[commit].get(name)
        if data is None:
            return self.fail(404, "EntryNotFound", {"X-Repo-Commit": commit})
        extra = {"X-Repo-Commit": commit, "ETag": f'"{git_sha1(data)}"'}
        if not is_large(name):
            return self.stream(name, data, extra)
        extra |= {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        if not self.hub.elsewhere:
            return self.stream(name, data, extra)
        self.hub.stored[sha256(data)] = data
        place = f"{self.hub.storage}/stored/{sha256(data)}/{name}"
        return self.send(302, b"", extra | {"Location": place})

    def object(self, digest: str, name: str) -> None:
        self.stream(name, self.hub.stored[digest], {"ETag": f'"{digest[:32]}"'})

    def stream(self, name: str, data: bytes, extra: Headers) -> None:
        """A file's bytes, from `Range` on, with what is to go wrong."""
        body = flip(data) if name in self.hub.corrupt else data
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        status = 200
        if start and self.hub.ranges:
            status, first = 206, int(start[1])
            extra = extra | {"Content-Range": f"bytes {first}-{len(body) - 1}/{len(body)}"}
            body = body[first:]
        end = next(self.hub.cut.get(name, iter(())), None) if self.command == "GET" else None
        if end is None:
            return self.send(status, body, extra)
        self.send(status, b"", extra | {"Content-Length": str(len(body))})
        self.wfile.write(body[:end])
        self.hub.midway()
        self.close_connection = True


def _entry(name: str, data: bytes) -> dict[str, object]:
    found: dict[str, object] = dict(type="file", path=name, size=len(data), oid=git_sha1(data))
    if is_large(name):
        found["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
    return found


_REPO = r"([^/]+/[^/]+?)"
_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", f"/api/models/{_REPO}(?:/revision/(.+))?", _Handler.info),
    ("GET", f"/api/models/{_REPO}/tree/([^/]+)", _Handler.tree),
    ("HEAD|GET", f"/{_REPO}/resolve/([^/]+)/(.+)", _Handler.file),
    ("HEAD|GET", r"/stored/(\w+)/(.+)", _Handler.object),
    ("POST", "/api/repos/create", _Handler.create),
    ("POST", f"/api/models/{_REPO}/branch/([^/]+)", _Handler.branch),
    ("POST", "/api/validate-yaml", _Handler.validate),
    ("POST", f"/api/models/{_REPO}/preupload/([^/]+)", _Handler.preupload),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", r"/stored/(\w+)", _Handler.put),
    ("POST", rf"/{_REPO}\.git/info/lfs/verify", _Handler.verify),
    ("POST", f"/api/models/{_REPO}/commit/([^/]+)", _Handler.commit),
]
