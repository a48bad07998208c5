"""Settings that a server accepts but an operator should change."""

from __future__ import annotations

import contextlib
import difflib
import grp
import ipaddress
import os
import pwd
import re
import stat
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dotenv import dotenv_values
from pydantic import SecretStr

from config import secrets
from config.findings import Examination, Finding, StopExamination, good, skipped, weak, wrong
from config.settings import PRIVATE_NETWORKS
from config.values import Network

PASSWORD = 16  # characters of a password between machines: an attacker in that network can try without a limit
# Defaults of images and guides.
DEFAULTS = ("minioadmin", "postgres", "redis", "mimu", "admin", "test", "guest")
# Read by docker-compose.yml, by the server under another name, or by the libraries of Python and OpenSSL.
ELSEWHERE = {
    "MINIO_IMAGE",
    "MINIO_PASSWORD",
    "MINIO_ROOT_PASSWORD",
    "POSTGRES_PASSWORD",
    "REDIS_PASSWORD",
    "RUST_LOG",
    "TURN_EXTERNAL_IP",
    "TURN_TLS_DIR",
}
WIDE = {4: 8, 6: 32}  # bits of the prefix; a larger network is surely a mistake

PARTS = ("values", "names", "secrets", "proxies", "metrics", "addresses", "files")


def examination(named: Mapping[str, Any], values: Mapping[str, str], env_file: Path) -> Examination:
    """``named`` are the parsed settings by name; ``values`` are their texts."""

    async def look() -> AsyncIterator[Finding]:
        yield good("values", f"All {len(named)} settings are valid.")
        for part, found in (
            ("names", _names(named, env_file)),
            ("secrets", _secrets(named, values)),
            ("proxies", _proxies(named)),
            ("metrics", _metrics(named)),
            ("addresses", _addresses(named)),
            ("files", _files(named, values, env_file)),
        ):
            bad = list(found)
            for finding in bad or [good(part, WELL[part])]:
                yield finding

    return Examination("settings", "Settings", PARTS, look)


def unusable(faults: tuple[str, ...]) -> Examination:
    """Report settings with which no server starts."""

    async def look() -> AsyncIterator[Finding]:
        for fault in faults:
            yield wrong("values", fault, "Correct it; python server.py --check-config checks only the settings.")
        raise StopExamination("the settings can't be used")

    return Examination("settings", "Settings", PARTS, look)


WELL = {
    "names": "The file has only known settings.",
    "secrets": "Passwords and keys are long and different.",
    "proxies": "TRUSTED_PROXIES is narrow.",
    "metrics": "/metrics is open to private networks only.",
    "addresses": "The addresses for clients are public.",
    "files": "Other users can't read files with secrets.",
}


def _names(named: Mapping[str, Any], env_file: Path) -> Iterator[Finding]:
    if not env_file.is_file():
        yield skipped("names", f"There is no file {env_file}; all settings come from the environment.")
        return
    for name in dotenv_values(env_file, interpolate=False):
        if name.upper() not in named and name.upper() not in ELSEWHERE:
            near = difflib.get_close_matches(name.upper(), named, 1)
            do = f"Is it {near[0]}?" if near else "Remove it, or find its name in docs/configuration.md."
            yield weak("names", f"{name} is not a setting and is ignored.", do)


def _production(named: Mapping[str, Any]) -> bool:
    return bool(named["MIMU_ENV"] == "production")


def _secrets(named: Mapping[str, Any], values: Mapping[str, str]) -> Iterator[Finding]:
    if not _production(named):
        if named.get("DATABASE_URL"):
            do = "Unset MIMU_ENV, unless this is a test."
            yield weak("secrets", "MIMU_ENV is development although DATABASE_URL is set: secrets are not checked.", do)
        signing = {name: values[name] for name in ("JWT_SECRET", "TURN_SECRET") if values.get(name)}
        for fault in secrets.faults(signing):
            yield weak("secrets", fault, "Production does not start with it.")
    given = {name: value.get_secret_value() for name, value in named.items() if isinstance(value, SecretStr)}
    known = {
        name: secret for name, secret in given.items() if secret.strip("-")
    }  # dashes stand for a secret that is not made yet
    urls = ["DATABASE_URL", "REDIS_URL"]
    passwords = {name: _password(known.pop(name)) for name in urls if name in known}
    for name, (password, reaches) in passwords.items():
        if password is None:
            if reaches:
                do = "Set one there, and add it to the URL."
                yield weak("secrets", f"{name} has no password: anyone who reaches that port can do anything.", do)
            continue
        known[name] = password
    for name, secret in known.items():
        if secret.lower() in DEFAULTS or secret.lower().startswith("change"):
            yield wrong("secrets", f"The password in {name} is a well-known default.", "openssl rand -hex 32")
        elif name in (*passwords, "S3_SECRET_KEY") and len(secret) < PASSWORD:
            yield weak("secrets", f"The password in {name} has {len(secret)} characters.", "openssl rand -hex 32")
    by_value: dict[str, list[str]] = {}
    for name, secret in known.items():
        by_value.setdefault(secret, []).append(name)
    for names in by_value.values():
        if len(names) > 1:
            do = "Use a different secret for each: openssl rand -hex 32"
            yield weak("secrets", f"{' and '.join(names)} are the same: anyone who learns one has the other.", do)


