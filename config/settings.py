"""Settings: typed sections read once from the environment and an env file, with every fault reported at once."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    TypeAdapter,
    ValidationError,
)

from config import urls

ENV_FILE = Path(__file__).resolve().parent.parent / ".env"  # beside server.py, wherever a command is started

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
S = TypeVar("S", bound="Section")

# Loopback, RFC 1918 and RFC 4193: where a scraper of one's own stands.
PRIVATE_NETWORKS = "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7"


def _split(value: object) -> object:
    """A comma-separated list, as people write one in an environment variable."""
    return tuple(item.strip() for item in value.split(",") if item.strip()) if isinstance(value, str) else value


Items = Annotated[tuple[str, ...], BeforeValidator(_split)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(_split)]

_SIZE = TypeAdapter(ByteSize)
_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


@dataclass(frozen=True, slots=True)
class Rate:
    """So many events, or bytes, in so many seconds; in settings ``5/15 minutes``, ``3/hour`` or ``1GiB/minute``."""

    count: int
    seconds: int

    @classmethod
    def parse(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        size, slash, period = value.partition("/")
        number, _, unit = period.strip().rpartition(" ")
        seconds = _UNITS.get(unit.strip().lower().removesuffix("s"))
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


class Section(BaseModel):
    """A frozen group of settings. ``turn_host`` is read from ``TURN_HOST``; an empty variable counts as unset."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True, hide_input_in_errors=True)


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
            # PostgreSQL takes several hosts, each with its port: then there is no single port to judge.
            port = 0 if "," in parts.netloc else parts.port or 0
            # A password ends at a / or # that is not escaped, and what is left of it would be told as a host or a port.
            cut = "@" not in parts.netloc and "@" in parts.path + parts.fragment
            known = parts.scheme in schemes and bool(parts.netloc or parts.path) and port >= 0 and not cut
        except ValueError:
            known = False
        if not known:
            raise ValueError(f"expected {schemes[0]}://user:password@host:port/name")
        if found := fault(value.get_secret_value()):
            raise ValueError(found)
        return value

    return AfterValidator(check)


def _hosts(value: str) -> str:
    hosts = [host.strip().removeprefix("[").removesuffix("]") for host in value.split(",") if host.strip()]
    if not hosts or any("/" in host or " " in host for host in hosts):
        raise ValueError("expected addresses or names of this machine, as 127.0.0.1,::1; the port is PORT")
    return ",".join(hosts)


