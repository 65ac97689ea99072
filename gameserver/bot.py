"""The client library: a session on a server, steered by a program. It needs the protocol and nothing of the server.

    async with connect("ws://localhost:8000", seed=7, lockstep=True, codecs=("raw",)) as bot:
        start = await bot.chunk()
        chunk = await bot.step(forward=1.0, turn=-0.5)

`gameserver.bot_sync` has the same verbs without `await`, `gameserver.policies` things to do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgpack
import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gameserver.bot_error import BotError
from gameserver.dial import dial, ended, read, refused, welcome
from gameserver.due_clock import DueClock
from gameserver.protocol import (
    MAX_POSES,
    MAX_TRANSPORT_BYTES,
    MESSAGES_PER_S,
    VERSION,
    Hello,
    ProtocolError,
    Welcome,
    decode_client,
    encode,
)
from gameserver.view import Chunk, Packet, RawDecoder, View
from gameserver.wire import TokenBucket

__all__ = ["Bot", "BotError", "Chunk", "Packet", "View", "connect"]

SILENCE_S = 60.0  # a server that lives says something every second
BYE_S = 5.0  # for the server to close
MAX_ERRORS = 100  # kept
HURRY = 0.8  # of the server's limit on messages: clocks differ
REFUSED_SAVES = {"no_saves", "too_many_saves", "saves_full", "save_failed", "unknown_save", "bad_save"}
LOST = {"control_queue_full", "pose_queue_full", "bad_pose"}  # steering that was dropped: no lockstep after that


class Decoder(Protocol):
    errors: int

    @property
    def wants_key(self) -> bool: ...
    def decode(self, packet: Packet) -> Any: ...


@asynccontextmanager
async def connect(url: str, **hello: Any) -> AsyncIterator[Bot]:
    """A session that ends with the block. `hello` are fields of that message, as PROTOCOL.md has them.

    BotError if there is no server, or it refuses, or the session ends before its time.
    """
    message = greeting(**hello)
    socket = await dial(url)
    try:
        bot = Bot(socket, message, await welcome(socket, message))
        try:
            yield bot
        finally:
            if not bot.stays:
                await bot.bye()
    except ConnectionClosed as closed:
        raise ended(closed) from None
    finally:
        await socket.close()


class Bot:
    """One session over one connection. Nothing is read from it but when a verb waits for something."""

    def __init__(self, socket: ClientConnection, hello: Hello, welcome: Welcome) -> None:
        self.welcome = welcome
        self.lockstep = hello.lockstep
        self.seq = 0  # of the last steering
        self.rtt_s: float | None = None  # shortest
        self.skipped = 0  # frames, by the server's count
        self.prompted: list[int] = []  # chunks at which a prompt took hold
        self.errors: list[str] = []  # codes that did not end the session
        self.stays = False  # leave without a word, so that the token continues the session
        self.now_s = asyncio.get_running_loop().time
        self.decoder = _decoder(welcome)
        self._socket = socket
        self._clock = DueClock(welcome.fps)
        self._bucket = TokenBucket(HURRY * MESSAGES_PER_S, HURRY * MESSAGES_PER_S)
        self._views: list[View] = []  # of a chunk that is not whole yet
        self._heard: deque[Packet] = (
            deque()
        )  # while an answer was waited for: no more than the server sends without an ack

    # Speaking

    async def steer(
        self, forward: float = 0.0, right: float = 0.0, turn: float = 0.0, pitch: float = 0.0,
        look: tuple[float, float] = (0.0, 0.0),
    ) -> int:  # fmt: skip
        """Axes in -1..1, held until the next ones (in lockstep: for one chunk), and degrees to look right and up.
        Returns the `control_seq` that frames made with it carry."""
        axes = [forward, right, turn, pitch]
        return await self._steer("control", t_ms=1000 * self.now_s(), axes=axes, look=list(look))

    async def follow(self, poses: NDArray[np.floating]) -> int:
        """Poses [n, 4, 4] camera-to-world, for the next n video frames. Returns the last one's `control_seq`."""
        for first in range(0, len(poses), MAX_POSES):
            await self._steer("poses", poses=poses[first : first + MAX_POSES].astype("<f4").tobytes())
        return self.seq

    async def prompt(self, text: str) -> None:
        """Another world from the next chunk on; in lockstep from the next one that is steered."""
        await self._send("prompt", text=text)

    async def save(self) -> str:
        """Keep all of the session as it is between two chunks. Returns the id, for `load` or another hello's `save`.
        BotError with the code if the server does not."""
        await self._send("save")
        return str((await self._answer("saved", self._heard))["save"])

    async def load(self, save: str) -> int:
        """Go back to a save of this session: what was steered or seen since does not count any more. Returns the chunk
        that comes next. BotError with the code if the server does not."""
        await self._send("load", save=save)
        loaded = await self._answer("loaded", deque(maxlen=0))
        self._heard.clear()
        self._views, self._clock = [], DueClock(self.welcome.fps)
        return int(loaded["chunk"])

    async def ping(self) -> None:
        """The pong, when it is heard, says how long it took."""
        await self._send("ping", t_ms=1000 * self.now_s())

    async def bye(self) -> None:
        """Leave, and wait until the server has closed: by then the seat is free. Nothing can be said after it."""
        self.stays = True
        await self._send("bye")
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            async with asyncio.timeout(BYE_S):
                while True:
                    await self._socket.recv()

    # Listening

    async def packet(self) -> tuple[Packet, View | None]:
        """The next frame message, acknowledged; None where it cannot be decoded, and then a key frame was asked for."""
        while (packet := self._heard.popleft() if self._heard else self._note(await self._hear())) is None:
            pass
        now_s = self.now_s()
        picture = self.decoder.decode(packet)
        if picture is None:
            await self._send("keyframe")
        if not self.lockstep:
            slack_s = self._clock.slack_s(packet.chunk, packet.frame, now_s)
            slack = {} if slack_s is None else {"slack_ms": min(60_000.0, max(-60_000.0, 1000 * slack_s))}
            await self._send("ack", packet=packet.packet, **slack)
        return packet, None if picture is None else View(packet, picture)

    async def view(self) -> View:
        """The next frame."""
        while (view := (await self.packet())[1]) is None:
            pass
        return view

    async def __aiter__(self) -> AsyncIterator[View]:
        """Frames, for as long as anybody wants them."""
        while True:
            yield await self.view()

    async def chunk(self) -> Chunk:
        """The next chunk, once all that comes of it is here."""
        while True:
            view = await self.view()
            before = self._views
            if before and before[0].packet.chunk != view.packet.chunk:  # its last frame was skipped
                self._views = [view]
                return Chunk(tuple(before))
            before.append(view)
            if view.packet.frame == self.last_frame(view.packet.chunk):
                self._views = []
                return Chunk(tuple(before))

    async def chunks(self) -> AsyncIterator[Chunk]:
        while True:
            yield await self.chunk()

    async def step(
        self, forward: float = 0.0, right: float = 0.0, turn: float = 0.0, pitch: float = 0.0,
        look: tuple[float, float] = (0.0, 0.0),
    ) -> Chunk:  # fmt: skip
        """Steer, and wait for the first chunk that obeys."""
        seq = await self.steer(forward, right, turn, pitch, look)
        while (chunk := await self.chunk()).control_seq < seq:
            pass
        return chunk

    def last_frame(self, chunk_index: int) -> int:
        """Index in the stream of a chunk's last frame."""
        return self.welcome.first_chunk_frames + chunk_index * self.welcome.chunk_frames - 1

    # Below

    async def _steer(self, kind: str, **fields: Any) -> int:
        await self._turn()
        self.seq += 1
        await self._say(kind, seq=self.seq, **fields)
        return self.seq

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._turn()
        await self._say(kind, **fields)

    async def _turn(self) -> None:
        """Not more messages a second than the server takes; in real time the frames set the pace."""
        while self.lockstep and not self._bucket.take(self.now_s()):
            await asyncio.sleep(1 / MESSAGES_PER_S)

    async def _say(self, kind: str, **fields: Any) -> None:
        with contextlib.suppress(ConnectionClosed):  # what the server said before it closed is still to be read
            await self._socket.send(msgpack.packb({"type": kind, **fields}))

    async def _hear(self) -> dict[str, Any]:
        """One message."""
        try:
            async with asyncio.timeout(SILENCE_S):
                return read(await self._socket.recv())
        except TimeoutError:
            raise BotError(f"the server has said nothing for {SILENCE_S:.0f} seconds") from None
        except ConnectionClosed as closed:
            raise ended(closed) from None

    async def _answer(self, kind: str, frames: deque[Packet]) -> dict[str, Any]:
        """The next message of this kind; frames that come before it go to `frames`. BotError if it is refused."""
        while (message := await self._hear())["type"] != kind:
            packet = self._note(message)
            if packet is not None:
                frames.append(packet)
            elif message["type"] == "error" and message.get("code") in REFUSED_SAVES:
                raise BotError(str(message["message"]), self.errors.pop())
        return message

    def _note(self, message: dict[str, Any]) -> Packet | None:
        """A frame comes back, anything else is noted."""
        try:
            return self._noted(message)
        except (KeyError, ValueError, TypeError) as error:
            raise BotError(f"a {message['type']} of the server is not one of version {VERSION}: {error!r}") from None

    def _noted(self, message: dict[str, Any]) -> Packet | None:
        match message["type"]:
            case "frame":
                return Packet.read(message)
            case "pong":
                rtt_s = self.now_s() - message["t_ms"] / 1000
                self.rtt_s = rtt_s if self.rtt_s is None else min(rtt_s, self.rtt_s)
            case "stats":
                self.skipped, self._clock.speed = int(message["skipped"]), float(message["speed"])
            case "prompted":
                self.prompted.append(int(message["chunk"]))
            case "error":
                self.errors.append(refused(message, fatal=LOST if self.lockstep else set()))
                del self.errors[MAX_ERRORS:]
        return None


def greeting(**fields: Any) -> Hello:
    """BotError if no server would take such a hello."""
    hello = Hello(version=VERSION, **{"name": "bot"} | fields)
    try:
        decode_client(encode(hello), MAX_TRANSPORT_BYTES)
    except ProtocolError as error:
        raise BotError(f"this cannot be asked for ({error.code}): {error.message}", error.code) from None
    return hello


def _decoder(welcome: Welcome) -> Decoder:
    if welcome.codec == "raw":
        return RawDecoder(welcome.width, welcome.height)
    from gameserver.playback import PacketDecoder  # a library that raw pictures need not load

    return PacketDecoder(welcome.codec)
