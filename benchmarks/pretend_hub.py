"""A small Hugging Face Hub on this machine, for tests and benchmarks.

It answers what `huggingface_hub` asks: refs, trees, an author's models, and files, of which the
large ones are on a second server to which the first one redirects. It fails on demand.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

TOKEN = "hf_good"
_LARGE = (".safetensors", ".bin", ".parquet")
_PIECE = 2**20

Failure = Literal["cut", "wrong", "slow"] | int


@dataclass(frozen=True)
class File:
    """A file of a repository, in memory or on disk."""

    content: bytes | Path
    is_large: bool

    @property
    def data(self) -> bytes:
        """Its bytes, read from disk each time if they are there."""
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    @cached_property
    def sha256(self) -> str:
        """The hash by which large files are known."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def oid(self) -> str:
        """The hash by which git knows small files."""
        return hashlib.sha1(f"blob {len(self.data)}\0".encode() + self.data).hexdigest()

    def listed(self, path: str) -> dict[str, Any]:
        """Return its entry in a tree."""
        entry = {"type": "file", "oid": self.oid, "size": len(self.data), "path": path}
        if self.is_large:
            size = len(self.data)
            entry["lfs"] = {"oid": self.sha256, "size": size, "pointerSize": 134}
        return entry


@dataclass
class Repository:
    """The revisions of a repository, and whether its files need a token."""

    revisions: dict[str, dict[str, File]] = field(default_factory=dict)
    is_gated: bool = False
    tags: set[str] = field(default_factory=set)

    def commit(self, revision: str) -> str:
        """Return the hash of the commit that a revision stands for."""
        files = self.revisions[revision]
        text = "".join(f"{path} {file.oid}" for path, file in sorted(files.items()))
        return hashlib.sha1(f"{revision} {text}".encode()).hexdigest()


