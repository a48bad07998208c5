"""Create the key that signs Web Push (RFC 8292), once: ``python -m scripts.vapid_keys FILE``.

Apps subscribe with its public half, and with another key all their subscriptions stop working. So an existing file is
never replaced; its public key is printed.
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
    """Write a new key to a file that only its owner can read."""
    key = ec.generate_private_key(ec.SECP256R1())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        file.flush()
        os.fsync(file.fileno())


def public(path: Path) -> str:
    """Return the public key of a file in the form that browsers take. Raises ValueError."""
    key = load_pem_private_key(path.read_bytes(), password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("not a key of the curve P-256")
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return base64.urlsafe_b64encode(point).decode().rstrip("=")


def run(options: argparse.Namespace) -> int:
    """Create the key unless the file exists, and print its public half. Raises SettingsError, OSError, ValueError."""
    values = environment(options.env_file)  # as root, if we are: the key may be for /etc
    name = options.file or values.get("VAPID_PRIVATE_KEY_FILE")
    if name is None:
        return command.usage_error("name a file, or set VAPID_PRIVATE_KEY_FILE")
    path = Path(name)
    existed = path.exists()
    if not existed and not options.dry_run:
        make(path)
        # Root may write to /etc, and the servers must be able to read the file.
        if owner := command.other_owner(Path(values.get("MIMU_DATA_DIR", "var"))):
            os.chown(path, owner.st_uid, owner.st_gid)
    key = public(path) if path.exists() else None
    if options.json:
        print(json.dumps({"file": str(path), "made": not existed and not options.dry_run, "public_key": key}))
        return 0
    print(f"{'kept' if existed else 'would make' if options.dry_run else 'made'} {path}")
    if key:
        print(f"public key: {key}")
        print(f"settings: VAPID_PRIVATE_KEY_FILE={path.resolve()} and VAPID_SUBJECT=mailto:YOU@YOUR.DOMAIN")
    return 0


def main() -> int:
    parser = command.parser("vapid_keys", __doc__)
    parser.add_argument("file", type=Path, nargs="?", help="the file for the key (default: VAPID_PRIVATE_KEY_FILE)")
    parser.add_argument("--dry-run", action="store_true", help="write nothing; print the result")
    command.common(parser)
    options = parser.parse_args()
    failures = (ValueError, TypeError)
    return command.run(lambda: run(options), failed="no key could be read or written", failures=failures)


if __name__ == "__main__":
    sys.exit(main())
