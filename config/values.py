"""Values: types of settings besides those of Python and pydantic; their errors say what an operator must write."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, ByteSize, SecretStr, TypeAdapter, ValidationError, ValidationInfo

from config import urls

T = TypeVar("T")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def comma_list(value: object) -> object:
    """Split a comma-separated list; other values are returned unchanged."""
    return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value


Items = Annotated[tuple[str, ...], BeforeValidator(comma_list)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(comma_list)]

_SIZE = TypeAdapter(ByteSize)
UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


@dataclass(frozen=True, slots=True)
class Rate:
    """A number of events, or of bytes, in a number of seconds; in settings ``5/15 minutes``, ``3/hour`` or
    ``1GiB/minute``."""

    count: int
    seconds: int

    @classmethod
    def parse(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        size, slash, period = value.partition("/")
        number, _, unit = period.strip().rpartition(" ")
        seconds = UNITS.get(unit.strip().lower().removesuffix("s"))
        try:
            count = int(_SIZE.validate_python(size.strip()))
        except ValidationError:
            count = None
        if not (slash and count is not None and (number.strip() or "1").isdecimal() and seconds):
            raise ValueError("expected a rate such as 5/15 minutes or 3/hour")
        rate = cls(count, int(number or 1) * seconds)
        if rate.count < 1 or rate.seconds < 1:
            raise ValueError("a rate counts at least one event in at least one second")
        return rate

    def __str__(self) -> str:
        return f"{self.count}/{self.seconds} seconds"


RateLimit = Annotated[Rate, BeforeValidator(Rate.parse)]


def _level(value: str) -> str:
    # RUST_LOG of older env files may name modules too ("info,sqlx=warn"): the first plain word is the level.
    word = value.split(",")[0].strip().lower()
    if word not in ("debug", "info", "warning", "warn", "error"):
        raise ValueError("expected debug, info, warning or error")
    return "warning" if word == "warn" else word


def _url(fault: Callable[[str], str | None], *schemes: str) -> AfterValidator:
    def check(value: SecretStr) -> SecretStr:
        try:
            parts = urlsplit(value.get_secret_value())
            # A URL of PostgreSQL may have several hosts, each with a port: then there is no single port to check.
            port = 0 if "," in parts.netloc else parts.port or 0
            # A password ends at a / or # that is not escaped, and the rest would appear in errors as a host or port.
            cut = "@" not in parts.netloc and "@" in parts.path + parts.fragment
            valid = parts.scheme in schemes and bool(parts.netloc or parts.path) and port >= 0 and not cut
        except ValueError:
            valid = False
        if not valid:
            raise ValueError(f"expected {schemes[0]}://user:password@host:port/name")
        if text := fault(value.get_secret_value()):
            raise ValueError(text)
        return value

    return AfterValidator(check)


def _hosts(value: str) -> str:
    hosts = [host.strip().removeprefix("[").removesuffix("]") for host in value.split(",") if host.strip()]
    if not hosts or any("/" in host or " " in host for host in hosts):
        raise ValueError("expected addresses or names of this machine, as 127.0.0.1,::1; the port is PORT")
    return ",".join(hosts)


def web_address(value: str) -> str:
    """Return an http or https URL of a service without the slash at its end. Raises ValueError if it is no such URL, or
    has a user, a query or a fragment."""
    if urls.split_web(value, "http", "https") is None or any(mark in value for mark in "@?#"):
        raise ValueError("expected https://host:port")
    return value.rstrip("/")


def needs(other: str, why: str = "") -> AfterValidator:
    """Require a setting if ``other``, an earlier field, is set. The field must have the default None and
    ``validate_default``."""

    def check(value: T, info: ValidationInfo) -> T:
        if value is None and info.data.get(other):
            raise ValueError(f"missing; required with {other.upper()}{why and f', {why}'}")
        return value

    return AfterValidator(check)


Hosts = Annotated[str, AfterValidator(_hosts)]
LogLevel = Annotated[str, AfterValidator(_level)]
WebAddress = Annotated[str, AfterValidator(web_address)]
DatabaseUrl = Annotated[SecretStr, _url(urls.database_fault, "postgresql", "postgres")]
RedisUrl = Annotated[SecretStr, _url(urls.redis_fault, "redis", "rediss", "unix")]
