"""TLS with gateways: what llx's own clients trust."""

import hashlib
import ssl


def trusting(certificate: str) -> ssl.SSLContext | None:
    """A client's context for a gateway that says of itself, to the head, that it shows that.

    Whoever has the key of exactly that certificate is trusted, under any name: it was heard of over
    a way that is secured already, and gateways are reached through tunnels and by addresses that
    no certificate names. None: a gateway without TLS.
    """
    if not certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be an authority
    context.load_verify_locations(cadata=certificate)
    return context


def fingerprint(certificate: str) -> str:
    """SHA-256 of a certificate in PEM, as ``openssl x509 -fingerprint -sha256`` prints it."""
    digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest().upper()
    return ":".join(digest[i : i + 2] for i in range(0, len(digest), 2))
