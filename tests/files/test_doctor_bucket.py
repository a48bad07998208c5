"""The doctor and S3: checks of a bucket from the server and the client side report each fault separately."""

from __future__ import annotations

import secrets
from pathlib import Path

import httpx
import pytest

from models.storage.sigv4 import Signer
from tests import canaries
from tests.deploy.relay import free_port
from tests.files.seaweed import ACCESS, SECRET, Seaweed
from tests.scripts.examining import Found, examine


async def found(s3: Seaweed, folder: Path, **changed: str) -> Found:
    canaries.plant(SECRET, *(value for name, value in changed.items() if name == "S3_SECRET_KEY"))
    return await examine({**s3.settings(), "MIMU_DATA_DIR": str(folder), **changed}, "storage")


@pytest.mark.gen_test
async def test_a_bucket_is_tried_from_both_sides(s3: Seaweed, tmp_path: Path) -> None:
    bucket = Signer(s3.endpoint, "files", "us-east-1", ACCESS, SECRET)
    async with httpx.AsyncClient() as client:
        await client.put(bucket.sign("PUT", "", 60))
        before = (await client.get(bucket.sign("GET", "", 60, query={"list-type": "2"}))).text
        said = await found(s3, tmp_path)
        after = (await client.get(bucket.sign("GET", "", 60, query={"list-type": "2"}))).text
    assert said.bad() == {}
    states = said.states("storage")
    assert states.pop("cors") == "skipped"
    assert set(states.values()) == {"good"}
    assert before.count("<Key>") == after.count("<Key>"), "it leaves nothing behind"


@pytest.mark.gen_test
async def test_each_fault_of_a_bucket_has_its_name(s3: Seaweed, tmp_path: Path) -> None:
    async def reachable(**changed: str) -> tuple[str, str]:
        finding = (await found(s3, tmp_path, **changed))["storage", "reachable"]
        return finding.state, finding.says

    assert await reachable(S3_SECRET_KEY=secrets.token_hex(20)) == ("wrong", "S3 rejects our signature.")
    assert await reachable(S3_ACCESS_KEY="somebody-else") == ("wrong", "S3 does not know S3_ACCESS_KEY.")
    nothing = {"S3_BUCKET": "nothing-here"}
    assert (await reachable(**nothing, S3_CREATE_BUCKET="false"))[0] == "wrong"
    assert (await reachable(**nothing))[0] == "good"
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert (await reachable(S3_ENDPOINT=nowhere))[1] == "S3_ENDPOINT can't be reached (ConnectionRefusedError)."
    said = await found(s3, tmp_path, S3_PUBLIC_ENDPOINT=nowhere)
    assert said["storage", "round trip"].state == "good"
    assert said["storage", "public upload"].says.startswith("S3_PUBLIC_ENDPOINT can't be reached from here")
    assert said["storage", "privacy"].state == "skipped"
    # A proxy that passes another Host on breaks only the signatures of clients.
    said = await found(s3, tmp_path, S3_PUBLIC_ENDPOINT=s3.endpoint.replace("127.0.0.1", "127.0.0.2"))
    assert said["storage", "round trip"].state == "good"
    assert said["storage", "public upload"].state == "wrong"
    said = await found(s3, tmp_path, CORS_ALLOW_ORIGINS="https://web.mimu.test")
    assert said["storage", "cors"].part == "cors"
