"""Chapters of the settings: their order and headings in the documents for operators.

The ``description`` of a field in the code explains the setting; ``python -m scripts.configuration_page`` writes
config/env.example and docs/configuration.md from both.
"""

from __future__ import annotations

from typing import NamedTuple


class Chapter(NamedTuple):
    """A heading, a sentence on all its settings, and their names. ``first``: operators fill these in, so env.example
    does not comment them out."""

    title: str
    about: str
    names: str
    first: bool = False

    @property
    def settings(self) -> list[str]:
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
    Chapter("Access tokens", "", "JWT_PREVIOUS_SECRETS KEYRING_FILE JWT_EXPIRATION_HOURS REFRESH_GRACE_SECONDS"),
    Chapter("Encryption keys of clients", "", "SIGNAL_PROFILE"),
    Chapter("Calls", "TURN_HOST and TURN_SECRET are at the top.", "TURN_USERNAME TURN_PORT TURN_TLS_PORT"),
    Chapter(
        "Files",
        "Without S3_ENDPOINT files are kept in MIMU_DATA_DIR/files.",
        "S3_ENDPOINT S3_PUBLIC_ENDPOINT S3_BUCKET S3_REGION S3_PATH_STYLE S3_CREATE_BUCKET S3_ACCESS_KEY "
        "S3_SECRET_KEY FILES_PUBLIC_URL",
    ),
    Chapter(
        "Tiers",
        "What a user may store, such as 50MiB or 1GiB. Change them to fit your disks and prices.",
        "TIER_FREE_FILE_BYTES TIER_FREE_TOTAL_BYTES TIER_PREMIUM_FILE_BYTES TIER_PREMIUM_TOTAL_BYTES "
        "TIER_ULTRA_FILE_BYTES TIER_ULTRA_TOTAL_BYTES",
    ),
    Chapter(
        "Subscriptions",
        "Prices, and the providers that confirm payments. Vouchers need none of these.",
        "STRIPE_SECRET_KEY STRIPE_WEBHOOK_KEY STRIPE_BASE_URL BTCPAY_BASE_URL BTCPAY_STORE_ID BTCPAY_API_KEY "
        "PAYMENT_TIMEOUT_SECONDS TIER_PREMIUM_PRICE TIER_ULTRA_PRICE",
    ),
    Chapter(
        "Push",
        "A provider without a key is off. docs/push.md has the steps for each of them.",
        "APNS_KEY_FILE APNS_KEY_ID APNS_TEAM_ID APNS_TOPIC APNS_BASE_URL FCM_SERVICE_ACCOUNT_FILE FCM_BASE_URL "
        "VAPID_PRIVATE_KEY_FILE VAPID_SUBJECT PUSH_CA_FILE PUSH_ALLOW_PRIVATE",
    ),
    Chapter(
        "Who may connect",
        "TRUSTED_PROXIES is at the top.",
        "CORS_ALLOW_ORIGINS MIN_CLIENT_VERSION METRICS_ALLOW AVATAR_ALLOWED_HOSTS",
    ),
    Chapter(
        "Rate limits",
        "A number per time, such as 5/15 minutes or 3/hour. Raise one if honest users get 429 from it.",
        "RATE_LIMITS RATE_LIMIT_REGISTER RATE_LIMIT_REGISTER_FAILED RATE_LIMIT_AVAILABLE RATE_LIMIT_LOGIN "
        "RATE_LIMIT_REFRESH RATE_LIMIT_REFRESH_UNKNOWN RATE_LIMIT_DELETE RATE_LIMIT_RESET_PASSWORD "
        "RATE_LIMIT_RESET_CHALLENGE RATE_LIMIT_SEARCH RATE_LIMIT_BUNDLE RATE_LIMIT_BUNDLES RATE_LIMIT_PREKEY_UPLOAD "
        "RATE_LIMIT_OFFERS CALL_WAITING_BYTES RATE_LIMIT_PURCHASE RATE_LIMIT_VALIDATE RATE_LIMIT_TURN "
        "RATE_LIMIT_CHATS RATE_LIMIT_CHAT_CHANGES RATE_LIMIT_CHAT_VIEWS RATE_LIMIT_PARTICIPANTS RATE_LIMIT_JOIN "
        "RATE_LIMIT_MESSAGES RATE_LIMIT_PINS RATE_LIMIT_RECEIPTS RATE_LIMIT_SYNC RATE_LIMIT_PUSH RATE_LIMIT_PRESENCE "
        "RATE_LIMIT_SEALED RATE_LIMIT_SEALED_INBOX RATE_LIMIT_FILES RATE_LIMIT_SOCKETS",
    ),
    Chapter(
        "Budgets",
        "What one account may use, whatever it does with it. Each is above what the heaviest honest client needs.",
        "BUDGET_REQUESTS BUDGET_FRAMES BUDGET_BYTES_IN BUDGET_BYTES_OUT BUDGET_TRANSFER BUDGET_ROWS BUDGET_FANOUT "
        "BUDGET_ADDRESS_TIMES ACCOUNT_SHARE",
    ),
    Chapter(
        "Retention",
        "Whole days. Shorten them to keep less, lengthen them if your users or your law need more.",
        "PREKEY_RETENTION_DAYS SESSION_RETENTION_DAYS CALL_RETENTION_DAYS SYNC_RETENTION_DAYS "
        "SUBSCRIPTION_RETENTION_DAYS",
    ),
    Chapter("Traces", "", "OTEL_EXPORTER_OTLP_ENDPOINT"),
)

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