def _password(url: str) -> tuple[str | None, bool]:
    """Return the password in a URL, and True if other machines can reach its host."""
    parts = urlsplit(url)
    local = parts.scheme == "unix" or (parts.hostname or "") in ("", "localhost", "127.0.0.1", "::1")
    return (unquote(parts.password) if parts.password else None), not local


def _proxies(named: Mapping[str, Any]) -> Iterator[Finding]:
    trusted = named["TRUSTED_PROXIES"]
    do = "Name the proxy's address only: TRUSTED_PROXIES=127.0.0.1/32"
    if not trusted and _production(named):
        says = (
            "TRUSTED_PROXIES is empty: behind a proxy all users share its address, and its three registrations an hour."
        )
        yield weak("proxies", says, do)
    for network in trusted:
        if network.prefixlen < WIDE[network.version]:
            says = f"TRUSTED_PROXIES names {network}: any client can forge its address."
            yield wrong("proxies", says, do)
        elif network.is_global and network.num_addresses > 256:
            yield weak("proxies", f"TRUSTED_PROXIES names {network}, a large public network.", do)


def _metrics(named: Mapping[str, Any]) -> Iterator[Finding]:
    own = [ipaddress.ip_network(text) for text in PRIVATE_NETWORKS.split(",")]
    for network in named["METRICS_ALLOW"]:
        if network.prefixlen < WIDE[network.version] and not any(_within(network, one) for one in own):
            do = "Name the network of Prometheus only."
            yield wrong("metrics", f"METRICS_ALLOW names {network}: anyone can read /metrics.", do)


def _within(network: Network, other: Network) -> bool:
    return network.version == other.version and network.prefixlen >= other.prefixlen and network[0] in other


def _addresses(named: Mapping[str, Any]) -> Iterator[Finding]:
    if not _production(named):
        return
    if named.get("TURN_HOST") in ("localhost", "127.0.0.1", "::1"):
        do = "Set it to the public name of the machine that coturn runs on, or PLUGINS_DISABLED=turn."
        yield wrong("addresses", "TURN_HOST is a name of this machine that no phone can resolve.", do)
    if named.get("S3_ENDPOINT"):
        public = named["S3_PUBLIC_ENDPOINT"] or named["S3_ENDPOINT"]
        host = urlsplit(public).hostname or ""
        if _private(host):
            do = "Set S3_PUBLIC_ENDPOINT to the URL that clients use."
            yield wrong("addresses", f"The URLs of files lead to {host}, which clients can't reach.", do)
        elif public.startswith("http:"):
            do = "Let a proxy terminate TLS, and set S3_PUBLIC_ENDPOINT to an https URL."
            yield wrong("addresses", "Clients load files unencrypted, by URLs with which anyone can read them.", do)
    if (named.get("FILES_PUBLIC_URL") or "").startswith("http:"):
        yield wrong("addresses", "FILES_PUBLIC_URL is not https.", "Set it to the https URL of the server.")
    if named.get("PUSH_ALLOW_PRIVATE"):
        says = "PUSH_ALLOW_PRIVATE is on: users choose Web Push endpoints, and can choose machines in your network."
        yield wrong("addresses", says, "Remove it; it is for tests.")
    for name in ("APNS_BASE_URL", "FCM_BASE_URL", "STRIPE_BASE_URL"):
        if named.get(name):
            says = f"{name} is set, so requests do not go to the provider itself."
            yield weak("addresses", says, "Remove it, unless it is your own proxy.")


def _private(host: str) -> bool:
    """True if the host is known in a private network only: a private address, or a name without a dot."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or bool(re.search(r"\.(local|internal|lan|home\.arpa|localhost)$", host))


def _files(named: Mapping[str, Any], values: Mapping[str, str], env_file: Path) -> Iterator[Finding]:
    # From the texts: the parsed value of a key file is the key, not the path.
    given = [Path(values[name]) for name in named if name.endswith("_FILE") and values.get(name)]
    paths = [env_file, *given]
    with contextlib.suppress(OSError):  # the folder does not exist, or is closed to us and so to others
        paths += sorted((named["MIMU_DATA_DIR"] / "secrets").iterdir())
    for path in (path for path in dict.fromkeys(paths) if path.suffix != ".lock"):  # lock files are empty
        with contextlib.suppress(OSError):
            held = path.stat()
            mode = stat.S_IMODE(held.st_mode) if stat.S_ISREG(held.st_mode) else 0
            # A certificate is public; the other files are keys.
            if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP) and path != named.get("PUSH_CA_FILE"):
                says = f"{path} is open to more than its owner ({mode:04o})."
                yield wrong("files", says, _closed(path, held, _server(named["MIMU_DATA_DIR"])))


def _server(data: Path) -> tuple[int, int]:
    """Return the user and group of the servers: those of the data folder, else ours."""
    with contextlib.suppress(OSError):
        held = data.stat()
        return held.st_uid, held.st_gid
    return os.geteuid(), os.getegid()


def _closed(path: Path, held: os.stat_result, server: tuple[int, int]) -> str:
    """Return a command that closes the file but lets the servers' user read it: with mode 600 on a file of root,
    servers and scripts would exit with 78."""
    uid, gid = server
    if held.st_gid != _own_group(held.st_uid):  # set on purpose, such as root:mimu
        return f"Run: chmod g-w,o= {path}"
    if held.st_uid == uid:
        return f"Run: chmod 600 {path}"
    return f"Run: chgrp {_group(gid)} {path} && chmod 640 {path}"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _own_group(uid: int) -> int | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_gid
    return None
