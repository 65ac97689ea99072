"""Protects the one port: the page before the world is there, the answers supervisors read, and an orderly end."""

from __future__ import annotations

import asyncio
import json
import socket
import threading

import av
import pytest
from conftest import RunningServer, get, open_socket, playing
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from gameserver.app import ServeError, running
from gameserver.audience import MAX_WATCHING
from gameserver.door import Settings
from world.chunk import Report, World
from world.pattern import PatternWorld


def test_page_status_and_thumbnails_are_answered(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=3) as app:
            status, headers, body = await get(app, "/")
            assert status == 200 and headers["content-type"].startswith("text/html") and b"<canvas" in body
            assert (
                headers["x-content-type-options"] == "nosniff"
                and "default-src 'self'" in headers["content-security-policy"]
            )
            assert (await get(app, "/main.js?v=1"))[1]["content-type"].startswith("text/javascript")
            status, _, body = await get(app, "/", If_None_Match=headers["etag"])
            assert (status, body) == (304, b"")
            status, headers, body = await get(app, "/", "HEAD")
            assert status == 200 and body == b"" and int(headers["content-length"]) > 100
            world = json.loads((await get(app, "/world.json"))[2])
            assert (world["name"], world["ready"], world["players"], world["capacity"]) == ("pattern", True, 0, 3)
            assert (world["width"], world["height"], world["fps"]) == (224, 128, 16)
            assert [scene["id"] for scene in world["scenes"]] == ["north", "east"] and world["draws"] is False
            status, headers, body = await get(app, world["scenes"][1]["thumbnail"])
            (picture,) = av.CodecContext.create("mjpeg", "r").decode(av.Packet(body))
            assert headers["content-type"] == "image/jpeg" and (picture.width, picture.height) == (224, 128)

    asyncio.run(scene())


def test_there_are_no_more_places_than_the_world_holds(running_server: RunningServer) -> None:
    """Where memory had room for fewer than was thought before it was loaded."""

    async def scene() -> None:
        async with running_server(PatternWorld(num_slots=2), players=8) as app:
            assert json.loads((await get(app, "/world.json"))[2])["capacity"] == app.door.lobby.capacity == 2

    asyncio.run(scene())


def test_what_is_not_there_is_not_answered(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server() as app:
            for path in ("/nothing", "/../pyproject.toml", "/__init__.py", "/scenes/none.jpg", "/scenes/", "//"):
                assert (await get(app, path))[0] == 404, path
            assert (await get(app, "/", "POST"))[0] == 405
            assert (await get(app, "/play"))[0] == 426
            with pytest.raises(InvalidStatus):
                await connect(app.play_url.replace("/play", "/elsewhere"))

    asyncio.run(scene())


def test_health_readiness_and_metrics_follow_the_game(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=1) as app:
            assert (await get(app, "/readyz"))[0] == 200
            async with playing(app) as player:
                before = json.loads((await get(app, "/healthz"))[2])
                await player.hear_frames(9)
                status, _, body = await get(app, "/healthz")
                after = json.loads(body)
                assert status == 200 and after["ok"] and after["ticks"] > before["ticks"]
                assert (await get(app, "/readyz"))[0] == 503  # no seat
                text = (await get(app, "/metrics"))[2].decode()
                values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
                assert int(values["manyworlds_frames_sent_total"]) >= 9
                assert values["manyworlds_players"] == values["manyworlds_capacity"] == "1"
                assert int(values['manyworlds_forwards_by_rows_total{rows="1"}']) > 0
            idle = json.loads((await get(app, "/healthz"))[2])["loops"]
            while json.loads((await get(app, "/healthz"))[2])["loops"] == idle:  # advances without players as well
                await asyncio.sleep(0.05)

    asyncio.run(scene())


def test_the_page_waits_for_the_world(running_server: RunningServer) -> None:
    release = threading.Event()

    def load(report: Report) -> World:
        report("weights", 0.25)
        release.wait(20)
        return PatternWorld()

    async def scene() -> None:
        async with running_server(load=load, wait_ready=False) as app:
            while (world := json.loads((await get(app, "/world.json"))[2]))["progress"]["share"] != 0.25:
                await asyncio.sleep(0.005)
            assert world["ready"] is False and world["progress"]["stage"] == "weights" and world["scenes"] == []
            assert (await get(app, "/"))[0] == 200
            assert (await get(app, "/readyz"))[0] == 503
            assert (await get(app, "/healthz"))[0] == 200
            async with open_socket(app) as early:
                await early.say("hello", version=1)
                assert (await early.hear())["code"] == "not_ready"
            release.set()
            await asyncio.wait_for(app.door.settled.wait(), 20)
            async with playing(app) as player:
                await player.hear_frames(1)

    asyncio.run(scene())


def test_everybody_is_told_before_the_server_goes_down(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server() as app:
            one, two = open_socket(app), open_socket(app)
            async with one as playing_one, two as silent:
                await playing_one.say("hello", version=1)
                await playing_one.hear_frames(5)
                app.door.shut()
                assert (await playing_one.hear_until("error"))["code"] == "shutting_down"
                await silent.say("hello", version=1)
                assert (await silent.hear())["code"] == "shutting_down"
                assert (await get(app, "/readyz"))[0] == 503
        assert app.stopped and not [t for t in threading.enumerate() if t.name == "engine"]

    asyncio.run(scene())


def test_too_many_sockets_are_turned_away(running_server: RunningServer) -> None:
    async def scene() -> None:
        async with running_server(players=1) as app:
            sockets = [await connect(app.play_url, compression=None) for _ in range(36 + MAX_WATCHING)]
            with pytest.raises(InvalidStatus) as refused:
                await connect(app.play_url)
            assert refused.value.response.status_code == 503
            await asyncio.gather(*(each.close() for each in sockets))

    asyncio.run(scene())


@pytest.mark.parametrize(
    "host, words", [("127.0.0.1", "in use"), ("no.such.host.invalid", "not known"), ("192.0.2.1", "cannot")]
)
def test_a_place_it_cannot_listen_on_is_one_sentence(host: str, words: str) -> None:
    async def scene() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            settings = Settings(host, taken.getsockname()[1])
            async with running(settings, lambda report: PatternWorld()):
                raise AssertionError("it listens")

    with pytest.raises(ServeError, match=words):
        asyncio.run(scene())
