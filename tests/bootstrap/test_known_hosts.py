"""known_hosts files as OpenSSH writes them; what ours adds, OpenSSH reads."""

import base64
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llx.bootstrap.known_hosts import HostKey, known_keys, remember


def key(number: int = 1, kind: str = "ssh-ed25519") -> HostKey:
    name = kind.encode()
    body = bytes([number]) * 32
    return HostKey(kind, len(name).to_bytes(4, "big") + name + len(body).to_bytes(4, "big") + body)


def line(names: str, key: HostKey, marker: str = "") -> str:
    return f"{marker}{names} {key.type} {base64.b64encode(key.blob).decode()} a comment\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".ssh" / "known_hosts"


def test_a_new_key_is_found_again_and_the_file_is_private(path: Path) -> None:
    assert known_keys("h1", [path]) == []
    remember("h1", key(1), path, hashed=False)
    remember("[h1]:2222", key(2), path, hashed=False)
    (known,) = known_keys("H1", [path])
    assert (known.key, known.path, known.line, known.is_revoked) == (key(1), path, 1, False)
    assert [each.key for each in known_keys("[h1]:2222", [path])] == [key(2)]
    assert known_keys("h", [path]) == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_lists_patterns_markers_and_rubbish(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(
        "# a comment\n\nrubbish\nh1 ssh-ed25519 ???\n"
        + line("other,h1,10.0.0.1", key(1))
        + line("*.lab,!bad.lab", key(2))
        + line("h1", key(3), "@revoked ")
        + line("h1", key(4), "@cert-authority ")
    )
    assert [(each.key, each.line, each.is_revoked) for each in known_keys("h1", [path])] == [
        (key(1), 5, False),
        (key(3), 7, True),
    ]
    assert [each.key for each in known_keys("10.0.0.1", [path])] == [key(1)]
    assert [each.key for each in known_keys("a.lab", [path])] == [key(2)]
    assert known_keys("bad.lab", [path]) == []


def test_names_written_hashed_are_found_and_tell_nothing(path: Path) -> None:
    remember("h1.example", key(1), path, hashed=True)
    assert "h1.example" not in path.read_text()
    assert [each.key for each in known_keys("h1.example", [path])] == [key(1)]
    assert known_keys("h2.example", [path]) == []


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="no ssh-keygen here")
def test_openssh_reads_what_we_write_and_we_what_it_hashes(path: Path) -> None:
    remember("h1", key(1), path, hashed=True)
    remember("[h1]:22022", key(2), path, hashed=False)
    for name, wanted in (("h1", key(1)), ("[h1]:22022", key(2))):
        listed = subprocess.run(
            ["ssh-keygen", "-l", "-F", name, "-f", path], capture_output=True, text=True
        )
        assert wanted.fingerprint in listed.stdout
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, capture_output=True)
    assert "22022" not in path.read_text()
    assert [each.key for each in known_keys("[h1]:22022", [path])] == [key(2)]


def test_a_last_line_without_an_end_is_left_whole(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(line("h1", key(1)).rstrip("\n"))
    remember("h2", key(2), path, hashed=False)
    assert len(known_keys("h1", [path])) == len(known_keys("h2", [path])) == 1


def test_many_threads_write_whole_lines_and_no_key_twice(path: Path) -> None:
    def work(number: int) -> None:
        remember(f"h{number % 20}", key(number % 20), path, hashed=number % 2 == 0)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(200)))
    assert len(path.read_text().splitlines()) == 20
    for number in range(20):
        assert [each.key for each in known_keys(f"h{number}", [path])] == [key(number)]
