"""Chapters of the settings: their order and headings in the documents for operators.

The ``description`` of a field in the code explains the setting; ``python -m scripts.configuration_page`` writes
config/env.example and docs/configuration.md from both. Most chapters take settings by the beginning of their names, so
that a new setting needs no line here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple


class Chapter(NamedTuple):
    """A heading, a sentence on all its settings, and patterns of their names. ``first``: operators fill these in, so
    env.example does not comment them out."""

    title: str
    about: str
    names: str
    first: bool = False

    @property
    def patterns(self) -> list[str]:
        return self.names.split()


CHAPTERS = (
    Chapter(
        "Set these first",
        "Production needs them. For a trial on your own machine leave them as they are.",
        "DATABASE_URL REDIS_URL JWT_SECRET TURN_HOST TURN_SECRET TRUSTED_PROXIES MIMU_DATA_DIR",
        first=True,
    ),
    Chapter(
        "Server",
        "",
        "HOST PORT MIMU_ENV LOG_LEVEL PLUGINS_DISABLED DATABASE_MAX_CONNECTIONS ANSWER_BYTES SHUTDOWN_SECONDS",
    ),
    Chapter("Access tokens", "", "JWT_PREVIOUS_SECRETS KEYRING_FILE JWT_* REFRESH_*"),
    Chapter("Encryption keys of clients", "", "SIGNAL_*"),
    Chapter("Calls", "TURN_HOST and TURN_SECRET are at the top.", "TURN_*"),
    Chapter("Files", "Without S3_ENDPOINT files are kept in MIMU_DATA_DIR/files.", "S3_* FILES_*"),
    Chapter(
        "Tiers",
        "What a user may store, such as 50MiB or 1GiB. Change them to fit your disks and prices.",
        "TIER_*_BYTES",
    ),
    Chapter(
        "Subscriptions",
        "Prices, and the providers that confirm payments. Vouchers need none of these.",
        "STRIPE_* BTCPAY_* PAYMENT_* TIER_*_PRICE",
    ),
    Chapter(
        "Push",
        "A provider without a key is off. docs/push.md has the steps for each of them.",
        "APNS_* FCM_* VAPID_* PUSH_*",
    ),
    Chapter(
        "Who may connect",
        "TRUSTED_PROXIES is at the top.",
        "CORS_* MIN_CLIENT_VERSION METRICS_ALLOW AVATAR_*",
    ),
    Chapter(
        "Rate limits",
        "A number per time, such as 5/15 minutes or 3/hour. Raise one if honest users get 429 from it.",
        "RATE_LIMITS RATE_LIMIT_* CALL_WAITING_BYTES",
    ),
    Chapter(
        "Budgets",
        "What one account may use, whatever it does with it. Each is above what the heaviest honest client needs.",
        "BUDGET_* ACCOUNT_SHARE",
    ),
    Chapter(
        "Retention",
        "Whole days. Shorten them to keep less, lengthen them if your users or your law need more.",
        "*_RETENTION_DAYS",
    ),
    Chapter("Traces", "", "OTEL_*"),
)


def sort_into_chapters(readers: Mapping[str, Iterable[str]]) -> list[tuple[Chapter, list[str]]]:
    """Return the chapters that have settings, each with their names. ``readers`` has, for each setting, the features
    that read it, or ``core``.

    A setting is in the chapter that names it, else in the first one with a matching pattern, else in the chapter of its
    first reader: "Server" for the core, or one with the feature's name as its title, which is added if it is missing.
    """
    listed = {pattern for chapter in CHAPTERS for pattern in chapter.patterns}
    result: dict[str, list[str]] = {chapter.title: [] for chapter in CHAPTERS}
    remaining = list(readers)
    for chapter in CHAPTERS:
        for pattern in chapter.patterns:
            matching = [
                name for name in remaining if name == pattern or (name not in listed and fnmatchcase(name, pattern))
            ]
            result[chapter.title] += matching
            remaining = [name for name in remaining if name not in matching]
    for name in remaining:
        reader = next(iter(readers[name]))
        result.setdefault("Server" if reader == "core" else reader.capitalize(), []).append(name)
    by_title = {chapter.title: chapter for chapter in CHAPTERS}
    return [(by_title.get(title, Chapter(title, "", "")), names) for title, names in result.items() if names]


# Variables of docker-compose.yml that the server does not read.
COMPOSE = """\
# --- docker-compose.yml only ------------------------------------------------------------------------------------------
# These are not settings of the server. With Docker, remove the # from the ones you need: Compose makes DATABASE_URL and
# REDIS_URL of the passwords. It also needs JWT_SECRET, TURN_SECRET and TURN_HOST from the top. openssl rand -hex 32
# makes a password.

# Password of PostgreSQL. Required.
#POSTGRES_PASSWORD=
# Password of Redis. Required.
#REDIS_PASSWORD=
# Password of MinIO's administrator. Required.
#MINIO_ROOT_PASSWORD=
# Password of the MinIO user with which the servers reach their bucket, and no other. Required.
#MINIO_PASSWORD=
# Public name of the server, for nginx: mimu.example.org. Required.
#MIMU_HOST=
# Public name of MinIO, where clients upload and download files. Unset: files.MIMU_HOST. S3_PUBLIC_ENDPOINT follows it.
#FILES_HOST=
# Folder with fullchain.pem and privkey.pem for all these names, for nginx and for TURN over TLS;
# readable for user 10001 and group root. Unset: only port 80 is served, and TURN_TLS_PORT must be 0.
#TLS_DIR=
# Another such folder for TURN over TLS alone. Unset: TLS_DIR.
#TURN_TLS_DIR=
# Folder where certbot --webroot puts its challenges. Unset: /var/www/html.
#ACME_DIR=
# PUBLIC_ADDRESS/PRIVATE_ADDRESS, if this machine is behind 1:1 NAT. Unset: it is not.
#TURN_EXTERNAL_IP=
# Another version of PostgreSQL, such as 17-trixie. Set POSTGRES_VOLUME with it (docs/moving.md).
#POSTGRES_TAG=
# A new volume for that version, such as postgres17.
#POSTGRES_VOLUME=
# Another image of MinIO. Unset: the one that was tested.
#MINIO_IMAGE=
"""
