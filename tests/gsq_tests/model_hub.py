"""A model hub on this machine: what huggingface_hub asks of one to create, upload, list and download."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_local"


class ModelHub(ThreadingHTTPServer):
    """Repositories by id, with their files. refuse: HTTP status and words for whoever creates one."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.objects: dict[str, bytes] = {}
        self.validated: list[str] = []
        self.refuse: tuple[int, str] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def revision(self, repository: str) -> str:
        contents = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in self.files[repository].items())
        return hashlib.sha1(json.dumps(contents).encode()).hexdigest()


class Requests(BaseHTTPRequestHandler):
    server: ModelHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status: int, words: str, code: str = "") -> None:
        self.answer({"error": words}, status, X_Error_Message=words, **({"X_Error_Code": code} if code else {}))

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        hub, body, path = self.server, self.body(), self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and path != "/api/validate-yaml":
            return self.refuse(401, "Invalid credentials in Authorization header")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if hub.refuse is not None:
                return self.refuse(*hub.refuse)
            if name in hub.files:
                return self.answer({"error": "exists", "url": f"{hub.address}/{name}"}, 409)
            hub.files[name] = {".gitattributes": b""}
            hub.private[name] = asked.get("private") or asked.get("visibility") == "private"
            return self.answer({"url": f"{hub.address}/{name}", "name": name})
        if path == "/api/validate-yaml":
            hub.validated.append(json.loads(body)["content"])
            return self.answer({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = {one["path"]: "lfs" if one["path"].endswith(".safetensors") else "regular" for one in files}
            return self.answer(
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            )
        if path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(body)["objects"]
            objects = [{**one, "actions": {"upload": {"href": f"{hub.address}/objects/{one['oid']}"}}} for one in asked]
            return self.answer({"transfer": "basic", "objects": objects})
        if path.endswith("/commit/main"):
            return self.commit("/".join(path.split("/")[3:5]), body)
        self.refuse(404, f"no such address: {path}")

    def commit(self, repository: str, body: bytes) -> None:
        hub = self.server
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                hub.messages.append(value["summary"])
            elif line["key"] == "file":
                hub.files[repository][value["path"]] = base64.b64decode(value["content"])
            else:
                hub.files[repository][value["path"]] = hub.objects[value["oid"]]
        revision = hub.revision(repository)
        address = f"{hub.address}/{repository}/commit/{revision}"
        self.answer({"success": True, "commitOid": revision, "commitUrl": address})

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if api else parts[:2])
        files = self.server.files.get(repository)
        if files is None:
            return self.refuse(404, "Repository not found", "RepoNotFound")
        revision = self.server.revision(repository)
        if api and parts[4:5] == ["tree"]:
            return self.answer(
                [
                    {"type": "file", "path": p, "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                    for p, d in files.items()
                ]
            )
        if api:
            siblings = [{"rfilename": name} for name in files]
            return self.answer({"_id": "1", "id": repository, "sha": revision, "siblings": siblings, "private": False})
        data = files["/".join(parts[4:])]
        self.answer(data, X_Repo_Commit=revision, ETag=f'"{hashlib.sha256(data).hexdigest()}"')

    def do_HEAD(self) -> None:
        self.do_GET()


@contextmanager
def model_hub() -> Iterator[ModelHub]:
    hub = ModelHub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
