"""Protects an agent's world on the wire: whatever its delays and company, the same steering brings the same bytes, none
is left out, and they are the world's own."""

from __future__ import annotations

import asyncio
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import HEAR_S, RunningServer, playing, serve_pattern
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gameserver import bot, bot_sync
from gameserver.app import App
from gameserver.backpressure import Limits
from gameserver.bot import Bot, BotError, Packet, View, connect
from gameserver.bot_plan import BotPlan
from gameserver.journal import Keep
from gameserver.notes import Frames
from gameserver.outbox import CHUNKS_WAITING, Outbox
from gameserver.player import play
from gameserver.policies import random_walk
from gameserver.rgb import to_rgb
from gameserver.saves import Shelf
from sessions.recording import read
from world.chunk import Geometry, Picture
from world.motion import keyboard_poses, parse_script
from world.pattern import PatternWorld

IMPATIENT = Limits(late_s=0.0, first_round_trip_s=0.0, stall_s=0.2)  # any live client would be skipped and thrown out
PLANS = {  # (axes, a prompt before them), a chunk each
    "a": [((1.0, 0.0, 0.0, 0.0), None), ((0.0, 0.0, 1.0, 0.0), "fog"), ((0.0, 1.0, -0.5, 0.25), None)] * 2,
    "b": [((0.0, 0.0, -1.0, 0.0), "snow"), ((1.0, 0.0, 0.0, -0.5), None)] * 3,
}


