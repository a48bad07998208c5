"""Write a coturn configuration with the present TURN secrets: ``python -m scripts.turnserver_conf --output FILE``.

An existing file is replaced, but the operator's changes stay: owner, group and mode, and every line except the secrets.
Secrets come from Mimu's settings alone. Comments are those of turnserver.conf.

With ``--networks`` it writes the shipped file, without secrets, with the networks of config/networks.py.

During a rotation the file has both secrets; write it again and restart coturn when the old one has expired.
"""

from __future__ import annotations

import argparse
import contextlib
import grp
import ipaddress
import json
import os
import pwd
import re
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # python scripts/turnserver_conf.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import networks, settings
from config.keyring import Key, KeyringFile
from config.settings import Core, environment
from scripts import command
from scripts.rotate_keys import configured

TEMPLATE = Path(__file__).resolve().parent.parent / "turnserver.conf"
CHECK = TEMPLATE.parent / "config" / "deploy" / "coturn" / "check.sh"
ACCOUNT = "turnserver"  # the user of Debian's package
SECRET, DENIED = "static-auth-secret", "denied-peer-ip"
PLACEHOLDER = f"#{SECRET}="
KEPT = "# --- Kept from the file that this one replaced " + "-" * 70
BEGIN, END = (f"# --- networks of config/networks.py: {end}\n" for end in ("begin", "end"))
WIDTH = 118

IPV4 = "IPv4: everything that isn't globally reachable unicast (IANA's special-purpose registry, RFC 6890)."
IPV6 = "IPv6: only 2000::/3 is global unicast, so everything below and above it is denied."
SIXTEEN = (
    "Sixteen lines for one range: before 4.16 coturn compares each byte of an address separately, so "
    '"::1-1fff:..." permits every address that ends in 00. Each line denies the addresses in which one certain byte is '
    'not 0. A range from "::" does not work: coturn treats it as one without a lower bound, and denies all of IPv4 too.'
)


def denied() -> str:
    """Return the lines that deny relayed calls to networks that are not public."""
    lines = [_comment(IPV4)]
    for special in networks.SPECIAL4:
        lines += [_comment(special.what), *map(_range, special.networks)]
    lines += ["", _comment(IPV6)]
    for special in networks.SPECIAL6:
        lines.append(_comment(special.what))
        for name in special.networks:
            lines += [_comment(SIXTEEN), *_bytewise(name)] if name == networks.BELOW else [_range(name)]
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent="# ", subsequent_indent="# ")


def _range(name: str) -> str:
    network = ipaddress.ip_network(name)
    first, last = network.network_address, network.broadcast_address
    return f"denied-peer-ip={first}" if first == last else f"denied-peer-ip={first}-{last}"


def _bytewise(name: str) -> list[str]:
    last = ipaddress.ip_network(name).broadcast_address
    return [f"denied-peer-ip={ipaddress.IPv6Address(1 << bits)}-{last}" for bits in range(120, -1, -8)]


def with_networks(template: str) -> str:
    """Return the template with the networks of config/networks.py."""
    before, _, rest = template.partition(BEGIN)
    return before + BEGIN + denied() + END + rest.partition(END)[2]


def lines_of(text: str) -> list[tuple[str, str]]:
    """Return the options of a configuration, each as its name and its line. As in coturn, a name ends at "=", at a
    space or at the end of the line."""
    written = (line.strip() for line in text.splitlines())
    return [(re.split(r"[=\s]", line, maxsplit=1)[0], line) for line in written if line and line[0] != "#"]


def render(template: str, secrets: Sequence[str], before: str = "", **options: str | None) -> str:
    """Return the template with a line for each secret. An option has its value in ``options`` (``external_ip``, …),
    else its lines in the file ``before``, else those of the template. Further options of that file are at the end."""
    shipped = with_networks(template)
    kept: dict[str, list[str]] = {}
    for name, line in lines_of(before):
        kept.setdefault(name, []).append(line)
    for name in (SECRET, DENIED):  # secrets come from the settings, and networks are merged below
        kept.pop(name, None)
    kept |= {name.replace("_", "-"): [f"{name.replace('_', '-')}={value}"] for name, value in options.items() if value}
    written, placed = [], set()
    for line in shipped.splitlines():
        name = line.lstrip("#").partition("=")[0]
        if line.startswith(PLACEHOLDER):
            written += [f"{SECRET}={secret}" for secret in secrets]
        elif name in kept and "=" in line:
            written += [] if name in placed else kept[name]
            placed.add(name)
        else:
            written.append(line)
    has = {name for name, _ in lines_of("\n".join(written))}
    known = {line for _, line in lines_of(shipped)}
    added = [line for name, lines in kept.items() if name not in has for line in lines]
    added += [line for name, line in lines_of(before) if name == DENIED and line not in known]
    return "\n".join(written + (["", KEPT, *dict.fromkeys(added)] if added else [])) + "\n"


