"""The socket: the handshake, answers by id, order, limits, and the close."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import WebSocketClosedError, websocket_connect

from handlers.sockets import hub as hub_module
from handlers.sockets import peer as peer_module
from handlers.sockets import socket as socket_module
from handlers.sockets import turns
from handlers.sockets.hub import Hub, Peer
from tests.client import Account, Socket, ask
from tests.running import Services, place, serving
from tests.waiting import SLACK, WAIT, until

pytestmark = pytest.mark.usefixtures("made_up_frames")


async def handshake(url: str, path: str = "/ws", subprotocols: list[str] | None = None, **headers: str) -> Any:
    """Return the status of a refused handshake, or the open connection."""
    request = HTTPRequest(url.replace("http", "ws", 1) + path, headers=headers)
    try:
        return await websocket_connect(request, subprotocols=subprotocols)
    except HTTPClientError as error:
        return error.code


@pytest.mark.gen_test
async def test_a_handshake_needs_a_valid_token_and_an_allowed_origin(services: Services) -> None:
    async with place(services) as shared, serving(shared, CORS_ALLOW_ORIGINS="https://app.example.org") as server:
        alice = await Account().register(server.url)
        bearer = {"Authorization": f"Bearer {alice.token}"}
        assert await handshake(server.url) == 401
        assert await handshake(server.url, Authorization="Bearer x") == 401
        assert await handshake(server.url, f"/ws?token={alice.token}") == 401
        assert await handshake(server.url, f"/ws?access_token={alice.token}") == 401
        assert await handshake(server.url, Origin="https://evil.example", **bearer) == 403
        assert await handshake(server.url, subprotocols=["mimu.v1", "bearer.x"]) == 401
        assert await handshake(server.url, subprotocols=[f"bearer.{alice.token}"]) == 401
        for options in (
            {**bearer},
            {**bearer, "Origin": "https://app.example.org"},
            {**bearer, "Origin": server.url},
        ):
            connection = await handshake(server.url, **options)
            assert json.loads(await connection.read_message())["type"] == "ready"
            connection.close()
        connection = await handshake(server.url, subprotocols=["mimu.v1", f"bearer.{alice.token}"])
        assert connection.selected_subprotocol == "mimu.v1"
        ready = json.loads(await connection.read_message())
        assert (ready["user_id"], ready["session_id"]) == (alice.user_id, alice.session_id)
        assert ready["server_time"].endswith("Z")
        connection.close()
        plain = await alice.get("/ws")
        assert (plain.status, plain.code) == (400, "invalid_request")


@pytest.mark.gen_test
async def test_bad_frames_are_answered_and_close_nothing(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        async with alice.socket() as socket:
            for raw in (
                "",
                "x",
                "[]",
                "null",
                "5",
                '"text"',
                "{}",
                '{"type": 5}',
                '{"type": "nope"}',
                '{"type": "ready"}',
            ):
                await socket.raw(raw)
                error = await socket.expect("error")
                assert error["code"] == "invalid_request", raw
                assert "id" not in error
            await socket.raw(b"\x00\x01", binary=True)
            assert (await socket.expect("error"))["code"] == "invalid_request"
            error = await socket.send("call_offer", call_id="x", encrypted_payload="!")
            assert {fault["field"] for fault in error["details"]} >= {"call_id", "to_user_id", "encrypted_payload"}
            for bad_id in ("", "x" * 65, 5, {}, None):
                await socket.raw(json.dumps({"type": "nope", "id": bad_id}))
                assert "id" not in await socket.expect("error")
            await socket.raw('{"type": "call_heartbeat", "call_id": "\\u0000"}')
            assert (await socket.expect("error"))["code"] == "invalid_request"
            await socket.silent(0.1)


@pytest.mark.gen_test
async def test_a_frame_too_large_closes(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        async with alice.socket() as socket:
            await socket.raw(json.dumps({"type": "nope", "x": "y" * (socket_module.MAX_FRAME + 1)}))
            assert (await socket.expect("closed"))["code"] == 1009


@pytest.mark.gen_test
async def test_a_flood_closes(services: Services) -> None:
    async with place(services) as shared, serving(shared, RATE_LIMITS="on") as server:
        alice = await Account().register(server.url)
        async with alice.socket() as socket:
            with contextlib.suppress(WebSocketClosedError):
                for _ in range(2 * peer_module.FRAME_BURST):
                    await socket.raw('{"type": "nope"}')
            assert (await socket.expect("closed"))["code"] == 4429


async def opened(account: Account, url: str) -> Socket:
    """A socket that the test or the server closes."""
    address = url.replace("http", "ws", 1) + "/ws"
    socket = Socket(await websocket_connect(HTTPRequest(address, headers={"Authorization": f"Bearer {account.token}"})))
    await socket.expect("ready")
    return socket


@pytest.mark.gen_test
@pytest.mark.parametrize("servers", [1, 2])
async def test_the_eleventh_socket_replaces_the_oldest_wherever_it_is(services: Services, servers: int) -> None:
    async with place(services) as shared, contextlib.AsyncExitStack() as stack:
        running = [await stack.enter_async_context(serving(shared)) for _ in range(servers)]
        urls = [server.url for server in running]
        alice = await Account().register(urls[0])
        sockets = [await opened(alice, urls[number % servers]) for number in range(hub_module.SOCKETS_PER_USER)]
        for number in range(4):  # the oldest are on one instance and the other in turn, the new ones all on the last
            sockets.append(await opened(alice, urls[-1]))
            assert (await sockets[number].expect("closed"))["code"] == 4409
        for socket in sockets[4:]:
            assert socket.frames == []
        for socket in sockets[4:8]:  # those that have gone make room
            await socket.close()
        await until(lambda: sum(len(server.app.hub) for server in running) == hub_module.SOCKETS_PER_USER - 4)
        sockets += [await opened(alice, url) for url in (urls * 4)[:4]]
        await sockets[8].silent()
        assert all(socket.frames == [] for socket in sockets[8:])
        for socket in sockets:
            await socket.close()


@pytest.mark.gen_test
async def test_sockets_that_do_not_answer_a_close_are_not_counted(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        hub: Hub = server.app.hub
        sockets = []
        for _ in range(hub_module.SOCKETS_PER_USER + 3):
            sockets.append(await opened(alice, server.url))
            stream = sockets[-1].connection.protocol.stream
            stream.io_loop.remove_handler(stream.fileno())  # deaf from now on
        [peers] = hub._peers.values()
        assert sum(not peer.closing for peer in peers) == hub_module.SOCKETS_PER_USER
        for socket in sockets:
            socket.connection.protocol.stream.close()
            await socket.close()


@pytest.mark.gen_test
async def test_a_slow_frame_holds_up_those_behind_it_and_nothing_else(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.postgres.pool.COMMAND_SECONDS", WAIT)  # it is not given up before the lock is released
    async with place(services) as shared, serving(shared, RATE_LIMITS="on") as server:
        alice = await Account().register(server.url)
        async with alice.socket() as socket:
            pongs: list[bytes] = []
            socket.connection.on_pong = pongs.append  # type: ignore[assignment]
            behind = peer_module.FRAME_BURST - 10
            db = server.app.db
            async with db.pool.acquire() as blocker, blocker.transaction():
                await blocker.execute("LOCK TABLE call_sessions IN ACCESS EXCLUSIVE MODE")
                call = "00000000-0000-0000-0000-000000000000"
                await socket.raw(json.dumps({"type": "call_heartbeat", "call_id": call, "id": "slow"}))
                for number in range(behind):
                    await socket.raw(json.dumps({"type": "nope", "id": f"n{number}"}))
                socket.connection.ping(b"still there?")
                async with asyncio.timeout(WAIT):
                    # Neither pongs nor other sockets are held up meanwhile.
                    while not pongs:
                        await asyncio.sleep(0.01)
                    async with alice.socket() as other:
                        assert (await other.send("nope"))["code"] == "invalid_request"
                assert socket.frames == []
            answers = [await socket.expect("error") for _ in range(behind + 1)]
            assert [answer["id"] for answer in answers] == ["slow", *(f"n{number}" for number in range(behind))]


@pytest.mark.gen_test
async def test_frames_queued_behind_a_slow_one_are_bounded(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        async with alice.socket() as socket:
            [[peer]] = server.app.hub._peers.values()
            sent = [socket_module.MAX_FRAME // 2, 100] * 100
            db = server.app.db
            async with db.pool.acquire() as blocker, blocker.transaction():
                await blocker.execute("LOCK TABLE call_sessions IN ACCESS EXCLUSIVE MODE")
                call = "00000000-0000-0000-0000-000000000000"
                await socket.raw(json.dumps({"type": "call_heartbeat", "call_id": call, "id": "slow"}))
                for number, size in enumerate(sent):
                    # Not awaited: the client's own queue fills when the server stops reading.
                    socket.connection.write_message(json.dumps({"type": "nope", "id": f"n{number}", "x": "y" * size}))
                await asyncio.sleep(0.5)
                waiting = peer._handler._turns.waiting
                assert 0 < len(waiting) <= turns.MAX_WAITING
                assert sum(map(len, waiting)) <= turns.MAX_WAITING_BYTES + socket_module.MAX_FRAME
            answers = [await socket.expect("error") for _ in range(len(sent) + 1)]
            assert [answer["id"] for answer in answers] == ["slow", *(f"n{number}" for number in range(len(sent)))]


@pytest.mark.gen_test
async def test_a_token_that_ends_closes_and_a_fresh_one_prolongs(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module, "EXPIRY_WARNING", 4)
    async with place(services) as shared, serving(shared, JWT_EXPIRATION_HOURS=str(5 / 3600)) as server:
        alice = await Account().register(server.url)
        async with alice.socket() as prolonged, alice.socket() as ended:
            await prolonged.expect("token_expiring")
            bob = await Account().register(server.url)
            assert (await prolonged.send("auth", access_token=bob.token))["code"] == "forbidden"
            assert (await prolonged.send("auth", access_token="x"))["code"] == "unauthorized"
            fresh = await ask(server.url, "POST", "/auth/refresh", {"refresh_token": alice.refresh_token})
            assert (await prolonged.send("auth", access_token=fresh.json["access_token"]))["type"] == "ack"
            assert (await ended.expect("closed"))["code"] == 4401
            assert all(frame["type"] != "closed" for frame in prolonged.frames)
        assert (await alice.get("/users/me")).code == "token_expired"


@pytest.mark.gen_test(timeout=30)
async def test_a_dead_peer_is_noticed_and_one_that_answers_pings_stays(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "PING_EVERY", 2)
    monkeypatch.setattr(hub_module, "PONG_WITHIN", 1)
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        async with alice.socket() as alive, alice.socket() as dead:
            # The dead one's network has gone: its pongs never come.
            stream = dead.connection.protocol.stream
            stream.io_loop.remove_handler(stream.fileno())
            [[_, peer]] = server.app.hub._peers.values()
            async with asyncio.timeout(WAIT):
                while not peer.closing:
                    await asyncio.sleep(0.05)
            code = await asyncio.get_running_loop().sock_recv(stream.socket, 1000)
            assert code.endswith(b"\x03\xe9ping unanswered")
            stream.close()
            await alive.silent()


@pytest.mark.gen_test
async def test_a_slow_reader_is_bounded_and_closed(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        hub: Hub = server.app.hub
        async with alice.socket() as socket:
            [peer] = [peer for peers in hub._peers.values() for peer in peers]
            stream = socket.connection.protocol.stream
            stream.io_loop.remove_handler(stream.fileno())  # it stops reading
            frame = {"type": "typing", "padding": "x" * 4000}
            user_id = peer.session.user_id
            for _ in range(5000):
                hub.send(user_id, frame, droppable=True)
            assert not peer.closing
            # What can be missed never takes the room of what can't.
            assert peer._queued_bytes <= peer_module.MAX_QUEUED_BYTES // 2 + 5000
            dropped = server.app.metrics.frames_dropped._value.get()
            for _ in range(100):
                hub.send(user_id, {**frame, "type": "message"})
            assert not peer.closing
            assert dropped > 0
            assert server.app.metrics.frames_dropped._value.get() == dropped
            for _ in range(2 * peer_module.MAX_QUEUED):
                hub.send(user_id, {**frame, "type": "message"})
            assert peer.closing
            assert peer._queued <= peer_module.MAX_QUEUED


@pytest.mark.gen_test
async def test_a_slow_reader_that_reads_on_gets_what_was_queued_and_then_4408(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        async with alice.socket() as socket:
            [[peer]] = server.app.hub._peers.values()
            while peer.held is not None:  # its welcome
                await asyncio.sleep(0.01)
            user_id = peer.session.user_id
            for number in range(
                2 * peer_module.MAX_QUEUED
            ):  # in one turn of the loop, in which the client does not read
                server.app.hub.send(user_id, {"type": "message", "number": number, "padding": "x" * 4000})
            assert (await socket.expect("closed"))["code"] == 4408
            numbers = [frame["number"] for frame in socket.frames]
            assert numbers == list(range(len(numbers)))
            assert 200 < len(numbers) < peer_module.MAX_QUEUED


@pytest.mark.gen_test
async def test_an_instance_receives_frames_of_its_own_users_only(services: Services) -> None:
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice = await Account().register(one.url)
        channel = f"{hub_module.USER_CHANNEL}{alice.user_id}"

        async def heard(instances: int) -> None:
            async with asyncio.timeout(WAIT):
                while dict(await one.app.redis.pubsub_numsub(channel))[channel.encode()] != instances:
                    await asyncio.sleep(0.02)

        await heard(0)
        async with alice.socket(one.url), alice.socket(one.url) as second:
            await heard(1)
            async with alice.socket(two.url):
                await heard(2)
            await heard(1)
            await second.silent()
            await heard(1)
        await heard(0)


@pytest.mark.gen_test
async def test_the_kernel_keeps_little_for_a_slow_reader_too(services: Services) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        hub: Hub = server.app.hub
        async with alice.socket() as socket:
            [peer] = [peer for peers in hub._peers.values() for peer in peers]
            stream = socket.connection.protocol.stream
            stream.io_loop.remove_handler(stream.fileno())  # it stops reading
            sent = 0
            while not peer.closing:
                hub.send(peer.session.user_id, {"type": "message", "padding": "x" * 60_000})
                sent += 60_000
                await asyncio.sleep(0.002)  # what the kernel would take it can
            # Our queue, the kernel's at both ends, and what is lost to its bookkeeping.
            assert sent < 3 * peer_module.MAX_QUEUED_BYTES


@pytest.mark.gen_test
async def test_a_stopping_server_says_restart_to_one_after_the_other(services: Services) -> None:
    async with place(services) as shared, contextlib.AsyncExitStack() as opened_here:
        async with serving(shared, SHUTDOWN_SECONDS="1") as server:
            people = [await Account(one_time=0).register(server.url) for _ in range(4)]
            sockets = [await opened_here.enter_async_context(people[n % 4].socket()) for n in range(20)]
            closings = [asyncio.ensure_future(closed_at(socket)) for socket in sockets]
        times = sorted(await asyncio.gather(*closings))
        assert times[-1] - times[0] > 0.5
        # Never many at once, however busy the machine is.
        assert all(later - earlier > 0.1 for earlier, later in zip(times, times[10:], strict=False))


@pytest.mark.gen_test
async def test_a_few_sockets_are_sent_away_one_by_one(services: Services) -> None:
    async with place(services) as shared, contextlib.AsyncExitStack() as opened_here:
        async with serving(shared, SHUTDOWN_SECONDS="20") as server:
            alice = await Account(one_time=0).register(server.url)
            sockets = [await opened_here.enter_async_context(alice.socket()) for _ in range(4)]
            closings = [asyncio.ensure_future(closed_at(socket)) for socket in sockets]
        times = sorted(await asyncio.gather(*closings))
        assert 0.5 < times[-1] - times[0] < 2 + SLACK


async def closed_at(socket: Socket) -> float:
    assert (await socket.expect("closed"))["code"] == 1012
    return time.monotonic()


@pytest.mark.gen_test
async def test_a_handshake_while_the_server_stops_is_closed_too(services: Services) -> None:
    """Over an existing connection, as proxies keep them."""
    async with place(services) as shared, contextlib.AsyncExitStack() as lines:
        async with serving(shared, SHUTDOWN_SECONDS="0.5") as server:
            people = [await Account(one_time=0).register(server.url) for _ in range(2)]
            crowd = [await lines.enter_async_context(people[0].socket()) for _ in range(10)]
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            lines.callback(writer.close)
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200" in await reader.readuntil(b"}")
            coming = asyncio.ensure_future(crowd[0].expect("closed"))
            coming.add_done_callback(lambda _: shake_hands(writer, people[1]))
        assert (await reader.readuntil(b"restarting")).endswith(b"\x03\xf4server restarting")


def shake_hands(writer: asyncio.StreamWriter, account: Account) -> None:
    head = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    head += f"Authorization: Bearer {account.token}\r\nSec-WebSocket-Version: 13\r\n"
    writer.write(f"{head}Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode())


@pytest.mark.gen_test
async def test_a_session_that_ends_during_the_handshake_gets_no_socket(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place(services) as shared, serving(shared) as server:
        alice = await Account().register(server.url)
        arrive = server.app.hub.register

        async def after_a_logout(peer: Peer) -> None:
            await alice.post("/auth/logout", {})
            await asyncio.sleep(0.3)  # the news of it have come by the bus as well
            await arrive(peer)

        monkeypatch.setattr(server.app.hub, "register", after_a_logout)
        socket = Socket(await handshake(server.url, Authorization=f"Bearer {alice.token}"))
        assert (await socket.expect("closed"))["code"] == 4401
        assert socket.frames == []
        await socket.close()


@pytest.mark.gen_test
async def test_from_ready_on_nothing_is_missed_on_any_instance(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other instance learns late that the user is here; until then it would send to its own sockets only."""
    async with place(services) as shared, serving(shared) as one, serving(shared) as two:
        alice = await Account().register(one.url)
        hub: Hub = two.app.hub
        hear = hub._receive
        monkeypatch.setattr(
            hub, "_receive", lambda *message: asyncio.get_running_loop().call_later(0.3, hear, *message)
        )
        async with alice.socket(two.url), alice.socket(one.url) as socket:
            hub.send(next(iter(hub.users())), {"type": "news"})
            await socket.expect("news")
