"""Examine an installation, and report what is wrong with it: ``python -m scripts.doctor --url ADDRESS``."""

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

EXAMINATION_TIMEOUT = 20.0  # seconds; all run at once; the slowest, of a coturn that drops packets, takes 15
TOKEN_SECONDS = 60  # for which the test token, whose user does not exist, is valid

MARKS = {"good": "✓", "weak": "!", "wrong": "✗", "skipped": "–"}

EPILOG = """\
It leaves only a line in PostgreSQL's log: it removes its key in Redis and its file in the storage, and its TURN relays
end after some seconds. Run it on the server's machine as the server's user: then it has the same files and limits.
✓ is good, ! works but should be changed, ✗ is wrong, – was not checked. Exit codes: 0 nothing is wrong (with --strict:
nor weak), 1 something is wrong, 2 wrong usage, 78 the settings can't be used. SSL_CERT_FILE names your own certificate
authority to trust.
"""


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. Ends the program with 2 if the options contradict each other."""
    parser = command.parser("doctor", __doc__, EPILOG)
    parser.add_argument("--url", type=_url, help="the public address, as clients know it: https://chat.example.org")
    parser.add_argument("--token-file", type=_token, help="an access token of any user, to open a socket; - reads it")
    parser.add_argument("--nginx", type=Path, help=f"nginx's configuration (default in production: {nginx.FILE})")
    parser.add_argument(
        "--instances", type=command.number(1, 1000), help="the expected number of servers on all machines"
    )
    parser.add_argument("--only", type=_names, default=(), help="run only these examinations: database,turn")
    parser.add_argument(
        "--timeout",
        type=float,
        default=EXAMINATION_TIMEOUT,
        help=f"seconds for each (default: {EXAMINATION_TIMEOUT:g})",
    )
    parser.add_argument("--strict", action="store_true", help="treat weak findings as wrong")
    command.common(parser)
    options = parser.parse_args(words)
    if not options.timeout > 0:
        parser.error("--timeout must be a number of seconds above 0")
    return options


def _url(text: str) -> str:
    try:
        return web_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _token(text: str) -> str:
    """Read a token from a file: every user of this machine could read it among the arguments."""
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
    """Return all examinations that these settings allow, in the order of the report. Raises SettingsError."""
    configuration = server.configure(_with_kept_secrets(values), make_secrets=False)
    core = configuration.core
    sections = {"": core, **configuration.sections}
    fields = {
        field.upper(): getattr(section, field) for section in sections.values() for field in type(section).model_fields
    }
    result = [
        settings.examination(fields, values, options.env_file or ENV_FILE),
        machine.examination(core),
        database.examination(core, options.instances),
        redis.examination(core),
    ]
    stored = configuration.sections.get("files")
    if isinstance(stored, StorageSettings):
        result.append(storage.examination(core, stored, core.cors_allow_origins))
    try:
        for name, module in configuration.features.items():
            examine = getattr(module, "examine", None)
            if examine is not None:
                result.append(examine(core, configuration.sections[name]))
        url = _public(options, configuration)
        result.append(nginx.examination(_nginx(options, core), url and urlsplit(url).hostname, PING_EVERY))
        result.append(public.examination(_target(url, options, configuration)))
    except (OSError, ValueError, TypeError) as error:
        result.append(_unreadable(core.keyring_path, error))
    return result


def _with_kept_secrets(values: Mapping[str, str]) -> dict[str, str]:
    """Add the secrets that a server has generated in development, if there are any yet."""
    complete = dict(values)
    if values.get("MIMU_ENV") != "production":
        for path in (Path(values.get("MIMU_DATA_DIR", "var")) / "secrets").glob("*_secret"):
            with contextlib.suppress(OSError):  # they belong to the server's user, and we may be another
                complete.setdefault(path.name.upper(), path.read_text().strip())
    return complete


def _nginx(options: argparse.Namespace, core: Core) -> Path | None:
    """Return nginx's configuration: that of ``--nginx``, else in production the system's."""
    return Path(options.nginx) if options.nginx else nginx.FILE if core.production else None


def _public(options: argparse.Namespace, configuration: server.Configuration) -> str | None:
    """Return the public address: that of ``--url``, else of the settings, else the one that nginx serves."""
    url = options.url or getattr(configuration.sections.get("files"), "files_public_url", None)
    file = _nginx(options, configuration.core)
    return url or (nginx.public_url(file) if file else None)


def _target(
    url: str | None, options: argparse.Namespace, configuration: server.Configuration
) -> public.PublicAddress | None:
    core = configuration.core
    if url is None and not core.port:
        return None
    tokens = Tokens(KeyringFile(core.keyring_path).ring("jwt", core.jwt_secrets), TOKEN_SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a short secret, which is a finding
        unknown_user = tokens.issue(uuid4(), uuid4(), "doctor", "")
    own = f"http://127.0.0.1:{core.port}"
    return public.PublicAddress(url or own, core, unknown_user, options.token_file, public=url is not None)


def _unreadable(path: Path, error: Exception) -> Examination:
    async def look() -> AsyncIterator[Finding]:
        says = f"{path} can't be read ({type(error).__name__}), so neither TURN nor the public address was checked."
        yield wrong("keyring", says, "Run the doctor as the server's user.")
        raise StopExamination("the secrets are not known")

    return Examination("keyring", "Keyring", ("keyring",), look)


async def look(chosen: Sequence[Examination], seconds: float) -> dict[str, list[Finding]]:
    """Run the examinations at the same time, and return the findings of each."""
    results = await asyncio.gather(*(run_examination(examination, seconds) for examination in chosen))
    return {examination.name: findings for examination, findings in zip(chosen, results, strict=True)}


def table(chosen: Sequence[Examination], found: Mapping[str, Sequence[Finding]], seconds: float) -> str:
    """Format the findings for people."""
    width = max(len(finding.part) for findings in found.values() for finding in findings)
    lines = []
    for examination in chosen:
        lines += ["", examination.title]
        # Consecutive parts with the same finding share a line.
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
    """Examine the installation, and print the findings. Raises SettingsError if the settings can't be read at all."""
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
    logging.disable()  # an error is a finding, which is printed once
    return command.run(lambda: run(options), failed="the examination failed")


if __name__ == "__main__":
    sys.exit(main())
