"""A certificate authority of the tests', and what it certifies: a server on this machine."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A private key as files have it."""
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain)


def certified(
    folder: Path, *, ends: datetime.timedelta = DAY, names: Sequence[str] = ("localhost", "127.0.0.1"), alpn: str = "h2"
) -> tuple[Path, ssl.SSLContext]:
    """The authority's certificate, and a context for servers of these names that speak HTTP/2. The server's own, with
    its key, is ``server.pem``; it ends so long from now, or has ended."""
    now = datetime.datetime.now(datetime.UTC)
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "The tests")])
    begun = x509.CertificateBuilder().issuer_name(name).not_valid_before(now - 9 * DAY).not_valid_after(now + 99 * DAY)
    root = (
        begun.subject_name(name)
        .public_key(authority.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    hosts = [x509.IPAddress(ipaddress.ip_address(one)) if one[0].isdecimal() else x509.DNSName(one) for one in names]
    begun = x509.CertificateBuilder().issuer_name(name).not_valid_before(now - 9 * DAY).not_valid_after(now + ends)
    server = (
        begun.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    ca_file, chain = folder / "ca.pem", folder / "server.pem"
    ca_file.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    chain.write_bytes(pem(key) + server.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    context.set_alpn_protocols([alpn])
    return ca_file, context
