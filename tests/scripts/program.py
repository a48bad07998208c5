"""Operators' scripts as the processes they are, with nothing of our environment that could change them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests import canaries
from tests.running import ROOT, Place, inherited
from tests.scripts import preloaded
from tests.waiting import WAIT


@dataclass(frozen=True)
class Ended:
    """The exit code and output of a script."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def script(place: Place | None, name: str, *arguments: str, given: str = "", **settings: str) -> Ended:
    """Run ``python -m scripts.NAME``. An empty setting counts as unset. Nothing secret may be in what it says, or in
    its arguments, which every user of the machine sees."""
    environment = inherited("PATH", "HOME")
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", **(place.environment if place else {}), **settings}
    words = [*arguments, "--env-file", os.devnull]
    code, out, err = await (_forked if preloaded.ON else _started)(name, words, environment, given)
    ended = Ended(code, out.decode(), err.decode())
    addresses = (environment.get("DATABASE_URL", ""), environment.get("REDIS_URL", ""))
    secrets = [password for address in addresses if (password := _password(address))]
    secrets += [value for name, value in environment.items() if name.endswith("_SECRET") and value]
    for text in (ended.out, ended.err, " ".join(words)):
        assert not [secret for secret in secrets if secret in text], "a secret of the server's"
        assert not canaries.escaped(text), "a secret of a user's"
        assert "Traceback" not in text, text
    return ended


async def _forked(
    name: str, words: list[str], environment: dict[str, str], given: str
) -> tuple[int | None, bytes, bytes]:
    return await asyncio.to_thread(preloaded.run, f"scripts.{name}", words, environment, given, 2 * WAIT)


async def _started(
    name: str, words: list[str], environment: dict[str, str], given: str
) -> tuple[int | None, bytes, bytes]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", f"scripts.{name}", *words),
        cwd=ROOT,
        env=environment,
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
    )
    out, err = await asyncio.wait_for(process.communicate(given.encode()), 2 * WAIT)
    return process.returncode, out, err


def _password(address: str) -> str | None:
    try:
        return urlsplit(address).password
    except ValueError:
        return None
