"""Reasons why PostgreSQL or Redis can't be used, found in the causes of an error, with what to do.

The text of an exception may contain a URL with its password, or data of users. Only texts that are known to be safe are
quoted; of other exceptions only the type.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from typing import NamedTuple

MAX_CAUSES = 6  # of an error that are examined
MAX_QUOTE = 200  # characters of a text that are quoted
# SQLSTATE classes whose texts are about a connection or the server, not about a statement: connection, transaction
# state, authorization, no such database, resources, operator intervention, system error.
_QUOTED = ("08", "25", "28", "3D", "53", "57", "58")
# Single SQLSTATEs: no privilege for a function, an unknown setting, one that can't be changed.
_QUOTED_ALSO = ("42501", "42704", "55P02")
# SQLSTATEs by meaning.
NO_SUCH_OBJECT, NO_PRIVILEGE, READ_ONLY_TRANSACTION, NO_SPACE = "42704", "42501", "25006", "53100"
UNKNOWN_COMMAND = "unknown command"  # in place of a code: Redis has none for it

# Errors of ours, whose text is written for the operator.
_OURS = ("Unavailable", "EmbeddedError", "MigrationError", "Clash", "Unfit", "HostAway", "HostRefused")


class Reason(NamedTuple):
    """What is wrong, and what to do."""

    says: str
    do: str


class Unfit(Exception):
    """A service answers, but can't be used. The text is the cause, ``reason`` the known fault, if any."""

    def __init__(self, why: str | Reason) -> None:
        super().__init__(why if isinstance(why, str) else " ".join(why))
        self.reason = None if isinstance(why, str) else why


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    for _ in range(MAX_CAUSES):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def describe_chain(error: BaseException) -> str:
    """Describe an error and its causes, by type and by text if that is safe; our own by their text alone."""
    found = []
    for one in causes(error):
        name, text = type(one).__name__, _text(one)
        found.append(text if text and _ours(one) else f"{name}: {text}" if text else name)
    return " < ".join(dict.fromkeys(found))


def _ours(error: BaseException) -> bool:
    return any(kind.__name__ in _OURS for kind in type(error).__mro__)


def _text(error: BaseException) -> str:
    state = getattr(error, "sqlstate", None)
    if isinstance(error, ssl.SSLCertVerificationError):
        return getattr(error, "verify_message", None) or getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLError):
        return error.reason or ""
    if isinstance(error, OSError):
        return str(error)[:MAX_QUOTE]  # the path, or the address and the port
    if _ours(error):
        return str(error)
    if isinstance(state, str) and (state.startswith(_QUOTED) or state in _QUOTED_ALSO):
        return str(error.args[0] if error.args else "").partition("\n")[0][:MAX_QUOTE]
    if type(error).__module__ == "redis.exceptions":
        return redis_code(error)
    return ""


def redis_code(error: BaseException) -> str:
    """Return the code of an error of Redis, such as READONLY or NOGROUP; empty for an error without one.

    redis-py keeps the codes that it has a type for. For the others only the text exists; its first word is the code.
    An unknown command has the general code ERR and is recognized by its text. The rest of the text is never quoted: it
    may contain a password.
    """
    if not type(error).__module__.startswith("redis."):
        return ""
    code, text = getattr(error, "status_code", None), str(error)
    if isinstance(code, str) and code != "ERR":
        return code
    if "unknown command" in text.lower():
        return UNKNOWN_COMMAND
    found = re.match(r"[A-Z]{3,20}\b", text)
    return found[0] if found else ""


def of_database(error: BaseException) -> Reason | None:
    """Return why PostgreSQL can't be used, or None if the reason is unknown."""
    chain = list(causes(error))
    for one in chain:
        # asyncpg's types are SQLSTATEs; the object of the error is only in its text.
        state, text = getattr(one, "sqlstate", None), str(one.args[0]) if one.args else ""
        if reason := carried(one):
            return reason
        if isinstance(one, ssl.SSLCertVerificationError):
            do = "DATABASE_URL: name its authority with sslrootcert=FILE; the host must be in the certificate."
            return Reason(f"PostgreSQL's certificate is not trusted: {_text(one)}.", do)
        if found := re.search(r"unsupported startup parameter:? \W?(\w+)", text):
            do = (
                "In pgbouncer.ini: ignore_startup_parameters = extra_float_digits, timezone, statement_timeout, "
                "idle_in_transaction_session_timeout, jit, application_name, plan_cache_mode, enable_seqscan, "
                "enable_hashjoin, enable_mergejoin; or set DATABASE_URL to PostgreSQL itself."
            )
            return Reason(f"PgBouncer rejects {found[1]}, which the server sends when it connects.", do)
        if state == NO_SUCH_OBJECT and (
            found := re.search(r'unrecognized configuration parameter "([\w.]{1,63})"', text)
        ):
            do = "DATABASE_URL: remove it; parameters after the ? are sent to PostgreSQL as settings."
            return Reason(f"PostgreSQL has no setting {found[1]}.", do)
        if state == NO_PRIVILEGE and (found := re.search(r"permission denied for function (\w+)", text)):
            do = f"As superuser, in that database: GRANT EXECUTE ON FUNCTION {found[1]}() TO the role of DATABASE_URL;"
            return Reason(f"The role of DATABASE_URL may not call {found[1]}().", do)
        if state == READ_ONLY_TRANSACTION:
            return READ_ONLY
        if state == NO_SPACE:
            return DISK_FULL
    return None


