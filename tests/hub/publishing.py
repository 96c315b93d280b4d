"""How the loopback Hub is written to: create, branch, validate-yaml, preupload, LFS, commit."""

import base64
import hashlib
import json
from typing import Any

Headers = dict[str, str]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith(".safetensors")


class Publishing:
    """What the handler of `loopback` answers to POST and PUT; it sends and finds."""

    def posted(self) -> Any:
        return json.loads(self.body)

    def create(self) -> None:
        asked = self.posted()
        repo_id = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.endpoint}/{repo_id}"}
        if "Authorization" not in self.headers:
            return self.fail(401)
        if repo_id in self.hub.repositories:
            return self.send(409, json.dumps(url).encode())
        self.hub.publish(repo_id, {".gitattributes": b""})
        self.hub.repositories[repo_id].private = asked.get("visibility") == "private"
        return self.reply(url)

    def branch(self, repo_id: str, name: str) -> None:
        branches = self.hub.repositories[repo_id].branches
        status = 409 if name in branches else 200
        branches.setdefault(name, branches["main"])
        self.send(status, b"{}")

    def validate(self) -> None:
        errors = [] if "license" in self.posted()["content"] else [{"message": "no license"}]
        body = json.dumps({"errors": errors, "warnings": []}).encode()
        self.send(400 if errors else 200, body)

    def preupload(self, repo_id: str, revision: str) -> None:
        if found := self.find(repo_id, revision):
            there, answers = found[0].commits[found[1]], []
            for name in (file["path"] for file in self.posted()["files"]):
                answers.append(dict(path=name, shouldIgnore=f"!{name}" in there))
                answers[-1]["uploadMode"] = "lfs" if is_large(name) else "regular"
                if name in there:
                    digest = sha256 if is_large(name) else git_sha1
                    answers[-1]["oid"] = digest(there[name])
            self.reply({"files": answers})

    def batch(self, repo_id: str) -> None:
        objects: list[dict[str, Any]] = [dict(wanted) for wanted in self.posted()["objects"]]
        for wanted in objects:
            if wanted["oid"] not in self.hub.stored:
                upload = {"href": f"{self.hub.storage}/stored/{wanted['oid']}"}
                verify = {"href": f"{self.hub.endpoint}/{repo_id}.git/info/lfs/verify"}
                wanted["actions"] = {"upload": upload, "verify": verify}
        self.reply({"transfer": "basic", "objects": objects})

    def put(self, digest: str) -> None:
        if sha256(self.body) != digest:
            return self.fail(400)
        self.hub.stored[digest] = self.body
        return self.send(200)

    def verify(self, repo_id: str) -> None:
        asked = self.posted()
        self.send(200 if len(self.hub.stored.get(asked["oid"], b"")) == asked["size"] else 404)

    def commit(self, repo_id: str, revision: str) -> None:
        if not (found := self.find(repo_id, revision)):
            return
        files, lines = dict(found[0].commits[found[1]]), self.body.decode().splitlines()
        header, *rest = (json.loads(line) for line in lines)
        if header["value"].get("parentCommit", found[1]) != found[1]:
            return self.fail(412)
        for key, value in ((line["key"], line["value"]) for line in rest):
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            else:
                del files[value["path"]]
        commit = self.hub.publish(repo_id, files, revision)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{commit}"
        self.reply({"commitUrl": url, "commitOid": commit, "success": True})
