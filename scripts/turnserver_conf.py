"""Write a coturn configuration with today's TURN secrets: ``python -m scripts.turnserver_conf --output FILE``.

During a rotation it bears both secrets; write it again and restart coturn when the old one has run out.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

if not __package__:  # python scripts/turnserver_conf.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import settings
from config.keyring import Key, KeyringFile
from config.settings import Core, SettingsError, environment
from scripts.rotate_keys import WRONG_SETTINGS, given

TEMPLATE = Path(__file__).resolve().parent.parent / "turnserver.conf"
PLACEHOLDER = "#static-auth-secret="


def render(template: str, secrets: list[str], **lines: str | None) -> str:
    """The template with a line for each secret, and for each given setting (``external_ip``, ``cert``, …) its own."""
    written = []
    for line in template.splitlines():
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
    parser.add_argument("--realm", help="shown to clients (default: mimu)")
    parser.add_argument("--external-ip", help="PUBLIC_ADDRESS/PRIVATE_ADDRESS, behind 1:1 NAT")
    parser.add_argument("--cert", help="certificate chain for turns:")
    parser.add_argument("--pkey", help="its private key")
    arguments = parser.parse_args()
    try:
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
