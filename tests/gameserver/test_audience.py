"""Protects players from those who watch them, and what these see: the player's own packets, from a key frame on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from conftest import Player, RunningServer, decode_frames, get, open_socket, playing
from hypothesis import given
from hypothesis import strategies as st

from gameserver.app import App
from gameserver.audience import KEY_EVERY_S, MAX_WATCHING, Audience
from gameserver.backpressure import Limits
from gameserver.counts import Counts
from gameserver.notes import Frames
from gameserver.outbox import BYTES_WAITING, Outbox
from gameserver.protocol import Frame, Message, ProtocolError
from world.chunk import Geometry

RELAXED = Limits(late_s=60.0, stall_s=60.0)  # a busy machine must not look like a slow link


async def share(player: Player, on: bool = True) -> str:
    await player.say("share", on=on)
    return str((await player.hear_until("shared"))["code"])


@asynccontextmanager
async def watching(app: App, code: str, **hello: Any) -> AsyncIterator[Player]:
    async with playing(app, watch=code, **hello) as spectator:
        yield spectator


async def refusal(app: App, **hello: Any) -> str:
    async with open_socket(app) as somebody:
        await somebody.say("hello", **{"version": 1, **hello})
        error = await somebody.hear_until("error")
        assert error["fatal"]
        return str(error["code"])


async def play_together(player: Player, *spectators: Player, frames: int = 12) -> None:
    await asyncio.gather(*(each.hear_frames(frames) for each in (player, *spectators)))


def test_spectators_see_the_players_packets_from_a_key_frame_on(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(limits=RELAXED) as app, playing(app, seed=5) as player:
            await player.hear_frames(6)
            code = await share(player)
            assert code and code == await share(player), "the same code as long as it is shared"
            async with watching(app, code) as one, watching(app, code) as two:
                for spectator in (one, two):
                    welcome = spectator.welcome
                    assert welcome["watching"] and welcome["token"] == "" and welcome["seed"] == 5
                    assert welcome["session"] == player.welcome["session"] and welcome["players"] == 1
                await player.steer(0.0, 0.0, 1.0, 0.0)
                await player.say("prompt", text="snow")
                await play_together(player, one, two)
                while not any(message["type"] == "prompted" for message in one.others):
                    await play_together(player, one, two, frames=1)
                await one.hear_until("stats", players=1)
                encoded = {frame["frame"]: frame for frame in player.frames}
                for spectator in (one, two):
                    seen = spectator.frames
                    assert seen[0]["key"] and [frame["packet"] for frame in seen] == list(range(len(seen)))
                    for frame in seen:
                        if frame["frame"] in encoded:
                            assert {**frame, "packet": 0} == {**encoded[frame["frame"]], "packet": 0}
                    assert len(decode_frames(seen)) == len(seen)
                assert sum(frame["frame"] in encoded for frame in one.frames) > 8
                body = (await get(app, "/metrics"))[2].decode()
                assert "manyworlds_spectators_total 2\n" in body and "manyworlds_players 1\n" in body
            await player.hear_frames(8)
            assert app.door.lobby[player.welcome["session"]].audience._spectators == {}  # type: ignore[union-attr]
            assert not app.door.counts.errors

    asyncio.run(scene())


def test_a_spectator_cannot_steer_and_loses_only_its_own_place(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(limits=RELAXED) as app, playing(app) as player:
            code = await share(player)
            said = [
                ("control", {"seq": 1, "t_ms": 0.0, "axes": [0, 0, 1, 0]}), ("prompt", {"text": "fire"}), ("share", {}),
                ("poses", {"seq": 1, "poses": np.eye(4, dtype="<f4").tobytes()}),
            ]  # fmt: skip
            async with watching(app, code) as other:
                for kind, fields in said:
                    async with watching(app, code) as spectator:
                        await spectator.say(kind, **fields)
                        assert (await spectator.hear_until("error"))["code"] == "out_of_order"
                await play_together(player, other)
                assert {frame["control_seq"] for frame in player.frames} == {0}
                assert len({frame["pose"] for frame in player.frames}) == 1, "nothing has turned"
                assert not [message for message in player.others if message["type"] in ("error", "prompted")]

    asyncio.run(scene())


def test_only_a_shared_session_can_be_watched(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(limits=RELAXED) as app, playing(app) as player:
            await player.hear_frames(2)
            for guess in (player.welcome["session"], "x", "é"):
                assert await refusal(app, watch=guess) == "not_shared"
            code = await share(player)
            assert await refusal(app, watch=code, codecs=["jpeg"]) == "other_codec"
            async with watching(app, code) as spectator:
                assert await share(player, on=False) == ""
                assert (await spectator.hear_until("error"))["code"] == "not_shared"
            assert await refusal(app, watch=code) == "not_shared"
            again = await share(player)
            assert again != code
            async with watching(app, again) as spectator:
                await spectator.hear_frames(2)
                await player.say("bye")
                assert (await spectator.hear_until("error"))["code"] == "not_shared"
            assert await refusal(app, watch=again) == "not_shared"

    asyncio.run(scene())


def test_no_more_watch_than_there_is_room_for(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=1, limits=RELAXED) as app, playing(app) as player:
            code = await share(player)
            audience = app.door.lobby[player.welcome["session"]].audience  # type: ignore[union-attr]
            spectators = [watching(app, code) for _ in range(MAX_WATCHING)]
            for spectator in spectators:
                await spectator.__aenter__()
            assert len(audience) == MAX_WATCHING and await refusal(app, watch=code) == "full"
            await spectators[0].__aexit__(None, None, None)
            while len(audience) == MAX_WATCHING:
                await asyncio.sleep(0)
            async with watching(app, code):
                await player.hear_frames(3)
            for spectator in spectators[1:]:
                await spectator.__aexit__(None, None, None)

    asyncio.run(scene())


def test_a_spectator_stays_while_the_player_comes_back(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(limits=RELAXED) as app:
            async with playing(app) as player:
                code = await share(player)
                spectator = watching(app, code)
                watcher = await spectator.__aenter__()
                await play_together(player, watcher, frames=5)
            async with playing(app, token=player.welcome["token"]) as again:
                assert await share(again) == code
                seen = len(watcher.frames)
                await play_together(again, watcher, frames=9)
                assert any(frame["key"] for frame in watcher.frames[seen:]), "another encoder begins anew"
                assert len(decode_frames(watcher.frames)) == len(watcher.frames)
            async with playing(app, token=player.welcome["token"], codecs=["jpeg"]):
                assert (await watcher.hear_until("error"))["code"] == "other_codec"
            await spectator.__aexit__(None, None, None)

    asyncio.run(scene())


def test_a_spectator_that_takes_nothing_in_misses_packets_and_goes_and_nobody_notices(
    running_server: RunningServer,
) -> None:
    async def scene() -> None:
        impatient = Limits(late_s=0.0, first_round_trip_s=0.0, stall_s=1.5)
        async with running_server(limits=impatient) as app, playing(app) as player:
            connection: Any = app.door.lobby[player.welcome["session"]].occupant  # type: ignore[union-attr]
            connection._outbox.backpressure.limits = RELAXED  # a player on a busy machine must not look slow
            await player.hear_frames(2)
            code = await share(player)
            async with watching(app, code) as slow:
                slow.acks = False
                heard = asyncio.create_task(slow.hear_until("error"))
                while not heard.done():
                    await player.hear_frames(1)
                assert heard.result()["code"] == "slow_client"
                assert app.door.counts.packets_unrelayed > 0
                packets = [frame["packet"] for frame in slow.frames]
                assert packets and packets == list(range(len(packets)))
            seen = [frame["frame"] for frame in player.frames]
            assert seen == list(range(len(seen))), "the player missed something"
            assert sum(frame["key"] for frame in player.frames) == 2, "only the join asked for a key frame"

    asyncio.run(scene())


def test_raw_pictures_of_an_agent_are_watched_as_they_are(running_server: RunningServer) -> None:
    async def scene() -> None:
        agents = {"codecs": ["raw"], "lockstep": True}
        async with running_server(limits=RELAXED) as app, playing(app, seed=5, **agents) as agent:
            await agent.hear_frames(agent.welcome["first_chunk_frames"])
            code = await share(agent)
            assert await refusal(app, watch=code, codecs=["h264", "jpeg"]) == "other_codec"
            async with watching(app, code, codecs=["jpeg", "raw"]) as spectator:
                assert spectator.welcome["codec"] == "raw"
                for _ in range(3):
                    await agent.steer(1.0, 0.0, 0.5, 0.0)
                    await play_together(agent, spectator, frames=agent.welcome["chunk_frames"])
                seen = [{**frame, "packet": 0} for frame in spectator.frames]
                assert seen == [{**frame, "packet": 0} for frame in agent.frames[1:]]

    asyncio.run(scene())


def test_pictures_that_wait_are_bounded_by_their_bytes() -> None:
    async def scene() -> None:
        counts, socket = Counts(), SimpleNamespace(loop=asyncio.get_running_loop())
        outbox = Outbox(cast(Any, socket), cast(Any, None), counts)  # nobody writes
        outbox.watch(Geometry(64, 48, 16, 1), RELAXED)
        picture = bytes(BYTES_WAITING // 4)
        for number in range(5):
            outbox.relay(Frame(packet=0, frame=number, chunk=0, key=True, control_seq=0, pose=bytes(64), data=picture))
        assert [frame.frame for frame in outbox._relayed] == [4] and counts.packets_unrelayed == 4

    asyncio.run(scene())


# The audience by itself.


@dataclass(eq=False)
class FakeSpectator:
    needs_key: bool = True
    got: list[Frame] = field(default_factory=list)

    def relay(self, frame: Frame) -> None:
        if frame.key or not self.needs_key:
            self.got.append(frame)
            self.needs_key = False

    def reply(self, message: Message) -> None: ...

    def heard(self, frames: Frames, fps: int) -> None: ...


class FakeSource:
    key_wanted = False


def packet(number: int, key: bool = False) -> Frame:
    return Frame(packet=number, frame=number, chunk=number, key=key, control_seq=0, pose=bytes(64), data=b"x")


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0.0, 0.9)), max_size=60))
def test_key_frames_are_asked_for_once_a_second_however_many_come_and_fail(steps: list[tuple[int, float]]) -> None:
    audience, source, now_s = Audience(), FakeSource(), 0.0
    audience.follow(source, "h264")
    asked: list[float] = []
    spectators: list[FakeSpectator] = []
    for number, (what, wait_s) in enumerate(steps):
        now_s += wait_s
        if what == 0 and len(audience) < MAX_WATCHING:
            spectators.append(FakeSpectator())
            audience.join(spectators[-1], lambda error: None)
        elif what == 1 and spectators:
            spectators[number % len(spectators)].needs_key = True
        key, source.key_wanted = source.key_wanted, False
        audience.publish(source, packet(number, key), now_s)
        if source.key_wanted:
            asked.append(now_s)
            assert any(spectator.needs_key for spectator in spectators), "nobody needed it"
    assert all(later - earlier >= KEY_EVERY_S for earlier, later in pairwise(asked))
    for spectator in spectators:
        assert not spectator.got or spectator.got[0].key


def test_packets_of_a_connection_that_was_replaced_go_nowhere() -> None:
    audience, old, new, spectator = Audience(), FakeSource(), FakeSource(), FakeSpectator(needs_key=False)
    audience.follow(old, "h264")
    audience.join(spectator, lambda error: None)
    audience.publish(old, packet(0), 0.0)
    audience.follow(new, "h264")
    audience.publish(old, packet(1), 0.1)
    audience.publish(new, packet(2, key=True), 0.2)
    assert [frame.packet for frame in spectator.got] == [0, 2]


def test_another_codec_or_the_end_is_told_to_everybody() -> None:
    audience, told = Audience(), list[str]()
    audience.follow(FakeSource(), "h264")
    for end in ("other_codec", "not_shared"):
        audience.join(FakeSpectator(), lambda error: told.append(error.code))
        if end == "other_codec":
            audience.follow(FakeSource(), "jpeg")
        else:
            audience.end(ProtocolError("not_shared", "over"))
        assert told.pop() == end and len(audience) == 0
