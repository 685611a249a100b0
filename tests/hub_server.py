"""A server on this machine that answers the hub's client as the hub does, as far as uploads and states need it."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

COMMIT = "c" * 40


@dataclass
class Hub:
    """What the server has and was asked.

    Attributes:
        url: Of the server.
        files: {path in the repository: content} of what was committed, and of what can be downloaded.
        created: Bodies of requests for new repositories.
        commits: Paths of each commit, in order.
        requests: "METHOD path" of every request.
        tokens: Authorization headers.
        failures: Status codes that the next commits are answered with.
        create_status: What a request for a new repository is answered with.
    """

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[list[str]] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    failures: list[int] = field(default_factory=list)
    create_status: int = 200

    @property
    def visibilities(self) -> list[str]:
        """Of the repositories that were made. Clients before version 1 send "private" instead."""
        return [new.get("visibility") or ("private" if new["private"] else "public") for new in self.created]


@contextmanager
def running_hub(patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The server, with the client of this process pointed to it."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    point_client_to(hub.url, patch)
    yield hub
    server.shutdown()
    server.server_close()


def point_client_to(url: str, patch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HUB_OFFLINE=0 do in a new process."""
    from huggingface_hub import constants, file_download

    for module in (constants, file_download):  # older clients have a copy in the second
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    patch.setattr(constants, "ENDPOINT", url)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._note()
        if self.path == "/api/repos/create":
            self.hub.created.append(json.loads(body))
            self._answer(self.hub.create_status, {"url": f"{self.hub.url}/owner/name"})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            modes = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            self._answer(200, {"files": modes})
        elif self.hub.failures:
            self._answer(self.hub.failures.pop(0), {"error": "said by the server"})
        else:
            self._commit([json.loads(line) for line in body.splitlines()])

    def do_GET(self) -> None:
        self._note()
        if self.path.startswith("/api/"):
            if "/owner/name/" not in f"{self.path}/" or "missing" in self.path:
                self._answer(404, {"error": "not found"}, "RepoNotFound")
                return
            if "/tree/" in self.path:
                sizes = {name: len(content) for name, content in self.hub.files.items()}
                rows = [{"type": "file", "path": name, "size": size, "oid": COMMIT} for name, size in sizes.items()]
                self._answer(200, rows)
                return
            siblings = [{"rfilename": name} for name in self.hub.files]
            self._answer(200, {"id": "owner/name", "sha": COMMIT, "siblings": siblings, "private": True, "tags": []})
            return
        self._send_file(has_body=True)

    def do_HEAD(self) -> None:
        self._note()
        self._send_file(has_body=False)

    def log_message(self, *args: Any) -> None:
        """Nothing on the test's stderr."""

    def _note(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        self.hub.tokens.add(self.headers.get("Authorization", ""))

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        added = {line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"}
        self.hub.files |= {path: base64.b64decode(content) for path, content in added.items()}
        self.hub.commits.append(list(added))
        self._answer(200, {"commitUrl": f"{self.hub.url}/owner/name/commit/{COMMIT}", "commitOid": COMMIT})

    def _send_file(self, has_body: bool) -> None:
        content = self.hub.files.get(re.split("/resolve/[^/]+/", self.path)[-1])
        if content is None:
            self._answer(404, {"error": "not found"}, "EntryNotFound")
            return
        self.send_response(200)
        headers = (("ETag", f'"{len(content)}{COMMIT}"'), ("X-Repo-Commit", COMMIT), ("Content-Length", len(content)))
        for name, value in headers:
            self.send_header(name, str(value))
        self.end_headers()
        if has_body:
            self.wfile.write(content)

    def _answer(self, status: int, content: dict[str, Any] | list[Any], code: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(body)