class Seen(PatternWorld):
    """Keeps the pictures it made, by slot."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.pictures: dict[int, list[NDArray[np.uint8]]] = {}

    def step(self, rows: Any) -> list[Picture]:
        made = list(super().step(rows))
        for picture in made:
            self.pictures.setdefault(picture.slot, []).extend(picture.frames)
        return made


async def perform(playing: Bot, name: str, chunk: int) -> None:
    axes, prompt = PLANS[name][chunk]
    if prompt is not None:
        await playing.prompt(prompt)
    await playing.steer(*axes)


def enter(app: App, name: str, **hello: Any) -> Any:
    return connect(app.play_url, **{"seed": ord(name), "codecs": ("raw",), "lockstep": True, "name": name} | hello)


def essence(chunks: list[bot.Chunk]) -> list[tuple[object, ...]]:
    """Everything but the slot, which the pattern paints: the other half of a picture, poses and numbers."""
    return [
        (view.packet.frame, view.packet.chunk, view.packet.control_seq, view.packet.pose, view.rgb[64:].tobytes())
        for chunk in chunks
        for view in chunk.views
    ]


async def alone(app: App, name: str) -> list[tuple[object, ...]]:
    async with enter(app, name) as one:
        chunks = [await one.chunk()]
        for index in range(len(PLANS[name])):
            await perform(one, name, index)
            chunks.append(await one.chunk())
        assert len(one.prompted) == sum(prompt is not None for _, prompt in PLANS[name])
        return essence(chunks)


@settings(max_examples=12)
@given(st.lists(st.sampled_from(["steer a", "steer b", "hear a", "hear b"]), max_size=40))
def test_any_order_of_two_agents_deeds_brings_what_each_gets_alone(order: list[str]) -> None:
    """Deeds that are impossible are left out: an agent steers up to two chunks ahead of what it has heard."""

    async def scene() -> None:
        async with serve_pattern(limits=IMPATIENT) as app:
            expected = {name: await alone(app, name) for name in PLANS}
            async with enter(app, "a") as a, enter(app, "b") as b:
                agents, chunks = {"a": a, "b": b}, {"a": [await a.chunk()], "b": [await b.chunk()]}
                steered = {"a": 0, "b": 0}
                for deed in [*order, *(["steer a", "hear a", "steer b", "hear b"] * 6)]:
                    verb, name = deed.split()
                    heard = len(chunks[name]) - 1
                    if verb == "steer" and steered[name] < min(len(PLANS[name]), heard + 2):
                        await perform(agents[name], name, steered[name])
                        steered[name] += 1
                    elif verb == "hear" and heard < steered[name]:
                        chunks[name].append(await agents[name].chunk())
                assert {name: essence(seen) for name, seen in chunks.items()} == expected

    asyncio.run(scene())


def test_raw_frames_are_the_worlds_own_to_the_bit(running_server: RunningServer) -> None:
    async def scene() -> None:
        world = Seen(num_slots=2)
        async with running_server(world, limits=IMPATIENT) as app, enter(app, "a") as one:
            chunks = [await one.chunk(), *[await one.step(1.0, 0.0, 0.5) for _ in range(5)]]
            frames = np.concatenate([chunk.frames for chunk in chunks])
            (made,) = world.pictures.values()
            assert len(frames) == len(made) == 21
            for frame, picture in zip(frames, made, strict=True):
                assert np.array_equal(frame, to_rgb(picture))

    asyncio.run(scene())


@pytest.mark.parametrize("codec", ["h264", "jpeg"])
def test_coded_frames_are_the_same_bytes_each_time(codec: str, running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=1, limits=IMPATIENT) as app:
            times = []
            for _ in range(2):
                async with enter(app, "a", codecs=(codec,)) as one:
                    views = [await one.view()]
                    for _ in range(4):
                        views += (await one.step(1.0, 0.0, 1.0)).views
                    times.append([view.packet.data for view in views])
            assert times[0] == times[1] and len(times[0]) == 17

    asyncio.run(scene())


def test_a_client_that_steers_before_it_reads_loses_nothing(
    running_server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    put = Outbox.put

    def watched(outbox: Outbox, frames: Frames, fps: int) -> None:
        put(outbox, frames, fps)
        waiting.append(len(outbox._chunks))

    monkeypatch.setattr(Outbox, "put", watched)

    async def scene() -> None:
        world = Seen(geometry=Geometry(448, 256, 16, 1), num_slots=1)
        async with (
            running_server(world, limits=IMPATIENT, stats_s=0.02) as app,
            playing(app, lockstep=True, codecs=["raw"]) as player,
        ):
            await player.say("ack", packet=0, hidden=True)  # a page that says so gets a frame a second
            for _ in range(12):
                await player.steer(1.0, 0.0, 0.0, 0.0)
            await player.hear_frames(1 + 4 * 12)
            assert max(waiting) <= CHUNKS_WAITING
            assert [frame["frame"] for frame in player.frames] == list(range(49))
            assert {len(frame["data"]) for frame in player.frames} == {448 * 256 * 3}
            assert app.door.counts.frames_skipped == 0 and app.door.engine.counters.late_chunks == 0
            told = await player.hear_until("stats")
            assert told["skipped"] == 0 and told["bitrate_kbps"] == 8 * 448 * 256 * 3 * 16 // 1000

    asyncio.run(scene())


def test_raw_frames_of_a_slow_reader_in_real_time_are_skipped_and_not_piled_up(running_server: RunningServer) -> None:
    async def scene() -> None:
        size = 448 * 256 * 3
        world = PatternWorld(geometry=Geometry(448, 256, 64, 1), num_slots=1)
        limits = Limits(late_s=0.05, first_round_trip_s=0.01, stall_s=60.0)
        async with running_server(world, limits=limits) as app, playing(app, codecs=["raw"]) as player:
            player.acks = False
            (seat,) = app.door.lobby.seats
            async with asyncio.timeout(HEAR_S):
                while app.door.counts.frames_skipped < 40:  # the client reads nothing
                    await asyncio.sleep(0.01)
                    assert seat.occupant.socket.unsent_bytes <= size + 2**16
            assert seat.occupant._outbox.backpressure.bitrate_bps == 8 * size * 64, "no bitrate makes them smaller"

    asyncio.run(scene())


def test_poses_and_the_sync_face_and_its_recording(running_server: RunningServer, tmp_path: Path) -> None:
    poses = keyboard_poses("w-5,wl-4,j-3")  # 13: chunks of 1, 4, 4, 4

    def follow(url: str) -> list[NDArray[np.float32]]:
        with bot_sync.connect(url, control="poses", codecs=("raw",), lockstep=True, seed=5) as one:
            one.follow(poses[:7])  # enough for two chunks
            seen = [one.chunk(), one.chunk()]
            one.follow(poses[7:])
            seen += [one.chunk(), one.chunk()]
            return [view.pose for chunk in seen for view in chunk.views]

    async def scene() -> None:
        async with running_server(players=1, limits=IMPATIENT, record=Keep(tmp_path)) as app:
            shown = await asyncio.to_thread(follow, app.play_url)
            assert np.array_equal(np.stack(shown), poses)

    asyncio.run(scene())
    (path,) = tmp_path.glob("*.mwrec")
    recording = read(path.read_bytes())
    assert recording.ended and len(recording.chunks) == 4


def test_who_comes_back_says_lockstep_again_and_goes_on(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=1, limits=IMPATIENT) as app:
            async with enter(app, "a") as one:
                await one.chunk()
                await one.step(1.0)
                one.stays = True
            with pytest.raises(BotError) as caught:
                async with enter(app, "a", token=one.welcome.token, lockstep=False):
                    pass
            assert caught.value.code == "out_of_order"
            async with enter(app, "a", token=one.welcome.token) as again:
                assert again.welcome.resumed
                chunk = await again.step(0.0, 0.0, 1.0)
                assert (chunk.index, chunk.control_seq, len(chunk.views)) == (2, 1, 4)

    asyncio.run(scene())


def test_going_back_forgets_a_prompt_that_waits_for_steering(running_server: RunningServer, tmp_path: Path) -> None:
    async def scene() -> None:
        shelf = Shelf(tmp_path, every_s=1e9, recover_s=1e9)
        async with running_server(players=1, limits=IMPATIENT, saves=shelf) as app, enter(app, "a") as one:
            await one.chunk()
            await one.step(1.0)
            save = await one.save()
            first = await one.step(0.0, 0.0, 1.0)
            await one.prompt("snow")
            await one.load(save)
            again = await one.step(0.0, 0.0, 1.0)
            assert again.index == first.index and shown(again) == shown(first), "it is not the world that was saved"

    asyncio.run(scene())


def shown(chunk: bot.Chunk) -> list[tuple[object, ...]]:
    return [(view.packet.pose, view.rgb.tobytes()) for view in chunk.views]


def test_an_agent_that_does_not_steer_is_closed_in_the_end(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=2, limits=IMPATIENT, patience_s=0.3) as app, enter(app, "a") as one:
            await one.chunk()
            one.stays = True
            with pytest.raises(BotError) as caught:
                async for _ in one:
                    pass
            assert caught.value.code == "idle"
            async with enter(app, "a", token=one.welcome.token) as again:
                assert again.welcome.resumed, "its session waits as one whose line was lost"

    asyncio.run(scene())


def test_a_prompt_that_cannot_be_is_told_and_its_steering_counts(running_server: RunningServer) -> None:
    class Picky(PatternWorld):
        def encode_prompt(self, text: str) -> Any:
            if text == "bad":
                raise ValueError("no such words")
            return super().encode_prompt(text)

    async def scene() -> None:
        async with running_server(Picky(), limits=IMPATIENT) as app, enter(app, "a") as one:
            await one.chunk()
            await one.prompt("bad")
            assert (await one.step(1.0)).index == 1
            assert one.errors == ["bad_prompt"] and one.prompted == []

    asyncio.run(scene())


def test_steering_that_was_dropped_ends_a_bot_in_lockstep(running_server: RunningServer) -> None:
    """It could not know which chunk its next control is for."""

    async def scene() -> None:
        async with running_server(limits=IMPATIENT) as app:
            with pytest.raises(BotError) as caught:
                async with enter(app, "a", control="poses") as one:
                    await one.follow(2 * np.eye(4, dtype=np.float32)[None])
                    await one.chunk()
            assert caught.value.code == "bad_pose"

    asyncio.run(scene())


def test_a_plan_in_lockstep_is_played_as_it_is_written(running_server: RunningServer) -> None:
    """Scripts, policies, poses and prompts by the clock of the stream; and the same again."""
    poses = keyboard_poses("w-5,wl-6")  # 12: filled up to 13
    plans = {
        "script": BotPlan(script=parse_script("w-8,wl-4"), prompts=((0.5, "fog"),), seed=3, lockstep=True),
        "policy": BotPlan(policy=list(islice(random_walk(7), 40)), seconds=3.0, seed=3, lockstep=True, codecs=("raw",)),
        "poses": BotPlan(poses=poses, seed=3, lockstep=True, codecs=("raw",)),
    }

    async def watch(url: str, plan: BotPlan) -> tuple[Any, list[Packet]]:
        seen: list[Packet] = []
        return await play(url, plan, lambda packet, picture: seen.append(packet)), seen

    async def scene() -> None:
        async with running_server(players=2, limits=IMPATIENT) as app:
            for name, plan in plans.items():
                (report, seen), (_, again) = [await watch(app.play_url, plan) for _ in range(2)]
                assert [(p.pose, p.control_seq) for p in seen] == [(p.pose, p.control_seq) for p in again]
                assert [p.frame for p in seen] == list(range(len(seen))) and report.decode_errors == report.skipped == 0
                shown = np.stack([np.frombuffer(p.pose, "<f4").reshape(4, 4) for p in seen])
                if name == "script":
                    assert np.allclose(shown[:13], keyboard_poses("w-8,wl-4"), atol=1e-5) and len(seen) == 21
                    assert report.prompted == [3], "frame 8 is the first that half a second has gone by at"
                elif name == "policy":
                    assert 3.0 * 16 <= len(seen) < 3.0 * 16 + 4
                else:
                    assert np.array_equal(shown, np.concatenate([poses, poses[-1:]]))

    asyncio.run(scene())


def test_in_real_time_both_faces_see_frames_and_chunks(running_server: RunningServer) -> None:
    def watch(url: str) -> list[int]:
        with bot_sync.connect(url, seed=1) as one:
            one.steer(forward=1.0)
            frames = [view.packet.frame for view in islice(one, 5)]
            return frames + [view.packet.frame for chunk in islice(one.chunks(), 2) for view in chunk.views]

    async def scene() -> None:
        async with running_server(players=1, limits=Limits(late_s=30.0, stall_s=60.0)) as app:
            assert await asyncio.to_thread(watch, app.play_url) == list(range(13))
            async with connect(app.play_url, seed=1) as one:  # and the seat was free at once
                assert one.welcome.codec == "h264" and (await one.view()).rgb.shape == (128, 224, 3)
                seq = await one.steer(turn=1.0)
                async for chunk in one.chunks():
                    if chunk.control_seq == seq:
                        break
                assert chunk.frames.shape == (4, 128, 224, 3) and chunk.pose[0, 2] > 0

    asyncio.run(scene())


def test_a_chunk_whose_last_frame_was_skipped_ends_where_the_next_begins(running_server: RunningServer) -> None:
    class Gaps(Bot):
        async def view(self) -> View:
            while (view := await super().view()).packet.frame in (4, 7):
                pass
            return view

    async def scene() -> None:
        async with running_server(players=1, limits=IMPATIENT) as app, enter(app, "a") as one:
            one.__class__ = Gaps
            for _ in range(3):
                await one.steer(1.0)
            frames = [[view.packet.frame for view in (await one.chunk()).views] for _ in range(4)]
            assert frames == [[0], [1, 2, 3], [5, 6, 8], [9, 10, 11, 12]]

    asyncio.run(scene())
