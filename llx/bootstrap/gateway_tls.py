"""What gateways show their clients: the operator's certificate, or one that llx makes.

Either comes to the gateways as one file (`llx.specs.GATEWAY_CERTIFICATE`): certificate, those above
it, key. What llx makes is signed by an authority, whose certificate comes second: clients trust
that, and need not be told when `llx up` renews the first.
"""

import datetime
import ipaddress
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from llx.bootstrap.cluster_dir import write_private
from llx.bootstrap.tls import Authority, make_authority
from llx.errors import ConfigError
from llx.secret import Secret
from llx.settings import TlsSettings

AUTHORITY_FILE = "gateway-ca.pem"
"""In the operator's directory of a cluster: the authority of a certificate that llx has made."""

_LIFE = datetime.timedelta(days=825)
"""The most that all clients take."""
_RENEW_BEFORE = datetime.timedelta(days=90)
_WILDCARDS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - recognised, not bound
_OTHERS_MODE = 0o027
"""That of a key may let its group read, as some systems have it; nobody else, and nobody write."""


@dataclass(frozen=True, slots=True)
class Given:
    """The operator's certificate.

    Attributes:
        pem: Certificate, those above it, key.
        ends_at: When the first of them ends.
    """

    pem: Secret
    ends_at: datetime.datetime

    @property
    def days_left(self) -> int:
        """Whole days until it ends."""
        return (self.ends_at - datetime.datetime.now(datetime.UTC)).days


def given_certificate(tls: TlsSettings | None) -> Given | None:
    """The operator's, if the settings name one; raises as `read_given`."""
    return None if tls is None or tls.generated else read_given(tls)


def describe_certificate(given: Given | None) -> str:
    """In words, for a plan."""
    if given is None:
        return "made by llx, renewed by `llx up` from ninety days before its end"
    return f"until {given.ends_at:%Y-%m-%d}, {given.days_left} days"


def read_given(tls: TlsSettings) -> Given:
    """The files that the settings name.

    Raises:
        ConfigError: They cannot be used: which one, why, what to do.
    """
    assert tls.certificate is not None, "of files"
    assert tls.key is not None, "of files"
    chain = _certificates(tls.certificate)
    key = _private_key(tls.key)
    now = datetime.datetime.now(datetime.UTC)
    where, first = f"gateway.tls.certificate: {tls.certificate}", chain[0]
    if key.public_key() != first.public_key():
        raise ConfigError(
            f"gateway.tls.key: {tls.key} is not the key of {tls.certificate}",
            remedy="name the two that belong together; in a file of several certificates "
            "the gateway's own comes first",
        )
    if first.not_valid_after_utc <= now:
        raise ConfigError(
            f"{where} has expired on {first.not_valid_after_utc:%Y-%m-%d}", remedy="renew it"
        )
    if first.not_valid_before_utc > now:
        raise ConfigError(
            f"{where} begins on {first.not_valid_before_utc:%Y-%m-%d %H:%M} UTC",
            remedy="wait until then, or set this machine's clock",
        )
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tls.certificate, tls.key)
    except OSError as error:
        raise ConfigError(
            f"{where} is refused by OpenSSL: {error}", remedy="a key of RSA 2048 or P-256 will do"
        ) from None
    return Given(_joined(chain, key), first.not_valid_after_utc)


def made(authority: Authority, host: str, address: str, names: Iterable[str], found: str) -> Secret:
    """A certificate of llx's making for a gateway on that host.

    Args:
        authority: Signs it.
        host: The host's name, which clients may use.
        address: Its IP address.
        names: Other names and addresses that clients may use.
        found: The file that is there; kept if it is of that authority, for these names and for a
            good while yet.
    """
    wanted = _names(host, address, names)
    if _is_good(found, authority.cert_pem, wanted):
        return Secret(found)
    own = authority.issue(host, address, names=sorted(wanted), life=_LIFE)
    return Secret(f"{own.cert_pem}{authority.cert_pem}{own.key_pem.reveal()}")


def made_here(host: str, found: str) -> Secret:
    """Likewise for the gateway of a cluster on this machine.

    Its authority signs this one certificate and its key is forgotten: there is nothing to steal.
    """
    names = [socket.gethostname()]
    known = authority_of(found)
    if known and _is_good(found, known, _names("localhost", "127.0.0.1", [*names, host])):
        return Secret(found)
    return made(make_authority(), "localhost", "127.0.0.1", [*names, host], "")


def authority_of(pem: str) -> str:
    """The certificate of who signed the one that llx has made; empty: there is no such file."""
    try:
        return _pem(x509.load_pem_x509_certificates(pem.encode())[1])
    except (ValueError, IndexError):
        return ""


def keep_authority(state_dir: Path, certificate: str) -> None:
    """Have the operator's directory hold what clients trust; empty: nothing of llx's making."""
    path = state_dir / AUTHORITY_FILE
    if not certificate:
        path.unlink(missing_ok=True)
    elif not path.exists() or path.read_text(errors="replace") != certificate:
        write_private(path, certificate)


def _names(host: str, address: str, others: Iterable[str]) -> set[str]:
    """All that a certificate is good for."""
    usable = (each for each in others if each.isascii() and each not in _WILDCARDS)
    return {_plain(each) for each in (host, address, "127.0.0.1", "localhost", *usable)}


def _is_good(pem: str, authority_pem: str, names: set[str]) -> bool:
    try:
        own, authority = x509.load_pem_x509_certificates(pem.encode())
        key = serialization.load_pem_private_key(pem.encode(), None)
        own.verify_directly_issued_by(x509.load_pem_x509_certificate(authority_pem.encode()))
        alternatives = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # noqa: BLE001 - whatever is wrong with it, another one is made
        return False
    found = {
        *alternatives.get_values_for_type(x509.DNSName),
        *(str(each) for each in alternatives.get_values_for_type(x509.IPAddress)),
    }
    left = own.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    is_whole = _pem(authority) == authority_pem and key.public_key() == own.public_key()
    return is_whole and found == names and left > _RENEW_BEFORE


def _plain(name: str) -> str:
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name


def _certificates(path: Path) -> list[x509.Certificate]:
    what = f"gateway.tls.certificate: {path}"
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as error:
        raise _unreadable(what, error) from None
    except ValueError:
        raise ConfigError(
            f"{what} has no certificate in PEM",
            remedy="openssl x509 -inform der -in FILE -out FILE.pem makes PEM of DER",
        ) from None
    return found


def _private_key(path: Path) -> PrivateKeyTypes:
    what = f"gateway.tls.key: {path}"
    try:
        data, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise _unreadable(what, error) from None
    if mode & _OTHERS_MODE:
        raise ConfigError(
            f"{what} can be read or written by others (mode {mode & 0o777:o})",
            remedy=f"chmod 600 {path}",
        )
    try:
        return serialization.load_pem_private_key(data, None)
    except TypeError:
        raise ConfigError(
            f"{what} is locked by a passphrase, and nobody is there to type it",
            remedy=f"openssl pkey -in {path} -out FILE makes one without",
        ) from None
    except Exception:  # noqa: BLE001 - ValueError, UnsupportedAlgorithm: no key that we can use
        raise ConfigError(f"{what} has no private key in PEM that can be used") from None


def _unreadable(what: str, error: OSError) -> ConfigError:
    return ConfigError(
        f"{what} cannot be read: {error.strerror}",
        remedy="llx up reads it on this machine: name a file that this user may read",
    )


def _joined(chain: list[x509.Certificate], key: PrivateKeyTypes) -> Secret:
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Secret("".join(map(_pem, chain)) + text.decode())


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
