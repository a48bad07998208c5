"""The proxy: the servers behind nginx, its limits for sockets, and the access to the TLS key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

from config.findings import Examination, Finding, StopExamination, good, skipped, weak, wrong
from scripts.checks import nginx_conf
from scripts.checks.access import open_to_others
from scripts.checks.asking import Failed, ask
from scripts.checks.nginx_conf import Directive, Malformed

FILE = Path("/etc/nginx/nginx.conf")
COPY = Path("/etc/mimu/tls/privkey.pem")  # coturn's copy, made by config/deploy/certbot/deploy-hook.sh
LIVE_TIMEOUT = 2.0  # seconds for /health/live to answer
CONNECTIONS = 512  # nginx's own default
READ_TIMEOUT = 60.0  # seconds; nginx's own default
SPARE = 5.0  # seconds by which a ping may come late: the loop, the network
# Connections of a worker; a socket takes two. Twice the numbers of open files in scripts/checks/machine.py.
FEW, ENOUGH = 2 * 1024, 2 * 8192

PARTS = ("file", "servers", "sockets", "connections", "key")


class Site(NamedTuple):
    """Mimu's server block, with the blocks around it, the outermost first."""

    main: Directive
    http: Directive
    server: Directive

    @property
    def name(self) -> str | None:
        """The first name that is not a wildcard."""
        names = [name for one in self.server.all("server_name") for name in one.words]
        return next((name for name in names if name[0].isalnum() and "." in name), None)

    @property
    def port(self) -> int | None:
        """The port of TLS."""
        for one in self.server.all("listen"):
            if "ssl" in one.words:
                text = one.words[0].rpartition(":")[2]
                return int(text) if text.isdecimal() else 443
        return None

    def around(self, path: str) -> list[Directive]:
        """Return the blocks that apply to a request for this path, the outermost first."""
        inner = nginx_conf.location(self.server, path)
        return [self.main, self.http, self.server, *([inner] if inner else [])]


def site(file: Path, host: str | None = None) -> Site | None:
    """Find Mimu's server block: the one for ``host``, else the first with TLS and a location for ``/ws``. Raises
    OSError and Malformed."""
    main = nginx_conf.read(file)
    for http in main.all("http"):
        for server in http.all("server"):
            found = Site(main, http, server)
            names = {name for one in server.all("server_name") for name in one.words}
            own = nginx_conf.location(server, "/ws")
            passed = own is not None and nginx_conf.value("proxy_pass", [own])
            if passed and found.port and (host in names if host else own is not None and own.words[-1] != "/"):
                return found
    return None


def public_url(file: Path) -> str | None:
    """Return the URL at which nginx serves Mimu, or None."""
    try:
        found = site(file)
    except (OSError, Malformed):
        return None
    if found is None or not found.name:
        return None
    return f"https://{found.name}" + (f":{found.port}" if found.port != 443 else "")


def examination(file: Path | None, host: str | None, ping: float) -> Examination:
    """``file`` is nginx.conf, or None if there is none to check; ``ping`` is the number of seconds between two pings of
    a socket."""

    async def look() -> AsyncIterator[Finding]:
        if file is None:
            yield skipped("file", "Development needs no nginx.")
            raise StopExamination("no nginx was named")
        try:
            found = site(file, host) or site(file)
        except FileNotFoundError:
            yield skipped("file", f"{file} does not exist; --nginx FILE names another.")
            raise StopExamination("there is no nginx here") from None
        except (OSError, Malformed) as error:
            yield skipped("file", f"{file} can't be read ({type(error).__name__}).")
            raise StopExamination("its configuration can't be read") from None
        if found is None:
            yield skipped("file", f"{file} has no server with TLS that passes /ws to Mimu.")
            raise StopExamination("it does not serve Mimu") from None
        yield good("file", f"{file} serves {found.name or 'Mimu'}.")
        async for finding in _servers(found):
            yield finding
        yield _sockets(found, ping)
        yield _connections(found)
        for finding in _key(found):
            yield finding

    return Examination("nginx", "nginx", PARTS, look)


