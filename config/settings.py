"""Settings: typed sections, read once from the environment and an env file. All faults are reported together."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from dotenv import dotenv_values
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)

from config.values import (
    DatabaseUrl,
    Hosts,
    Items,
    LogLevel,
    Networks,
    Rate,
    RateLimit,
    RedisUrl,
    WebAddress,
    comma_list,
)

ENV_FILE = Path(__file__).resolve().parent.parent / ".env"  # beside server.py, wherever a command is started

S = TypeVar("S", bound="Section")

# Loopback, RFC 1918 and RFC 4193: where the operator's Prometheus runs.
PRIVATE_NETWORKS = "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,fc00::/7"


class Section(BaseModel):
    """A frozen group of settings. ``turn_host`` is read from ``TURN_HOST``; an empty variable counts as unset."""

    model_config = ConfigDict(frozen=True, extra="ignore", arbitrary_types_allowed=True, hide_input_in_errors=True)


class Budgets(Section):
    """The budgets of each account (handlers/limits/ledger.py). A budget may be spent at once; it refills evenly.

    Each is larger than the heaviest honest client needs; docs/decisions/0035-one-ledger-an-account.md explains the
    numbers.
    """

    # As much as RATE_LIMIT_MESSAGES, RATE_LIMIT_RECEIPTS and RATE_LIMIT_SYNC allow together.
    budget_requests: RateLimit = Field(
        Rate(3000, 60),
        description="Requests per account. By default as many as RATE_LIMIT_MESSAGES, RATE_LIMIT_RECEIPTS and "
        "RATE_LIMIT_SYNC allow together; raise it with them.",
    )
    # Three sockets at their limit of 60 a second, and some more.
    budget_frames: RateLimit = Field(
        Rate(12_000, 60),
        description="Frames that an account sends on all its sockets together. One socket may send 60 a second.",
    )
    # 500 queued messages of 64 KiB in base64 are 43 MiB; 60 frames a second of 7 KiB for ever.
    budget_bytes_in: RateLimit = Field(
        Rate(256 << 20, 600),
        description="Bytes of bodies and frames that an account sends. 500 queued messages of 64 KiB are 43 MiB.",
    )
    # A week's 100,000 events of 8 KiB in base64 are 1.0 GiB.
    budget_bytes_out: RateLimit = Field(
        Rate(2 << 30, 1200),
        description="Bytes of JSON that an account receives in answers. Syncing 100,000 events of 8 KiB takes 1.1 GiB.",
    )
    # A history archive of 16 GiB, uploaded and downloaded, and three more of them.
    budget_transfer: RateLimit = Field(
        Rate(128 << 30, 86_400),
        description="Bytes of files that an account uploads and downloads through the server. With S3 they don't "
        "pass through it.",
    )
    # 2,500 people an hour brought into chats are 5,000 rows.
    budget_rows: RateLimit = Field(
        Rate(7200, 3600),
        description="Rows other than messages that an account adds to the database: participants, events, "
        "sessions, blocks, files.",
    )
    # 60 messages a second of 1 KiB into groups of 280 people; 10 posts of 1 KiB into a channel of 100,000.
    budget_fanout: RateLimit = Field(
        Rate(1 << 30, 60),
        description="Bytes of frames that an account sends, multiplied by their recipients. The default covers 60 "
        "messages of 1 KiB a second to groups of 280 people, or a post of 1 KiB every six seconds to "
        "a channel of 100,000.",
    )
    budget_address_times: int = Field(
        10,
        ge=1,
        le=1000,
        description="How many times these budgets an IP address may spend on requests without an account. Many "
        "people may share an address; raise it if most of yours do.",
    )
    # Small enough that an attacker does not slow down others. A phone that was offline for a week still reads 10,000
    # events and sends 500 messages within seconds (tests/handlers/test_share.py).
    account_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="Share of one instance's time, with PostgreSQL's work for it, that an account may take for "
        "long; 1 is all of it. An account that needs more waits before its next request or frame, and "
        "is not rejected. Use 1 on a small server of people who know each other.",
    )


class Core(Budgets):
    """The settings of the server itself; each feature adds a section."""

    host: Hosts = Field(
        "0.0.0.0",
        description="Addresses to listen on, or names of this machine, separated by commas: 127.0.0.1,::1. "
        "0.0.0.0 is every IPv4 address, :: every IPv4 and IPv6 address. Use 127.0.0.1 when a proxy "
        "runs on this machine.",
    )
    port: int = Field(
        8080,
        ge=0,
        le=65535,
        description="TCP port for HTTP and WebSocket; 0 takes a free one. Each instance on a machine needs another "
        "port.",
    )
    mimu_env: Literal["development", "production"] = Field(
        "development",
        description="development or production. Unset: production if DATABASE_URL is set, else development with "
        "an embedded database.",
    )
    mimu_data_dir: Path = Field(
        Path("var"),
        description="Folder for files, secrets and the embedded services. A relative path starts at the working "
        "directory: name an absolute one in production, such as /var/lib/mimu.",
    )
    log_level: LogLevel = Field(
        "info",
        description="debug, info, warning or error. Unset: RUST_LOG, else info. Use debug only while you look for "
        "a fault.",
    )

    database_url: DatabaseUrl | None = Field(
        None,
        description="PostgreSQL 16 or newer: postgres://mimu:PASSWORD@localhost:5432/mimu. With several hosts "
        "(one:5432,two:5432) the server uses the primary. Unset: the server runs its own PostgreSQL, "
        "for development.",
    )
    database_max_connections: int = Field(
        20,
        ge=2,
        le=1000,
        description="Connections to PostgreSQL that one instance opens at most. All instances together must stay "
        "below max_connections of PostgreSQL.",
    )
    redis_url: RedisUrl | None = Field(
        None,
        description="Redis 7 or Valkey: redis://:PASSWORD@localhost:6379/0. Unset: the server runs its own "
        "Valkey, for development.",
    )

    jwt_secret: SecretStr | None = Field(
        None,
        description="Signs access tokens; at least 32 characters: openssl rand -hex 32. Required in production. "
        "Unset in development: the server makes one and keeps it in MIMU_DATA_DIR/secrets.",
    )
    keyring_file: Path | None = Field(
        None,
        description="File with the secrets that ./mimu rotate-keys rotates; all instances must read the same one. "
        "Unset: secrets/keyring.json in MIMU_DATA_DIR. Set it when instances have different data "
        "folders.",
    )
    jwt_previous_secrets: Annotated[tuple[SecretStr, ...], BeforeValidator(comma_list)] = Field(
        (),
        description="Former values of JWT_SECRET, separated by commas. Tokens signed with them stay valid: set it "
        "when you change JWT_SECRET, and remove it after JWT_EXPIRATION_HOURS.",
    )
    jwt_expiration_hours: float = Field(
        24,
        gt=0,
        le=720,
        description="Hours for which an access token is valid. Clients refresh it; a stolen token works for no "
        "longer than this.",
    )

    # Ten devices that reconnect six times at once, and then a phone in a train that reconnects every ten seconds. There
    # is no limit per address: many people may share one, and all reconnect when a server has restarted.
    rate_limit_sockets: RateLimit = Field(
        Rate(60, 600),
        description="Sockets that a user may open. The default covers ten devices, and a phone that loses its "
        "network every ten seconds.",
    )
    trusted_proxies: Networks = Field(
        (),
        description="Networks (CIDR) of your reverse proxies, whose X-Forwarded-For is trusted: 127.0.0.1/32. "
        "Required behind a proxy: without it all clients share the proxy's address, and its rate "
        "limits. Unset: clients connect directly.",
    )
    cors_allow_origins: Items = Field(
        (),
        description="Origins of browser clients, separated by commas: https://web.example.org. Unset: no CORS "
        "headers, so browsers on other sites can't call the server.",
    )
    min_client_version: str | None = Field(
        None,
        description="Oldest X-Client-Version that may connect, such as 1.2.0; older clients get 426. Unset: all "
        "versions. Set it to force an update.",
    )
    metrics_allow: Networks = Field(
        default=PRIVATE_NETWORKS,  # validated like any other value
        validate_default=True,
        description="Networks (CIDR) that may read /metrics; by default loopback and private networks. Name only "
        "Prometheus's own address if others share your private network.",
    )
    rate_limits: Literal["on", "off"] = Field(
        "on", description="on or off. off is for tests and benchmarks, never for production."
    )
    plugins_disabled: Items = Field(
        (), description="Features to switch off, separated by commas: turn,presence. Unset: all are on."
    )
    otel_exporter_otlp_endpoint: WebAddress | None = Field(
        None,
        description="OpenTelemetry collector that receives traces over HTTP: http://localhost:4318. Unset: no "
        "traces, and OpenTelemetry is not loaded. The other variables of OpenTelemetry "
        "(OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, ...) work too.",
    )
    answer_bytes: ByteSize = Field(
        ByteSize(64 << 20),
        ge=8 << 20,
        description="Memory, in bytes, for long answers that clients have not read yet, for all clients together; "
        "one account gets at most 4 MiB. Further pages, documents and downloads wait for space, and "
        "fail with 503 after some seconds. Raise it on a server with many slow clients.",
    )
    shutdown_seconds: float = Field(
        5,
        ge=0,
        le=60,
        description="Seconds over which a stopping server closes its sockets, so that not all phones reconnect at "
        "once. Raise it with many thousands of sockets; keep it above the keepalive_timeout between "
        "nginx and the server.",
    )

    @property
    def hosts(self) -> tuple[str, ...]:
        return tuple(self.host.split(","))

    @property
    def keyring_path(self) -> Path:
        return self.keyring_file or self.mimu_data_dir / "secrets" / "keyring.json"

    @property
    def jwt_secrets(self) -> list[str]:
        """The secrets of the settings, the signing one first."""
        secrets = (self.jwt_secret, *self.jwt_previous_secrets) if self.jwt_secret else self.jwt_previous_secrets
        return [secret.get_secret_value() for secret in secrets]

    @property
    def production(self) -> bool:
        return self.mimu_env == "production"


class SettingsError(Exception):
    """The settings can't be used; ``faults`` has a line for each reason, with the variable's name, never its value."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


