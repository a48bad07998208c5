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
from tests.running import ROOT, Place


@dataclass(frozen=True)
class Ended:
    """How a script ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def script(place: Place | None, name: str, *arguments: str, given: str = "", **settings: str) -> Ended:
    """Run ``python -m scripts.NAME``. An empty setting counts as unset. Nothing secret may be in what it says, or in
    its arguments, which every user of the machine sees."""
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", **(place.environment if place else {}), **settings}
    command = [sys.executable, "-m", f"scripts.{name}", *arguments, "--env-file", os.devnull]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe
    )
    out, err = await asyncio.wait_for(process.communicate(given.encode()), 60)
    assert process.returncode is not None
    ended = Ended(process.returncode, out.decode(), err.decode())
    addresses = (environment.get("DATABASE_URL", ""), environment.get("REDIS_URL", ""))
    secrets = [password for address in addresses if (password := _password(address))]
    secrets += [value for name, value in environment.items() if name.endswith("_SECRET") and value]
    for text in (ended.out, ended.err, " ".join(command)):
        assert not [secret for secret in secrets if secret in text], "a secret of the server's"
        assert not canaries.escaped(text), "a secret of a user's"
        assert "Traceback" not in text, text
    return ended


def _password(address: str) -> str | None:
    try:
        return urlsplit(address).password
    except ValueError:
        return None
