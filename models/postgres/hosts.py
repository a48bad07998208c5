"""Hosts: the servers in a ``DATABASE_URL``, and a connection to one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

import asyncpg

_NAMES = ("host", "port", "target_session_attrs")  # parameters of a URL that choose among hosts


class HostAway(OSError):
    """A host gave no connection; the message names the host and the kind of the error, never the password."""


class HostRefused(OSError):
    """A host answered, and is not the database that is in use."""


class Host(NamedTuple):
    """A server of a ``DATABASE_URL``. Without a name asyncpg connects to the same default as libpq."""

    name: str | None
    port: int | None

    def __str__(self) -> str:
        if self.name is None:
            return "the default host"
        name = f"[{self.name}]" if ":" in self.name else self.name
        return f"{name}:{self.port}" if self.port else name


def hosts(dsn: str) -> tuple[Host, ...]:
    """Return the hosts of a URL in its order, without duplicates. Raises ValueError."""
    parts = urlsplit(dsn)
    # After the last @: a password may contain an unescaped one, and no part of it may become the name of a host.
    names = parts.netloc.rpartition("@")[2]
    query = dict(parse_qsl(parts.query))
    found = [_host(unquote(one)) for one in names.split(",") if one]
    if not found:
        ports = [int(port) if port else None for port in query.get("port", "").split(",")]
        found = [_host(one) for one in query.get("host", "").split(",") if one]
        if len(ports) in (1, len(found)):
            ports = ports * (len(found) if len(ports) == 1 else 1)
            found = [Host(one.name, one.port or port) for one, port in zip(found, ports, strict=True)]
    return tuple(dict.fromkeys(found)) or (Host(None, None),)


def _host(text: str) -> Host:
    if text.startswith("/"):  # the folder of a Unix socket
        return Host(text, None)
    if text.startswith("["):
        name, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        name, _, port = text.partition(":")
    return Host(name, int(port) if port else None)


def address(dsn: str, host: Host) -> str:
    """Return the URL of one host, for programs that accept no list: dbmate, pg_dump. A URL with one host is returned
    unchanged."""
    parts = urlsplit(dsn)
    query = parse_qsl(parts.query, keep_blank_values=True)
    if host.name is None or (len(hosts(dsn)) == 1 and not any(name in _NAMES for name, _ in query)):
        return dsn
    login, at, _ = parts.netloc.rpartition("@")
    rest = [(name, value) for name, value in query if name not in _NAMES]
    if host.name.startswith("/"):
        rest += [("host", host.name), *([("port", str(host.port))] if host.port else [])]
        return urlunsplit(parts._replace(netloc=login + at, query=urlencode(rest)))
    return urlunsplit(parts._replace(netloc=f"{login}{at}{host}", query=urlencode(rest)))


async def dial(dsn: str, host: Host, **options: Any) -> asyncpg.Connection:
    """Connect to one host of a URL, whatever role it has. Raises HostAway, and errors of PostgreSQL as they are."""
    options["target_session_attrs"] = "any"
    if host.name is not None:
        options["host"] = host.name
    if host.port is not None:
        options["port"] = host.port
    with named(host):
        connection: asyncpg.Connection = await asyncpg.connect(dsn, **options)
        return connection


@contextlib.contextmanager
def named(host: Host) -> Iterator[None]:
    """Raise HostAway for a timeout or an error of the network: its own text may be empty, and names no host."""
    try:
        yield
    except (HostAway, HostRefused):
        raise
    except (OSError, TimeoutError) as error:
        raise HostAway(f"{host}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Return the type of an error, and its text if that is safe to log."""
    if isinstance(error, HostAway | HostRefused):
        return str(error)
    if isinstance(error, TimeoutError):
        return "TimeoutError: no answer in time"
    # The texts of PostgreSQL's errors may quote values of the statement.
    text = str(error).strip() if isinstance(error, OSError) else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def no_host(errors: Sequence[tuple[Host, Exception]]) -> Exception:
    """Return the error to raise if no host is the database."""
    if len(errors) == 1 or not any(isinstance(error, OSError) for _, error in errors):
        return errors[0][1]
    kind = HostRefused if all(isinstance(error, HostRefused) for _, error in errors) else HostAway
    texts = [text if (text := describe(error)).startswith(str(host)) else f"{host}: {text}" for host, error in errors]
    return kind("; ".join(texts))
