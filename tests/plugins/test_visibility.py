"""What a membership shows: nothing from before it and nothing from after it, on sockets, in ``/sync`` and elsewhere."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from handlers.sockets.delivery import MAX_DIRECT
from models.chats.visibility import Membership, scope_of
from tests.client import Account, b64
from tests.plugins.chatting import SECONDS, Json, chat, crowd, history, message, read, say, seen, town
from tests.plugins.test_sync import caught_up, cursor_of, what
from tests.running import Services, periodic

THUMB = quote("👍")


async def ok(answer: Any) -> None:
    got = await answer
    assert got.status < 300, got.text


async def edit(by: Account, posted: Json, text: str) -> None:
    await ok(by.put(f"/messages/{posted['id']}", {"encrypted_payload": b64(text.encode())}))


async def react(by: Account, posted: Json, emoji: str = THUMB) -> None:
    await ok(by.put(f"/messages/{posted['id']}/reactions/{emoji}", {}))


async def add(by: Account, where: Json, who: Account, role: str = "member") -> None:
    await ok(by.post(f"/chats/{where['id']}/participants", {"public_id": who.public_id, "role": role}))


async def remove(by: Account, where: Json, who: Account) -> None:
    await ok(by.delete(f"/chats/{where['id']}/participants/{who.user_id}"))


def hidden(events: list[Json]) -> list[tuple[int, int]]:
    for event in events:
        if event["type"] == "hidden":
            assert event.keys() <= {"type", "chat_id", "seq", "created_at", "to_seq"}
    return [(e["seq"], e.get("to_seq", e["seq"])) for e in events if e["type"] == "hidden"]


# Former participants --------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_removed_user_sees_nothing_of_later_events(services: Services) -> None:
    async with town(services, people=4) as made:
        alice, bob, carol, dave = made.people
        cursor = await cursor_of(bob)
        group = await chat(alice, bob, carol, title="before", settings={"then": True})  # 1
        edited, deleted, reacted, _fades, whole = [
            await say(alice, group, f"number {n}", **more)
            for n, more in enumerate(({}, {}, {}, {"expires_in": 60}, {}))
        ]  # 2 to 6
        await react(alice, reacted)  # 7
        await react(bob, reacted, quote("🔥"))  # 8
        await edit(alice, edited, "edited before")  # 9
        await ok(alice.put(f"/chats/{group['id']}", {"title": "still before"}))  # 10
        await react(carol, edited)  # 11
        await ok(alice.delete(f"/messages/{whole['id']}"))  # 12
        as_it_was, _ = await caught_up(bob, cursor)
        await remove(alice, group, bob)  # 13
        for turn in range(2):
            await edit(alice, edited, f"after {turn}")
            await ok(carol.delete(f"/messages/{reacted['id']}/reactions/{THUMB}"))
            await react(carol, reacted)
            await ok(alice.delete(f"/messages/{reacted['id']}/reactions/{THUMB}"))
            await react(alice, reacted, quote("🎉"))
            if turn == 0:
                await ok(alice.delete(f"/messages/{deleted['id']}"))
                await add(alice, group, dave)
            await ok(alice.put(f"/chats/{group['id']}", {"title": f"after {turn}", "settings": {"after": turn}}))
            await made.sql("UPDATE messages SET expires_at = now() WHERE expires_at IS NOT NULL")
            events, _ = await caught_up(bob, cursor)
            assert "after" not in str(events) and "🎉" not in str(events) and dave.user_id not in str(events)
            # What was edited, deleted or has expired since is not known as it was. All else is, reactions too.
            assert hidden(events) == [(2, 3), (5, 5), (9, 9)]
            after = {event["seq"]: event for event in events}
            assert max(after) == 13 and after[13]["type"] == "participant_removed"
            assert (after[6]["type"], after[6]["reason"]) == ("message_deleted", "deleted")
            before = {event["seq"]: event for event in as_it_was}
            for event in (after[4], before[4]):  # in whichever order
                event["message"]["reactions"].sort(key=str)
            assert len(after[4]["message"]["reactions"]) == 2
            for seq in (4, 6, 7, 8, 11, 12):
                assert after[seq] == before[seq]
            created, updated = after[1]["chat"], after[10]["chat"]
            assert (created["title"], updated["title"]) == ("before", "still before")
            for event in (after[1], after[10]):
                assert event["chat"]["settings"] == {"then": True}
                assert event["chat"]["participant_count"] == 3
                assert event["chat"]["updated_at"] == event["created_at"]
            await periodic(made.servers[0], "message_expiry")()
        assert (await bob.get(f"/messages/{reacted['id']}")).status == 404
        assert (await bob.get(f"/chats/{group['id']}/messages")).status == 404


@pytest.mark.gen_test
async def test_a_chat_without_its_past_is_hidden_from_former_participants(services: Services) -> None:
    """An older version wrote the event."""
    async with town(services, people=2) as made:
        alice, bob = made.people
        cursor = await cursor_of(bob)
        group = await chat(alice, bob, title="before")
        await made.sql("UPDATE chat_events SET data = '{}' WHERE type = 'chat_created'")
        assert what((await caught_up(bob, cursor))[0]) == [("chat_created", 1)]
        await remove(alice, group, bob)
        assert what((await caught_up(bob, cursor))[0]) == [("hidden", 1), ("participant_removed", 2)]


# Later participants ---------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("many", [False, True])
async def test_a_later_participant_sees_nothing_of_an_older_message(
    services: Services, servers: int, many: bool
) -> None:
    async with town(services, servers, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob)
        old, other = await say(alice, group, "the old days"), await say(bob, group, "older still")  # 2 3
        if many:  # then frames for another instance are published once for all
            await crowd(made, group["id"], 3 * MAX_DIRECT)
        cursor = await cursor_of(carol)
        await add(alice, group, carol)  # 4
        new = await say(alice, group, "what she sees", reply_to=old["id"])  # 5
        there, late = await made.socket(bob, 0), await made.socket(carol, servers - 1)
        await edit(alice, old, "the old days, again")  # 6
        await react(bob, old)  # 7
        await ok(bob.delete(f"/messages/{old['id']}/reactions/{THUMB}"))  # 8
        await react(bob, new)  # 9
        await ok(alice.delete(f"/messages/{old['id']}"))  # 10
        await edit(alice, new, "edited")  # 11
        await ok(alice.delete(f"/messages/{other['id']}"))  # 12
        kinds = {6: "message_edited", 7: "reaction_added", 8: "reaction_removed", 9: "reaction_added"}
        kinds |= {10: "message_deleted", 11: "message_edited", 12: "message_deleted"}
        frames = {}
        for seq, kind in kinds.items():
            frame = await there.expect(kind, SECONDS, seq=seq)
            sees = seq in (9, 11)
            frames[seq] = await late.expect(kind if sees else "hidden", SECONDS, seq=seq)
            if sees:
                assert frames[seq] == frame
            else:
                assert frames[seq].keys() == {"type", "chat_id", "seq", "created_at"}
                assert frames[seq]["created_at"] == frame["created_at"]
        events, _ = await caught_up(carol, cursor)
        assert what(events) == [
            ("participant_added", 4),
            ("message_new", 5),
            ("hidden", 6),
            ("reaction_added", 9),
            ("hidden", 10),
            ("message_edited", 11),
            ("hidden", 12),
        ]
        assert hidden(events) == [(6, 8), (10, 10), (12, 12)]
        assert events[1]["message"]["reply_to_seq"] == 2
        assert old["id"] not in str([event for event in events if event["seq"] > 5 and event["seq"] != 11])
        for gone in (old, other):
            assert (await carol.get(f"/messages/{gone['id']}")).status == 404
            refused = await carol.post(f"/chats/{group['id']}/messages", message(reply_to=gone["id"]))
            assert refused.fields() == ["reply_to"]
            refused = await carol.post(f"/chats/{group['id']}/messages", message(forwarded_from=gone["id"]))
            assert refused.fields() == ["forwarded_from"]
        assert [m["seq"] for m in await history(carol, group)] == [5]


@pytest.mark.gen_test
async def test_a_user_who_returned_sees_both_stays_within_their_bounds(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        cursor = await cursor_of(bob)
        group = await chat(alice, bob)  # 1
        first = await say(alice, group, "first stay")  # 2
        await remove(alice, group, bob)  # 3
        between = await say(alice, group, "between")  # 4
        await react(alice, first)  # 5
        await add(alice, group, bob)  # 6
        await react(alice, between)  # 7
        await edit(alice, first, "edited while he is back")  # 8
        await say(alice, group, "second stay")  # 9
        for _ in range(2):
            events, _end = await caught_up(bob, cursor)
            assert what(events) == [
                ("chat_created", 1),
                ("hidden", 2),
                ("participant_removed", 3),
                ("participant_added", 6),
                ("hidden", 7),
                ("message_new", 9),
            ]
            assert hidden(events) == [(2, 2), (7, 8)]
        assert [m["seq"] for m in await history(bob, group)] == [9]


@pytest.mark.gen_test
async def test_later_participants_of_clouds_and_channels_see_all_messages(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        for kind in ("cloud", "channel"):
            here = await chat(alice, kind=kind)
            old = await say(alice, here, "from the beginning")  # 2
            cursor = await cursor_of(bob)
            await add(alice, here, bob)  # 3
            await edit(alice, old, "edited")  # 4
            assert what((await caught_up(bob, cursor))[0], here) == [("participant_added", 3), ("message_edited", 4)]
            assert (await bob.get(f"/messages/{old['id']}")).json == (await history(bob, here))[0]


# Channels -------------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_readers_of_a_channel_do_not_see_each_other(services: Services, servers: int) -> None:
    async with town(services, servers, people=4) as made:
        owner, admin, reader, other = made.people
        news = await chat(owner, reader, kind="channel")  # 1
        await add(owner, news, admin, "admin")  # 2
        cursors = {who.public_id: await cursor_of(who) for who in (owner, admin, reader)}
        sockets = {who.public_id: await made.socket(who, n) for n, who in enumerate((owner, admin, reader))}
        posted = await say(owner, news)  # 3
        await add(owner, news, other)  # 4
        late = await cursor_of(other)
        theirs = await made.socket(other)
        path = f"/chats/{news['id']}/participants"
        await react(other, posted)  # 5
        await react(reader, posted, quote("🔥"))  # 6
        await react(other, posted, quote("🔥"))  # 7
        await ok(other.delete(f"/messages/{posted['id']}/reactions/{THUMB}"))  # 8
        await ok(owner.put(f"{path}/{other.user_id}", {"role": "restricted"}))  # 9
        await edit(owner, posted, "edited")  # 10
        await remove(owner, news, other)  # 11
        await ok(owner.put(f"{path}/{admin.user_id}", {"role": "member"}))  # 12
        kinds = "message_new participant_added reaction_added reaction_added reaction_added reaction_removed"
        kinds += " participant_role message_edited participant_removed participant_role"
        all_of_it = list(enumerate(kinds.split(), 3))
        everything, as_reader = set(range(3, 13)), {3, 6, 10, 12}
        for who, seqs in ((owner, everything), (admin, everything), (reader, as_reader)):
            socket = sockets[who.public_id]
            for seq, kind in all_of_it:
                frame = await socket.expect(kind if seq in seqs else "hidden", SECONDS, seq=seq)
                if seq not in seqs:
                    assert frame.keys() == {"type", "chat_id", "seq", "created_at"}
                if kind.startswith("message_"):
                    counts = [] if kind == "message_new" else [{"emoji": "🔥", "count": 2}]
                    assert (frame["message"]["reactions"], frame["message"]["reaction_counts"]) == ([], counts)
        for seq, kind in all_of_it[2:9]:  # what the other one did, and what was done to them
            await theirs.expect(kind if seq in (5, 7, 8, 9, 10, 11) else "hidden", SECONDS, seq=seq)
        for who, seqs in ((owner, everything), (reader, as_reader)):
            events, _ = await caught_up(who, cursors[who.public_id])
            assert {event["seq"] for event in events if event["type"] != "hidden"} == seqs
        assert hidden(events) == [(4, 5), (7, 9), (11, 11)]
        assert other.user_id not in str(events)
        # A former admin sees the same as a reader, and a former participant no more than that.
        events, _ = await caught_up(admin, cursors[admin.public_id])
        assert {event["seq"] for event in events if event["type"] != "hidden"} == {3, 10, 12}
        events, _ = await caught_up(other, late)
        assert {event["seq"] for event in events if event["type"] != "hidden"} == {5, 7, 8, 9, 10, 11}
        assert reader.user_id not in str(events)


@pytest.mark.gen_test
async def test_a_channel_shows_own_reactions_and_counts(services: Services) -> None:
    async with town(services, people=3) as made:
        owner, reader, other = made.people
        news = await chat(owner, reader, other, kind="channel")
        cursor = await cursor_of(reader)
        posted = await say(owner, news)
        assert (await history(reader, news))[0]["reaction_counts"] == []
        for who in (reader, other):
            await react(who, posted)
        await react(other, posted, quote("🔥"))
        counts = [{"emoji": "👍", "count": 2}, {"emoji": "🔥", "count": 1}]
        for who, own in ((reader, ["👍"]), (other, ["👍", "🔥"]), (owner, [])):
            shown = [
                (await history(who, news))[0],
                (await who.get(f"/messages/{posted['id']}")).json,
                (await seen(who, news))["last_message"],
            ]
            for one in shown:
                assert [r["emoji"] for r in one["reactions"]] == own
                assert {r["user_id"] for r in one["reactions"]} <= {who.user_id}
                assert one["reaction_counts"] == counts
        [new] = [event for event in (await caught_up(reader, cursor))[0] if event["type"] == "message_new"]
        assert new["message"] == (await history(reader, news))[0]
        group = await chat(owner, reader)
        await react(reader, await say(owner, group))
        [shown] = await history(owner, group)
        assert shown["reactions"] == [{"user_id": reader.user_id, "emoji": "👍"}] and "reaction_counts" not in shown


# What has expired -----------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_expired_messages_count_nowhere_even_before_they_are_erased(services: Services) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        group = await chat(alice, bob)
        kept = await say(alice, group, "kept")
        fading = [await say(alice, group, "fades", expires_in=60) for _ in range(3)]
        await say(bob, group, "his own", expires_in=60)
        await react(alice, fading[0])
        assert (await seen(bob, group))["unread_count"] == 4
        await made.sql("UPDATE messages SET expires_at = now() WHERE expires_at IS NOT NULL")
        for _ in range(2):  # before it is erased and after
            for shown in (await seen(bob, group), (await bob.get("/chats")).json[0]):
                assert (shown["unread_count"], shown["last_message"]["id"]) == (1, kept["id"])
            assert (await seen(alice, group))["unread_count"] == 0
            assert (await read(bob, group, 1))["unread_count"] == 1
            page = await bob.get(f"/chats/{group['id']}/messages?limit=1")
            assert [m["id"] for m in page.json] == [kept["id"]] and "Link" not in page.headers
            for path in ("", f"/reactions/{THUMB}"):
                assert (await bob.delete(f"/messages/{fading[0]['id']}{path}")).status == 404
            assert (await bob.get(f"/messages/{fading[0]['id']}")).status == 404
            refused = await bob.post(f"/chats/{group['id']}/messages", message(reply_to=fading[0]["id"]))
            assert refused.fields() == ["reply_to"]
            await periodic(made.servers[0], "message_expiry")()
        assert (await read(bob, group, kept["seq"]))["unread_count"] == 0


# Sent again -----------------------------------------------------------------------------------------------------------

LOSSES = ("removed", "restricted", "blocked", "chat deleted", "purged", "deleted", "expired", "target gone")


@pytest.mark.gen_test
@pytest.mark.parametrize("loss", LOSSES)
async def test_a_repetition_is_answered_as_before_whatever_its_sender_lost(services: Services, loss: str) -> None:
    async with town(services, people=2) as made:
        alice, bob = made.people
        here = await chat(alice, bob, kind="direct" if loss == "blocked" else "group")
        path = f"/chats/{here['id']}/participants/{bob.user_id}"
        target = await say(alice, here, "replied to")
        phone = await made.socket(bob)
        bodies = [message(reply_to=target["id"], forwarded_from=target["id"]), message(expires_in=60)]
        first = [(await bob.post(f"/chats/{here['id']}/messages", body)).json for body in bodies]
        if loss == "removed":
            await ok(alice.delete(path))
        elif loss == "restricted":
            await ok(alice.put(path, {"role": "restricted"}))
        elif loss == "blocked":
            await ok(alice.put(f"/users/{bob.public_id}/block", {}))
        elif loss in ("chat deleted", "purged"):
            await ok(alice.delete(f"/chats/{here['id']}"))
            if loss == "purged":
                await periodic(made.servers[0], "deleted_chats")()
        elif loss == "deleted":
            for posted in first:
                await ok(bob.delete(f"/messages/{posted['id']}"))
        elif loss == "expired":
            await made.sql("UPDATE messages SET expires_at = now() WHERE expires_at IS NOT NULL")
            await periodic(made.servers[0], "message_expiry")()
        else:
            await ok(alice.delete(f"/messages/{target['id']}"))
        for body, posted in zip(bodies, first, strict=True):
            again = await bob.post(f"/chats/{here['id']}/messages", body)
            assert (again.status, again.json) == (200, posted)
            ack = await phone.send("message_send", chat_id=here["id"], **body)
            assert (ack["type"], ack["repeated"], ack["message_id"]) == ("ack", True, posted["id"])
            assert (ack["seq"], ack["created_at"]) == (posted["seq"], posted["created_at"])
            other = {**body, "encrypted_payload": b64(b"another one")}
            assert (await bob.post(f"/chats/{here['id']}/messages", other)).status == 409
        if loss in ("removed", "restricted", "blocked", "chat deleted", "purged"):
            new = await bob.post(f"/chats/{here['id']}/messages", message())
            assert new.status in (403, 404)


# One message ----------------------------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_one_message_is_shown_as_the_history_shows_it(services: Services) -> None:
    async with town(services, people=3) as made:
        alice, bob, carol = made.people
        group = await chat(alice, bob)
        first = await say(alice, group, "first")
        socket = await made.socket(alice)
        reply = await say(bob, group, "second", reply_to=first["id"])
        frame = await socket.expect("message_new", SECONDS, seq=reply["seq"])
        shown = await bob.get(f"/messages/{reply['id']}")
        [newest, _] = await history(alice, group)
        assert shown.status == 200 and shown.json == newest == frame["message"]
        assert (newest["reply_to"], newest["reply_to_seq"]) == (first["id"], first["seq"])
        assert (await seen(alice, group))["last_message"] == newest
        for who, which in ((carol, reply["id"]), (bob, str(uuid4()))):
            assert (await who.get(f"/messages/{which}")).code == "not_found"
        await ok(alice.delete(f"/messages/{first['id']}"))
        assert (await alice.get(f"/messages/{first['id']}")).status == 404
        assert (await alice.get(f"/messages/{reply['id']}")).json == newest


# The rule itself ------------------------------------------------------------------------------------------------------


def test_the_rule_is_of_types_roles_and_bounds() -> None:
    one, other = uuid4(), uuid4()
    about_old = scope_of("group", "message_edited", 3, None, {})
    assert Membership("group", one, "member", 3).sees(about_old)
    assert not Membership("group", one, "owner", 4).sees(about_old), "an owner who came later, too"
    assert scope_of("direct", "a_type_to_come", 3, other, {}) == about_old, "whatever it says of a message"
    for kind in ("cloud", "channel"):
        assert Membership(kind, one, None, 9, 12).sees(scope_of(kind, "message_edited", 3, None, {}))
    came = scope_of("channel", "participant_added", None, other, {"role": "member"})
    for role, sees in (("owner", True), ("admin", True), ("member", False), ("restricted", False), (None, False)):
        assert Membership("channel", one, role, 1).sees(came) is sees
        assert Membership("channel", other, role, 1).sees(came)
    assert Membership("group", one, "member", 1).sees(scope_of("group", "participant_added", None, other, {}))
    for data in ({"role": "admin"}, {"role": "member", "was": "admin"}):
        assert scope_of("channel", "participant_role", None, other, data) == ""
