"""Write a coturn configuration with today's TURN secrets: ``python -m scripts.turnserver_conf --output FILE``.

With ``--networks`` it writes what is shipped, without secrets, with the networks of config/networks.py.

During a rotation it bears both secrets; write it again and restart coturn when the old one has run out.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
import textwrap
import time
from pathlib import Path

if not __package__:  # python scripts/turnserver_conf.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import networks, settings
from config.keyring import Key, KeyringFile
from config.settings import Core, SettingsError, environment
from scripts.rotate_keys import WRONG_SETTINGS, given

TEMPLATE = Path(__file__).resolve().parent.parent / "turnserver.conf"
PLACEHOLDER = "#static-auth-secret="
BEGIN, END = (f"# --- networks of config/networks.py: {end}\n" for end in ("begin", "end"))
WIDTH = 118

IPV4 = "IPv4: all that isn't globally reachable unicast (IANA's special-purpose registry, RFC 6890)."
IPV6 = "IPv6: only 2000::/3 is global unicast, so all below and above it is denied, whatever it may mean some day."
SIXTEEN = (
    "Sixteen lines for one range: before 4.16 coturn compares addresses byte by byte, each on its own, so "
    '"::1-1fff:..." lets pass every address that ends in 00. Each line denies the addresses that have something in '
    'that one byte. A range that begins with "::" is no way out: coturn takes it for no lower bound at all, and denies '
    "all of IPv4 with it."
)


def denied() -> str:
    """The lines that keep relayed calls away from what is not public."""
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
    """The template with the networks that are denied today."""
    before, _, rest = template.partition(BEGIN)
    return before + BEGIN + denied() + END + rest.partition(END)[2]


def render(template: str, secrets: list[str], **lines: str | None) -> str:
    """The template with a line for each secret, and for each given setting (``external_ip``, ``cert``, …) its own."""
    written = []
    for line in with_networks(template).splitlines():
        name = line.lstrip("#").partition("=")[0]
        if line.startswith(PLACEHOLDER):
            written += [f"static-auth-secret={secret}" for secret in secrets]
        elif lines.get(name.replace("-", "_")):
            written.append(f"{name}={lines[name.replace('-', '_')]}")
        else:
            written.append(line)
    return "\n".join(written) + "\n"


def accepted(core: Core, values: dict[str, str]) -> list[str]:
    """Every TURN secret that is or will be in use; also the one that does not sign yet."""
    keys = KeyringFile(core.keyring_path).keys("turn", given("turn", core, values))
    now = time.time()
    return [key.secret if isinstance(key, Key) else key for key in keys if isinstance(key, str) or key.accepted(now)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts.turnserver_conf", description=__doc__)
    parser.add_argument("--env-file", type=Path, help="read settings from this file (default: .env beside server.py)")
    parser.add_argument("--output", type=Path, required=True, help="where to write it (0600)")
    parser.add_argument("--networks", action="store_true", help="write what is shipped, with the denied networks")
    parser.add_argument("--realm", help="shown to clients (default: mimu)")
    parser.add_argument("--external-ip", help="PUBLIC_ADDRESS/PRIVATE_ADDRESS, behind 1:1 NAT")
    parser.add_argument("--cert", help="certificate chain for turns:")
    parser.add_argument("--pkey", help="its private key")
    arguments = parser.parse_args()
    try:
        if arguments.networks:
            arguments.output.write_text(with_networks(TEMPLATE.read_text()))
            return 0
        values = environment(arguments.env_file)
        core = settings.core(values)
        text = render(
            TEMPLATE.read_text(),
            accepted(core, values),
            realm=arguments.realm,
            external_ip=arguments.external_ip,
            cert=arguments.cert,
            pkey=arguments.pkey,
        )
        part = arguments.output.with_name(arguments.output.name + ".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        part.replace(arguments.output)
    except SettingsError as error:
        print("\n".join(error.faults), file=sys.stderr)
        return WRONG_SETTINGS
    except OSError as error:
        print(f"not written: {error}", file=sys.stderr)
        return 1
    print(f"wrote {arguments.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
