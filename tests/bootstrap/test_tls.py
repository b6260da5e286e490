"""Certificates: real TLS between two ends, and who is refused."""

import datetime
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from llx.bootstrap.tls import Authority, HostCertificate, make_authority
from llx.errors import ConfigError
from llx.secret import Secret


@pytest.fixture(scope="module")
def authority() -> Authority:
    return make_authority()


def side(
    folder: Path, authority: Authority, certificate: HostCertificate | None, *, is_server: bool
) -> ssl.SSLContext:
    """One end of a connection as Ray makes it: shows its certificate, and asks for the other's."""
    folder.mkdir()
    purpose = ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT
    context = ssl.SSLContext(purpose)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=authority.cert_pem)
    if certificate is not None:
        (folder / "cert").write_text(certificate.cert_pem)
        (folder / "key").write_text(certificate.key_pem.reveal())
        context.load_cert_chain(folder / "cert", folder / "key")
    return context


def talk(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> bytes:
    """What the client hears from a server on loopback that it takes for `name`."""
    near, far = socket.socketpair()

    def serve() -> None:
        try:
            with server.wrap_socket(far, server_side=True) as connection:
                connection.sendall(connection.recv(5))
        except OSError:
            far.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(near, server_hostname=name) as connection:
            connection.sendall(b"hello")
            return connection.recv(5)
    finally:
        near.close()
        thread.join()


class TestConnections:
    @pytest.mark.parametrize("name", ["10.0.0.1", "127.0.0.1", "localhost"])
    def test_two_hosts_of_a_cluster_believe_each_other(self, tmp_path, authority, name):
        server = side(tmp_path / "s", authority, authority.issue("h1", "10.0.0.1"), is_server=True)
        client = side(tmp_path / "c", authority, authority.issue("h2", "10.0.0.2"), is_server=False)
        assert talk(server, client, name) == b"hello"

    def test_a_host_is_not_taken_for_another(self, tmp_path, authority):
        server = side(tmp_path / "s", authority, authority.issue("h1", "10.0.0.1"), is_server=True)
        client = side(tmp_path / "c", authority, authority.issue("h2", "10.0.0.2"), is_server=False)
        with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
            talk(server, client, "10.0.0.3")

    def test_a_client_of_another_cluster_is_refused(self, tmp_path, authority):
        stranger = make_authority().issue("h2", "10.0.0.2")
        server = side(tmp_path / "s", authority, authority.issue("h1", "10.0.0.1"), is_server=True)
        client = side(tmp_path / "c", authority, stranger, is_server=False)
        with pytest.raises(OSError, match=r"alert|reset|EOF|closed"):
            assert talk(server, client, "10.0.0.1") == b"hello"

    def test_a_host_cannot_issue_certificates(self, tmp_path, authority):
        host = authority.issue("h1", "10.0.0.1")
        forged = Authority(host.cert_pem, host.key_pem)
        with pytest.raises(ConfigError, match="no cluster's authority"):
            forged.issue("h9", "10.0.0.9")


class TestCertificates:
    def test_it_is_valid_for_ten_years_also_by_a_clock_that_is_behind(self, authority):
        certificate = x509.load_pem_x509_certificate(
            authority.issue("h", "10.0.0.1").cert_pem.encode()
        )
        now = datetime.datetime.now(datetime.UTC)
        assert certificate.not_valid_before_utc < now - datetime.timedelta(days=1)
        assert certificate.not_valid_after_utc > now + datetime.timedelta(days=3650)

    def test_it_knows_its_address_and_key(self, authority):
        host = authority.issue("h1", "10.0.0.1")
        assert host.is_for("10.0.0.1")
        assert not host.is_for("10.0.0.2")
        assert not host.is_for("h1")
        other = authority.issue("h1", "10.0.0.1")
        assert not HostCertificate(host.cert_pem, other.key_pem).is_for("10.0.0.1")
        assert not HostCertificate("rubbish", host.key_pem).is_for("10.0.0.1")

    def test_ipv6(self, authority):
        assert authority.issue("h1", "fd00::1").is_for("fd00::1")

    def test_a_name_is_no_address(self, authority):
        with pytest.raises(ConfigError, match='h1: "example" is no IP address'):
            authority.issue("h1", "example")

    def test_a_damaged_authority_says_so(self, authority):
        with pytest.raises(ConfigError, match="cannot be read"):
            Authority(authority.cert_pem, Secret("rubbish")).issue("h1", "10.0.0.1")

    def test_keys_do_not_show(self, authority):
        host = authority.issue("h1", "10.0.0.1")
        assert "PRIVATE" not in f"{authority!r} {host!r}"
