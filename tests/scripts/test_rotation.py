"""Rotation of secrets beside running servers: no user is logged out, and the old secret expires in time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import jwt
import pytest

from config.keyring import Key, Keyring, KeyringFile
from scripts import turnserver_conf
from server import Server
from tests.client import Account, ask
from tests.running import ROOT, Services, inherited, place, serving
from tests.waiting import WAIT


def script(name: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"scripts.{name}", *arguments],
        env={**inherited("PATH"), **settings},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def kid(token: str) -> str:
    return str(jwt.get_unverified_header(token)["kid"])


def reload(server: Server) -> None:
    """What every server does by itself every 15 s."""
    server.app.keyrings.reload()


@pytest.mark.gen_test(timeout=60)
async def test_a_rotation_logs_no_user_out(services: Services, tmp_path: Path) -> None:
    file = {"KEYRING_FILE": str(tmp_path / "keyring.json")}
    async with place(services) as shared, serving(shared, **file) as one, serving(shared, **file) as two:
        alice = await Account().register(one.url)
        environment = {**shared.environment, **file}
        async with alice.socket() as socket:
            result = script("rotate_keys", "jwt", "--delay", "5", "--json", **environment)
            assert result.returncode == 0, result.stderr
            listed = json.loads(result.stdout)["keys"]
            # One server has read the file, the other not yet: both go on with the old secret.
            reload(one)
            assert kid((await _login(one, alice))["access_token"]) == listed[1]["kid"]
            reload(two)
            async with asyncio.timeout(WAIT):
                while kid((fresh := await _login(one, alice))["access_token"]) != listed[0]["kid"]:
                    await asyncio.sleep(0.2)
            for url in (one.url, two.url):
                for token in (alice.token, fresh["access_token"]):
                    assert (await ask(url, "GET", "/users/me", token=token)).status == 200
            # A refresh whose answer was lost over the rotation gets the same successor.
            for _ in range(2):
                rotated = await ask(two.url, "POST", "/auth/refresh", {"refresh_token": alice.refresh_token})
                assert rotated.status == 200
            assert all(frame["type"] != "closed" for frame in socket.frames)
        secret = shared.environment["JWT_SECRET"]
        assert secret not in result.stdout + result.stderr
        assert (tmp_path / "keyring.json").stat().st_mode & 0o777 == 0o600


async def _login(server: Server, account: Account) -> dict[str, str]:
    body = {"public_id": account.public_id, "password": account.password}
    answer = await ask(server.url, "POST", "/auth/login", body)
    assert answer.status == 200
    found: dict[str, str] = answer.json
    return found


@pytest.mark.gen_test
async def test_a_lost_refresh_answer_over_a_rotation_gets_the_same_successor(
    services: Services, tmp_path: Path
) -> None:
    async with place(services) as shared, serving(shared, KEYRING_FILE=str(tmp_path / "keyring.json")) as server:
        alice = await Account().register(server.url)
        body = {"refresh_token": alice.refresh_token}
        first = await ask(server.url, "POST", "/auth/refresh", body)
        server.app.keyrings.rotate("jwt", server.app.core.jwt_secrets, delay=0, keep=60)
        reload(server)
        second = await ask(server.url, "POST", "/auth/refresh", body)
        assert first.json["refresh_token"] == second.json["refresh_token"]
        assert kid(first.json["access_token"]) != kid(second.json["access_token"])


def test_an_old_secret_ends_with_its_longest_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 1_000_000.0
    monkeypatch.setattr("config.keyring.time.time", lambda: clock)
    file = KeyringFile(tmp_path / "keyring.json")
    ring = file.ring("jwt", ["old"])
    assert ring.secrets == ["old"]
    old = Key("old").kid
    [new, kept] = file.rotate("jwt", ["old"], delay=60, keep=3600)
    assert (new.active_at, kept.until) == (clock + 60, clock + 3660)
    assert file.reload()
    assert not file.reload()
    assert ring.secrets == ["old", new.secret]
    clock += 61
    assert ring.secrets == [new.secret, "old"]
    assert ring.key(old) is not None
    # A second rotation does not prolong the first secret's life.
    file.rotate("jwt", ["old"], delay=60, keep=3600)
    file.reload()
    clock += 3600
    assert ring.key(old) is None
    assert len(ring.secrets) == 2
    file.rotate("jwt", ["old"], delay=0, keep=3600)
    assert "old" not in (tmp_path / "keyring.json").read_text()


def test_a_keyring_never_is_without_a_secret() -> None:
    assert Keyring([Key("only", 0, 1)]).secrets == ["only"]
    with pytest.raises(ValueError, match="at least one"):
        Keyring([])


def test_rotation_says_what_it_would_do_and_what_is_wrong(tmp_path: Path) -> None:
    settings = {"MIMU_DATA_DIR": str(tmp_path), "TURN_SECRET": "t" * 40}
    dry = script("rotate_keys", "turn", "--dry-run", **settings)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "would write" in dry.stdout
    assert not (tmp_path / "secrets" / "keyring.json").exists()
    assert script("rotate_keys", "jwt", **settings).returncode == 78
    assert script("rotate_keys", "jwt", JWT_EXPIRATION_HOURS="x", **settings).returncode == 78
    assert script("rotate_keys", "nothing").returncode == 2
    (tmp_path / "secrets").mkdir(exist_ok=True)
    (tmp_path / "secrets" / "keyring.json").write_text("{broken")
    broken = script("rotate_keys", "turn", **settings)
    assert broken.returncode == 1
    assert "Traceback" not in broken.stderr


def test_the_rendered_coturn_configuration_has_both_secrets(tmp_path: Path) -> None:
    settings = {"MIMU_DATA_DIR": str(tmp_path), "TURN_SECRET": "t" * 40}
    output = tmp_path / "turnserver.conf"
    assert script("turnserver_conf", "--output", str(output), **settings).returncode == 0
    assert _secrets(output) == ["t" * 40]
    assert script("rotate_keys", "turn", **settings).returncode == 0
    result = script("turnserver_conf", "--output", str(output), "--realm", "example.org", **settings)
    assert result.returncode == 0
    both = _secrets(output)
    assert len(both) == 2
    assert both[1] == "t" * 40
    assert "\nrealm=example.org\n" in output.read_text()
    assert output.stat().st_mode & 0o777 == 0o600
    assert not any(secret in result.stdout for secret in both)
    # Nothing else differs from the file that is shipped.
    shipped = turnserver_conf.TEMPLATE.read_text().splitlines()
    changed = [line for line in output.read_text().splitlines() if line not in shipped]
    assert len(changed) == 3


def _secrets(conf: Path) -> list[str]:
    return [line.partition("=")[2] for line in conf.read_text().splitlines() if line.startswith("static-auth-secret=")]
