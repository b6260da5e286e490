"""The certificate that a gateway shows its clients, taken up anew whenever its file is replaced."""

import asyncio
import logging
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from llx.errors import ConfigError

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2; those of 1.3 are all good."""


class Certificate:
    """Certificates and key of one file, as the context of a server.

    Replacing the file changes what new connections are shown; those that stand go on. A file that
    cannot be used changes nothing, and is looked at again until it can.

    Attributes:
        context: For the server. Always the same object.
        pem: The certificate itself, without those above it.
        ends_at: When it ends, in seconds since 1970.

    Raises:
        ConfigError: The file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._loaded: tuple[int, ...] = ()
        self._refused: tuple[int, ...] = ()
        self.context = _server_context()
        self.pem = ""
        self.ends_at = 0.0
        try:
            self._load(self._now())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path}: no usable certificate: {error}", remedy="llx up puts a good one there"
            ) from None

    async def follow(self) -> None:
        """Take up the file whenever it has changed, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()

    def look(self) -> None:
        """Take up the file if it has changed."""
        try:
            now = self._now()
            if now != self._loaded:
                self._load(now)
                log.info("gateway.certificate_taken ends_at=%.0f", self.ends_at)
        except (OSError, ValueError) as error:
            if self._refused != (seen := self._seen()):
                self._refused = seen
                log.warning("gateway.certificate_refused path=%s error=%s", self._path, error)

    def _load(self, now: tuple[int, ...]) -> None:
        first = x509.load_pem_x509_certificate(self._path.read_bytes())
        _server_context().load_cert_chain(self._path)  # a bad one would spoil the context in use
        self.context.load_cert_chain(self._path)
        self.pem = first.public_bytes(Encoding.PEM).decode()
        self.ends_at = first.not_valid_after_utc.timestamp()
        self._loaded = now

    def _now(self) -> tuple[int, ...]:
        found = self._path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _seen(self) -> tuple[int, ...]:
        try:
            return self._now()
        except OSError:
            return (0,)


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    return context
