"""What leaves on one connection: replies, and chunks encoded frame by frame as far as the client keeps up.

Both queues are bounded and lose their oldest entry, counted: replies are answers nobody waits for any more, chunks are
frames skipped before they were encoded.
"""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray
from websockets.asyncio.server import ServerConnection

from gameserver import protocol
from gameserver.backpressure import Backpressure, Limits
from gameserver.counts import Counts
from gameserver.encoder import ENCODERS, Codec, Encoded, Encoder
from gameserver.notes import Frames, Loaded
from gameserver.pace import Pace
from gameserver.protocol import Ack, Frame, Message, Prompted, encode
from world.chunk import Geometry

CHUNKS_WAITING = 2
REPLIES_WAITING = 64


class Outbox:
    """Its `write` runs as one task; the other methods never wait."""

    def __init__(self, socket: ServerConnection, pool: Executor, counts: Counts) -> None:
        self.key_wanted = True
        self.pace = Pace(socket.loop.time())
        self.backpressure: Backpressure | None = None  # once open
        self._socket = socket
        self._pool = pool
        self._counts = counts
        self._clock = socket.loop.time
        self._wake = asyncio.Event()
        self._replies: deque[Message] = deque()
        self._chunks: deque[Frames] = deque()
        self._prompted: Prompted | None = None  # to be said before the next frames
        self._loaded: protocol.Loaded | None = None  # likewise
        self._encoder: Encoder | None = None
        self._packet = 0
        self._firsts: deque[tuple[int, int]] = deque(maxlen=64)  # (packet, chunk index) of each chunk's first packet

    def open(self, codec: Codec, geometry: Geometry, limits: Limits) -> None:
        """Frames may leave from now on."""
        self._encoder = ENCODERS[codec](geometry)
        self.backpressure = Backpressure(self._encoder.ceiling_bps, geometry.fps, limits)
        self._wake.set()

    def reply(self, message: Message) -> None:
        self._replies.append(message)
        while len(self._replies) > REPLIES_WAITING:
            self._replies.popleft()
            self._counts.replies_dropped += 1
        self._wake.set()

    def put(self, frames: Frames, fps: int) -> None:
        chunk = frames.chunk
        self.pace.chunk(frames, fps)
        if chunk.prompt is not None:
            self._prompted = Prompted(text=chunk.prompt.text, chunk=chunk.chunk_index)
        self._chunks.append(frames)
        while len(self._chunks) > CHUNKS_WAITING:
            self._skipped(len(self._chunks.popleft().chunk.picture.frames))
        self._wake.set()

    def loaded(self, note: Loaded) -> None:
        """What waits is of what was left."""
        while self._chunks:
            self._skipped(len(self._chunks.popleft().chunk.picture.frames))
        self._prompted = None
        self._loaded = protocol.Loaded(save=note.save_id, chunk=note.chunk_index, prompt=note.prompt)

    def acked(self, ack: Ack) -> int | None:
        """The chunk that the ack's slack, if it has one, is about."""
        if self.backpressure is not None:
            self.backpressure.acked(ack.packet, self._clock(), hidden=ack.hidden)
        chunk_index: int | None = None
        while ack.slack_ms is not None and self._firsts and self._firsts[0][0] <= ack.packet:
            chunk_index = self._firsts.popleft()[1]
        return chunk_index

    async def write(self) -> None:
        """Until the connection ends."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._write_replies()
            while self._chunks and self._encoder is not None and self.backpressure is not None:
                await self._write_chunk(self._chunks.popleft(), self._encoder, self.backpressure)
                await self._write_replies()

    async def _write_replies(self) -> None:
        while self._replies:
            await self._send(self._replies.popleft())

    async def _write_chunk(self, frames: Frames, encoder: Encoder, backpressure: Backpressure) -> None:
        chunk = frames.chunk
        if self._loaded is not None:
            self.reply(self._loaded)
            self._loaded = None
        if self._prompted is not None:
            self.reply(self._prompted)
            self._prompted = None
        first = True
        for index, picture in enumerate(chunk.picture.frames):
            await self._write_replies()
            if not backpressure.admits(self._clock()):
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
            backpressure.sent(self._packet, frame, self._clock())
            self._packet += 1
            self.pace.sent_frame()
            self._counts.frames_sent += 1
            await self._send(message)

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
