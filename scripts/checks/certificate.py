"""Certificates: whether the usual authorities vouch for a TLS server's name, and for how long."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import time

from config.findings import Finding, good, skipped, weak, wrong
from config.threads import in_daemon_thread

HANDSHAKE_TIMEOUT = 5.0  # seconds to connect and shake hands
SOON = 21  # days: automatic renewal happens 30 before the end, so this one has failed for nine


async def resolve(host: str, port: int) -> list[str]:
    """Resolve a host to its addresses. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))


async def check(part: str, host: str, port: int, address: str) -> Finding:
    """Check the certificate at one address of a host."""
    try:
        days, version = await in_daemon_thread(lambda: _shake_hands(host, port, address))
    except ssl.SSLCertVerificationError as error:
        # OpenSSL's own text: expired, self-signed, for another name.
        says = f"The certificate at {address} is not trusted: {error.verify_message or 'unknown reason'}."
        return wrong(part, says, "Renew it, with its whole chain (fullchain.pem), for this name.")
    except ssl.SSLError as error:
        return wrong(
            part, f"The TLS handshake with {address} fails ({error.reason}).", "Check that this port serves TLS."
        )
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL):
            return skipped(part, f"This machine has no route to {address}.")
        says = f"{address} can't be reached on port {port} ({type(error).__name__})."
        return wrong(part, says, "Check firewalls, and that DNS has the address of the right machine.")
    says = f"The certificate at {address} is valid for {days:.0f} days ({version})."
    if days < SOON:
        return weak(part, says, "Find out why it is not renewed: certbot renew --dry-run, or the proxy's log.")
    return good(part, says)


def _shake_hands(host: str, port: int, address: str) -> tuple[float, str]:
    """Return the days until the certificate expires, and the version of TLS."""
    with (
        socket.create_connection((address, port), HANDSHAKE_TIMEOUT) as plain,
        ssl.create_default_context().wrap_socket(plain, server_hostname=host) as secure,
    ):
        certificate = secure.getpeercert() or {}
        ends = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
        return (ends - time.time()) / 86_400, secure.version() or ""
