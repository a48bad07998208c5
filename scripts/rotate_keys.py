"""Rotate the JWT or the TURN secret: ``python -m scripts.rotate_keys jwt``. Running servers start to use it themselves.

The new secret is in the keyring file at once, every server reads it within half a minute, and it signs from a minute
later (ten for TURN, so that you can configure coturn first). The old one is accepted until every token that it signed
has expired, so clients notice nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

if not __package__:  # python scripts/rotate_keys.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from config import secrets, settings
from config.keyring import KeyringFile
from config.settings import Core, SettingsError
from scripts import command

CLOCKS = 300  # seconds by which the clocks of servers may differ; also the life of a reset challenge
TURN_LIFE = 3600  # seconds for which a TURN credential is valid (contract section 6)
DELAY = {"jwt": 60, "turn": 600}  # seconds until the new secret signs
SETTING = {"jwt": "JWT_SECRET", "turn": "TURN_SECRET"}


def configured(kind: str, core: Core, values: dict[str, str]) -> list[str]:
    """Return the secrets of the settings, which are used while the file has none of this kind. Raises SettingsError."""
    secret = values.get(SETTING[kind])
    generated = core.mimu_data_dir / "secrets" / SETTING[kind].lower()
    if not secret and not core.production and generated.exists():
        secret = secrets.keep(generated.parent, generated.name)
    if not secret:
        raise SettingsError([f"{SETTING[kind]}: missing; there is nothing to rotate"])
    previous = [each.get_secret_value() for each in core.jwt_previous_secrets] if kind == "jwt" else []
    return [secret, *previous]


def run(options: argparse.Namespace) -> int:
    """Rotate one secret, or with ``--dry-run`` print the result only. Raises SettingsError, OSError, ValueError."""
    delay = DELAY[options.kind] if options.delay is None else options.delay
    values = command.read_settings(options.env_file)
    core = settings.core(values)
    command.refuse_new_folder_as_root(core)
    life = core.jwt_expiration_hours * 3600 if options.kind == "jwt" else TURN_LIFE
    file = KeyringFile(core.keyring_path)
    before = configured(options.kind, core, values)
    keys = file.rotate(options.kind, before, delay=delay, keep=life + CLOCKS, dry_run=options.dry_run)
    result = [{"kid": key.kid, "signs_from": _time(key.active_at), "accepted_until": _time(key.until)} for key in keys]
    if options.json:
        print(json.dumps({"file": str(file.path), "dry_run": options.dry_run, "keys": result}))
        return 0
    print(f"{'would write' if options.dry_run else 'wrote'} {file.path}")
    for key in result:
        print(f"{key['kid']}  signs from {key['signs_from']}  accepted until {key['accepted_until']}")
    if options.kind == "turn":
        print("Before the new secret signs, run python -m scripts.turnserver_conf, and restart coturn.")
    return 0


def _time(moment: float | None) -> str:
    if moment is None:
        return "further notice"
    return "ever" if moment <= 0 else datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")


def main() -> int:
    parser = command.parser("rotate_keys", __doc__)
    parser.add_argument("kind", choices=sorted(SETTING), help="which secret")
    parser.add_argument(
        "--delay", type=command.number(0), help="seconds until the new secret signs (default: 60, for turn 600)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the result, and change nothing")
    command.common(parser)
    options = parser.parse_args()
    return command.run(lambda: run(options), failed="rotation failed", failures=(ValueError,))


if __name__ == "__main__":
    sys.exit(main())
