"""A player without a screen: joins, steers, decodes what it gets and measures it. Also a small complete client.

It speaks the wire through `msgpack` alone, as anybody's client would.
"""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Callable
from itertools import chain, cycle
from typing import Any

import av
import msgpack
from av.video.frame import VideoFrame
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from gameserver.bot_plan import BotError, BotPlan
from gameserver.playback import DueClock, Mp4Recording, Packet, PacketDecoder
from gameserver.protocol import MAX_QUEUED_POSES, VERSION
from gameserver.tally import BotReport, Tally
from world.motion import MAX_SCRIPT_FRAMES, key_axes, parse_script

# Odd lengths, so that the controls do not keep step with the chunks.
WANDER = parse_script("w-29,wl-13,w-23,wj-17,w-11,wi-5,wk-5,wa-9,w-19,wd-9,l-21,w-31,j-15")
DEFAULT_SECONDS = 10.0
ANSWER_S = 15.0  # for the connection, and again for the welcome
PING_S = 1.0
POSES_PER_MESSAGE = 128
POSES_AHEAD = MAX_QUEUED_POSES // 2
MAX_ERRORS = 100  # kept for the report

OnFrame = Callable[[Packet, VideoFrame], None]


class Player:
    """One session over one connection."""

    def __init__(self, socket: ClientConnection, plan: BotPlan, on_frame: OnFrame | None) -> None:
        self.socket = socket
        self.plan = plan
        self.on_frame = on_frame
        self.tally = Tally()
        self.now_s = asyncio.get_running_loop().time
        self.seq = 0
        self.poses_sent = 0
        self.skipped = 0
        self.rtt_s: float | None = None
        self.prompted: list[int] = []
        self.errors: list[str] = []

    async def play(self) -> BotReport:
        await self.send(**self.plan.hello())
        welcome = await self.welcome()
        try:
            self.started_s = self.now_s()
            self.fps, self.chunk_frames = int(welcome["fps"]), int(welcome["chunk_frames"])
            session, seed, world = str(welcome["session"]), int(welcome["seed"]), str(welcome["world"])
            self.decoder, self.clock = PacketDecoder(welcome["codec"]), DueClock(self.fps)
        except (KeyError, ValueError, TypeError) as error:
            raise BotError(f"the server's welcome is not one of version {VERSION}: {error!r}") from None
        self.recording = Mp4Recording(self.plan.save, welcome["codec"], self.fps) if self.plan.save else None
        try:
            await self.take_part()
        finally:
            self.close_recording()
        return BotReport(
            frames=self.tally.frames,
            seconds=round(self.now_s() - self.started_s, 3),
            fps=round(self.tally.fps, 3),
            chunks=self.tally.chunks,
            chunk_seconds=self.chunk_frames / self.fps,
            bytes=self.tally.bytes,
            decode_errors=self.decoder.errors,
            control_to_frame_ms=self.tally.control_to_frame_ms,
            distinct_frames_share=round(self.tally.distinct_frames_share, 4),
            skipped=self.skipped,
            keyframes=self.tally.keyframes,
            rtt_ms=None if self.rtt_s is None else round(1000 * self.rtt_s, 3),
            session=session,
            seed=seed,
            world=world,
            prompted=self.prompted,
            errors=self.errors,
        )

    async def welcome(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(ANSWER_S):
                while (message := read(await self.socket.recv()))["type"] != "welcome":
                    self.note_error(message)
                return message
        except TimeoutError:
            raise BotError(f"the server did not welcome this player within {ANSWER_S:.0f} seconds") from None

    def close_recording(self) -> None:
        try:
            if self.recording is not None:
                self.recording.close()
        except (OSError, ValueError, av.FFmpegError) as error:
            raise BotError(f"cannot write {self.plan.save}: {error}") from None

    async def take_part(self) -> None:
        """Speak and watch until the plan is done."""
        speakers = [asyncio.create_task(self.ping()), asyncio.create_task(self.change_prompts())]
        if self.plan.poses is None:
            speakers.append(asyncio.create_task(self.steer()))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.duration_s()):
                    await self.feed_poses()
                    await self.watch()
            await self.send("bye")
        finally:
            for task in speakers:
                task.cancel()
            for outcome in await asyncio.gather(*speakers, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome

    def duration_s(self) -> float | None:
        if self.plan.seconds is not None or self.plan.poses is not None:
            return self.plan.seconds
        if self.plan.script is not None:
            return (sum(frames for _, frames in self.plan.script) + 2 * self.chunk_frames) / self.fps  # to see its end
        return DEFAULT_SECONDS

    async def send(self, type: str, **fields: Any) -> None:
        with contextlib.suppress(ConnectionClosed):  # what the server said before it closed is still to be read
            await self.socket.send(msgpack.packb({"type": type, **fields}))

    # Speaking

    async def ping(self) -> None:
        while True:
            await self.send("ping", t_ms=1000 * self.now_s())
            await asyncio.sleep(PING_S)

    async def change_prompts(self) -> None:
        for after_s, text in sorted(self.plan.prompts):
            await asyncio.sleep(self.started_s + after_s - self.now_s())
            await self.send("prompt", text=text)

    async def steer(self) -> None:
        """The script in real time, whatever the pace of the pictures."""
        once = self.plan.script is not None and self.plan.seconds is None
        script = chain(self.plan.script or (), [("", MAX_SCRIPT_FRAMES)]) if once else cycle(self.plan.script or WANDER)
        due_s = self.now_s()
        for keys, frames in script:
            self.seq += 1
            sent_s = self.now_s()
            self.tally.steered(self.seq, sent_s)
            await self.send("control", seq=self.seq, t_ms=1000 * sent_s, axes=key_axes(keys))
            due_s += frames / self.fps
            await asyncio.sleep(due_s - self.now_s())

    async def feed_poses(self, frames_played: int = 0) -> None:
        """Keep the queue filled: a frame that came has taken its pose out of it."""
        poses = self.plan.poses
        while poses is not None and self.poses_sent < len(poses):
            piece = poses[self.poses_sent : self.poses_sent + POSES_PER_MESSAGE]
            if self.poses_sent + len(piece) > frames_played + POSES_AHEAD:
                return
            self.seq += 1
            self.poses_sent += len(piece)
            await self.send("poses", seq=self.seq, poses=piece.astype("<f4").tobytes())

    # Watching

    async def watch(self) -> None:
        """Until the last pose was shown, if there are poses; the caller bounds the time."""
        async for data in self.socket:
            message = read(data)
            try:
                packet = self.hear(message)
            except (KeyError, ValueError, TypeError) as error:
                raise BotError(
                    f"a {message['type']} of the server is not one of version {VERSION}: {error!r}"
                ) from None
            if packet is not None:
                await self.take(packet)
                if self.shows_the_end(packet):
                    return
        raise BotError("the server closed the connection")

    def hear(self, message: dict[str, Any]) -> Packet | None:
        """Note what was said; a frame comes back to be taken."""
        match message["type"]:
            case "frame":
                return Packet.read(message)
            case "pong":
                rtt_s = self.now_s() - message["t_ms"] / 1000
                self.rtt_s = rtt_s if self.rtt_s is None else min(rtt_s, self.rtt_s)
            case "stats":
                self.skipped, self.clock.speed = int(message["skipped"]), float(message["speed"])
            case "prompted":
                self.prompted.append(int(message["chunk"]))
            case "error":
                self.note_error(message)
        return None

    async def take(self, packet: Packet) -> None:
        now_s = self.now_s()
        self.tally.received(packet, now_s)
        picture = self.decoder.decode(packet)
        if picture is None:
            await self.send("keyframe")
        else:
            self.tally.decoded(zlib.crc32(picture.to_ndarray().tobytes()))
            if self.recording is not None:
                self.recording.add(packet, picture)
            if self.on_frame is not None:
                self.on_frame(packet, picture)
        slack_s = self.clock.slack_s(packet.chunk, packet.frame, now_s)
        slack = {} if slack_s is None else {"slack_ms": min(60_000.0, max(-60_000.0, 1000 * slack_s))}
        await self.send("ack", packet=packet.packet, **slack)
        await self.feed_poses(packet.frame + 1)

    def shows_the_end(self, packet: Packet) -> bool:
        """Whether the last pose is on the picture. One that the camera also held before does not count by itself."""
        poses = self.plan.poses
        if poses is None or packet.control_seq < self.seq or packet.frame < len(poses) - 1:
            return False
        return self.poses_sent == len(poses) and packet.pose == poses[-1].astype("<f4").tobytes()

    def note_error(self, message: dict[str, Any]) -> None:
        """BotError if it is fatal, else it is kept for the report."""
        if message["type"] != "error":
            return
        code, text = str(message.get("code")), str(message.get("message"))
        if message.get("fatal", True):
            raise BotError(f"the server refused ({code}): {text}", code)
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(code)


def read(data: str | bytes) -> dict[str, Any]:
    """A server's message, known by its `type`."""
    try:
        message = msgpack.unpackb(data) if isinstance(data, bytes) else None
    except (ValueError, msgpack.UnpackException):
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise BotError("this is not a Manyworlds server: it sent something that is not a message")
    return message
