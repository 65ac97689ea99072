"""What leaves on one connection: replies, and chunks encoded frame by frame as far as the client keeps up.

Both queues are bounded and lose their oldest entry, counted: replies are answers nobody waits for any more, chunks are
frames skipped before they were encoded. A client in lockstep gets every frame: its session goes on when they have left.
A spectator's gets packets instead, which the player's has encoded: one that is late or lets too many wait loses all up
to the next key frame, counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace

import msgspec
import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import ServerConnection

from gameserver import protocol
from gameserver.audience import Audience
from gameserver.backpressure import Backpressure, Limits
from gameserver.counts import Counts
from gameserver.encoder import ENCODERS, Codec, Encoded, Encoder, default_bitrate_bps
from gameserver.notes import Frames, Loaded
from gameserver.pace import Pace
from gameserver.protocol import Ack, Frame, Message, Prompted, encode
from world.chunk import Geometry

CHUNKS_WAITING = 2
REPLIES_WAITING = 64
PACKETS_WAITING = 64
BYTES_WAITING = 2**24  # more than this, and it is as if there were so many: raw pictures are large


class Outbox:
    """Its `write` runs as one task; the other methods never wait."""

    def __init__(self, socket: ServerConnection, pool: Executor, counts: Counts) -> None:
        self.key_wanted = True
        self.pace = Pace(socket.loop.time())
        self.backpressure: Backpressure | None = None  # once open
        self.audience: Audience | None = None  # who watches what leaves here
        self._socket = socket
        self._pool = pool
        self._counts = counts
        self._clock = socket.loop.time
        self._wake = asyncio.Event()
        self._replies: deque[Message] = deque()
        self._chunks: deque[Frames] = deque()
        self._prompted: Prompted | None = None  # to be said before the next frames
        self._loaded: protocol.Loaded | None = None  # likewise
        self._encoder: Encoder | None = None  # none for a spectator
        self._relayed: deque[Frame] = deque()
        self._awaits_key = True  # relayed packets are of no use until one comes
        self._packet = 0
        self._left: Callable[[int], None] | None = None
        self._firsts: deque[tuple[int, int]] = deque(maxlen=64)  # (packet, chunk index) of each chunk's first packet

    def open(self, codec: Codec, geometry: Geometry, limits: Limits, left: Callable[[int], None] | None = None) -> None:
        """Frames may leave from now on. In lockstep `left` is told the index of each chunk that has."""
        self._left = left
        if codec == "raw":
            limits = replace(limits, floor=1.0)  # it gets no smaller
        self._encoder = ENCODERS[codec](geometry)
        self.backpressure = Backpressure(self._encoder.ceiling_bps, geometry.fps, limits)
        self._wake.set()

    def watch(self, geometry: Geometry, limits: Limits) -> None:
        """Packets may be relayed from now on."""
        self.backpressure = Backpressure(default_bitrate_bps(geometry), geometry.fps, limits)

    def relay(self, frame: Frame) -> None:
        """A packet of somebody else's encoder."""
        if self.backpressure is None:
            return
        missed = 0
        waiting_bytes = sum(len(waiting.data) for waiting in self._relayed)
        if len(self._relayed) >= PACKETS_WAITING or waiting_bytes >= BYTES_WAITING:
            missed, self._awaits_key = len(self._relayed), True
            self._relayed.clear()
        if self._awaits_key and not frame.key:
            missed += 1
        elif not self.backpressure.admits(self._clock()):  # which counts it
            self._awaits_key = True
            self._counts.packets_unrelayed += 1
        else:
            self._awaits_key = False
            self._relayed.append(frame)
            self._wake.set()
        self._counts.packets_unrelayed += missed
        if self._packet:  # before the first one nothing is missed
            self.backpressure.skip(missed)

    @property
    def needs_key(self) -> bool:
        """It could go on from a key frame: one that is still behind waits for others to ask."""
        return self._awaits_key and self.backpressure is not None and self.backpressure.unacked_packets == 0

    def lost_track(self) -> None:
        """A spectator's decoder failed."""
        self._awaits_key = True

    def heard(self, frames: Frames, fps: int) -> None:
        """A chunk whose packets will come."""
        self.pace.chunk(frames, fps)

    def reply(self, message: Message) -> None:
        self._replies.append(message)
        while len(self._replies) > REPLIES_WAITING:
            self._replies.popleft()
            self._counts.replies_dropped += 1
        self._wake.set()

    def put(self, frames: Frames, fps: int) -> None:
        chunk = frames.chunk
        self.heard(frames, fps)
        if self.audience is not None:
            self.audience.heard(frames, fps)
        if chunk.prompt is not None:
            self._prompted = Prompted(text=chunk.prompt.text, chunk=chunk.chunk_index)
        self._chunks.append(frames)
        while len(self._chunks) > CHUNKS_WAITING and not frames.lockstep:
            self._skipped(len(self._chunks.popleft().chunk.picture.frames))
        self._wake.set()

    def loaded(self, note: Loaded) -> None:
        """What waits is of what was left."""
        while self._chunks:
            self._skipped(len(self._chunks.popleft().chunk.picture.frames))
        self._prompted = None
        self._loaded = protocol.Loaded(save=note.save_id, chunk=note.chunk_index, prompt=note.prompt)
        self._wake.set()

    def acked(self, ack: Ack) -> int | None:
        """The chunk that the ack's slack, if it has one, is about."""
        if self.backpressure is not None:
            hidden = ack.hidden and self._encoder is not None  # a spectator cannot do with fewer
            self.backpressure.acked(ack.packet, self._clock(), hidden=hidden)
        chunk_index: int | None = None
        while ack.slack_ms is not None and self._firsts and self._firsts[0][0] <= ack.packet:
            chunk_index = self._firsts.popleft()[1]
        return chunk_index

    async def write(self) -> None:
        """Until the connection ends."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._tell_loaded()
            await self._write_replies()
            while self._chunks and self._encoder is not None and self.backpressure is not None:
                await self._write_chunk(self._chunks.popleft(), self._encoder, self.backpressure)
                self._tell_loaded()
                await self._write_replies()
            while self._relayed and self.backpressure is not None:
                await self._write_relayed(self._relayed.popleft(), self.backpressure)
                await self._write_replies()

    async def _write_relayed(self, frame: Frame, backpressure: Backpressure) -> None:
        backpressure.sent(self._packet, frame.frame, self._clock())
        message = msgspec.structs.replace(frame, packet=self._packet)  # it counts this connection's
        self._packet += 1
        self.pace.sent_frame()
        self._counts.packets_relayed += 1
        await self._send(message)

    def _tell_loaded(self) -> None:
        """Between two chunks: frames before it are of what was left. In lockstep none come before it was heard."""
        if self._loaded is not None:
            self.reply(self._loaded)
            if self.audience is not None:
                self.audience.tell(self._loaded)
            self._loaded = None

    async def _write_replies(self) -> None:
        while self._replies:
            await self._send(self._replies.popleft())

    async def _write_chunk(self, frames: Frames, encoder: Encoder, backpressure: Backpressure) -> None:
        chunk = frames.chunk
        self._tell_loaded()
        if self._prompted is not None:
            self.reply(self._prompted)
            if self.audience is not None:
                self.audience.tell(self._prompted)
            self._prompted = None
        first = True
        for index, picture in enumerate(chunk.picture.frames):
            await self._write_replies()
            if self._left is None and not backpressure.admits(self._clock()):
                self._counts.frames_skipped += 1
                continue
            key, self.key_wanted = self.key_wanted, False
            encoded = await asyncio.get_running_loop().run_in_executor(
                self._pool, _encode, encoder, picture, backpressure.bitrate_bps, key
            )
            if first:
                self._firsts.append((self._packet, chunk.chunk_index))
                first = False
            frame = chunk.first_frame + index
            message = Frame(
                packet=self._packet, frame=frame, chunk=chunk.chunk_index, key=encoded.key,
                control_seq=chunk.control_seq, pose=chunk.poses[index].astype("<f4").tobytes(), data=encoded.data,
            )  # fmt: skip
            if self.audience is not None:
                self.audience.publish(self, message, self._clock())
            if self._left is None:
                backpressure.sent(self._packet, frame, self._clock())
            self._packet += 1
            self.pace.sent_frame()
            self._counts.frames_sent += 1
            await self._send(message)
        if self._left is not None and self._loaded is None:  # else it is of what was left
            self._left(chunk.chunk_index)

    async def _send(self, message: Message) -> None:
        data = encode(message)
        self.pace.sent_bytes(len(data))
        self._counts.bytes_sent += len(data)
        await self._socket.send(data)

    def _skipped(self, num_frames: int) -> None:
        self._counts.frames_skipped += num_frames
        if self.backpressure is not None:
            self.backpressure.skip(num_frames)


def _encode(encoder: Encoder, picture: NDArray[np.uint8], bitrate_bps: int, key: bool) -> Encoded:
    encoder.set_bitrate(bitrate_bps)
    return encoder.encode(picture, key=key)
