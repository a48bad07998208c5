"""Make the key that Web Push is signed with (RFC 8292), once: ``python -m scripts.vapid_keys FILE``.

Apps subscribe with its public half; with another key all their subscriptions are of no use any more. So a file that is
there is never replaced: then the public key in it is shown.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

if not __package__:  # python scripts/vapid_keys.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config.settings import environment
from scripts import command


def make(path: Path) -> None:
    """A new key in a file that only its owner reads."""
    key = ec.generate_private_key(ec.SECP256R1())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.flush()
        os.fsync(file.fileno())


def public(path: Path) -> str:
    """The public key of a file, as browsers want it. Raises ValueError."""
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not a key of the curve P-256")
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return base64.urlsafe_b64encode(point).decode().rstrip("=")


def run(options: argparse.Namespace) -> int:
    """Make the key unless there is one, and show its public half. Raises SettingsError, OSError and more."""
    values = environment(options.env_file)  # as root, if we are: the key may be for /etc
    named = options.file or values.get("VAPID_PRIVATE_KEY_FILE")
    if named is None:
        return command.usage_error("name a file; VAPID_PRIVATE_KEY_FILE does not name one either")
    path = Path(named)
    there = path.exists()
    if not there and not options.dry_run:
        make(path)
        # Root may write to /etc, and the servers must be able to read it.
        if held := command.other_owner(Path(values.get("MIMU_DATA_DIR", "var"))):
            os.chown(path, held.st_uid, held.st_gid)
    key = public(path) if path.exists() else None
    if options.json:
        print(json.dumps({"file": str(path), "made": not there and not options.dry_run, "public_key": key}))
        return 0
    print(f"{'kept' if there else 'would make' if options.dry_run else 'made'} {path}")
    if key:
        print(f"public key: {key}")
        print(f"settings: VAPID_PRIVATE_KEY_FILE={path.resolve()} and VAPID_SUBJECT=mailto:YOU@YOUR.DOMAIN")
    return 0


def main() -> int:
    parser = command.parser("vapid_keys", __doc__)
    parser.add_argument("file", type=Path, nargs="?", help="where the key is to be (default: VAPID_PRIVATE_KEY_FILE)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    command.common(parser)
    options = parser.parse_args()
    failures = (ValueError, TypeError)
    return command.run(lambda: run(options), failed="no key could be read or written", failures=failures)


if __name__ == "__main__":
    sys.exit(main())
