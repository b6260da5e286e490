"""The audit of dependencies: what it finds, and that it never passes without having looked."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit.py"


@pytest.fixture
def service():
    """Speaks as osv.dev does: `service.answer` makes an answer of the queries."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            queries = json.loads(self.rfile.read(int(self.headers["content-length"])))["queries"]
            server.asked += [(each["package"]["name"], each["version"]) for each in queries]
            code, body = server.answer(queries)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def audit(url: str, *locks: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--url", url, *map(str, locks)],
        capture_output=True, text=True,
    )  # fmt: skip


def url_of(server) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def results(queries, *, wrong: str = "") -> bytes:
    found = [
        {"vulns": [{"id": "GHSA-x"}]} if each["package"]["name"] == wrong else {}
        for each in queries
    ]
    return json.dumps({"results": found}).encode()


def test_every_pinned_and_every_installed_package_is_asked_about(service):
    service.answer = lambda queries: (200, results(queries))
    done = audit(url_of(service))
    assert done.returncode == 0, done.stdout + done.stderr
    asked = dict(service.asked)
    assert {"vllm", "ray", "torch", "pyzmq", "pytest"} <= set(asked)
    assert "llx" not in asked
    assert not any("+" in version for version in asked.values())
    assert f"{len(service.asked)} packages audited, 0 known" in done.stdout


def test_one_that_is_vulnerable_is_named(service):
    service.answer = lambda queries: (200, results(queries, wrong="torch"))
    done = audit(url_of(service))
    assert done.returncode == 1
    assert "VULNERABLE: torch" in done.stdout
    assert "GHSA-x" in done.stdout


@pytest.mark.parametrize(
    "answer",
    [
        (500, b"{}"),
        (404, b""),
        (200, b""),
        (200, b"<html>log in first</html>"),
        (200, b'{"results": []}'),
        (200, b'{"results": null}'),
        (200, b"[]"),
    ],
)
def test_an_answer_that_is_none_is_no_pass(service, answer):
    service.answer = lambda queries: answer
    done = audit(url_of(service))
    assert done.returncode == 3
    assert "NOT AUDITED" in done.stderr
    assert "audited," not in done.stdout


def test_a_service_out_of_reach_is_no_pass():
    done = audit("http://127.0.0.1:9")
    assert done.returncode == 3
    assert "NOT AUDITED" in done.stderr
    assert "cannot be reached" in done.stderr


def test_a_lock_without_packages_is_no_pass(service, tmp_path):
    (tmp_path / "empty.lock").write_text("# nothing\n")
    service.answer = lambda queries: (200, results(queries))
    assert audit(url_of(service), tmp_path / "empty.lock").returncode != 0
