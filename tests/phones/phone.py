"""A phone: one person's client of the whole server, over HTTP and the socket, with real keys and real audio."""

import asyncio
import json
import secrets
import uuid
from typing import Any, Self

import httpx

from tests.phones.call import Call
from tests.phones.line import PATIENCE, Disconnected, Line, Refused
from tests.phones.media import Leg
from tests.phones.signal_protocol import BundleRefused, Json, Signal, b64, unb64

TELLING = 12  # characters of the shortest line that a search cannot find by chance


class Phone:
    """One device of one account."""

    def __init__(self, base_url: str, public_id: str, password: str, signal: Signal) -> None:
        self.base_url = base_url
        self.public_id = public_id
        self.password = password
        self.signal = signal
        self.user_id = ""
        self.fingerprint = ""
        self.access_token = ""
        self.refresh_token = ""
        self.said = {password}
        """Every plaintext and every secret of this phone: none of it may be found on the server."""
        self.signalled: list[str] = []
        """The encrypted payloads of calls, which outlive nothing but the ringing."""
        self.posted: list[str] = []
        """The encrypted payloads of messages, which are kept, but never logged."""
        self._http = httpx.AsyncClient(base_url=base_url, trust_env=False, timeout=PATIENCE)
        self._line: Line | None = None

    @classmethod
    async def register(cls, base_url: str, public_id: str, signal: Signal, display_name: str | None = None) -> Self:
        """Make an account with the device's keys."""
        phone = cls(base_url, public_id, secrets.token_urlsafe(16), signal)
        body = {"public_id": public_id, "password": phone.password, "display_name": display_name or public_id.title()}
        try:
            phone._enter(await phone.post("/auth/register", {**body, "language": "ru", **await signal.register_body()}))
            await signal.known_as(phone.user_id)
        except BaseException:
            await phone.close()
            raise
        return phone

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self.disconnect()
        await self._http.aclose()
        await self.signal.close()

    async def login(self) -> None:
        self._enter(await self.post("/auth/login", {"public_id": self.public_id, "password": self.password}))

    async def refresh(self) -> None:
        self._hold(await self.post("/auth/refresh", {"refresh_token": self.refresh_token}))

    async def search(self, query: str) -> list[Json]:
        found: list[Json] = await self.get("/users/search", q=query)
        return found

    async def profile(self, public_id: str) -> Json:
        shown: Json = await self.get(f"/users/{public_id}")
        return shown

    async def bundle(self, public_id: str) -> Json:
        """Fetch a peer's prekeys in the form that this phone's Signal wants; uses one of their one-time prekeys up."""
        wanted = {"format": self.signal.bundle_format} if self.signal.bundle_format else {}
        fetched: Json = await self.get(f"/users/{public_id}/prekeys", **wanted)
        return fetched

    async def turn_credentials(self) -> Json:
        turn: Json = await self.get("/calls/turn-credentials")
        self.said.add(turn["credential"])
        return turn

    async def calls(self) -> list[Json]:
        history: list[Json] = await self.get("/calls")
        return history

    async def get(self, path: str, /, **query: str) -> Any:
        return await self.ask("GET", path, params=query)

    async def post(self, path: str, body: Json) -> Json:
        answer: Json = await self.ask("POST", path, json=body)
        return answer

    async def ask(
        self, method: str, path: str, *, params: dict[str, str] | None = None, json: Json | None = None
    ) -> Any:
        """One request, with the headers that the mobile client sends; the JSON of the answer, or `Refused`."""
        answer = await self._http.request(method, path, headers=self._headers(), params=params, json=json)
        if answer.is_error:
            problem = answer.json()
            raise Refused(problem["error"], f"{problem['message']} {problem.get('details', '')}", answer.status_code)
        return answer.json() if answer.content else None

    async def connect(self) -> Json:
        """Open the socket and give the server's first frame, `ready`."""
        await self.disconnect()
        self._line = await Line.open(self.base_url, self._headers(), self.public_id)
        return await self.expect("ready")

    async def disconnect(self) -> None:
        if self._line is not None:
            await self._line.close()
            self._line = None

    async def send(self, kind: str, **fields: object) -> Json:
        """Send a frame and give its `ack`; an `error` is raised as `Refused`."""
        return await self._open_line().send(kind, **fields)

    async def expect(self, kind: str, timeout: float = PATIENCE, **fields: object) -> Json:
        """Take the first frame of that type whose fields are those given, waiting for it if it has not come yet."""
        return await self._open_line().expect(kind, timeout, **fields)

    def came(self, kind: str, **fields: object) -> list[Json]:
        """The frames of that type that have arrived and were not taken yet."""
        return self._open_line().came(kind, **fields)

    async def encrypt(self, peer: Json, message: Json) -> str:
        """Encrypt a message for a peer as an `encrypted_payload`; the first one fetches a bundle and checks it."""
        bundle = None
        if not self.signal.has_session(peer["user_id"]):
            bundle = await self.bundle(peer["public_id"])
            if bundle["fingerprint"] != peer["fingerprint"]:
                raise BundleRefused(f"{peer['public_id']} has one fingerprint in the profile, another in the bundle")
        text = "\n".join(value for value in message.values() if isinstance(value, str))
        self.said.update(line for line in text.splitlines() if len(line) >= TELLING)
        return b64(await self.signal.encrypt(bundle, peer["user_id"], json.dumps(message).encode()))

    async def decrypt(self, peer: str, payload: str) -> Json:
        plain: Json = json.loads(await self.signal.decrypt(peer, unb64(payload)))
        return plain

    async def message(self, public_id: str, text: str) -> Json:
        """Post an encrypted message to the direct chat with a peer, opening the chat if need be; give the answer."""
        peer = await self.profile(public_id)
        chat = await self.post("/chats", {"type": "direct", "participants": [public_id]})
        payload = await self.encrypt(peer, {"text": text})
        self.posted.append(payload)
        body = {"client_id": str(uuid.uuid4()), "encrypted_payload": payload, "message_type": "text"}
        return await self.post(f"/chats/{chat['id']}/messages", body)

    async def read(self, sender: str) -> str:
        """Wait for a message from a user, by their id, over the socket; give its text."""
        async with asyncio.timeout(PATIENCE):
            while True:
                message = (await self.expect("message_new"))["message"]
                if message["sender_id"] == sender:
                    text: str = (await self.decrypt(sender, message["encrypted_payload"]))["text"]
                    return text

    async def call(self, public_id: str, pitch: int, note: str = "", transport: str = "udp") -> Call:
        """Look a peer up and ring them; `note` travels inside the encrypted offer, `pitch` is the tone they'll hear."""
        peer = await self.profile(public_id)
        call = Call(self, peer, str(uuid.uuid4()), Leg(await self.turn_credentials(), pitch, transport))
        await call.ring(note)
        return call

    async def answer(self, pitch: int, note: str = "", transport: str = "udp") -> Call:
        """Wait for a call and take it."""
        frame = await self.expect("call_offer")
        offer = await self.decrypt(frame["from_user_id"], frame["encrypted_payload"])
        leg = Leg(await self.turn_credentials(), pitch, transport)
        call = Call(self, {"user_id": frame["from_user_id"]}, frame["call_id"], leg)
        await call.take(offer, note)
        return call

    def _open_line(self) -> Line:
        if self._line is None:
            raise Disconnected(None)
        return self._line

    def _headers(self) -> dict[str, str]:
        if not self.access_token:
            return {}
        return {
            "Authorization": f"Bearer {self.access_token}",
            "X-PrID": self.public_id,
            "X-Client-Version": "1.0.0",
            "X-Platform": "android",
        }

    def _enter(self, answer: Json) -> None:
        self.user_id, self.fingerprint = answer["user_id"], answer["fingerprint"]
        self._hold(answer)

    def _hold(self, tokens: Json) -> None:
        self.access_token, self.refresh_token = tokens["access_token"], tokens["refresh_token"]
        self.said |= {self.access_token, self.refresh_token}
