"""The certificate of gateways: what of the operator's is refused, what llx makes, who trusts it."""

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from llx.bootstrap import gateway_tls
from llx.bootstrap.gateway_tls import authority_of, keep_authority, made, made_here, read_given
from llx.bootstrap.tls import make_authority
from llx.errors import ConfigError
from llx.settings import TlsSettings

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def write_pair(
    folder: Path,
    *,
    key=None,
    begins: datetime.datetime = NOW - DAY,
    ends: datetime.datetime = NOW + 30 * DAY,
    passphrase: bytes | None = None,
) -> TlsSettings:
    """A certificate that signs itself, and its key, as files."""
    folder.mkdir(exist_ok=True)
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "llm.example.com")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(begins).not_valid_after(ends).sign(key, hashes.SHA256())
    )  # fmt: skip
    lock = (
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption()
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, lock
        )
    )
    (folder / "key.pem").chmod(0o600)
    return TlsSettings(certificate=folder / "cert.pem", key=folder / "key.pem")


def test_a_good_pair_becomes_one_file_with_the_key_last(tmp_path):
    tls = write_pair(tmp_path)
    other = write_pair(tmp_path / "above")
    with tls.certificate.open("a") as file:
        file.write("words between\n" + other.certificate.read_text())
    given = read_given(tls)
    text = given.pem.reveal()
    assert len(x509.load_pem_x509_certificates(text.encode())) == 2
    assert text.rstrip().endswith("-----END PRIVATE KEY-----")
    assert given.days_left == 29
    assert "PRIVATE" not in repr(given)
    assert read_given(tls).pem == given.pem


def expired(folder):
    return write_pair(folder, begins=NOW - 9 * DAY, ends=NOW - DAY)


def early(folder):
    return write_pair(folder, begins=NOW + DAY)


def of_another(folder):
    tls = write_pair(folder)
    return tls.model_copy(update={"key": write_pair(folder / "other").key})


def locked(folder):
    return write_pair(folder, passphrase=b"sesame")


def weak(folder):
    return write_pair(folder, key=rsa.generate_private_key(65537, 1024))


def missing(folder):
    tls = write_pair(folder)
    tls.key.unlink()
    return tls


def a_folder(folder):
    return write_pair(folder).model_copy(update={"certificate": folder})


def seen_by_all(folder):
    tls = write_pair(folder)
    tls.key.chmod(0o644)
    return tls


def no_certificate(folder):
    tls = write_pair(folder)
    tls.certificate.write_text("nothing of the kind")
    return tls


def no_key(folder):
    tls = write_pair(folder)
    tls.key.write_bytes(tls.certificate.read_bytes())
    return tls


@pytest.mark.parametrize(
    ("make", "says", "remedy"),
    [
        (expired, "certificate: {}/cert.pem has expired on", "renew it"),
        (early, "certificate: {}/cert.pem begins on", "clock"),
        (of_another, "key: {}/other/key.pem is not the key of {}/cert.pem", "belong together"),
        (locked, "key: {}/key.pem is locked by a passphrase", "openssl pkey -in {}/key.pem"),
        (weak, "certificate: {}/cert.pem is refused by OpenSSL", "RSA 2048"),
        (missing, "key: {}/key.pem cannot be read: No such file", "on this machine"),
        (a_folder, "certificate: {} cannot be read: Is a directory", "on this machine"),
        (seen_by_all, "key: {}/key.pem can be read or written by others (mode 644)", "chmod 600"),
        (no_certificate, "certificate: {}/cert.pem has no certificate in PEM", "openssl x509"),
        (no_key, "key: {}/key.pem has no private key", ""),
    ],
)
def test_what_cannot_be_used_is_named_with_its_remedy(tmp_path, make, says, remedy):
    with pytest.raises(ConfigError) as caught:
        read_given(make(tmp_path / "x"))
    assert caught.value.message.startswith("gateway.tls.")
    assert says.replace("{}", str(tmp_path / "x")) in caught.value.message
    assert remedy.replace("{}", str(tmp_path / "x")) in (caught.value.remedy or "")


def names_of(pem: str) -> set[str]:
    own = x509.load_pem_x509_certificate(pem.encode())
    found = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    ips = {str(each) for each in found.get_values_for_type(x509.IPAddress)}
    return ips | set(found.get_values_for_type(x509.DNSName))


def test_one_of_llxs_making_is_kept_while_it_is_right():
    authority = make_authority()
    names = ["gpu-1.example.com", "0.0.0.0"]
    first = made(authority, "gpu-1", "10.0.0.1", names, "")
    assert names_of(first.reveal()) == {
        "gpu-1", "gpu-1.example.com", "10.0.0.1", "127.0.0.1", "localhost"
    }  # fmt: skip
    assert authority_of(first.reveal()) == authority.cert_pem
    assert made(authority, "gpu-1", "10.0.0.1", names, first.reveal()) == first
    changes = [
        (authority, "gpu-1", "10.0.0.2", names, first.reveal()),
        (authority, "gpu-1", "10.0.0.1", [*names, "api.example.com"], first.reveal()),
        (make_authority(), "gpu-1", "10.0.0.1", names, first.reveal()),
        (authority, "gpu-1", "10.0.0.1", names, first.reveal()[:-200]),
        (authority, "gpu-1", "10.0.0.1", names, "rubbish"),
    ]
    for words in changes:
        assert made(*words) != first


def test_it_is_renewed_by_the_same_authority_before_it_ends(monkeypatch):
    authority = make_authority()
    monkeypatch.setattr(gateway_tls, "_LIFE", datetime.timedelta(days=89))
    first = made(authority, "h", "10.0.0.1", [], "")
    second = made(authority, "h", "10.0.0.1", [], first.reveal())
    assert second != first
    assert authority_of(second.reveal()) == authority_of(first.reveal())


def test_here_it_is_kept_without_its_authoritys_key(tmp_path):
    first = made_here("0.0.0.0", "")
    assert first.reveal().count("PRIVATE KEY-----\n") == 2  # one key: begin and end
    assert made_here("0.0.0.0", first.reveal()) == first
    assert made_here("192.0.2.1", first.reveal()) != first
    keep_authority(tmp_path, authority_of(first.reveal()))
    assert "PRIVATE" not in (tmp_path / gateway_tls.AUTHORITY_FILE).read_text()
    keep_authority(tmp_path, "")
    assert list(tmp_path.iterdir()) == []