class PretendHub:
    """The two servers; a context manager, or `start` and `stop`.

    Attributes:
        repositories: by kind ("model" or "dataset") and id.
        failures: part of a path → how requests of it fail, and how many times more.
        requests: the method, path and Range header of each request so far.
        url: what `HF_ENDPOINT` has to be.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.failures: dict[str, tuple[Failure, int]] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self._servers = [_Server(self, is_store) for is_store in (False, True)]
        self.url, self.store_url = (f"http://127.0.0.1:{s.server_port}" for s in self._servers)

    def add(
        self,
        name: str,
        revision: str,
        files: Mapping[str, bytes | Path],
        kind: str = "model",
        is_tag: bool = False,
    ) -> Repository:
        """Add a revision to a repository."""
        repository = self.repositories.setdefault((kind, name), Repository())
        repository.revisions[revision] = {
            path: File(content, path.endswith(_LARGE)) for path, content in files.items()
        }
        if is_tag:
            repository.tags.add(revision)
        return repository

    def fail(self, part: str, how: Failure, times: int = 10**9) -> None:
        """Let requests whose path has a part fail from now on.

        Args:
            part: part of a path, such as "step20/model.safetensors" or "/refs".
            how: a status; "cut" to close the connection in the middle of a file; "wrong" to change
                its last byte; "slow" to stop for a minute in its middle.
            times: how often.
        """
        self.failures[part] = (how, times)

    def failure(self, path: str, sends: bool) -> Failure | None:
        """Return how a request is to fail, if at all, and count it.

        Args:
            path: its path.
            sends: whether the content of a file is about to be sent; if not, it can only fail by
                a status.
        """
        for part, (how, times) in self.failures.items():
            if part in path and times > 0 and isinstance(how, int) != sends:
                self.failures[part] = (how, times - 1)
                return how
        return None

    def asked(self, part: str) -> list[tuple[str, str, str | None]]:
        """Return the requests so far whose path has a part."""
        return [request for request in self.requests if part in request[1]]

    def start(self) -> PretendHub:
        """Begin to answer."""
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Stop answering."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> PretendHub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: PretendHub, is_store: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.is_store = hub, is_store

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client goes away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Write no log."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server.hub
        split = urlsplit(self.path)
        path = unquote(split.path)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        failure = hub.failure(path, sends=False)
        if isinstance(failure, int):
            after = {"Retry-After": "1"} if failure == 429 else {}
            self._answer(failure, b"{}", after)
        elif self.server.is_store:
            self._store(path)
        elif path == "/api/models":
            self._models(parse_qs(split.query))
        elif path.startswith("/api/"):
            self._api(path.split("/")[2:])
        else:
            self._resolve(path.strip("/").split("/"))

    def _models(self, query: Mapping[str, list[str]]) -> None:
        author, search = query.get("author", [""])[0], query.get("search", [""])[0]
        found = [
            {"id": name, "modelId": name}
            for kind, name in self.server.hub.repositories
            if kind == "model" and name.startswith(f"{author}/") and search in name
        ]
        self._json(found)

    def _api(self, parts: list[str]) -> None:
        kind, name, what = parts[0].removesuffix("s"), "/".join(parts[1:3]), parts[3]
        repository = self._repository(kind, name)
        if repository is None:
            return
        if what == "refs":
            listed: dict[str, list[Any]] = {"branches": [], "tags": [], "converts": []}
            for revision in repository.revisions:
                is_tag = revision in repository.tags
                ref = f"refs/{'tags' if is_tag else 'heads'}/{revision}"
                entry = {"name": revision, "ref": ref, "targetCommit": repository.commit(revision)}
                listed["tags" if is_tag else "branches"].append(entry)
            self._json(listed)
        else:
            files = self._files(repository, parts[4])
            if files is not None and parts[5:]:  # a folder, of which there are none
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            elif files is not None:
                self._json([file.listed(path) for path, file in files[1].items()])

    def _resolve(self, parts: list[str]) -> None:
        kind = "dataset" if parts[0] == "datasets" else "model"
        parts = parts[1:] if kind == "dataset" else parts
        repository = self._repository(kind, "/".join(parts[:2]))
        if repository is None:
            return
        has_token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repository.is_gated and not has_token:
            self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
            return
        files = self._files(repository, parts[3])
        if files is None:
            return
        path = "/".join(parts[4:])
        file = files[1].get(path)
        if file is None:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": files[0]})
            return
        headers = {"X-Repo-Commit": files[0], "ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        if file.is_large:
            target = f"{self.server.hub.store_url}/{quote('/'.join(parts))}/{file.sha256}"
            linked = {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
            self._answer(302, b"", {**headers, **linked, "Location": target})
        else:
            self._send("/".join(parts), file.data, headers)

    def _store(self, path: str) -> None:
        digest = path.rpartition("/")[2]
        for repository in self.server.hub.repositories.values():
            for files in repository.revisions.values():
                for file in files.values():
                    if file.is_large and file.sha256 == digest:
                        self._send(path, file.data, {"ETag": f'"{digest}"'})
                        return
        self._answer(404, b"", {})

    def _repository(self, kind: str, name: str) -> Repository | None:
        found = self.server.hub.repositories.get((kind, name))
        if found is None:
            message = {"X-Error-Message": "Invalid username or password."}
            self._answer(401, b'{"error": "Invalid username or password."}', message)
        return found

    def _files(
        self, repository: Repository, revision: str
    ) -> tuple[str, Mapping[str, File]] | None:
        for name, files in repository.revisions.items():
            commit = repository.commit(name)
            if revision in (name, commit):
                return commit, files
        self._answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        return None

    def _send(self, path: str, data: bytes, headers: Mapping[str, str]) -> None:
        """Send a file, or the part of it that is asked for."""
        failure = self.server.hub.failure(path, sends=True) if self.command == "GET" else None
        if failure == "wrong":
            data = data[:-1] + bytes([data[-1] ^ 1])
        asked, status, begin = self.headers.get("Range"), 200, 0
        extra = {}
        if asked is not None:
            begin = int(asked.removeprefix("bytes=").partition("-")[0])
            status = 206
            extra["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        body = data[begin:]
        self._head(status, {**headers, **extra, "Content-Length": str(len(body))})
        if self.command == "HEAD":
            return
        half = len(body) // 2
        for place in range(0, len(body), _PIECE):
            end = place + _PIECE
            if failure in ("cut", "slow") and end > half:
                self.wfile.write(body[place:half])
                self.wfile.flush()
                if failure == "slow":
                    time.sleep(60)
                self.close_connection = True
                self.connection.close()
                return
            self.wfile.write(body[place:end])

    def _json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._head(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
