"""Reasons: why PostgreSQL or Redis can't be used, by the errors behind an error, and what is to be done about it.

An exception's own text may quote an address with its password, or what a user sent: only kinds of which that is known
not to be so are quoted, and of the others the type.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from typing import NamedTuple

DEPTH = 6  # errors behind an error that are looked at
LONGEST = 200  # characters of one that are quoted
# SQLSTATE classes that speak of a connection or of the server, and not of what was asked: connection, transaction
# state, authorization, no such database, resources, operator intervention, the system itself.
_QUOTED = ("08", "25", "28", "3D", "53", "57", "58")
# ... and single ones: no privilege for a function, a setting that there is not, one that can't be changed.
_QUOTED_ALSO = ("42501", "42704", "55P02")
# SQLSTATEs by what they mean.
NO_SUCH_OBJECT, NO_PRIVILEGE, READ_ONLY_TRANSACTION, NO_SPACE = "42704", "42501", "25006", "53100"
UNKNOWN_COMMAND = "unknown command"  # in place of a code: Redis has none for it

# Errors of ours, whose text is written for the operator.
_OURS = ("Unavailable", "EmbeddedError", "MigrationError", "Clash", "Unfit", "HostAway", "HostRefused")


class Reason(NamedTuple):
    """What is wrong, and what to do."""

    says: str
    do: str


def behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came of."""
    for _ in range(DEPTH):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def told(error: BaseException) -> str:
    """The error and those behind it, by type and, where it holds no secret, by text; ours by their text alone."""
    found = []
    for one in behind(error):
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
        return str(error)[:LONGEST]  # the path, or the address and the port
    if _ours(error):
        return str(error)
    if isinstance(state, str) and (state.startswith(_QUOTED) or state in _QUOTED_ALSO):
        return str(error.args[0] if error.args else "").partition("\n")[0][:LONGEST]
    if type(error).__module__ == "redis.exceptions":
        return redis_code(error)
    return ""


def redis_code(error: BaseException) -> str:
    """The code of Redis's refusal, such as READONLY or NOGROUP; empty for an error without one.

    redis-py keeps the codes that it has a type for. Of the others it gives only the text, whose first word is the code.
    Redis's codes of its own commands are all ERR, so an unknown command is known by its text. No more of the text is
    ever quoted: it may have a password in it.
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
    """Why PostgreSQL can't be used, where that is known."""
    chain = list(behind(error))
    for one in chain:
        # The types of asyncpg's errors are those of SQLSTATEs; what the error is about is in its text only.
        state, text = getattr(one, "sqlstate", None), str(one.args[0]) if one.args else ""
        if reason := carried(one):
            return reason
        if isinstance(one, ssl.SSLCertVerificationError):
            do = "DATABASE_URL: sslrootcert=FILE names its authority; the host must be one of the certificate's."
            return Reason(f"PostgreSQL's certificate is not trusted: {_text(one)}.", do)
        if found := re.search(r"unsupported startup parameter:? \W?(\w+)", text):
            do = (
                "In pgbouncer.ini: ignore_startup_parameters = extra_float_digits, timezone, statement_timeout, "
                "idle_in_transaction_session_timeout, jit, application_name, plan_cache_mode, enable_seqscan, "
                "enable_hashjoin, enable_mergejoin; or let DATABASE_URL name PostgreSQL itself."
            )
            return Reason(f"PgBouncer refuses {found[1]}, which the server sends when it connects.", do)
        if state == NO_SUCH_OBJECT and (
            found := re.search(r'unrecognized configuration parameter "([\w.]{1,63})"', text)
        ):
            do = "DATABASE_URL: remove it; what follows the ? goes to PostgreSQL as a setting."
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
    """Why Redis can't be used, where that is known."""
    for one in behind(error):
        if reason := carried(one):
            return reason
        if isinstance(one, ssl.SSLCertVerificationError):
            do = "REDIS_URL: rediss://…?ssl_ca_certs=FILE names its authority; the host must be in the certificate."
            return Reason(f"The certificate of Redis is not trusted: {_text(one)}.", do)
        if isinstance(one, ssl.SSLError):
            return Reason("Redis does not speak TLS there.", "REDIS_URL: redis:// without TLS, or the port of TLS.")
        if known := BY_CODE.get(CODES.get(type(one).__name__) or redis_code(one)):
            return known
    return None


def carried(error: BaseException) -> Reason | None:
    """The reason that an error of ours was raised with."""
    reason = getattr(error, "reason", None)  # of an SSLError it is a text
    return reason if isinstance(reason, Reason) else None


READ_ONLY = Reason(
    "PostgreSQL takes no writes: it is a standby, or read-only.",
    "Let DATABASE_URL name the primary; see default_transaction_read_only, and whether its disk is full.",
)
DISK_FULL = Reason(
    "The disk of PostgreSQL is full.",
    "Make room on it; see old logs, and replication slots that hold WAL (SELECT * FROM pg_replication_slots).",
)
STANDBY_AWAY = Reason(
    "A commit waits for a synchronous standby that is away.",
    "Bring the standby back, or take it out of synchronous_standby_names and reload.",
)
REPLICA = Reason("This Redis is a replica, which takes no writes.", "Let REDIS_URL name the primary.")
LOSING_REPLICA = Reason("This Redis is a replica that takes writes, and loses them.", "Let REDIS_URL name the primary.")
CLUSTER = Reason(
    "This Redis is a node of a Cluster, where Lua scripts of several keys fail.",
    "Let REDIS_URL name a single Redis, or a primary with replicas.",
)
SENTINEL = Reason(
    "This is the port of a Sentinel, or of something else that keeps no data.",
    "Let REDIS_URL name the primary that the Sentinels watch (usually port 6379, not 26379).",
)
FULL = Reason("Redis is full, and refuses writes.", "Raise maxmemory, and see what fills it.")

BY_CODE = {
    "READONLY": REPLICA,
    **dict.fromkeys(("MOVED", "ASK", "CLUSTERDOWN", "CROSSSLOT"), CLUSTER),
    UNKNOWN_COMMAND: SENTINEL,
    "OOM": FULL,
    "MISCONF": Reason("Redis can't write to its disk, and refuses writes.", "Is that disk full? Its log says why."),
    "NOREPLICAS": Reason("Redis lacks replicas, and refuses writes.", "See min-replicas-to-write, and its replicas."),
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


# What alerts tell apart: by the check of /health, the names of the faults that it can have.
FAULTS: dict[str, dict[str, tuple[Reason, ...]]] = {
    "database": {"read_only": (READ_ONLY,), "disk_full": (DISK_FULL,), "standby_away": (STANDBY_AWAY,)},
    "redis": {"replica": (REPLICA, LOSING_REPLICA), "cluster": (CLUSTER,), "sentinel": (SENTINEL,)},
}


def fault(check: str, error: BaseException) -> str | None:
    """The name in FAULTS of why a check of ``/health`` fails; None for another reason."""
    known = {"database": of_database, "redis": of_redis}.get(check)
    reason = known(error) if known else None
    return next((name for name, reasons in FAULTS.get(check, {}).items() if reason in reasons), None)


def explained(error: BaseException) -> str:
    """Why a server can't start, or a check fails, for the log: what is wrong, what to do, and the errors behind it."""
    known = of_database(error) or of_redis(error)
    return f"{known.says} {known.do} ({told(error)})" if known else told(error)
