"""A small server with the endpoints of the Hugging Face Hub that uploads and downloads of a model need.

Repositories are in memory. ``Hub.cut`` breaks downloads off after so many bytes; ``Hub.status`` answers every request
with an error.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by name, by commit"""

    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        all_files = self.commits.get(self.branches.get("main"), {}) | files
        names = b"".join(name.encode() + content for name, content in sorted(all_files.items()))
        number = hashlib.sha1(names + str(len(self.commits)).encode()).hexdigest()
        self.commits[number] = all_files
        self.branches["main"] = number
        return number


class Hub:
    """The state of the server: repositories by name, and users by token."""

    def __init__(self):
        self.users = {"token-of-owner": "owner", "token-of-other": "other"}
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut: int | None = None
        self.status: int | None = None
        self.url = ""

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> Repository:
        repository = self.repositories.setdefault(name, Repository(private))
        repository.commit(files)
        return repository


@contextmanager
def serve():
    """Runs a server; yields its state."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class Failed(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.handle_request()

    do_HEAD = do_POST = do_PUT = do_GET

    def handle_request(self):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            if self.hub.status is not None:
                raise Failed(self.hub.status)
            for pattern, method in ROUTES.items():
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    method(self, *match.groups())
                    return
            raise Failed(404)
        except Failed as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self.send(error.status, json.dumps({"error": error.message}).encode(), headers)

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer(self, content, status: int = 200):
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    @property
    def user(self) -> str | None:
        return self.hub.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def readable(self, name: str) -> Repository:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and self.user != name.partition("/")[0]):
            raise Failed(404 if self.user else 401, "RepoNotFound", "Repository not found")
        return repository

    def writable(self, name: str) -> Repository:
        repository = self.readable(name)
        if self.user != name.partition("/")[0]:
            raise Failed(403, message="You don't have the rights to write to this repository")
        return repository

    def create(self):
        wanted = json.loads(self.body)
        owner = wanted["organization"] or self.user
        if self.user is None:
            raise Failed(401, message="Invalid username or password.")
        if owner != self.user:
            raise Failed(403, message=f"You don't have the rights to create a model under the namespace {owner}")
        name = f"{owner}/{wanted['name']}"
        if name in self.hub.repositories:
            raise Failed(409, message="You already created this model repo")
        is_private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repositories[name] = Repository(is_private)
        self.hub.repositories[name].commit({})
        self.answer({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def info(self, name: str, revision: str | None = None):
        repository = self.readable(name)
        commit = self.commit_of(repository, revision or "main")
        files = [{"rfilename": file} for file in repository.commits[commit]]
        self.answer({"id": name, "modelId": name, "sha": commit, "private": repository.private, "siblings": files})

    def commit_of(self, repository: Repository, revision: str) -> str:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise Failed(404, "RevisionNotFound", "Invalid rev id")
        return commit

    def validate(self):
        assert json.loads(self.body)["content"].startswith("---\n")
        self.answer({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str):
        self.writable(name)
        names = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {file: "lfs" if file.endswith(".safetensors") else "regular" for file in names}
        self.answer({"files": [{"path": f, "uploadMode": modes[f], "shouldIgnore": False} for f in names]})

    def batch(self, name: str):
        self.writable(name)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}
            objects.append(wanted | {"actions": {"upload": upload}})
        self.answer({"transfer": "basic", "objects": objects})

    def put(self, digest: str):
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.hub.large[digest] = self.body
        self.send(200, b"")

    def commit(self, name: str, revision: str):
        repository, files = self.writable(name), {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        number = repository.commit(files)
        self.answer({"success": True, "commitOid": number, "commitUrl": f"{self.hub.url}/{name}/commit/{number}"})

    def resolve(self, name: str, revision: str, file: str):
        repository = self.readable(name)
        commit = self.commit_of(repository, revision)
        if file not in repository.commits[commit]:
            raise Failed(404, "EntryNotFound", "Entry not found")
        content = repository.commits[commit][file]
        etag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        status, size = 200, len(content)
        if start := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, first = 206, int(start[1])
            content = content[first:]
            headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
        if self.command == "GET" and self.hub.cut is not None and status == 206:
            self.close_connection = True  # without an answer
            return
        if self.command == "GET" and self.hub.cut is not None:
            headers["Content-Length"], content = str(size), content[: self.hub.cut]
            self.close_connection = True
        self.send(status, content, headers)


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": Handler.validate,
    f"GET /api/models/{NAME}": Handler.info,
    f"GET /api/models/{NAME}/revision/(.+)": Handler.info,
    f"POST /api/models/{NAME}/preupload/(.+)": Handler.preupload,
    rf"POST /{NAME}\.git/info/lfs/objects/batch": Handler.batch,
    "PUT /lfs/([0-9a-f]{64})": Handler.put,
    f"POST /api/models/{NAME}/commit/(.+)": Handler.commit,
    f"(?:GET|HEAD) /{NAME}/resolve/(.+)/([^/]+)": Handler.resolve,
}
