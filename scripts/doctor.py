"""Look at an installation from all sides, and say what is wrong with it: ``python -m scripts.doctor --url ADDRESS``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import sys
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

if not __package__:  # python scripts/doctor.py, from any folder
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import server
from config import logs
from config.findings import Examination, Finding, StopExamination, wrong
from config.keyring import KeyringFile
from config.settings import ENV_FILE, Core, SettingsError
from config.storage import StorageSettings
from config.values import web_address
from handlers.sockets.hub import PING_EVERY
from handlers.tokens import Tokens
from scripts import command
from scripts.checks import database, machine, nginx, public, redis, run_examination, settings, storage

SECONDS = 20.0  # for each thing; all are looked at together, and the slowest, a coturn that drops packets, takes 15
HANDSHAKE = 60  # seconds that a token of nobody's is good for

MARKS = {"good": "✓", "weak": "!", "wrong": "✗", "skipped": "–"}

EPILOG = """\
It changes nothing that stays: a line in PostgreSQL's log, a key in Redis and a file in the storage, which it removes,
and for some seconds relays of TURN. Run it where the server runs, as the user that the server runs as, for only then it
sees the same files and limits. ✓ is well, ! works and should be changed, ✗ is wrong, – was not looked at. Exit codes: 0
nothing is wrong (with --strict: nor weak), 1 something is, 2 wrong usage, 78 the settings can't be used. SSL_CERT_FILE
names an authority of your own that is trusted.
"""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for; ends the program with 2 when that makes no sense."""
    parser = command.parser("doctor", __doc__, EPILOG)
    parser.add_argument("--url", type=_url, help="the public address, as clients know it: https://chat.example.org")
    parser.add_argument("--token-file", type=_token, help="an access token of somebody's, to open a socket; - reads it")
    parser.add_argument("--nginx", type=Path, help=f"nginx's configuration (default in production: {nginx.FILE})")
    parser.add_argument(
        "--instances", type=command.number(1, 1000), help="how many servers there should be, on all machines"
    )
    parser.add_argument("--only", type=_names, default=(), help="only these, as: database,turn")
    parser.add_argument("--timeout", type=float, default=SECONDS, help=f"seconds for each (default: {SECONDS:g})")
    parser.add_argument("--strict", action="store_true", help="what is weak is wrong, too")
    command.common(parser)
    options = parser.parse_args(words)
    if not options.timeout > 0:
        parser.error("--timeout counts seconds")
    return options


def _url(text: str) -> str:
    try:
        return web_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _token(text: str) -> str:
    """The token in a file: among our arguments everybody on this machine could read it."""
    try:
        token = (sys.stdin.readline() if text == "-" else Path(text).read_text()).strip()
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text} can't be read ({type(error).__name__})") from None
    if not token:
        raise argparse.ArgumentTypeError(f"{text} is empty")
    return token


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def examinations(options: argparse.Namespace, values: Mapping[str, str]) -> list[Examination]:
    """All examinations that these settings allow, in the order of the report. Raises SettingsError."""
    configuration = server.configure(_with_kept_secrets(values), make_secrets=False)
    core = configuration.core
    sections = {"": core, **configuration.sections}
    named = {
        field.upper(): getattr(section, field) for section in sections.values() for field in type(section).model_fields
    }
    found = [
        settings.examination(named, values, options.env_file or ENV_FILE),
        machine.examination(core),
        database.examination(core, options.instances),
        redis.examination(core),
    ]
    stored = configuration.sections.get("files")
    if isinstance(stored, StorageSettings):
        found.append(storage.examination(core, stored, core.cors_allow_origins))
    try:
        for name, module in configuration.features.items():
            examine = getattr(module, "examine", None)
            if examine is not None:
                found.append(examine(core, configuration.sections[name]))
        url = _public(options, configuration)
        found.append(nginx.examination(_nginx(options, core), url and urlsplit(url).hostname, PING_EVERY))
        found.append(public.examination(_target(url, options, configuration)))
    except (OSError, ValueError, TypeError) as error:
        found.append(_unreadable(core.keyring_path, error))
    return found


def _with_kept_secrets(values: Mapping[str, str]) -> dict[str, str]:
    """In development with the secrets that a server has made for itself, if there are any yet."""
    given = dict(values)
    if values.get("MIMU_ENV") != "production":
        for path in (Path(values.get("MIMU_DATA_DIR", "var")) / "secrets").glob("*_secret"):
            with contextlib.suppress(OSError):  # they are the server's user's, and we are somebody else
                given.setdefault(path.name.upper(), path.read_text().strip())
    return given


