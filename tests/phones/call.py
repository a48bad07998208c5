"""One call as one of its two phones has it: the signalling goes encrypted through the server, the audio by relay."""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

from tests.phones.line import PATIENCE, Disconnected
from tests.phones.media import Heard, Leg
from tests.phones.signal_protocol import Json

if TYPE_CHECKING:
    from tests.phones.phone import Phone


class Call:
    """A call with `peer` (`user_id`, and on the caller's side `public_id`); `note` is what the peer wrote into it."""

    def __init__(self, phone: "Phone", peer: Json, call_id: str, leg: Leg) -> None:
        self.phone = phone
        self.peer = peer
        self.call_id = call_id
        self.leg = leg
        self.note = ""
        self.ack: Json = {}
        """The server's answer to the offer, or to the answer."""
        self._candidates: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.end()

    async def ring(self, note: str) -> None:
        """Send the offer, then the candidates one by one."""
        self.ack = await self._signal("call_offer", {"sdp": await self.leg.offer(), "note": note}, call_type="audio")
        await self._send_candidates()

    async def take(self, offer: Json, note: str) -> None:
        """Answer an offer, send one's own candidates, and take in the caller's as they come."""
        self.note = offer["note"]
        self.ack = await self._signal("call_answer", {"sdp": await self.leg.answer(offer["sdp"]), "note": note})
        await self._send_candidates()
        self._candidates = asyncio.create_task(self._take_candidates())

    async def answered(self) -> None:
        """Wait until the callee takes the call, and take in the callee's candidates as they come."""
        answer = await self._next("call_answer")
        self.note = answer["note"]
        await self.leg.accept(answer["sdp"])
        self._candidates = asyncio.create_task(self._take_candidates())

    async def hear(self, loud: int = 50) -> Heard:
        """Wait until `loud` audio frames that are not silence have come; 50 are a second of sound."""
        try:
            return await self.leg.hear(loud)
        except TimeoutError:
            heard = self.leg.heard
            raise AssertionError(f"{self.phone.public_id} heard {heard.loud} of {heard.frames} frames") from None

    async def heartbeat(self) -> Json:
        return await self._send("call_heartbeat")

    async def hangup(self, reason: str | None = None) -> Json:
        ack = await self._send("call_hangup", **({"reason": reason} if reason else {}))
        await self.end()
        return ack

    async def hung_up(self) -> Json:
        """Wait until the other side, or the server, ends the call; give that frame."""
        frame = await self.phone.expect("call_hangup", call_id=self.call_id)
        await self.end()
        return frame

    async def end(self) -> None:
        """Stop the audio, without a word to the server."""
        if self._candidates is not None:
            self._candidates.cancel()
            with contextlib.suppress(asyncio.CancelledError, Disconnected):
                await self._candidates
            self._candidates = None
        await self.leg.close()

    async def _send_candidates(self) -> None:
        for candidate in self.leg.candidates():
            await self._signal("ice_candidate", candidate)

    async def _take_candidates(self) -> None:
        while True:
            await self.leg.add_candidate(await self._next("ice_candidate", timeout=3600))

    async def _signal(self, kind: str, message: Json, **fields: object) -> Json:
        payload = await self.phone.encrypt(self.peer, message)
        self.phone.signalled.append(payload)
        return await self._send(kind, encrypted_payload=payload, **fields)

    async def _send(self, kind: str, **fields: object) -> Json:
        return await self.phone.send(kind, call_id=self.call_id, to_user_id=self.peer["user_id"], **fields)

    async def _next(self, kind: str, timeout: float = PATIENCE) -> Json:
        frame = await self.phone.expect(kind, timeout, call_id=self.call_id)
        return await self.phone.decrypt(frame["from_user_id"], frame["encrypted_payload"])
