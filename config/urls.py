"""URLs of services, checked before a connection is made: PostgreSQL, Redis, and the web.

asyncpg and redis-py reject them late, with errors that name neither the setting nor what to do. The texts here quote no
value, since it may contain a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

# Parameters of libpq that asyncpg doesn't know: it sends them to PostgreSQL as settings, which rejects the connection.
LIBPQ_ONLY = frozenset(
    [
        "channel_binding",
        "connect_timeout",
        "fallback_application_name",
        "gssdelegation",
        "gssencmode",
        "hostaddr",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "load_balance_hosts",
        "max_protocol_version",
        "min_protocol_version",
        "require_auth",
        "requirepeer",
        "requiressl",
        "scram_client_key",
        "scram_server_key",
        "sslcertmode",
        "sslcompression",
        "sslcrldir",
        "sslkeylogfile",
        "sslsni",
        "tcp_user_timeout",
    ]
)
MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SYSTEM = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
# Parameters of redis-py that a URL may have, by their types.
REDIS_NUMBERS = frozenset(
    [
        "db",
        "health_check_interval",
        "max_connections",
        "socket_connect_timeout",
        "socket_timeout",
        "timeout",
        "protocol",
    ]
)
REDIS_SWITCHES = frozenset(["decode_responses", "retry_on_timeout", "socket_keepalive", "ssl_check_hostname"])
REDIS_WORDS = frozenset(
    [
        "client_name",
        "password",
        "username",
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_password",
    ]
)


def split_web(url: str, *schemes: str) -> SplitResult | None:
    """Split a URL that the server may call: it has one of these schemes, a host, a numeric port if any, and only
    printable ASCII. Returns None for any other."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    usable = parts.scheme in schemes and parts.hostname and re.fullmatch("[!-~]+", url)
    return parts if usable else None


def database_fault(url: str) -> str | None:
    """Return why no connection to PostgreSQL can be made with this URL; None if no fault is known."""
    return next(_database_faults(url), None)


def redis_fault(url: str) -> str | None:
    """Return why no connection to Redis can be made with this URL; None if no fault is known."""
    return next(_redis_faults(url), None)


def _database_faults(url: str) -> Iterator[str]:
    query = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    for name in sorted(LIBPQ_ONLY & query.keys()):
        yield f"{name} is a parameter of libpq that the server's driver does not know; remove it"
    mode = query.get("sslmode") or os.environ.get("PGSSLMODE") or "prefer"
    if mode not in MODES:
        yield f"sslmode must be one of {', '.join(MODES)}"
    authority = query.get("sslrootcert") or os.environ.get("PGSSLROOTCERT")
    if authority == "system":
        here = next((path for path in SYSTEM if Path(path).exists()), SYSTEM[0])
        yield f"sslrootcert=system works only with libpq; name the system's file: sslrootcert={here}"
    if mode.startswith("verify") and not authority and not (Path.home() / ".postgresql" / "root.crt").exists():
        yield f"sslmode={mode} needs sslrootcert=FILE, the certificate of the authority that signed PostgreSQL's"
    for name in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):
        if name in query and not _readable(query[name]):
            yield f"{name} names a file that does not exist, or that this user can't read"


def _redis_faults(url: str) -> Iterator[str]:
    parts = urlsplit(url)
    if "," in parts.netloc.rpartition("@")[2]:
        yield "it names several hosts; name one (the primary, or an address that reaches it)"
    number = parts.path.lstrip("/")
    if parts.scheme != "unix" and number and not (number.isascii() and number.isdecimal()):
        yield "the path must be the number of a database: redis://host:6379/0"
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in REDIS_NUMBERS | REDIS_SWITCHES | REDIS_WORDS:
            yield "it has a parameter that the client does not know; those of TLS are ssl_ca_certs, ssl_cert_reqs, …"
        elif name in REDIS_NUMBERS and not value.replace(".", "", 1).isdecimal():
            yield f"{name} must be a number"
        elif name.startswith("ssl_") and parts.scheme != "rediss":
            yield f"{name} needs TLS, that is, rediss://"
        elif name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") and not _readable(value):
            yield f"{name} names a file that does not exist, or that this user can't read"
        elif name == "ssl_cert_reqs" and value not in ("none", "optional", "required"):
            yield "ssl_cert_reqs must be one of none, optional, required"


def _readable(path: str) -> bool:
    return Path(path).is_file() and os.access(path, os.R_OK)