async def _servers(found: Site) -> AsyncIterator[Finding]:
    addresses = list(dict.fromkeys(_addresses(found)))
    if not addresses:
        yield skipped("servers", "The doctor can't read how nginx names the servers.")
        return
    alive = await asyncio.gather(*map(_lives, addresses))
    for address, lives in zip(addresses, alive, strict=True):
        if not lives:
            port = address.rpartition(":")[2]
            says = f"No server answers at {address}, to which nginx passes requests."
            yield wrong("servers", says, f"systemctl status mimu@{port}; systemctl restart mimu@{port}")
    if all(alive):
        yield good("servers", f"Servers answer at {', '.join(addresses)}.")


def _addresses(found: Site) -> Iterator[str]:
    """Yield the servers behind ``/ws`` as ``host:port``."""
    target = (nginx_conf.value("proxy_pass", found.around("/ws")) or ("",))[0]
    if not target.startswith("http://") or "$" in target:
        return
    name = target.removeprefix("http://").partition("/")[0]
    upstream = next((one for one in found.http.all("upstream") if one.words == (name,)), None)
    named = [one.words for one in upstream.all("server")] if upstream else [(name,)]
    for words in named:
        if words and "down" not in words and not words[0].startswith("unix:"):
            yield words[0] if ":" in words[0].rpartition("]")[2] else f"{words[0]}:80"


async def _lives(address: str) -> bool:
    try:
        answer = await ask(f"http://{address}/health/live", seconds=LIVE_TIMEOUT)
    except Failed:
        return False
    return answer.status == 200 and answer.json.get("status") == "live"


def _sockets(found: Site, ping: float) -> Finding:
    words = nginx_conf.value("proxy_read_timeout", found.around("/ws"))
    timeout = nginx_conf.seconds(words[0]) if words else READ_TIMEOUT
    if timeout is None:
        return skipped("sockets", "The doctor can't read proxy_read_timeout of /ws.")
    says = f"A socket may be silent for {timeout:g} s (proxy_read_timeout), and is pinged every {ping:g} s"
    if timeout < ping + SPARE:
        do = "In location = /ws: proxy_read_timeout 90s; proxy_send_timeout 90s; then: systemctl reload nginx"
        return wrong("sockets", f"{says}: nginx closes idle sockets.", do)
    return good("sockets", f"{says}.")


def _connections(found: Site) -> Finding:
    events = next(iter(found.main.all("events")), None)
    words = nginx_conf.value("worker_connections", [events]) if events else None
    number = int(words[0]) if words and words[0].isdecimal() else CONNECTIONS
    files = nginx_conf.value("worker_rlimit_nofile", [found.main])
    says = f"worker_connections is {number:,}: {number // 2:,} sockets a worker."
    do = "worker_connections 32768; worker_rlimit_nofile 65536; then: systemctl restart nginx"
    if number < FEW:
        return wrong("connections", says, do)
    if files and files[0].isdecimal() and int(files[0]) < number:
        return weak("connections", f"{says} worker_rlimit_nofile allows only {int(files[0]):,}.", do)
    return good("connections", says) if number >= ENOUGH else weak("connections", says, do)


def _key(found: Site) -> Iterator[Finding]:
    servers = [[found.main, found.http, server] for server in found.http.all("server")]
    names = {words[0] for blocks in servers if (words := nginx_conf.value("ssl_certificate_key", blocks))}
    keys = [Path(name) for name in sorted(names) if name.startswith("/") and "$" not in name]
    if COPY.exists() and COPY not in keys:
        keys.append(COPY)
    exposed = []
    for key in keys:
        try:
            if open_to_others(key):
                exposed.append(key)
        except OSError as error:
            yield skipped("key", f"{key} can't be reached by this user ({type(error).__name__}), nor by others.")
    for key in exposed:
        says = f"The TLS key {key} can be read by every user of this machine."
        yield wrong("key", says, f"Run: chmod o= {key}; then get a new certificate: others may have the key.")
    if keys and not exposed:
        yield good("key", "Other users can't read the TLS key.")
