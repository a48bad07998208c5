"""One end of an audio call: WebRTC through a TURN relay only, sending a tone and measuring what it hears."""

import array
import asyncio
import contextlib
import fractions
import math
import time
from dataclasses import dataclass, field
from typing import Self

from aiortc import (
    RTCConfiguration,
    RTCIceCandidate,
    RTCIceServer,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import AudioStreamTrack, MediaStreamError, MediaStreamTrack
from aiortc.rtcconfiguration import RTCIceTransportPolicy
from aiortc.sdp import candidate_from_sdp
from av import AudioFrame

from tests.phones.signal_protocol import Json

RATE = 48_000
FRAME = 960  # samples, 20 ms
LOUDNESS = 8_000  # amplitude of the tone, of 32,767
SILENCE = 500.0  # what is below this root mean square is taken for silence
CLEARLY = 20  # how many times more power the tone heard has than another one


class Tone(AudioStreamTrack):
    """A sine of `pitch` hertz in 20 ms frames, in real time."""

    def __init__(self, pitch: int) -> None:
        super().__init__()
        self._pitch = pitch
        self._sent = 0
        self._began = 0.0

    async def recv(self) -> AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        if self._sent == 0:
            self._began = time.monotonic()
        await asyncio.sleep(self._began + self._sent / RATE - time.monotonic())
        turn = 2 * math.pi * self._pitch / RATE
        wave = array.array("h", (int(LOUDNESS * math.sin(turn * (self._sent + n))) for n in range(FRAME)))
        frame = AudioFrame(format="s16", layout="mono", samples=FRAME)
        frame.planes[0].update(wave.tobytes())
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._sent, fractions.Fraction(1, RATE)
        self._sent += FRAME
        return frame


@dataclass
class Heard:
    """The audio frames that came: how many, how many of them were not silence, and the last second of sound."""

    frames: int = 0
    loud: int = 0
    samples: "array.array[int]" = field(default_factory=lambda: array.array("h"))

    def add(self, frame: AudioFrame) -> None:
        sound = array.array("h", bytes(frame.planes[0]))[: frame.samples * len(frame.layout.channels)]
        first = sound[:: len(frame.layout.channels)]
        self.frames += 1
        self.loud += math.sqrt(sum(value * value for value in first) / len(first)) > SILENCE
        self.samples.extend(first)
        del self.samples[:-RATE]

    def tells(self, pitch: int, other: int) -> bool:
        """True if the tone `pitch` stands out and `other` doesn't: a phone hears its peer, not its own tone."""
        return self.power(pitch) > CLEARLY * self.power(other)

    def power(self, pitch: int) -> float:
        """The power at one frequency, by Goertzel's algorithm."""
        turn = 2 * math.cos(2 * math.pi * pitch / RATE)
        one = two = 0.0
        for value in self.samples:
            one, two = value + turn * one - two, one
        return one * one + two * two - turn * one * two


class Leg:
    """An audio leg whose every candidate is a relayed one.

    The SDP goes without its candidates; `candidates()` gives them in the shape of a browser's RTCIceCandidateInit, with
    an empty one at the end, to be sent one by one.
    """

    def __init__(self, turn: Json, pitch: int, transport: str = "udp") -> None:
        urls = [url for url in turn["urls"] if url.startswith("turn:") and url.endswith(f"transport={transport}")]
        servers = [RTCIceServer(urls=urls, username=turn["username"], credential=turn["credential"])]
        self._connection = RTCPeerConnection(
            RTCConfiguration(iceServers=servers, iceTransportPolicy=RTCIceTransportPolicy.RELAY)
        )
        self._tone = Tone(pitch)
        self._connection.addTrack(self._tone)
        self._connection.on("track", self._listen)
        self._listening: list[asyncio.Task[None]] = []
        self._early: list[Json] | None = []
        """Candidates that came before the peer's description; None once that is here."""
        self._news = asyncio.Event()
        self.pitch = pitch
        self.heard = Heard()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def offer(self) -> str:
        await self._connection.setLocalDescription(await self._connection.createOffer())
        return self._described()

    async def answer(self, offer: str) -> str:
        await self._hear_of("offer", offer)
        await self._connection.setLocalDescription(await self._connection.createAnswer())
        return self._described()

    async def accept(self, answer: str) -> None:
        await self._hear_of("answer", answer)

    def candidates(self) -> list[Json]:
        sdp = self._connection.localDescription.sdp
        lines = [line.removeprefix("a=") for line in sdp.splitlines() if line.startswith("a=candidate:")]
        return [{"candidate": line, "sdpMid": "0", "sdpMLineIndex": 0} for line in [*lines, ""]]

    async def add_candidate(self, shape: Json) -> None:
        if self._early is not None:
            self._early.append(shape)
            return
        candidate: RTCIceCandidate | None = None
        if shape["candidate"]:
            candidate = candidate_from_sdp(shape["candidate"].removeprefix("candidate:"))
            candidate.sdpMid, candidate.sdpMLineIndex = shape["sdpMid"], shape["sdpMLineIndex"]
        await self._connection.addIceCandidate(candidate)

    async def hear(self, loud: int, timeout: float = 15.0) -> Heard:
        """Wait until `loud` frames that are not silence have come."""
        async with asyncio.timeout(timeout):
            while self.heard.loud < loud:
                self._news.clear()
                await self._news.wait()
        return self.heard

    def pair(self) -> tuple[str, str]:
        """The types of the nominated candidates, mine and the peer's: `relay`, `host`, `srflx` or `prflx`."""
        ice = self._connection.getSenders()[0].transport.transport
        chosen = ice._connection._nominated[1]  # aiortc shows the chosen pair nowhere else
        return chosen.local_candidate.type, chosen.remote_candidate.type

    async def close(self) -> None:
        self._tone.stop()
        await self._connection.close()
        for task in self._listening:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _described(self) -> str:
        lines = self._connection.localDescription.sdp.splitlines()
        kept = [line for line in lines if not line.startswith(("a=candidate:", "a=end-of-candidates"))]
        return "\r\n".join([*kept, ""])

    async def _hear_of(self, kind: str, sdp: str) -> None:
        await self._connection.setRemoteDescription(RTCSessionDescription(sdp=sdp, type=kind))
        early, self._early = self._early, None
        for candidate in early or []:
            await self.add_candidate(candidate)

    def _listen(self, track: MediaStreamTrack) -> None:
        self._listening.append(asyncio.create_task(self._count(track)))

    async def _count(self, track: MediaStreamTrack) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, AudioFrame)
                self.heard.add(frame)
                self._news.set()
