"""A server on this machine that speaks as much of the Hub's protocol as uploads and downloads of models need.

The real client talks to it. All files are told to be "regular", so that their content comes within the commit and no
store of large files is needed.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

WRITER, READER, STRANGER = "hf_writer", "hf_reader", "hf_stranger"
"""Tokens: of the owner, of the owner but for reading only, and of somebody else."""


@dataclass
class Repository:
    """One model on the server; each commit is a dict from path to content."""

    is_private: bool = False
    is_gated: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr([sorted(commit.items()) for commit in self.commits]).encode()).hexdigest()


class LoopbackHub(ThreadingHTTPServer):
    """Starts with the object and ends with ``close``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.fails_to_commit = False
        self.thread = Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def close(self) -> None:
        if not self.thread.is_alive():
            return
        self.shutdown()
        self.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Nothing: the terminal is for tests."""

    def do_POST(self) -> None:
        self._serve("POST")

    def do_GET(self) -> None:
        self._serve("GET")

    def do_HEAD(self) -> None:
        self._serve("HEAD")

    def _serve(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{method} {path}")
        body = self._body()
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in ("", WRITER, READER, STRANGER):
            return self._refuse(401, message="Invalid credentials in Authorization header")
        if method == "GET" and path == "/api/whoami-v2":
            return self._say({"name": "owner", "type": "user", "orgs": []}) if token else self._refuse(401)
        if method == "POST" and path == "/api/validate-yaml":
            return self._say({"errors": [], "warnings": []})
        if method == "POST" and path == "/api/repos/create":
            return self._create(json.loads(body), token)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w[\w-]*)(?:/([^/]+))?.*)?", path):
            return self._of_model(method, *found.groups(), token, body)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(method, found[1], found[3], token)
        return self._refuse(404)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _create(self, asked: dict[str, Any], token: str) -> None:
        name = f"{asked.get('organization') or 'owner'}/{asked['name']}"
        if not token:
            return self._refuse(401)
        if token != WRITER or not name.startswith("owner/"):
            return self._refuse(403, message=f"You may not create a model called {name}")
        if name in self.server.repositories:
            return self._say({"url": f"{self.server.address}/{name}", "error": "You already created this"}, 409)
        self.server.repositories[name] = Repository(is_private=asked.get("visibility") == "private")
        return self._say({"url": f"{self.server.address}/{name}"})

    def _of_model(self, method: str, name: str, action: str | None, _: str | None, token: str, body: bytes) -> None:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.is_private and token not in (WRITER, READER)):
            return self._refuse(404 if token else 401, "RepoNotFound" if token else None)
        if method == "GET" and action in (None, "revision"):  # told of gated ones, too
            siblings = [{"rfilename": path} for path in repository.files]
            described = {"private": repository.is_private, "gated": "manual" if repository.is_gated else False}
            return self._say({"id": name, "sha": repository.sha, "siblings": siblings, **described})
        if method == "GET" and action == "tree":
            sizes = {path: {"size": len(content), "oid": _etag(content)} for path, content in repository.files.items()}
            return self._say([{"type": "file", "path": path, **size} for path, size in sizes.items()])
        if method != "POST" or action not in ("preupload", "commit"):
            return self._refuse(404)
        if token != WRITER:
            return self._refuse(403, message="Forbidden: pass a token with write access")
        if action == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            return self._say({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        if self.server.fails_to_commit:
            return self._refuse(400, message="The server is out of order")
        files = dict(repository.files)
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        repository.commits.append(files)
        address = f"{self.server.address}/{name}/commit/{repository.sha}"
        return self._say({"success": True, "commitOid": repository.sha, "commitUrl": address})

    def _file(self, method: str, name: str, path: str, token: str) -> None:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.is_private and token not in (WRITER, READER)):
            return self._refuse(404 if token else 401, "RepoNotFound")
        if repository.is_gated and token not in (WRITER, READER):
            return self._refuse(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted.")
        if path not in repository.files:
            return self._refuse(404, "EntryNotFound", headers={"X-Repo-Commit": repository.sha})
        content = repository.files[path]
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": repository.sha}
        return self._send(200, content, headers, method == "HEAD")

    def _say(self, answer: Any, status: int = 200) -> None:
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _refuse(
        self, status: int, code: str | None = None, message: str = "", headers: dict[str, str] | None = None
    ) -> None:
        given = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {name: value for name, value in given.items() if value}, self.command == "HEAD")

    def _send(self, status: int, content: bytes, headers: dict[str, str], is_head: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if not is_head:
            self.wfile.write(content)


def _etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