class Owner(NamedTuple):
    """The owner, group and mode of a file."""

    uid: int
    gid: int
    mode: int


def owner(path: Path, user: str | None) -> Owner:
    """Return the owner of the configuration. With ``user`` it is root, and that user's group may read it; else it
    stays; else, if root writes the file on a machine with coturn's user, it is that user. Raises KeyError."""
    if user is not None:
        return Owner(os.geteuid(), pwd.getpwnam(user).pw_gid, 0o640)
    if path.exists():
        status = path.stat()
        return Owner(status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(ACCOUNT)
            return Owner(account.pw_uid, account.pw_gid, 0o600)
    return Owner(os.geteuid(), os.getegid(), 0o600)


def readable(path: Path, user: str) -> bool:
    """True if a user can read a file, by its owner, its group and its mode. Raises KeyError, OSError."""
    account, status = pwd.getpwnam(user), path.stat()
    if account.pw_uid == status.st_uid:
        return bool(status.st_mode & stat.S_IRUSR)
    groups = {account.pw_gid, *(group.gr_gid for group in grp.getgrall() if user in group.gr_mem)}
    return bool(status.st_mode & (stat.S_IRGRP if status.st_gid in groups else stat.S_IROTH))


def fault(path: Path) -> str | None:
    """Return what is wrong with a configuration, by the check that the unit runs before each start: "lacks …" or
    "has …"; None if it is good."""
    done = subprocess.run(["/bin/sh", str(CHECK), str(path)], capture_output=True, text=True, timeout=10, check=False)
    return done.stderr.partition(str(path))[2].strip() or "can't be checked" if done.returncode else None


def write(path: Path, text: str, whose: Owner) -> None:
    """Replace a file atomically, with its owner and mode from the start. Raises OSError, and ValueError if the text
    would open the relay to everyone; then nothing is changed."""
    path = path.resolve()  # to replace the file, not a link to it
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            if (whose.uid, whose.gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), whose.uid, whose.gid)
            os.fchmod(file.fileno(), whose.mode)
            file.flush()
            os.fsync(file.fileno())
        if found := fault(Path(name)):
            raise ValueError(f"{path} {found}")
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def turn_secrets(core: Core, values: dict[str, str]) -> list[str]:
    """Return every accepted TURN secret, also one that does not sign yet. Raises SettingsError."""
    keys = KeyringFile(core.keyring_path).keys("turn", configured("turn", core, values))
    now = time.time()
    return [key.secret if isinstance(key, Key) else key for key in keys if isinstance(key, str) or key.accepted(now)]


def run(options: argparse.Namespace) -> int:
    """Write the configuration. Raises SettingsError, OSError, ValueError."""
    output: Path = options.output
    if options.networks:
        output.write_text(with_networks(TEMPLATE.read_text()))
        return _print_result(options, 0)
    values = environment(options.env_file)  # without ``become_owner``: the file belongs to coturn
    secrets = turn_secrets(settings.core(values), values)
    before = output.read_text() if output.exists() else ""
    changed = {name: getattr(options, name) for name in ("realm", "external_ip", "cert", "pkey")}
    try:
        whose = owner(output, options.user)
    except KeyError:
        raise ValueError(f"there is no user {options.user}") from None
    write(output, render(TEMPLATE.read_text(), secrets, before, **changed), whose)
    with contextlib.suppress(KeyError):
        if os.geteuid() == 0 and not readable(output, ACCOUNT):
            print(f"{ACCOUNT} can't read it, so coturn must not start; use --user {ACCOUNT}", file=sys.stderr)
    return _print_result(options, len(secrets))


def _print_result(options: argparse.Namespace, secrets: int) -> int:
    print(json.dumps({"file": str(options.output), "secrets": secrets}) if options.json else f"wrote {options.output}")
    return 0


def main() -> int:
    parser = command.parser("turnserver_conf", __doc__)
    parser.add_argument("--output", type=Path, required=True, help="the file to write or replace")
    parser.add_argument("--user", help="the user that coturn runs as, whose group may read the file (0640)")
    parser.add_argument("--networks", action="store_true", help="write the shipped file, with the denied networks")
    parser.add_argument("--realm", help="shown to clients (default: mimu)")
    parser.add_argument("--external-ip", help="PUBLIC_ADDRESS/PRIVATE_ADDRESS, behind 1:1 NAT")
    parser.add_argument("--cert", help="certificate chain for turns:")
    parser.add_argument("--pkey", help="its private key")
    command.common(parser)
    options = parser.parse_args()
    return command.run(lambda: run(options), failed="not written", failures=(ValueError,))


if __name__ == "__main__":
    sys.exit(main())
