"""The clients of tus that there are, unchanged: tuspy, aiotus and tus-js-client."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import secrets
import shutil
import subprocess
from pathlib import Path

import aiotus
import pytest
from tusclient.client import TusClient

from tests.client import Account
from tests.files.transfer import MIB, bearer, got, sha256
from tests.running import Services, place, program, serving

TUSJS = Path(__file__).parent / "tusjs"


@pytest.mark.gen_test(timeout=120)
async def test_tuspy(services: Services, storage: dict[str, str], tmp_path: Path) -> None:
    content = secrets.token_bytes(9 * MIB + 5)
    path = tmp_path / "content"
    path.write_bytes(content)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)

        def upload() -> str:
            client = TusClient(f"{running.url}/files/tus", headers=bearer(alice))
            with path.open("rb") as file:
                said = {"name": "a name"}
                first = client.uploader(file_stream=file, chunk_size=3 * MIB, metadata=said, upload_checksum=True)
                first.upload(stop_at=5 * MIB)
                assert first.url is not None
                second = client.uploader(file_stream=file, url=first.url, chunk_size=MIB, upload_checksum=True)
                assert second.offset == 5 * MIB
                second.upload()
            return first.url

        url = await asyncio.to_thread(upload)
        assert sha256((await got(alice, url.rpartition("/")[2])).body) == sha256(content)


@pytest.mark.gen_test(timeout=120)
async def test_aiotus(services: Services, storage: dict[str, str]) -> None:
    content = secrets.token_bytes(9 * MIB + 5)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        metadata = {"filename": b"a name", "sha256": sha256(content).encode(), "flag": None}
        url = await aiotus.upload(
            f"{running.url}/files/tus", io.BytesIO(content), metadata, headers=bearer(alice), chunksize=MIB // 2
        )
        assert url is not None
        assert sha256((await got(alice, url.name)).body) == sha256(content)


def _tusjs() -> None:
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"NOT TESTED against tus-js-client: {tool} is not installed")
    with (TUSJS / "package-lock.json").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (TUSJS / "node_modules" / "tus-js-client" / "package.json").exists():
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=TUSJS, capture_output=True, timeout=300, check=True)


@pytest.mark.gen_test(timeout=180)
async def test_tus_js_client_goes_on_when_the_server_was_killed(
    services: Services, storage: dict[str, str], tmp_path: Path
) -> None:
    await asyncio.to_thread(_tusjs)
    content = secrets.token_bytes(40 * MIB)
    path = tmp_path / "content"
    path.write_bytes(content)
    async with place(services) as home:
        async with program(home, tmp_path, **storage) as first:
            alice = await Account().register(first.url)
            port = first.url.rpartition(":")[2]
            client = await asyncio.create_subprocess_exec(
                "node",
                str(TUSJS / "upload.mjs"),
                str(path),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert client.stdin is not None
            assert client.stdout is not None
            order = {
                "endpoint": f"{first.url}/files/tus",
                "headers": bearer(alice),
                "metadata": {"filename": "a name", "sha256": sha256(content)},
                "chunkSize": 3 * MIB,
            }
            client.stdin.write(json.dumps(order).encode())
            client.stdin.close()
            said = [(await client.stdout.readline()).decode() for _ in range(4)]
            first.kill()
            await first.process.wait()
        async with program(home, tmp_path, **storage, PORT=port) as second:
            rest, failed = await asyncio.wait_for(client.communicate(), 60)
            assert (client.returncode, failed.decode()) == (0, "")
            alice.url = second.url
            url = rest.decode().split()[-1]
            assert f"{url}\n" in said, "it is the same upload"
            assert sha256((await got(alice, url.rpartition("/")[2])).body) == sha256(content)


@pytest.mark.gen_test(timeout=120)
async def test_tus_js_client(services: Services, storage: dict[str, str], tmp_path: Path) -> None:
    await asyncio.to_thread(_tusjs)
    content = secrets.token_bytes(5 * MIB + 1)
    path = tmp_path / "content"
    path.write_bytes(content)
    async with place(services) as home, serving(home, **storage) as running:
        alice = await Account().register(running.url)
        order = {"endpoint": f"{running.url}/files/tus", "headers": bearer(alice), "metadata": {"filetype": "a/b"}}
        client = await asyncio.create_subprocess_exec(
            "node",
            str(TUSJS / "upload.mjs"),
            str(path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await asyncio.wait_for(client.communicate(json.dumps({**order, "chunkSize": 2 * MIB}).encode()), 60)
        assert client.returncode == 0
        file_id = output.decode().split()[-1].rpartition("/")[2]
        assert (await got(alice, file_id)).body == content
        assert (await alice.get(f"/files/{file_id}")).json["media_type"] == "a/b"
