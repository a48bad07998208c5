"""The scripts for push: one makes the key of Web Push, the other sends a push and explains the answer."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

import server
from config.settings import SettingsError
from plugins.push.providers import apns, fcm, outcomes, webpush
from tests.plugins.chatting import town
from tests.plugins.pushing import pushing, registered, subscribed
from tests.providers.http2 import Reply
from tests.providers.providers import Google
from tests.running import ROOT, Place, Services
from tests.scripts.program import script


@pytest.mark.gen_test
async def test_the_key_is_made_once_and_a_server_takes_it(services: Services, tmp_path: Path) -> None:
    file = tmp_path / "vapid.pem"
    would = await script(None, "vapid_keys", str(file), "--dry-run")
    assert (would.code, would.out.split()[:2], file.exists()) == (0, ["would", "make"], False)
    made = await script(None, "vapid_keys", str(file), "--json")
    assert (made.code, made.json["made"]) == (0, True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    again = await script(None, "vapid_keys", str(file), "--json")
    assert again.json == {**made.json, "made": False}
    settings = {"VAPID_PRIVATE_KEY_FILE": str(file), "VAPID_SUBJECT": "mailto:ops@example.org"}
    async with town(services, people=1, **settings) as town_:
        key = (await town_.people[0].get("/push/vapid")).json
        assert key["application_server_key"] == made.json["public_key"]
    file.write_text("no key")
    refused = await script(None, "vapid_keys", str(file))
    assert (refused.code, refused.out) == (1, "")


@pytest.mark.gen_test
async def test_a_push_is_sent_and_the_answer_explained(services: Services, tmp_path: Path) -> None:
    async with pushing(services, tmp_path, people=1) as (made, world):
        [alice] = made.people
        unknown = await script(made.shared, "push_test", "no_such_user")
        assert (unknown.code, unknown.err) == (1, "there is no such user\n")
        none = await script(made.shared, "push_test", alice.public_id)
        assert (none.code, none.err) == (1, "the user has no registered device\n")

        await registered(alice, "apns")
        await subscribed(alice, world)
        await registered(alice, "fcm")
        socket = await made.socket(alice)  # a test is sent to who is there, too
        sent = await script(made.shared, "push_test", alice.public_id.upper(), "--json")
        assert (sent.code, sent.json["provider"], sent.json["outcome"], sent.json["status"]) == (0, "fcm", "sent", 200)
        assert sent.json["explanation"].startswith("Accepted.")
        assert (await world.google.expect("test")).data == {"type": "test"}

        world.google.answers.append(Google.error(404, "UNREGISTERED", "NOT_FOUND"))
        gone = await script(made.shared, "push_test", alice.public_id)
        assert gone.code == 1
        assert "404 UNREGISTERED (gone)" in gone.out
        assert "The app was removed" in gone.out

        listed = (await script(made.shared, "push_test", alice.public_id, "--list", "--json")).json
        assert [row["provider"] for row in listed] == ["fcm", "webpush", "apns"], "a test forgets no token"
        world.apple.answers.append(Reply(400, {"reason": "BadDeviceToken"}))
        bad = await script(made.shared, "push_test", alice.public_id, "--token", listed[2]["id"])
        assert "sandbox" in bad.out
        web = await script(made.shared, "push_test", alice.public_id, "--token", listed[1]["id"])
        assert web.code == 0
        await world.service.expect("test")
        await socket.silent(0)


@pytest.mark.gen_test
async def test_without_a_server_that_pushes_it_says_so(services: Services) -> None:
    async with town(services, people=1) as made:
        [alice] = made.people
        assert (await alice.put("/push/tokens", {"provider": "fcm", "token": "x" * 100})).status == 201
        ended = await script(made.shared, "push_test", alice.public_id)
        assert (ended.code, ended.out) == (1, "")
        assert "none has a key for fcm" in ended.err


def test_all_faults_of_the_keys_are_reported_at_once(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("-----BEGIN PRIVATE KEY-----\nwhat no error may show\n-----END PRIVATE KEY-----\n")
    place = Place("postgresql://nowhere/mimu", "redis://nowhere")
    wrong = {
        "APNS_KEY_FILE": str(tmp_path / "missing.p8"),
        "APNS_BASE_URL": "api.push.apple.com",
        "FCM_SERVICE_ACCOUNT_FILE": str(bad),
        "VAPID_PRIVATE_KEY_FILE": str(bad),
        "VAPID_SUBJECT": "the operator",
    }
    with pytest.raises(SettingsError) as caught:
        server.configure({**place.environment, **wrong})
    assert sorted(fault.partition(":")[0] for fault in caught.value.faults) == sorted(wrong)
    assert "no error" not in str(caught.value)


def test_a_key_needs_what_belongs_to_it(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    subprocess.run([sys.executable, "-m", "scripts.vapid_keys", str(file)], cwd=ROOT, check=True, capture_output=True)
    place = Place("postgresql://nowhere/mimu", "redis://nowhere")
    with pytest.raises(SettingsError) as caught:
        server.configure({**place.environment, "APNS_KEY_FILE": str(file), "VAPID_PRIVATE_KEY_FILE": str(file)})
    assert {fault.partition(":")[0] for fault in caught.value.faults} == {
        "APNS_KEY_ID",
        "APNS_TEAM_ID",
        "APNS_TOPIC",
        "VAPID_SUBJECT",
    }


def test_reasons_are_explained_by_their_provider() -> None:
    own = {"TokenEndpointRefused", "TokenEndpointUnreachable"}
    assert apns.EXPLAINED.keys() <= apns.WORDS
    assert fcm.EXPLAINED.keys() - own <= fcm.WORDS
    bad_token = outcomes.Verdict("refused", 400, "BadDeviceToken")
    assert "sandbox" in outcomes.explain(bad_token, apns.EXPLAINED)
    assert outcomes.explain(bad_token, fcm.EXPLAINED) == outcomes.BY_STATUS[400]
    assert "firewall" in outcomes.explain(outcomes.Verdict("later", 0, "ConnectError"), fcm.EXPLAINED)
    assert "documentation" in outcomes.explain(outcomes.Verdict("refused", 418), webpush.EXPLAINED)