def environment(env_file: Path | None = None, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables of the environment and of the env file (by default ENV_FILE, which may be missing), with
    names in upper case; the environment wins. Raises SettingsError if the file can't be read."""
    try:
        if env_file is not None:
            env_file.stat()  # python-dotenv treats a missing file as an empty one
        variables: dict[str, str | None] = dict(dotenv_values(env_file or ENV_FILE))
    except (OSError, ValueError) as error:
        raise SettingsError([f"{env_file or ENV_FILE} can't be read ({type(error).__name__})"]) from None
    variables.update(os.environ if environ is None else environ)
    values = {name.upper(): value for name, value in variables.items() if value}
    values.setdefault("LOG_LEVEL", values.get("RUST_LOG", "info"))  # the seed's name for it
    values.setdefault("MIMU_ENV", "production" if "DATABASE_URL" in values else "development")
    return values


def core(values: Mapping[str, str]) -> Core:
    """Read the server's own section, for scripts that need no other. Raises SettingsError."""
    read = load({"": Core}, values)[""]
    assert isinstance(read, Core)
    return read


def load(sections: Mapping[str, type[Section]], values: Mapping[str, str]) -> dict[str, Section]:
    """Read every section from ``values``. Raises SettingsError with the faults of all sections."""
    read: dict[str, Section] = {}
    faults: list[str] = []
    for name, section in sections.items():
        fields: dict[str, Any] = {f: values[f.upper()] for f in section.model_fields if f.upper() in values}
        try:
            read[name] = section.model_validate(fields)
        except ValidationError as error:
            for fault in error.errors(include_url=False, include_input=False, include_context=False):
                where = ".".join(str(part) for part in fault["loc"][:1]).upper()
                faults.append(f"{where}: {fault['msg'].removeprefix('Value error, ')}")
    if faults:
        raise SettingsError(faults)
    return read
