"""A Signal device on Signal's own library: a child process of node that speaks JSON lines, driven from here."""

import asyncio
import fcntl
import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from tests.phones.signal_protocol import BundleRefused, Json, b64, check_fingerprint, fingerprint, unb64
from tests.waiting import WAIT

PROGRAM = Path(__file__).parent / "libsignal"
LIBRARY = PROGRAM / "node_modules" / "@signalapp" / "libsignal-client" / "package.json"
PATIENCE = 20.0  # seconds for one answer; the slowest, generating keys, takes well under one


def ensure_installed() -> None:
    """Install the locked packages once; skip the test where there is no node to install them for.

    Install scripts are not run: the library's binary comes inside its package. A lock keeps parallel test processes
    from installing into each other.
    """
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"NOT TESTED against libsignal: {tool} is not installed (node 20 or later with npm is needed)")
    with (PROGRAM / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if LIBRARY.exists():
            return
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=PROGRAM, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"npm ci failed with {done.returncode}: {done.stderr.strip()}")


class LibsignalError(Exception):
    """What the library answered instead of a result."""


class SignalLibsignal:
    """A device with `one_time` one-time and `kyber` Kyber prekeys. Its messages: a type byte, the library's bytes."""

    bundle_format: str | None = "signal"

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._turn = asyncio.Lock()
        self._signing = SigningKey.generate()
        self._sessions: set[str] = set()
        self._counts = (20, 5)

    @classmethod
    async def start(cls, one_time: int = 20, kyber: int = 5) -> "SignalLibsignal":
        await asyncio.to_thread(ensure_installed)
        process = await asyncio.create_subprocess_exec(
            "node",
            "phone.mjs",
            cwd=PROGRAM,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 20,  # a line with 100 Kyber prekeys is longer than asyncio's 64 KiB
        )
        device = cls(process)
        device._counts = (one_time, kyber)
        return device

    async def register_body(self) -> Json:
        one_time, kyber = self._counts
        keys = await self._ask("generate", one_time=one_time, kyber=kyber)
        return {
            **keys,
            "signing_public_key": b64(bytes(self._signing.verify_key)),
            "fingerprint": fingerprint(unb64(keys["identity_key"])),
        }

    async def known_as(self, user_id: str) -> None:
        await self._ask("known_as", name=user_id)

    def has_session(self, peer: str) -> bool:
        return peer in self._sessions

    async def check(self, bundle: Json) -> None:
        check_fingerprint(bundle)
        for key, holds in (await self._ask("check", bundle=bundle)).items():
            if not holds:
                raise BundleRefused(f"the signature of the {key} is wrong")

    async def encrypt(self, bundle: Json | None, peer: str, plaintext: bytes) -> bytes:
        if bundle is not None:
            await self.check(bundle)
            await self._ask("process", peer=peer, bundle=bundle)
            self._sessions.add(peer)
        message = await self._ask("encrypt", peer=peer, plaintext=b64(plaintext))
        return bytes([message["type"]]) + unb64(message["body"])

    async def decrypt(self, peer: str, ciphertext: bytes) -> bytes:
        answer = await self._ask("decrypt", peer=peer, type=ciphertext[0], body=b64(ciphertext[1:]))
        self._sessions.add(peer)
        return unb64(answer["plaintext"])

    async def sign(self, message: bytes) -> bytes:
        return bytes(self._signing.sign(message).signature)

    async def close(self) -> None:
        """Close its input, which ends it; kill it if it doesn't take the hint."""
        if self._process.returncode is not None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), WAIT)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _ask(self, name: str, /, **fields: object) -> Json:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        async with self._turn:
            number = next(self._ids)
            stdin.write(json.dumps({"id": number, "do": name, **fields}).encode() + b"\n")
            await stdin.drain()
            line = await asyncio.wait_for(stdout.readline(), PATIENCE)
        if not line:
            raise LibsignalError(f"the process ended with {await self._process.wait()}")
        answer: Json = json.loads(line)
        assert answer["id"] == number
        if "error" in answer:
            raise LibsignalError(answer["error"])
        result: Json = answer["ok"]
        return result
