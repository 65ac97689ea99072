"""Protects places that change hands: whoever is gone gives up the slot, and goes on in one when there is one again."""

from __future__ import annotations

import asyncio
import json

from conftest import RunningServer, get, open_socket, playing, read_frames

from gameserver.app import App
from gameserver.backpressure import Limits
from gameserver.engine import Phase

RELAXED = Limits(late_s=60.0, stall_s=60.0)


async def until_let_in(app: App, **hello: object) -> None:
    """The chunk under way of whoever is gone has to end first."""
    async with asyncio.timeout(20):
        while True:
            async with open_socket(app) as player:
                await player.say("hello", version=1, **hello)
                if (answer := await player.hear())["type"] == "welcome":
                    await player.hear_frames(1)
                    await player.say("bye")
                    return
                assert answer["code"] == "full"


def test_a_place_changes_hands_and_its_session_goes_on_later(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=1, limits=RELAXED, park_bytes=10**9) as app:
            parking = app.door.engine.parking
            assert parking is not None
            async with playing(app, seed=5) as first:
                await first.hear_frames(9)
                async with open_socket(app) as refused:
                    await refused.say("hello", version=1)
                    assert (await refused.hear())["code"] == "full", "nobody who plays is parked"
                first.socket.transport.abort()
            await until_let_in(app)
            while len(app.door.lobby) > 1:
                await asyncio.sleep(0.005)
            assert (parking.parked, len(parking)) == (1, 1)
            assert json.loads((await get(app, "/readyz"))[2])["ready"], "its seat takes no slot"
            async with playing(app) as other, playing(app, token=first.welcome["token"]) as back:
                assert back.welcome["resumed"] and back.welcome["session"] == first.welcome["session"]
                await other.hear_frames(9)
                assert not back.frames, "there is no slot yet"
                await other.say("bye")
                frames = await back.hear_frames(9)
                assert frames[0]["key"] and frames[0]["frame"] > first.frames[-1]["frame"]
                assert {reading.seed for reading in read_frames(back.frames)} == {5}
            body = (await get(app, "/metrics"))[2].decode()
            for line in ("sessions_parked_total 1", "sessions_unparked_total 1", "parked_bytes 0", "sessions_parked 0"):
                assert f"manyworlds_{line}\n" in body
            assert app.door.engine.phase is Phase.READY

    asyncio.run(scene())


def test_without_parking_a_place_is_kept(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=1, limits=RELAXED) as app:
            async with playing(app, seed=5) as first:
                await first.hear_frames(9)
                first.socket.transport.abort()
            while app.door.lobby.seats[0].occupant is not None:
                await asyncio.sleep(0.005)
            async with open_socket(app) as other:
                await other.say("hello", version=1)
                answer = await other.hear()
                assert (answer["code"], answer["message"]) == ("full", "all 1 places are taken")

    asyncio.run(scene())


def test_places_of_those_who_come_back_after_a_crash_are_theirs(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=1, limits=RELAXED, park_bytes=10**9) as app:
            app.door.lobby.reserved = 1
            async with open_socket(app) as other:
                await other.say("hello", version=1)
                assert (await other.hear())["code"] == "full"
            app.door.lobby.reserved = 0
            await until_let_in(app)

    asyncio.run(scene())