def _collector(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected http://host:4318")
    return value.rstrip("/")


DatabaseUrl = Annotated[SecretStr, _url(urls.database_fault, "postgresql", "postgres")]
RedisUrl = Annotated[SecretStr, _url(urls.redis_fault, "redis", "rediss", "unix")]


class Budgets(Section):
    """What each account may spend (handlers/limits/ledger.py). The count may be spent at once; it refills evenly.

    Each number is above what the heaviest honest client needs; docs/decisions/0035-one-ledger-an-account.md says how
    they were found.
    """

    # As much as RATE_LIMIT_MESSAGES, RATE_LIMIT_RECEIPTS and RATE_LIMIT_SYNC allow together.
    budget_requests: RateLimit = Field(Rate(3000, 60), description="Requests an account.")
    # Three sockets at their limit of 60 a second, and some more.
    budget_frames: RateLimit = Field(Rate(12_000, 60), description="Frames an account, on all its sockets.")
    # 500 queued messages of 64 KiB in base64 are 43 MiB; 60 frames a second of 7 KiB for ever.
    budget_bytes_in: RateLimit = Field(Rate(256 << 20, 600), description="Bytes of bodies and frames an account sends.")
    # A week's 100,000 events of 8 KiB in base64 are 1.0 GiB.
    budget_bytes_out: RateLimit = Field(Rate(2 << 30, 1200), description="Bytes of JSON an account receives.")
    # A history archive of 16 GiB, uploaded and downloaded, and three more of them.
    budget_transfer: RateLimit = Field(Rate(128 << 30, 86_400), description="Bytes of files an account moves.")
    # 2,500 people an hour brought into chats are 5,000 rows.
    budget_rows: RateLimit = Field(Rate(7200, 3600), description="Rows an account leaves, other than messages.")
    # 60 messages a second of 1 KiB into groups of 280 people; 10 posts of 1 KiB into a channel of 100,000.
    budget_fanout: RateLimit = Field(Rate(1 << 30, 60), description="Bytes an account sends, times their recipients.")
    budget_address_times: int = Field(
        10, ge=1, le=1000, description="How many times as much an address may spend without an account."
    )
    # Small enough that others go on beside one who attacks. A phone that comes back after a week still reads 10,000
    # events and sends 500 messages in seconds (tests/handlers/test_share.py).
    account_share: float = Field(
        0.2, gt=0, le=1, description="Share of an instance's time that an account takes before it has to wait."
    )


class Core(Budgets):
    """What the house itself needs to know; each feature adds a section of its own."""

    host: Annotated[str, AfterValidator(_hosts)] = Field(
        "0.0.0.0", description="Comma list of addresses to listen on; `::` is every one of IPv4 and IPv6."
    )
    port: int = Field(8080, ge=0, le=65535, description="HTTP and WebSocket port; 0 takes a free one.")
    mimu_env: Literal["development", "production"] = Field(
        "development", description="Unset: development on the embedded database, production with a DATABASE_URL."
    )
    mimu_data_dir: Path = Field(Path("var"), description="Where the embedded services, secrets and files live.")
    log_level: Annotated[str, AfterValidator(_level)] = Field(
        "info", description="debug, info, warning or error. RUST_LOG is read too."
    )

    database_url: DatabaseUrl | None = Field(
        None,
        description="PostgreSQL 16 or newer; of several hosts (`one:5432,two:5432`) the primary is used. "
        "Unset starts the embedded one.",
    )
    database_max_connections: int = Field(20, ge=2, le=1000, description="Size of the connection pool.")
    redis_url: RedisUrl | None = Field(None, description="Redis 7 or Valkey; unset starts the embedded one.")

    jwt_secret: SecretStr | None = Field(None, description="Signs access tokens; at least 32 characters.")
    keyring_file: Path | None = Field(
        None, description="Rotated secrets; unset: secrets/keyring.json in MIMU_DATA_DIR. Shared by all instances."
    )
    jwt_previous_secrets: Annotated[tuple[SecretStr, ...], BeforeValidator(_split)] = Field(
        (), description="Comma list of former secrets whose tokens are still accepted during a rotation."
    )
    jwt_expiration_hours: float = Field(24, gt=0, le=720, description="Life of an access token.")

    # Ten devices that come back six times at once, and then a phone in a train, each ten seconds for ever. Addresses
    # have no limit: behind one may be many people, who all return when a server has restarted.
    rate_limit_sockets: RateLimit = Field(Rate(60, 600), description="Sockets a user may open.")
    trusted_proxies: Networks = Field(
        (), description="Networks (CIDR) of reverse proxies whose X-Forwarded-For is believed."
    )
    cors_allow_origins: Items = Field((), description="Browser origins that may call; empty sends no CORS headers.")
    min_client_version: str | None = Field(None, description="Older X-Client-Version gets 426.")
    metrics_allow: Networks = Field(
        default=PRIVATE_NETWORKS,  # validated like any other value
        validate_default=True,
        description="Networks that may read /metrics.",
    )
    rate_limits: Literal["on", "off"] = Field("on", description="off is for tests and benchmarks; never in production.")
    plugins_disabled: Items = Field((), description="Features to leave out, by name.")
    otel_exporter_otlp_endpoint: Annotated[str, AfterValidator(_collector)] | None = Field(
        None, description="OpenTelemetry's collector; unset: no traces. Its other variables (OTEL_*) count as well."
    )
    answer_bytes: ByteSize = Field(
        ByteSize(64 << 20), ge=8 << 20, description="Memory for long answers that clients have not taken yet, of all."
    )
    shutdown_seconds: float = Field(5, ge=0, le=60, description="How long SIGTERM spreads the closing of sockets.")

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(self.host.split(","))

    @property
    def keyring_path(self) -> Path:
        return self.keyring_file or self.mimu_data_dir / "secrets" / "keyring.json"

    @property
    def jwt_secrets(self) -> list[str]:
        """The secrets of the settings, the signing one first."""
        given = (self.jwt_secret, *self.jwt_previous_secrets) if self.jwt_secret else self.jwt_previous_secrets
        return [secret.get_secret_value() for secret in given]

    @property
    def production(self) -> bool:
        return self.mimu_env == "production"


class SettingsError(Exception):
    """The settings can't be used; ``faults`` has one line for each reason, naming the variable and never its value."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


def environment(env_file: Path | None = None, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment over the env file (ENV_FILE, if it is there, unless another is named), names in upper case.
    Raises SettingsError when the file can't be read: without it, all would be as if nothing were set."""
    try:
        if env_file is not None:
            env_file.stat()  # python-dotenv takes one that is missing for an empty one
        named: dict[str, str | None] = dict(dotenv_values(env_file or ENV_FILE))
    except (OSError, ValueError) as error:
        raise SettingsError([f"{env_file or ENV_FILE} can't be read ({type(error).__name__})"]) from None
    named.update(os.environ if environ is None else environ)
    values = {name.upper(): value for name, value in named.items() if value}
    values.setdefault("LOG_LEVEL", values.get("RUST_LOG", "info"))  # the seed's name for it
    values.setdefault("MIMU_ENV", "production" if "DATABASE_URL" in values else "development")
    return values


def core(values: Mapping[str, str]) -> Core:
    """The house's own section, for scripts that need no other. Raises SettingsError."""
    read = load({"": Core}, values)[""]
    assert isinstance(read, Core)
    return read


def load(sections: Mapping[str, type[Section]], values: Mapping[str, str]) -> dict[str, Section]:
    """Every section, read from ``values``.

    Raises SettingsError with all faults of all sections at once.
    """
    read: dict[str, Section] = {}
    faults: list[str] = []
    for name, section in sections.items():
        given: dict[str, Any] = {f: values[f.upper()] for f in section.model_fields if f.upper() in values}
        try:
            read[name] = section.model_validate(given)
        except ValidationError as error:
            for fault in error.errors(include_url=False, include_input=False, include_context=False):
                where = ".".join(str(part) for part in fault["loc"][:1]).upper()
                faults.append(f"{where}: {fault['msg'].removeprefix('Value error, ')}")
    if faults:
        raise SettingsError(faults)
    return read
