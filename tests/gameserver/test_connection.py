"""Protects a player's stream over real sockets: what is painted is what arrives, whoever else comes, goes or stalls."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from conftest import Player, RunningServer, open_socket, playing, read_frames
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed

from gameserver.backpressure import Limits
from gameserver.encoder import encode_still
from gameserver.protocol import ProtocolError
from world.chunk import Row, Scene
from world.pattern import PatternWorld, prompt_mark

RELAXED = Limits(late_s=30.0, stall_s=60.0)  # a busy machine must not look like a slow link


def test_frames_are_those_that_were_painted_and_obey_the_player(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(limits=RELAXED) as app, playing(app, seed=4711, prompt="fog") as player:
            welcome = player.welcome
            assert (welcome["seed"], welcome["prompt"], welcome["resumed"]) == (4711, "fog", False)
            await player.hear_frames(5)
            seq = await player.steer(0.0, 0.0, 1.0, 0.0)
            while player.frames[-1]["control_seq"] < seq:
                await player.hear_frames(4)
            await player.hear_frames(8)
            assert [frame["packet"] for frame in player.frames] == list(range(len(player.frames)))
            assert [frame["frame"] for frame in player.frames] == list(range(len(player.frames)))
            assert [frame["key"] for frame in player.frames] == [True] + [False] * (len(player.frames) - 1)
            readings = read_frames(player.frames)
            for frame, reading in zip(player.frames, readings, strict=True):
                assert (reading.frame_index, reading.chunk_index) == (frame["frame"], frame["chunk"])
                assert (reading.seed, reading.prompt) == (4711, prompt_mark("fog"))
            before = next(i for i, frame in enumerate(player.frames) if frame["control_seq"] == seq)
            assert readings[-1].yaw_deg > readings[before - 1].yaw_deg + 5  # it turned right
            last = np.frombuffer(player.frames[-1]["pose"], "<f4").reshape(4, 4)
            assert np.degrees(np.arctan2(last[0, 2], last[2, 2])) == pytest.approx(readings[-1].yaw_deg, abs=4)

    asyncio.run(scene())


def test_players_at_different_places_share_forwards_and_one_leaving_changes_nothing(
    running_server: RunningServer,
) -> None:
    def work(rows: Sequence[Row]) -> None:
        time.sleep(0.015)  # the work of a model: four players one by one would need more than a chunk lasts

    async def scene() -> None:
        async with (
            running_server(players=4, limits=RELAXED, on_step=work) as app,
            asyncio.TaskGroup() as g,
        ):
            players: list[Player] = []
            done = asyncio.Event()

            async def play(number: int, frames: int) -> None:
                async with playing(app, seed=number) as player:
                    players.append(player)
                    await player.hear_frames(frames)
                    if number == 3:
                        await player.say("bye")
                        return
                    while not done.is_set():
                        await player.hear_frames(4)

            tasks = []
            for number in range(4):  # each comes in when the one before has played for a while
                tasks.append(g.create_task(play(number, 24)))
                while len(players) <= number or len(players[number].frames) < 5 + 4 * number:
                    await asyncio.sleep(0.005)
            await tasks[3]
            seen = [len(player.frames) for player in players]
            while any(len(p.frames) < n + 24 for p, n in zip(players[:3], seen[:3], strict=True)):
                await asyncio.sleep(0.005)
            done.set()
            await asyncio.gather(*tasks)
            counters = app.door.engine.counters
            assert counters is not None
            assert max(counters.forwards_of) >= 2 and counters.rows > counters.forwards
            for number, player in enumerate(players):
                readings = read_frames(player.frames)
                assert [r.frame_index for r in readings] == list(range(len(player.frames)))
                assert {r.seed for r in readings} == {number} and len({r.slot for r in readings}) == 1

    asyncio.run(scene())


def test_a_prompt_takes_hold_and_is_announced(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(limits=RELAXED) as app, playing(app) as player:
            await player.hear_frames(5)
            await player.say("prompt", text="snow")
            told = await player.hear_until("prompted")
            assert told["text"] == "snow"
            await player.hear_frames(5)
            for frame, reading in zip(player.frames, read_frames(player.frames), strict=True):
                assert (reading.prompt == prompt_mark("snow")) is (frame["chunk"] >= told["chunk"])

    asyncio.run(scene())


def test_a_prompt_that_cannot_be_encoded_is_told_and_the_play_goes_on(running_server: RunningServer) -> None:
    class Picky(PatternWorld):
        def encode_prompt(self, text: str) -> Any:
            if "bad" in text:
                raise ValueError("no such words")
            return super().encode_prompt(text)

    async def scene() -> None:
        async with running_server(Picky(), limits=RELAXED) as app, open_socket(app) as player:
            await player.say("hello", version=1, prompt="bad at the start")
            assert (await player.hear())["code"] == "bad_prompt"
            assert (await player.hear_until("welcome"))["prompt"] == "A test pattern looking north."
            await player.say("prompt", text="bad again")
            await player.hear_until("error", code="bad_prompt")
            await player.hear_frames(5)

    asyncio.run(scene())


class DrawingWorld(PatternWorld):
    """Draws places, and keeps the pictures that sessions begin from."""

    def __init__(self) -> None:
        super().__init__(num_slots=4)
        self.begun: list[NDArray[np.uint8]] = []

    def draw_start(self, prompt: str, seed: int) -> Scene:  # type: ignore[override]
        image = np.full((128, 224, 3), seed, np.uint8)
        return Scene("", "", prompt or "words of the seed", image, self.scenes[0].intrinsics)

    def prepare_image(self, image: NDArray[np.uint8]) -> Any:
        self.begun.append(image)
        return super().prepare_image(image)


def test_a_place_is_drawn_for_a_prompt_and_an_empty_prompt_brings_its_words_back(
    running_server: RunningServer,
) -> None:
    async def scene() -> None:
        world = DrawingWorld()
        async with running_server(world, limits=RELAXED) as app:
            async with playing(app, scene="east", prompt="deep snow", seed=9) as player:
                assert (player.welcome["scene"], player.welcome["prompt"]) == ("east", "deep snow")
                np.testing.assert_array_equal(world.begun[-1], 9)
            async with playing(app, prompt=" \n ", seed=11) as player:
                assert (player.welcome["scene"], player.welcome["prompt"]) == ("", "words of the seed")
                np.testing.assert_array_equal(world.begun[-1], 11)
                await player.say("prompt", text="fog")
                await player.hear_until("prompted", text="fog")
                await player.say("prompt", text="")
                await player.hear_until("prompted", text="words of the seed")
                await player.hear_frames(1)
            async with playing(app, scene="east") as player:
                assert player.welcome["prompt"] == world.scenes[1].prompt
                np.testing.assert_array_equal(world.begun[-1], world.scenes[1].image)

    asyncio.run(scene())


def test_a_session_begins_in_the_picture_it_brought(running_server: RunningServer) -> None:
    async def scene() -> None:
        world = DrawingWorld()
        image = encode_still(np.full((300, 1500, 3), 77, np.uint8))
        async with running_server(world, limits=RELAXED) as app, playing(app, image=image, seed=3) as player:
            assert (player.welcome["scene"], player.welcome["prompt"], player.welcome["seed"]) == ("", "", 3)
            assert world.begun[-1].shape == (128, 224, 3) and abs(world.begun[-1].mean() - 77) < 2
            await player.hear_frames(5)

    asyncio.run(scene())


def test_poses_drive_a_session_exactly(running_server: RunningServer) -> None:
    poses = np.tile(np.eye(4, dtype="<f4"), (9, 1, 1))
    poses[:, 2, 3] = np.arange(9)

    async def scene() -> None:
        async with running_server(limits=RELAXED) as app, playing(app, control="poses") as player:
            await player.say("poses", seq=5, poses=poses.tobytes())
            frames = await player.hear_frames(9)
            assert [np.frombuffer(frame["pose"], "<f4")[11] for frame in frames] == list(range(9))
            assert {frame["control_seq"] for frame in frames} == {5}
            await player.say("poses", seq=6, poses=np.full((1, 4, 4), np.nan, "<f4").tobytes())
            await player.hear_until("error", code="bad_pose")
            await player.hear_frames(4)

    asyncio.run(scene())


def test_a_lost_connection_resumes_where_it_was_with_a_keyframe(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=1, limits=RELAXED) as app:
            async with playing(app, seed=5) as first:
                await first.hear_frames(9)
                first.socket.transport.abort()
            async with playing(app, token=first.welcome["token"]) as second:
                assert second.welcome["resumed"] and second.welcome["seed"] == 5
                assert second.welcome["session"] == first.welcome["session"]
                (frame, *_) = await second.hear_frames(5)
                assert frame["key"] and frame["packet"] == 0 and frame["frame"] > first.frames[-1]["frame"]
                assert [r.frame_index for r in read_frames(second.frames)] == [f["frame"] for f in second.frames]
                seq = await second.steer(1.0, 0.0, 0.0, 0.0)  # its numbers begin anew
                while second.frames[-1]["control_seq"] < seq:
                    await second.hear_frames(1)
            assert app.door.counts.resumed == 1 and app.door.counts.sessions == 1

    asyncio.run(scene())


def test_another_connection_with_the_token_replaces_the_first(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=1, limits=RELAXED) as app, playing(app) as first:
            await first.hear_frames(5)
            async with playing(app, token=first.welcome["token"]) as second:
                assert (await first.hear_until("error"))["code"] == "replaced"
                with pytest.raises(ConnectionClosed) as closed:
                    await first.hear()
                assert closed.value.rcvd is not None and closed.value.rcvd.reason == "replaced"
                await second.hear_frames(9)  # and the end of the first took nothing from it
            assert len(app.door.lobby) == 1

    asyncio.run(scene())


def test_a_token_does_not_change_the_kind_of_control(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(limits=RELAXED) as app, playing(app) as first, open_socket(app) as second:
            await second.say("hello", version=1, control="poses", token=first.welcome["token"])
            assert (await second.hear())["code"] == "out_of_order"
            await first.hear_frames(5)

    asyncio.run(scene())


def test_a_seat_is_free_again_after_the_grace_or_a_bye(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=1, grace_s=0.01, limits=RELAXED) as app:
            for _ in range(2):
                async with playing(app) as player:
                    await player.hear_frames(1)
                    player.socket.transport.abort()
                while len(app.door.lobby):
                    await asyncio.sleep(0.005)
            async with playing(app, token=player.welcome["token"]) as late:
                assert not late.welcome["resumed"]
                async with open_socket(app) as more:
                    await more.say("hello", version=1)
                    assert (await more.hear())["code"] == "full"
                await late.say("bye")
                while len(app.door.lobby):
                    await asyncio.sleep(0.005)

    asyncio.run(scene())


def test_jpeg_for_pages_that_cannot_decode_video(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(limits=RELAXED) as app, playing(app, codecs=["jpeg", "h264"]) as player:
            assert player.welcome["codec"] == "jpeg"
            frames = await player.hear_frames(5)
            assert all(frame["key"] and frame["data"][:2] == b"\xff\xd8" for frame in frames)

    asyncio.run(scene())


def test_a_keyframe_comes_when_asked_for(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(limits=RELAXED) as app, playing(app) as player:
            await player.hear_frames(5)
            await player.say("keyframe")
            while not player.frames[-1]["key"]:
                await player.hear_frames(1)
            await player.hear_frames(2)
            assert read_frames(player.frames[-3:])[0].frame_index == player.frames[-3]["frame"]

    asyncio.run(scene())


def test_a_client_that_acks_nothing_is_skipped_then_cut_and_others_keep_their_pace(
    running_server: RunningServer,
) -> None:
    async def scene() -> None:
        limits = Limits(late_s=0.1, first_round_trip_s=0.1, stall_s=1.2)
        async with running_server(limits=limits) as app, playing(app) as good, playing(app) as bad:
            bad.acks = False

            async def listen() -> str:
                while True:
                    message = await bad.hear()
                    if message["type"] == "error":
                        return str(message["code"])

            listening = asyncio.create_task(listen())
            while not listening.done():
                await good.hear_frames(4)
            assert listening.result() == "slow_client"
            skipped = [message["skipped"] for message in bad.others if message["type"] == "stats"]
            assert skipped[-1] > 0 and len(bad.frames) < len(good.frames)
            assert [f["frame"] for f in bad.frames] != list(range(good.frames[-1]["frame"] + 1))
            assert read_frames(bad.frames)[-1].frame_index == bad.frames[-1]["frame"]  # a skip needs no keyframe
            counters = app.door.engine.counters
            assert counters is not None and counters.late_s < 1.0
            assert good.frames[-1]["frame"] >= 12

    asyncio.run(scene())


def test_stats_come_and_pings_are_answered(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(stats_s=0.1, limits=RELAXED) as app, playing(app) as player:
            await player.say("ping", t_ms=123.5)
            assert (await player.hear_until("pong"))["t_ms"] == 123.5
            await player.hear_frames(9)
            stats = await player.hear_until("stats")
            assert (stats["players"], stats["capacity"], stats["skipped"]) == (1, 4, 0)
            assert stats["fps"] > 0 and stats["kbps"] > 0 and stats["bitrate_kbps"] == 1000
            assert 0 < stats["speed"] <= 1 and stats["chunk_ms"] > 0

    asyncio.run(scene())


def test_silence_before_the_hello_is_cut(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(hello_s=0.05) as app, open_socket(app) as player:
            assert (await player.hear())["code"] == "out_of_order"

    asyncio.run(scene())


def test_a_fault_of_the_world_tells_everybody_and_turns_the_health_bad(running_server: RunningServer) -> None:
    broken = threading.Event()

    def fault(rows: Sequence[Row]) -> None:
        if broken.is_set():
            raise RuntimeError("cuda error")

    async def scene() -> None:
        async with running_server(on_step=fault, limits=RELAXED) as app, playing(app) as one, playing(app) as two:
            await one.hear_frames(5)
            broken.set()
            for player in (one, two):
                error = await player.hear_until("error")
                assert error["code"] == "internal" and "cuda" not in error["message"]
            assert app.door.engine.unhealthy(app.door.engine.now_s()) == "RuntimeError: cuda error"
            async with open_socket(app) as late:
                await late.say("hello", version=1)
                assert (await late.hear())["code"] == "internal"

    asyncio.run(scene())


def test_parting_with_a_connection_while_it_is_coming_in_frees_its_seat(running_server: RunningServer) -> None:
    entered, release = threading.Event(), threading.Event()

    class Slow(PatternWorld):
        def encode_prompt(self, text: str) -> Any:
            entered.set()
            release.wait(20)
            return super().encode_prompt(text)

    async def scene() -> None:
        async with running_server(Slow(), players=1, limits=RELAXED) as app:
            async with open_socket(app) as player:
                await player.say("hello", version=1)
                while not entered.is_set():
                    await asyncio.sleep(0.005)
                assert len(app.door.lobby) == 1
                with pytest.raises(ProtocolError):
                    app.door.reserve("axes", "north", "", None)
                player.socket.transport.abort()
                while len(app.door.lobby):
                    await asyncio.sleep(0.005)
            release.set()
            async with playing(app) as next_player:
                await next_player.hear_frames(1)

    asyncio.run(scene())


def test_hidden_pages_get_less(running_server: RunningServer) -> None:
    async def scene() -> None:
        limits = Limits(late_s=30, stall_s=60, hidden_s=30)
        async with running_server(limits=limits) as app, playing(app) as player, playing(app) as other:
            (*_, last) = await player.hear_frames(5)
            await player.say("ack", packet=last["packet"], hidden=True)
            player.acks = False
            await other.hear_frames(16)
            while not [s for s in player.others if s["type"] == "stats" and s["skipped"] >= 4]:
                await player.hear()
            shown = len(player.frames)
            assert all(a["frame"] < b["frame"] for a, b in pairwise(player.frames))
            await player.say("ack", packet=player.frames[-1]["packet"])
            player.acks = True
            await player.hear_frames(8)
            assert player.frames[shown]["packet"] == shown

    asyncio.run(scene())