def _nginx(options: argparse.Namespace, core: Core) -> Path | None:
    """nginx's configuration: the one that was named, else the system's where this is a production."""
    return Path(options.nginx) if options.nginx else nginx.FILE if core.production else None


def _public(options: argparse.Namespace, configuration: server.Configuration) -> str | None:
    """The public address: as it was named, else of the settings, else the one that nginx serves."""
    url = options.url or getattr(configuration.sections.get("files"), "files_public_url", None)
    file = _nginx(options, configuration.core)
    return url or (nginx.public_url(file) if file else None)


def _target(
    url: str | None, options: argparse.Namespace, configuration: server.Configuration
) -> public.PublicAddress | None:
    core = configuration.core
    if url is None and not core.port:
        return None
    tokens = Tokens(KeyringFile(core.keyring_path).ring("jwt", core.jwt_secrets), HANDSHAKE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the secret is short is a finding
        nobody = tokens.issue(uuid4(), uuid4(), "doctor", "")
    own = f"http://127.0.0.1:{core.port}"
    return public.PublicAddress(url or own, core, nobody, options.token_file, public=url is not None)


def _unreadable(path: Path, error: Exception) -> Examination:
    async def look() -> AsyncIterator[Finding]:
        says = f"{path} can't be read ({type(error).__name__}), so neither TURN nor the public address was looked at."
        yield wrong("keyring", says, "Run the doctor as the server's user.")
        raise StopExamination("the secrets are not known")

    return Examination("keyring", "Keyring", ("keyring",), look)


async def look(chosen: Sequence[Examination], seconds: float) -> dict[str, list[Finding]]:
    """What each of them finds, all at the same time."""
    found = await asyncio.gather(*(run_examination(examination, seconds) for examination in chosen))
    return {examination.name: findings for examination, findings in zip(chosen, found, strict=True)}


def table(chosen: Sequence[Examination], found: Mapping[str, Sequence[Finding]], seconds: float) -> str:
    """What was found, for people."""
    width = max(len(finding.part) for findings in found.values() for finding in findings)
    lines = []
    for examination in chosen:
        lines += ["", examination.title]
        # What is skipped for one reason is one line.
        for (state, says, do), group in groupby(found[examination.name], lambda one: one[1:]):
            first, *others = group
            part = f"{1 + len(others)} parts" if others else first.part
            lines.append(f"  {MARKS[state]} {part:{width}}  {says}")
            if do:
                lines.append(f"    {'':{width}}  → {do}")
    counts = _counts(found)
    result = ", ".join(f"{counts[state]} {state}" for state in MARKS if counts[state])
    return "\n".join([*lines[1:], "", f"{result}; {seconds:.1f} s"])


def _counts(found: Mapping[str, Sequence[Finding]]) -> Counter[str]:
    return Counter(finding.state for findings in found.values() for finding in findings)


async def run(options: argparse.Namespace) -> int:
    """Examine, and show what was found. Raises SettingsError when the settings can't be read at all."""
    values = command.read_settings(options.env_file)
    unusable = False
    try:
        chosen = examinations(options, values)
    except SettingsError as error:
        unusable = True
        chosen = [settings.unusable(error.faults)]
    if options.only and not unusable:
        unknown = set(options.only) - {examination.name for examination in chosen}
        if unknown:
            names = ", ".join(examination.name for examination in chosen)
            return command.usage_error(f"--only: there is no {', '.join(sorted(unknown))}; there are {names}")
        chosen = [examination for examination in chosen if examination.name in options.only]
    begun = time.monotonic()
    found = await look(chosen, options.timeout)
    seconds = time.monotonic() - begun
    counts = _counts(found)
    well = not counts["wrong"] and not (options.strict and counts["weak"])
    if options.json:
        rows = [{"examination": name, **finding._asdict()} for name, findings in found.items() for finding in findings]
        counted = {state: counts[state] for state in MARKS}
        print(json.dumps({"well": well, "counts": counted, "seconds": round(seconds, 1), "findings": rows}))
    else:
        print(table(chosen, found, seconds))
    if unusable:
        return command.WRONG_SETTINGS
    return 0 if well else command.FAILED


def main() -> int:
    options = parse()
    logs.configure("error")
    logging.disable()  # what it stumbles over is a finding, and said once
    return command.run(lambda: run(options), failed="the examination failed")


if __name__ == "__main__":
    sys.exit(main())
