"""A server on this computer that stands in for the Hugging Face Hub: the few requests that models need."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer(http.server.ThreadingHTTPServer):
    """Keeps the files of repositories in memory: {"organisation/name": {path: bytes}}."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.tokens: list[str | None] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: HubServer

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.tokens.append(self.headers.get("Authorization"))
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._describe("/".join(parts[2:4]))
        elif parts[2:3] == ["resolve"]:
            content = self.server.repositories.get("/".join(parts[:2]), {}).get("/".join(parts[4:]))
            self._send(404 if content is None else 200, content or b"", "application/octet-stream")
        else:
            self._send(404, b"")

    def _describe(self, repo_id: str) -> None:
        files = self.server.repositories.get(repo_id)
        if files is None:
            self._send(404, b'{"error": "Repository not found"}', X_Error_Code="RepoNotFound")
            return
        siblings = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
        tree = [
            {"type": "file", "path": name, "size": len(content), "oid": "0" * 40} for name, content in files.items()
        ]
        listing = {"id": repo_id, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        self._json(tree if "/tree/" in self.path else listing)

    def do_POST(self) -> None:
        self.server.tokens.append(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path).path.strip("/").split("/")
        if parts[:3] == ["api", "repos", "create"]:
            asked = json.loads(body)
            repo_id = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            self.server.repositories.setdefault(repo_id, {})
            self._json({"url": f"{self.server.endpoint}/{repo_id}", "name": repo_id, "id": "0"})
        elif parts[4:5] == ["preupload"]:
            files = json.loads(body)["files"]
            answers = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            self._json({"files": answers})
        elif parts[4:5] == ["commit"]:
            files = self.server.repositories["/".join(parts[2:4])]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._json(
                {
                    "commitUrl": f"{self.server.endpoint}/{chr(47).join(parts[2:4])}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                    "success": True,
                }
            )
        else:
            self._json({})

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"', **headers}
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args) -> None:
        pass


@contextmanager
def hub_server() -> Iterator[HubServer]:
    with HubServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()
