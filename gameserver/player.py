"""A player without a screen: plays what a plan says with the client library, measures what comes, saves it."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Callable
from typing import Any

import av
from av.video.frame import VideoFrame

from gameserver.bot import Bot, BotError, Packet, View, connect
from gameserver.bot_plan import BotPlan
from gameserver.playback import Mp4Recording
from gameserver.policies import per_chunk, recorded
from gameserver.protocol import MAX_QUEUED_POSES
from gameserver.tally import BotReport, Tally

PING_S = 1.0
POSES_PER_MESSAGE = 128
POSES_AHEAD = MAX_QUEUED_POSES // 2

OnFrame = Callable[[Packet, Any], None]  # the packet, and its picture: a VideoFrame, or an array if it came raw


async def play(url: str, plan: BotPlan, on_frame: OnFrame | None = None) -> BotReport:
    """Play one session. BotError if it cannot be had, or ends before the plan does."""
    if plan.save is not None and not plan.save.parent.is_dir():
        raise BotError(f"{plan.save.parent} is not a directory to save in")
    async with connect(url, **plan.hello()) as bot:
        return await Player(bot, plan, on_frame).play()


class Player:
    """One session, by a plan."""

    def __init__(self, bot: Bot, plan: BotPlan, on_frame: OnFrame | None) -> None:
        self.bot = bot
        self.plan = plan
        self.on_frame = on_frame
        self.tally = Tally()
        self.fps, self.chunk_frames = bot.welcome.fps, bot.welcome.chunk_frames
        self.duration_s = plan.duration_s(self.fps, self.chunk_frames)
        self.started_s = bot.now_s()
        self.poses_sent = 0
        self.recording = Mp4Recording(plan.save, bot.welcome.codec, self.fps) if plan.save else None

    async def play(self) -> BotReport:
        try:
            await (self.in_lockstep() if self.plan.lockstep else self.in_real_time())
            await self.bot.bye()
        finally:
            self.close_recording()
        bot, welcome = self.bot, self.bot.welcome
        return BotReport(
            frames=self.tally.frames,
            seconds=round(bot.now_s() - self.started_s, 3),
            fps=round(self.tally.fps, 3),
            chunks=self.tally.chunks,
            chunk_seconds=self.chunk_frames / self.fps,
            bytes=self.tally.bytes,
            decode_errors=bot.decoder.errors,
            control_to_frame_ms=self.tally.control_to_frame_ms,
            distinct_frames_share=round(self.tally.distinct_frames_share, 4),
            skipped=bot.skipped,
            keyframes=self.tally.keyframes,
            rtt_ms=None if bot.rtt_s is None else round(1000 * bot.rtt_s, 3),
            session=welcome.session,
            seed=welcome.seed,
            world=welcome.world,
            prompted=bot.prompted,
            errors=bot.errors,
        )

    def close_recording(self) -> None:
        try:
            if self.recording is not None:
                self.recording.close()
        except (OSError, ValueError, av.FFmpegError) as error:
            raise BotError(f"cannot write {self.plan.save}: {error}") from None

    # At the pace of the clock

    async def in_real_time(self) -> None:
        """Speak and watch until the plan is done."""
        speakers = [asyncio.create_task(self.ping()), asyncio.create_task(self.change_prompts())]
        if self.plan.poses is None:
            speakers.append(asyncio.create_task(self.steer()))
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.duration_s):
                    await self.feed_poses()
                    await self.watch()
        finally:
            for task in speakers:
                task.cancel()
            for outcome in await asyncio.gather(*speakers, return_exceptions=True):
                if isinstance(outcome, Exception):
                    raise outcome

    async def ping(self) -> None:
        while True:
            await self.bot.ping()
            await asyncio.sleep(PING_S)

    async def change_prompts(self) -> None:
        for after_s, text in sorted(self.plan.prompts):
            await asyncio.sleep(self.started_s + after_s - self.bot.now_s())
            await self.bot.prompt(text)

    async def steer(self) -> None:
        """What is held, in real time, whatever the pace of the pictures."""
        due_s = self.bot.now_s()
        for hold in self.plan.holds():
            sent_s = self.bot.now_s()
            self.tally.steered(await self.bot.steer(*hold.axes), sent_s)
            due_s += hold.frames / self.fps
            await asyncio.sleep(due_s - self.bot.now_s())

    async def feed_poses(self, frames_played: int = 0) -> None:
        """Keep the queue filled: a frame that came has taken its pose out of it."""
        poses = self.plan.poses
        while poses is not None and self.poses_sent < len(poses):
            piece = poses[self.poses_sent : self.poses_sent + POSES_PER_MESSAGE]
            if self.poses_sent + len(piece) > frames_played + POSES_AHEAD:
                return
            self.poses_sent += len(piece)
            await self.bot.follow(piece)

    async def watch(self) -> None:
        """Until the last pose was shown, if there are poses; the caller bounds the time."""
        while True:
            packet = await self.take()
            await self.feed_poses(packet.frame + 1)
            if self.shows_the_end(packet):
                return

    def shows_the_end(self, packet: Packet) -> bool:
        """Whether the last pose is on the picture. One that the camera also held before does not count by itself."""
        poses = self.plan.poses
        if poses is None or packet.control_seq < self.bot.seq or packet.frame < len(poses) - 1:
            return False
        return self.poses_sent == len(poses) and packet.pose == poses[-1].astype("<f4").tobytes()

    # At the pace of the chunks

    async def in_lockstep(self) -> None:
        """A chunk of steering, then the chunk that it makes."""
        welcome, poses = self.bot.welcome, self.plan.poses
        prompts = sorted(self.plan.prompts)
        steps = per_chunk(self.plan.holds(), self.chunk_frames)
        pieces = None if poses is None else recorded(poses, self.chunk_frames, welcome.first_chunk_frames)
        if pieces is None:
            await self.take_until(self.bot.last_frame(0))
        chunk_index = 0 if pieces else 1
        while self.duration_s is None or self.bot.last_frame(chunk_index - 1) + 1 < self.duration_s * self.fps:
            while prompts and prompts[0][0] * self.fps <= self.bot.last_frame(chunk_index - 1) + 1:
                await self.bot.prompt(prompts.pop(0)[1])
            sent_s = self.bot.now_s()
            if pieces is None:
                seq = await self.bot.steer(*next(steps))
            elif (piece := next(pieces, None)) is not None:
                seq = await self.bot.follow(piece)
            else:
                return
            self.tally.steered(seq, sent_s)
            await self.take_until(self.bot.last_frame(chunk_index))
            chunk_index += 1

    async def take_until(self, frame: int) -> None:
        while (await self.take()).frame < frame:
            pass

    # What comes

    async def take(self) -> Packet:
        packet, view = await self.bot.packet()
        self.tally.received(packet, self.bot.now_s())
        if view is not None:
            self.show(view)
        return packet

    def show(self, view: View) -> None:
        picture = view.picture
        pixels = picture.to_ndarray() if isinstance(picture, VideoFrame) else picture
        self.tally.decoded(zlib.crc32(pixels.tobytes()))
        if self.recording is not None:
            frame = picture if isinstance(picture, VideoFrame) else VideoFrame.from_ndarray(picture, format="rgb24")
            self.recording.add(view.packet, frame)
        if self.on_frame is not None:
            self.on_frame(view.packet, picture)
