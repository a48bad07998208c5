"""PostgreSQL: whether it is reachable, migrated, durable, and has enough connections for the servers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg

from config import embedded, reasons
from config.findings import Examination, Finding, StopExamination, clock, good, skipped, weak, wrong
from config.settings import Core
from models.database import Database, Unavailable
from models.postgres import migrations
from models.postgres.cluster import Cluster
from models.postgres.hosts import HostAway, dial, hosts
from models.postgres.identity import Identity
from scripts import command
from scripts.checks import replication
from scripts.checks.disk import room

DATABASE_TIMEOUT = 5  # seconds to connect, and for each answer
MINIMUM = 160_000  # server_version_num
COMMITS = 15
# Milliseconds. A message is acked after its commit, which takes 1 on a local SSD, 5 on a cloud disk, 10 on a hard disk.
SLOW_COMMIT = 20
IDLE = 60  # seconds; our servers end a transaction that is idle for 10
LONG = 600  # seconds; /sync hides everything newer than the oldest writing transaction
ALIVE = 40  # seconds since an instance's last heartbeat (models/presence.py)
WRAPAROUND = 1_000_000_000  # transactions of 2 billion; autovacuum acts at 200 million
JOURNAL = 1  # connection outside the pool, for messages
_ALIVE = "SELECT count(*) FROM instances WHERE beat_at > now() - make_interval(secs => $1)"
# Sorts on the disk, because it exceeds work_mem; leaves nothing there.
_SPILL = "SELECT count(*) FROM (SELECT repeat(md5(n::text), 8) FROM generate_series(1, 4000) AS n ORDER BY 1) AS r"

PARTS = (
    "reachable",
    "as the server",
    "version",
    "primary",
    "encryption",
    "migrations",
    "durability",
    "isolation",
    "checksums",
    "replication",
    "instances",
    "connections",
    "clock",
    "transactions",
    "vacuum",
    "commits",
    "room",
)


def examination(core: Core, instances: int | None = None) -> Examination:
    """``instances`` is the expected number of servers, if the operator named it."""

    async def look() -> AsyncIterator[Finding]:
        dsn = core.database_url.get_secret_value() if core.database_url else embedded.postgres_of(core.mimu_data_dir)
        if dsn is None:
            yield skipped(
                "reachable", "DATABASE_URL is unset, and the embedded PostgreSQL runs only while its server runs."
            )
            raise StopExamination("PostgreSQL does not run")
        begun = time.monotonic()
        try:
            settings = {"application_name": "mimu-doctor", "timezone": "UTC"}
            cluster = await command.cluster(core)
            if len(cluster.hosts) > 1:
                async for finding in _hosts(cluster):
                    yield finding
            # A single host that is a standby is a finding; the examination goes on.
            connect = cluster.connect if len(cluster.hosts) > 1 else partial(dial, cluster.dsn, cluster.hosts[0])
            connection = await connect(
                timeout=DATABASE_TIMEOUT, command_timeout=DATABASE_TIMEOUT, server_settings=settings
            )
        except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            yield wrong("reachable", *_refused(error))
            raise StopExamination("PostgreSQL can't be reached") from None
        took = (time.monotonic() - begun) * 1e3
        try:
            yield good("reachable", f"The connection was accepted after {took:.0f} ms.")
            yield await _as_the_server(dsn)
            for part in (_version, _primary, _encryption, _migrations, _durability, _isolation, _checksums):
                async for finding in part(connection):
                    yield finding
            async for finding in replication.findings(connection):
                yield finding
            yield await _instances(connection, instances)
            async for finding in _connections(connection, core.database_max_connections + JOURNAL):
                yield finding
            for part in (_clock, _transactions, _vacuum, _commits):
                async for finding in part(connection):
                    yield finding
            own = None if core.database_url else core.mimu_data_dir / "postgres"
            async for finding in _room(connection, own):
                yield finding
        except asyncpg.DiskFullError as error:
            yield wrong("room", *_refused(error))
            raise StopExamination("its disk is full") from None
        except (asyncpg.ConnectionDoesNotExistError, asyncpg.InterfaceError, OSError):
            raise StopExamination("PostgreSQL closed the connection") from None
        finally:
            connection.terminate()

    several = core.database_url is not None and len(hosts(core.database_url.get_secret_value())) > 1
    return Examination("database", "PostgreSQL", ("hosts", *PARTS) if several else PARTS, look)


async def _hosts(cluster: Cluster) -> AsyncIterator[Finding]:
    """Check which hosts answer, and that at most one of them accepts writes."""
    identities = await asyncio.gather(
        *(cluster.identify_host(host, DATABASE_TIMEOUT) for host in cluster.hosts), return_exceptions=True
    )
    answers = list(zip(cluster.hosts, identities, strict=True))
    primaries = [(host, seen) for host, seen in answers if isinstance(seen, Identity) and not seen.standby]
    silent = [str(host) for host, seen in answers if isinstance(seen, BaseException)]
    behind = [(host, cluster.fence.judge(seen)) for host, seen in primaries]
    stale = [f"{host} ({reason})" for host, reason in behind if reason]
    names = ", ".join(f"{host} (timeline {seen.timeline})" for host, seen in primaries)
    if len({(seen.system, seen.timeline, seen.database, seen.epoch) for _, seen in primaries}) > 1 or stale:
        says = f"More than one database accepts writes, or a former one does: {names}."
        yield wrong("hosts", says, "Stop the one that is not in use, and turn it into a standby: docs/operations.md.")
    elif silent:
        do = "Start it; until then one host fewer can take over."
        yield weak("hosts", f"No answer from {', '.join(silent)}.", do)
    elif not primaries:
        yield wrong("hosts", "All hosts are standbys.", "Promote one of them.")
    else:
        yield good("hosts", f"{names} accepts writes, and {len(answers) - 1} more can take over.")


def _refused(error: Exception) -> tuple[str, str]:
    """Return what is wrong and what to do, by the type of the error: its text may contain the URL."""
    if known := reasons.of_database(error):
        return known
    if isinstance(error, HostAway) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if isinstance(error, asyncpg.InvalidPasswordError | asyncpg.InvalidAuthorizationSpecificationError):
        return "PostgreSQL rejects the user or the password of DATABASE_URL.", "Compare it with pg_hba.conf."
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return "PostgreSQL has no database of the name in DATABASE_URL.", "Create it: createdb, owned by that user."
    if isinstance(error, asyncpg.TooManyConnectionsError):
        return "PostgreSQL has no connection left.", "Raise max_connections, or lower DATABASE_MAX_CONNECTIONS."
    if isinstance(error, asyncpg.CannotConnectNowError):
        return "PostgreSQL is starting or stopping.", "Try again in a minute; its log says what it does."
    if isinstance(error, socket.gaierror):
        return "The host of DATABASE_URL has no address.", "Check its name, and that DNS works here."
    name = type(error).__name__
    return f"PostgreSQL can't be reached ({name}).", "Check that it runs, and check DATABASE_URL and firewalls."


async def _as_the_server(dsn: str) -> Finding:
    """Connect with the startup parameters of a server, which a pooler in between may reject."""
    try:
        async with Database(dsn, 2, name="mimu-doctor").open() as db:
            await db.value("SELECT database_place()")
    except asyncpg.UndefinedFunctionError:  # no schema yet; _migrations reports that
        return good("as the server", "A server can connect.")
    except (Unavailable, asyncpg.PostgresError) as error:
        known = reasons.of_database(error)
        if known is None:
            known = reasons.Reason(f"A server's connection fails: {reasons.describe_chain(error)}.", "See its log.")
        return wrong("as the server", *known)
    return good("as the server", "A server can connect, and has the rights that it needs.")


async def _version(connection: Any) -> AsyncIterator[Finding]:
    number = int(await connection.fetchval("SHOW server_version_num"))
    name = (await connection.fetchval("SHOW server_version")).split()[0]
    if number < MINIMUM:
        yield wrong("version", f"PostgreSQL {name} is too old.", "Upgrade it to 16 or newer.")
    else:
        yield good("version", f"PostgreSQL {name}.")


async def _primary(connection: Any) -> AsyncIterator[Finding]:
    if await connection.fetchval("SELECT pg_is_in_recovery()"):
        yield wrong("primary", "This is a standby, which accepts no writes.", "Set DATABASE_URL to the primary.")
        raise StopExamination("it is a standby")
    if await connection.fetchval("SHOW default_transaction_read_only") == "on":
        yield wrong("primary", "Transactions are read-only.", "Switch default_transaction_read_only off.")
    else:
        yield good("primary", "It accepts writes.")


async def _encryption(connection: Any) -> AsyncIterator[Finding]:
    row = await connection.fetchrow(
        """SELECT ssl, inet_server_addr() IS NULL OR inet_server_addr() << '127.0.0.0/8'
                  OR inet_server_addr() = '::1' AS here
           FROM pg_stat_ssl WHERE pid = pg_backend_pid()"""
    )
    if row["ssl"]:
        yield good("encryption", "The connection is encrypted.")
    elif row["here"]:
        yield good("encryption", "The connection stays on this machine.")
    else:
        do = "Add sslmode=verify-full to DATABASE_URL, unless you alone use that network."
        yield weak("encryption", "The connection crosses a network unencrypted.", do)


async def _migrations(connection: Any) -> AsyncIterator[Finding]:
    known = set(migrations.versions())
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        yield wrong("migrations", "The database is empty.", "Run: python -m scripts.migrate")
        return
    has = {row["version"] for row in await connection.fetch("SELECT version FROM schema_migrations")}
    if known - has:
        names = ", ".join(sorted(known - has))
        yield wrong("migrations", f"The database lacks {names}, so no server starts.", "Run: python -m scripts.migrate")
    elif has - known:
        names = ", ".join(sorted(has - known))
        yield weak("migrations", f"The database has {names} of a newer release.", "Upgrade this installation as well.")
    else:
        yield good("migrations", f"All {len(known)} migrations are applied.")


async def _durability(connection: Any) -> AsyncIterator[Finding]:
    settings = ("fsync", "full_page_writes", "synchronous_commit")
    off = [name for name in settings if await connection.fetchval(f"SHOW {name}") == "off"]
    if off:
        do = "Switch it on, also for this role and database (ALTER ROLE, ALTER DATABASE)."
        yield wrong("durability", f"{' and '.join(off)} is off: acknowledged messages may be lost.", do)
    else:
        yield good("durability", "Commits are on the disk before they are acknowledged.")


async def _isolation(connection: Any) -> AsyncIterator[Finding]:
    # The value of a server's connections: for this role, in this database.
    row = await connection.fetchrow(
        """SELECT setting, source, quote_ident(current_user) AS role, quote_ident(current_database()) AS name
           FROM pg_settings WHERE name = 'default_transaction_isolation'"""
    )
    if row["setting"] == "read committed":
        yield good("isolation", "Transactions are read committed.")
        return
    setting, role, name = "default_transaction_isolation", row["role"], row["name"]
    where = {
        "user": f"ALTER ROLE {role} RESET {setting};",
        "database": f"ALTER DATABASE {name} RESET {setting};",
        "database user": f"ALTER ROLE {role} IN DATABASE {name} RESET {setting};",
        "client": f"DATABASE_URL: remove {setting};",
    }
    says = f"Transactions are {row['setting']}: concurrent ones fail, and clients receive errors."
    do = where.get(row["source"], f"{setting} = 'read committed' in postgresql.conf, and reload;")
    yield wrong("isolation", says, f"{do} then restart the servers one by one.")


async def _checksums(connection: Any) -> AsyncIterator[Finding]:
    if await connection.fetchval("SHOW data_checksums") == "on":
        yield good("checksums", "Pages have checksums.")
    else:
        do = "Stop PostgreSQL and run pg_checksums --enable."
        yield weak("checksums", "Pages have no checksums: nothing detects a broken disk.", do)


async def _instances(connection: Any, expected: int | None) -> Finding:
    if await connection.fetchval("SELECT to_regclass('instances')") is None:
        return skipped("instances", "There is no schema yet.")
    alive = await connection.fetchval(_ALIVE, ALIVE)
    says = f"{alive} server{'s' if alive != 1 else ''} sent a heartbeat in the last {ALIVE} s"
    if expected is None:
        return skipped("instances", f"{says}; --instances N sets the expected number.")
    if alive < expected:
        do = "Check systemctl status 'mimu@*' or docker compose ps, and start those that are down."
        return wrong("instances", f"{says}, and {expected} are expected.", do)
    return good("instances", f"{says}.")


async def _connections(connection: Any, own: int) -> AsyncIterator[Finding]:
    row = await connection.fetchrow(
        """SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
                  - coalesce(current_setting('reserved_connections', true)::int, 0) AS all_, rolconnlimit, datconnlimit
           FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()"""
    )
    limits = [row["all_"], *(limit for limit in (row["rolconnlimit"], row["datconnlimit"]) if limit >= 0)]
    servers = 1
    if await connection.fetchval("SELECT to_regclass('instances')") is not None:
        servers = max(1, await connection.fetchval(_ALIVE, ALIVE))
    needed = servers * own
    says = f"{min(limits)} connections for {servers} server{'s' * (servers > 1)} with {own} each"
    do = "Raise max_connections (or the role's limit), or lower DATABASE_MAX_CONNECTIONS."
    if needed > min(limits):
        yield wrong("connections", f"{says}: too few.", do)
    elif needed + own > min(limits):
        yield weak("connections", f"{says}: too few in an upgrade, when one more server may run.", do)
    else:
        yield good("connections", f"{says}: enough for one more server in an upgrade.")


async def _clock(connection: Any) -> AsyncIterator[Finding]:
    begun = time.time()
    theirs = float(await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())"))
    yield clock("clock", theirs - (begun + time.time()) / 2, "PostgreSQL")


async def _transactions(connection: Any) -> AsyncIterator[Finding]:
    # Only superusers and pg_read_all_stats see the state of other roles' transactions.
    row = await connection.fetchrow(
        """SELECT count(*) FILTER (WHERE state LIKE 'idle in transaction%'
                                   AND now() - state_change > make_interval(secs => $1)) AS idle,
                  count(*) FILTER (WHERE now() - xact_start > make_interval(secs => $2)) AS long,
                  (SELECT count(*) FROM pg_prepared_xacts
                   WHERE database = current_database() AND now() - prepared > make_interval(secs => $1)) AS prepared
           FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()""",
        IDLE,
        LONG,
    )
    stuck = "vacuum waits for them, and so does /sync if they have written."
    if row["prepared"]:
        do = "See pg_prepared_xacts: COMMIT PREPARED or ROLLBACK PREPARED."
        yield wrong("transactions", f"{row['prepared']} prepared transactions were never finished: {stuck}", do)
    elif row["idle"] or row["long"]:
        do = "Find them in pg_stat_activity, and end them: pg_terminate_backend(pid)."
        number = max(row["idle"], row["long"])
        yield weak("transactions", f"{number} transactions have been open for minutes: {stuck}", do)
    else:
        yield good("transactions", "No transaction has been open for long.")


async def _vacuum(connection: Any) -> AsyncIterator[Finding]:
    if await connection.fetchval("SHOW autovacuum") == "off":
        yield wrong("vacuum", "autovacuum is off: tables grow, and one day the database stops.", "Switch it on.")
        return
    age = await connection.fetchval("SELECT age(datfrozenxid) FROM pg_database WHERE datname = current_database()")
    if age > WRAPAROUND:
        do = "Find out what blocks autovacuum, and run: VACUUM"
        yield wrong("vacuum", f"{age:,} transactions since the last freeze; at 2 billion PostgreSQL stops.", do)
    else:
        yield good("vacuum", "Autovacuum keeps up.")


async def _commits(connection: Any) -> AsyncIterator[Finding]:
    # Leaves only a record in the WAL, and waits for it like the commit of a message.
    took = []
    try:
        for _ in range(COMMITS):
            begun = time.perf_counter()
            await connection.execute("SELECT pg_logical_emit_message(true, 'mimu-doctor', '')")
            took.append((time.perf_counter() - begun) * 1e3)
    except asyncpg.InsufficientPrivilegeError:
        yield skipped("commits", "This role may not write a record into the WAL.")
        return
    except TimeoutError:
        says, do = (
            f"A commit did not finish within {DATABASE_TIMEOUT} s: messages can't be stored.",
            "Check whether its disk hangs.",
        )
        if await connection.fetchval("SHOW synchronous_standby_names"):
            says, do = f"{says} It waits for a synchronous standby that is away.", reasons.STANDBY_AWAY.do
        yield wrong("commits", says, do)
        return
    middle = statistics.median(took)
    if middle > SLOW_COMMIT:
        says = f"A commit takes {middle:.0f} ms, and every message waits for one."
        yield weak("commits", says, "Give PostgreSQL a faster or a dedicated disk.")
    else:
        yield good("commits", f"A commit takes {middle:.1f} ms.")


async def _room(connection: Any, folder: Path | None) -> AsyncIterator[Finding]:
    await _spill(connection)  # a commit may need no new space, and succeed on a full disk
    size = await connection.fetchval("SELECT pg_database_size(current_database())")
    if folder is None:
        with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
            folder = Path(await connection.fetchval("SHOW data_directory"))
    # This machine may have an unrelated folder of that name: check that it is PostgreSQL's.
    if folder is None or (not (folder / "data").exists() and not (folder / "PG_VERSION").exists()):
        yield skipped("room", f"The database takes {size >> 20} MiB; its disk is not visible from here.")
    else:
        yield room("room", folder, f"The database takes {size >> 20} MiB; ")


async def _spill(connection: Any) -> None:
    """Make PostgreSQL write a MiB to the disk of its tables. Raises DiskFullError."""
    with contextlib.suppress(asyncpg.ConfigurationLimitExceededError):  # temp_file_limit
        async with connection.transaction():
            await connection.execute("SET LOCAL work_mem = '64kB'")
            await connection.execute("SET LOCAL temp_tablespaces = ''")
            await connection.fetchval(_SPILL)
