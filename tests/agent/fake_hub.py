"""A hub for tests: one model at one commit, over HTTP, as far as the hub's library asks for it."""

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000
"""From this size on, files are of the kind whose SHA-256 the hub knows."""


class FakeHub:
    """Serves `files` as the repository `name`.

    `asked` are the paths asked for; with `token`, only who shows it is let in; `revisions` are the
    names of its one commit; a GET of a file in `cut` ends in the middle, once; one of a file in
    `held` waits in the middle until that is empty; what `wrong_hash` names is announced with
    another content's hash. What is asked of a path with `deaf` in it is not answered.
    """

    def __init__(self, name: str, files: dict[str, bytes]) -> None:
        self.name = name
        self.files = files
        self.token: str | None = None
        self.asked: list[tuple[str, str]] = []
        self.revisions = {"main"}
        self.cut: set[str] = set()
        self.held: set[str] = set()
        self.deaf = ""
        self.wrong_hash: set[str] = set()

    @contextmanager
    def running(self, address: str = "127.0.0.1") -> Iterator[str]:
        """Its URL."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, with_body=False)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        server = ThreadingHTTPServer((address, 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://{address}:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append((request.command, path))
        if self.deaf and self.deaf in path:
            request.close_connection = True
            return
        status, headers, body = self._route(path, parse_qs(urlsplit(request.path).query), request)
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        name = path.rpartition("/")[2]
        is_cut, is_held = with_body and name in self.cut, with_body and name in self.held
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if is_cut:
            self.cut.discard(name)
            request.wfile.write(body[: len(body) // 2])
            request.close_connection = True
        elif is_held:
            request.wfile.write(body[: len(body) // 2])
            request.wfile.flush()
            while self.held:
                time.sleep(0.02)
            request.close_connection = True
        elif with_body:
            request.wfile.write(body)

    def _route(
        self, path: str, query: dict[str, list[str]], request: BaseHTTPRequestHandler
    ) -> tuple[int, dict[str, str], bytes]:
        if (
            self.token is not None
            and request.headers.get("Authorization") != f"Bearer {self.token}"
        ):
            return 401, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, b""
        api = f"/api/models/{self.name}"
        if path in {api, *(f"{api}/revision/{each}" for each in {COMMIT, *self.revisions})}:
            return self._json(self._info())
        if path == f"{api}/tree/{COMMIT}":
            return self._json([self._entry(name) for name in self.files])
        if path.startswith(f"{api}/revision/"):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        prefix = f"/{self.name}/resolve/{COMMIT}/"
        if path.startswith(prefix) and path.removeprefix(prefix) in self.files:
            return self._file(path.removeprefix(prefix), request.headers.get("Range"))
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    @staticmethod
    def _json(data: object) -> tuple[int, dict[str, str], bytes]:
        return 200, {"Content-Type": "application/json"}, json.dumps(data).encode()

    def _info(self) -> dict[str, object]:
        siblings = []
        for name in self.files:
            entry = self._entry(name)
            siblings.append({"rfilename": name, "size": entry["size"], "blobId": entry["oid"]})
            if "lfs" in entry:
                lfs = entry["lfs"]
                siblings[-1]["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 1}
        return {"id": self.name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}

    def _entry(self, name: str) -> dict:
        data = self.files[name]
        entry = {"type": "file", "path": name, "size": len(data), "oid": self._etag(name)}
        if len(data) >= LARGE:
            digest = self._digest(name)
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 1}
        return entry

    def _etag(self, name: str) -> str:
        if len(self.files[name]) >= LARGE:
            return self._digest(name)
        return hashlib.sha1(self.files[name]).hexdigest()

    def _digest(self, name: str) -> str:
        wrong = b"of another file" if name in self.wrong_hash else b""
        return hashlib.sha256(self.files[name] + wrong).hexdigest()

    def _file(self, name: str, wanted: str | None) -> tuple[int, dict[str, str], bytes]:
        data = self.files[name]
        headers = {
            "ETag": f'"{self._etag(name)}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return 206, headers, data[start:]
        return 200, headers, data
