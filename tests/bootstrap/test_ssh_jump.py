"""What a connection behind a jump host does when that host's own connection is gone."""

from types import SimpleNamespace
from typing import Any, cast

import paramiko
import pytest

from llx.bootstrap import ssh


class _Channel:
    """Of a connection that is gone: whatever would be said on it cannot be."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def close(self) -> None:
        raise self._error

    def send(self, data: bytes, /) -> int:
        raise self._error


def _wire_over(channel: _Channel) -> ssh.Wire:
    transport = SimpleNamespace(open_channel=lambda *words, **named: channel)
    via = cast(Any, SimpleNamespace(transport=transport, wire=None, target="h2"))
    return ssh._through(via, cast(Any, SimpleNamespace(address="h1", port=22)), 1.0)


@pytest.mark.parametrize("error", [EOFError(), OSError("gone"), paramiko.SSHException("rekeying")])
def test_closing_says_nothing(error: Exception) -> None:
    """Paramiko closes in its own thread; what is raised there leaves those who wait asleep."""
    _wire_over(_Channel(error)).close()


def test_sending_fails_as_a_socket_does() -> None:
    wire = _wire_over(_Channel(EOFError()))
    with pytest.raises(ConnectionResetError):
        wire.send(b"x")
    assert wire.failure == "connection lost"