def of_redis(error: BaseException) -> Reason | None:
    """Return why Redis can't be used, or None if the reason is unknown."""
    for one in causes(error):
        if reason := carried(one):
            return reason
        if isinstance(one, ssl.SSLCertVerificationError):
            do = "REDIS_URL: name its authority with rediss://…?ssl_ca_certs=FILE; the host must be in the certificate."
            return Reason(f"The certificate of Redis is not trusted: {_text(one)}.", do)
        if isinstance(one, ssl.SSLError):
            return Reason(
                "This port of Redis has no TLS.", "REDIS_URL: use redis:// without TLS, or the port with TLS."
            )
        if known := BY_CODE.get(CODES.get(type(one).__name__) or redis_code(one)):
            return known
    return None


def carried(error: BaseException) -> Reason | None:
    """Return the reason that an error of ours carries, or None."""
    reason = getattr(error, "reason", None)  # of an SSLError it is a text
    return reason if isinstance(reason, Reason) else None


READ_ONLY = Reason(
    "PostgreSQL accepts no writes: it is a standby, or read-only.",
    "Set DATABASE_URL to the primary; check default_transaction_read_only, and whether its disk is full.",
)
DISK_FULL = Reason(
    "The disk of PostgreSQL is full.",
    "Free space on it; check old logs, and replication slots that hold WAL (SELECT * FROM pg_replication_slots).",
)
STANDBY_AWAY = Reason(
    "A commit waits for a synchronous standby that is away.",
    "Bring the standby back, or remove it from synchronous_standby_names and reload.",
)
REPLICA = Reason("This Redis is a replica, which accepts no writes.", "Set REDIS_URL to the primary.")
LOSING_REPLICA = Reason("This Redis is a replica that accepts writes and loses them.", "Set REDIS_URL to the primary.")
CLUSTER = Reason(
    "This Redis is a node of a Cluster, where Lua scripts with several keys fail.",
    "Set REDIS_URL to a single Redis, or to a primary with replicas.",
)
SENTINEL = Reason(
    "This is the port of a Sentinel, or of another program that stores no data.",
    "Set REDIS_URL to the primary that the Sentinels watch (usually port 6379, not 26379).",
)
FULL = Reason("Redis is full and rejects writes.", "Raise maxmemory, and find what fills it.")

BY_CODE = {
    "READONLY": REPLICA,
    **dict.fromkeys(("MOVED", "ASK", "CLUSTERDOWN", "CROSSSLOT"), CLUSTER),
    UNKNOWN_COMMAND: SENTINEL,
    "OOM": FULL,
    "MISCONF": Reason(
        "Redis can't write to its disk and rejects writes.", "Check whether the disk is full, and its log."
    ),
    "NOREPLICAS": Reason("Redis lacks replicas and rejects writes.", "Check min-replicas-to-write and its replicas."),
}
# redis-py's types for these codes.
CODES = {
    "ReadOnlyError": "READONLY",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "ClusterDownError": "CLUSTERDOWN",
    "ClusterCrossSlotError": "CROSSSLOT",
    "OutOfMemoryError": "OOM",
}


# Faults that alerts distinguish, by the check of /health.
FAULTS: dict[str, dict[str, tuple[Reason, ...]]] = {
    "database": {"read_only": (READ_ONLY,), "disk_full": (DISK_FULL,), "standby_away": (STANDBY_AWAY,)},
    "redis": {"replica": (REPLICA, LOSING_REPLICA), "cluster": (CLUSTER,), "sentinel": (SENTINEL,)},
}


def fault_name(check: str, error: BaseException) -> str | None:
    """Return the name in FAULTS of the reason why a check of ``/health`` fails; None for another reason."""
    known = {"database": of_database, "redis": of_redis}.get(check)
    reason = known(error) if known else None
    return next((name for name, reasons in FAULTS.get(check, {}).items() if reason in reasons), None)


def explain(error: BaseException) -> str:
    """Explain a failed start or check for the log: what is wrong, what to do, and the causes."""
    known = of_database(error) or of_redis(error)
    return f"{known.says} {known.do} ({describe_chain(error)})" if known else describe_chain(error)
