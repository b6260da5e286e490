"""Certificates that llx makes: for Ray's traffic between hosts, and for gateways.

An authority per cluster, a certificate per host and purpose. Made on the operator's machine; keys
leave it only as files of mode 0600. Every Ray node serves and connects with the same certificate,
so each is good for either.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from llx.errors import ConfigError
from llx.secret import Secret

_LIFE = datetime.timedelta(days=3653)
_RENEW_BEFORE = datetime.timedelta(days=90)
_CLOCK_SLACK = datetime.timedelta(days=2)
"""Certificates begin in the past: a host's clock may be behind the operator's."""


@dataclass(frozen=True, slots=True)
class HostCertificate:
    """What a host shows to the others, and the key that proves it."""

    cert_pem: str
    key_pem: Secret

    def is_for(self, address: str) -> bool:
        """Whether it is good for that address for a good while yet, and the key belongs to it."""
        try:
            certificate = x509.load_pem_x509_certificate(self.cert_pem.encode())
            key = serialization.load_pem_private_key(self.key_pem.reveal().encode(), None)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
            wanted = ipaddress.ip_address(address)
        except (ValueError, TypeError, x509.ExtensionNotFound):
            return False
        left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        return (
            wanted in names.value.get_values_for_type(x509.IPAddress)
            and left > _RENEW_BEFORE
            and key.public_key() == certificate.public_key()
        )

    def is_of(self, authority: "Authority") -> bool:
        """Whether that authority has signed it."""
        try:
            own = x509.load_pem_x509_certificate(self.cert_pem.encode())
            own.verify_directly_issued_by(
                x509.load_pem_x509_certificate(authority.cert_pem.encode())
            )
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True


@dataclass(frozen=True, slots=True)
class Authority:
    """Who says which hosts belong to the cluster."""

    cert_pem: str
    key_pem: Secret

    def issue(
        self,
        host: str,
        address: str,
        names: Sequence[str] = (),
        life: datetime.timedelta = _LIFE,
    ) -> HostCertificate:
        """A certificate for the host that the others reach at `address`.

        Good for that address and, within the host, for 127.0.0.1 and ``localhost``; also for
        `names`, which may be addresses, too.

        Raises:
            ConfigError: `address` is no IP address, or this authority's files are damaged.
        """
        try:
            own = ipaddress.ip_address(address)
        except ValueError:
            raise ConfigError(f'{host}: "{address}" is no IP address') from None
        issuer, issuer_key = self._load()
        key = ec.generate_private_key(ec.SECP256R1())
        wanted = [str(own), "127.0.0.1", "localhost", *names]
        alternatives = [_alternative(each) for each in dict.fromkeys(wanted)]
        certificate = (
            _builder(_name(host), issuer.subject, key, life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
                ),
                critical=False,
            )
            .add_extension(_authority_key(issuer), critical=False)
            .sign(issuer_key, hashes.SHA256())
        )
        return HostCertificate(_pem(certificate), _key_pem(key))

    def _load(self) -> tuple[x509.Certificate, CertificateIssuerPrivateKeyTypes]:
        try:
            certificate = x509.load_pem_x509_certificate(self.cert_pem.encode())
            key = serialization.load_pem_private_key(self.key_pem.reveal().encode(), None)
            limits = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        except (ValueError, x509.ExtensionNotFound):
            raise ConfigError("the cluster's certificate authority cannot be read") from None
        if not limits.value.ca or not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ConfigError("that certificate is no cluster's authority")
        return certificate, key


def make_authority() -> Authority:
    """A new authority, for a new cluster."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name("llx cluster")
    certificate = (
        _builder(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Authority(_pem(certificate), _key_pem(key))


def made_at(cert_pem: str) -> float | None:
    """When a certificate of llx's making was made, in seconds of the epoch; None: it is damaged."""
    found = _read(cert_pem)
    return None if found is None else (found.not_valid_before_utc + _CLOCK_SLACK).timestamp()


def ends_at(cert_pem: str) -> float | None:
    """Likewise when it ends."""
    found = _read(cert_pem)
    return None if found is None else found.not_valid_after_utc.timestamp()


def _read(cert_pem: str) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificate(cert_pem.encode())
    except ValueError:
        return None


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    life: datetime.timedelta = _LIFE,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + life)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    known = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(known.value)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> Secret:
    return Secret(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode()
    )
