"""A small server on loopback that behaves like a Hugging Face hub, and misbehaves on request."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

REPO = "org/net"


def commit_of(files: Mapping[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


@dataclass
class HubServer:
    """commits: files by commit. refs: commit by branch. status: answer to everything, when not 200. requests: what was
    asked. The rest are lies: `listed` replaces entries of the listing, `bodies` what is sent for a file, `cut` is the
    share of each body that is sent before the connection closes; `moving` makes the branch move after each listing.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    status: int = 200
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    cut: float = 1.0
    moving: str | None = None
    sha: str | None = None
    url: str = ""

    def push(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        """A new commit with these files on `branch`."""
        commit = commit_of(files)
        self.commits[commit] = dict(files)
        self.refs[branch] = commit
        return commit

    def push_folder(self, folder: Path) -> str:
        return self.push({path.name: path.read_bytes() for path in folder.iterdir()})

    def listing(self, revision: str) -> dict[str, Any] | None:
        commit = self.refs.get(revision, revision)
        if commit not in self.commits:
            return None
        if self.moving:
            self.refs[revision] = self.moving
        entries = {name: entry(name, data) for name, data in self.commits[commit].items()} | self.listed
        return {"id": REPO, "sha": self.sha or commit, "siblings": list(entries.values())}


def large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def entry(name: str, data: bytes) -> dict[str, Any]:
    """One file of a listing, weights as stored beside git."""
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    known: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git}
    if large(name):
        known["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return known


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None: ...

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            server.requests.append(f"{self.command} {path}")
            server.headers.append({key.lower(): text for key, text in self.headers.items()})
            if server.status != 200:
                return self.reply(server.status, b"{}", body)
            api, resolve = f"/api/models/{REPO}/revision/", f"/{REPO}/resolve/"
            if path.startswith(api):
                listing = server.listing(path.removeprefix(api))
                return self.reply(200 if listing else 404, json.dumps(listing).encode(), body)
            commit, _, name = path.removeprefix(resolve).partition("/")
            if not path.startswith(resolve) or name not in server.commits.get(commit, {}):
                return self.reply(404, b"", body, {"X-Error-Code": "EntryNotFound"})
            data = server.commits[commit][name]
            listed = entry(name, data)
            tag = listed["lfs"]["sha256"] if large(name) else listed["blobId"]
            extra = {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "X-Linked-Size": str(len(data))}
            return self.reply(200, server.bodies.get(name, data), body, extra)

        def reply(self, status: int, data: bytes, body: bool, extra: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for key, text in {"Content-Length": str(len(data)), **(extra or {})}.items():
                self.send_header(key, text)
            self.end_headers()
            if body:
                self.wfile.write(data[: int(len(data) * server.cut)] if extra else data)
                self.close_connection = True

    return Handler


@contextmanager
def serving() -> Iterator[HubServer]:
    server = HubServer()
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(server)) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_address[1]}"
        try:
            yield server
        finally:
            http.shutdown()
            thread.join()
