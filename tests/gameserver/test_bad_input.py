"""Bad input against the real server: everybody gets the code they earned, nobody else notices, no traceback."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gameserver.app import App, running
from gameserver.backpressure import Limits
from gameserver.bot import BotError
from gameserver.bot_plan import BotPlan
from gameserver.door import Settings
from gameserver.encoder import VideoFrame, encode_still
from gameserver.player import play
from gameserver.protocol import (
    CLOSE_CODES,
    ERRORS,
    EXPELLED,
    MAX_IMAGE_BYTES,
    MAX_MESSAGE_BYTES,
    MAX_TRANSPORT_BYTES,
    MESSAGES_BURST,
)
from gameserver.view import Packet
from gameserver.websocket import FRAMES_BURST
from world.pattern import PatternWorld, read_pattern

BAD = json.loads((Path(__file__).parents[1] / "vectors" / "bad.json").read_text(encoding="utf-8"))
HELLO = {"type": "hello", "version": 1}
PATIENT = Limits(late_s=30.0, stall_s=30.0)  # a busy machine must not look like a slow line
ANSWER_S = 20.0  # far more than is needed: the test is about the answer


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield
    loud = [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]
    assert not loud, [record.getMessage() for record in loud]


@asynccontextmanager
async def serving(num_slots: int = 8, limits: Limits = PATIENT, grace_s: float = 0.0) -> AsyncIterator[App]:
    """By default a place is free again as soon as its connection is gone."""
    settings = Settings(port=0, capacity=num_slots, grace_s=grace_s, limits=limits)
    async with running(settings, lambda report: PatternWorld(num_slots=num_slots)) as app, asyncio.timeout(ANSWER_S):
        await app.door.settled.wait()
        yield app


class Neighbour:
    """A well-behaved player who checks every picture."""

    def __init__(self, app: App) -> None:
        self.frames = 0
        self.slots: set[int] = set()
        self._came = asyncio.Condition()
        self._url = app.play_url

    @asynccontextmanager
    async def playing(self) -> AsyncIterator[Neighbour]:
        task = asyncio.create_task(play(self._url, BotPlan(seconds=600), self._see))
        try:
            await self.sees_more(task)
            yield self
            await self.sees_more(task)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        assert len(self.slots) == 1

    async def sees_more(self, task: asyncio.Task[Any]) -> None:
        """Three chunks more. Raises what ended the play, if it ended."""
        enough = self.frames + 12
        while self.frames < enough and not task.done():
            async with self._came:
                await asyncio.wait_for(self._came.wait(), ANSWER_S)
        if task.done():
            task.result()

    def _see(self, packet: Packet, picture: VideoFrame) -> None:
        says = read_pattern(picture.to_ndarray(format="yuv420p"))
        assert packet.frame == packet.packet == self.frames == says.frame_index  # nothing lost, skipped or swapped
        assert packet.chunk == says.chunk_index
        self.frames += 1
        self.slots.add(says.slot)
        asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self._came:
            self._came.notify_all()


def pack(message: dict[str, Any]) -> bytes:
    return bytes(msgpack.packb(message))


async def hear(client: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message of a kind; an error nobody asked for fails the test."""
    while True:
        message = msgpack.unpackb(await client.recv())
        if message["type"] == kind:
            return dict(message)
        assert message["type"] != "error", message


async def expect_error(client: ClientConnection, code: str) -> None:
    """The error, and if it is fatal the end; if not, play goes on."""
    error = await hear(client, "error")
    fatal = ERRORS[code][0]
    assert (error["code"], error["fatal"]) == (code, fatal), error
    if not fatal:
        await client.send(pack({"type": "ping", "t_ms": 5}))
        assert (await hear(client, "pong"))["t_ms"] == 5.0
        return
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await client.recv()
    received = closed.value.rcvd
    assert received is not None
    assert (received.code, received.reason) == (CLOSE_CODES.get(code, 1008), code)


@asynccontextmanager
async def player(app: App, *before: bytes) -> AsyncIterator[ClientConnection]:
    async with connect(app.play_url, compression=None, proxy=None, close_timeout=2) as client:
        for data in before:
            await client.send(data)
            if msgpack.unpackb(data)["type"] == "hello":
                await hear(client, "welcome")
        yield client


async def misbehave(app: App, vector: dict[str, Any]) -> None:
    async with player(app, *map(bytes.fromhex, vector["before"])) as client:
        await client.send(bytes.fromhex(vector["hex"]) * vector.get("times", 1))
        await expect_error(client, vector["code"])


def test_every_bad_message_gets_its_code_and_a_neighbour_plays_on() -> None:
    async def run() -> None:
        async with serving() as app, Neighbour(app).playing():
            turns = asyncio.Semaphore(5)  # fewer than there are places

            async def take_turn(vector: dict[str, Any]) -> str | None:
                async with turns:
                    try:
                        await misbehave(app, vector)
                    except (AssertionError, ConnectionClosed) as error:
                        return f"{vector['name']}: {error}"
                return None

            wrong = await asyncio.gather(*map(take_turn, BAD))
            assert not [line for line in wrong if line]

    asyncio.run(run())


def test_text_and_more_than_the_transport_takes_get_their_codes() -> None:
    async def run() -> None:
        async with serving() as app, Neighbour(app).playing():
            for message, code in (("hello", "bad_message"), (bytes(MAX_TRANSPORT_BYTES + 1), "too_large")):
                async with player(app) as client:
                    await client.send(message)
                    await expect_error(client, code)

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["messages", "pings"])
def test_a_flood_is_cut_and_a_neighbour_plays_on(kind: str) -> None:
    async def flood(client: ClientConnection) -> None:
        ping = pack({"type": "ping", "t_ms": 1})
        with suppress(ConnectionClosed):
            for index in range(int(2 * FRAMES_BURST)):
                await (client.send(ping) if kind == "messages" else client.ping())
                if index % 20 == 0:
                    await asyncio.sleep(0)  # the flood must not keep this process, and so the server, from working

    async def run() -> None:
        async with serving() as app, Neighbour(app).playing():
            async with player(app, pack(HELLO)) as client:
                flooding = asyncio.create_task(flood(client))
                await expect_code(client, "too_fast")
                await flooding
            assert app.door.counts.errors == {"too_fast": 1}

    asyncio.run(run())


async def expect_code(client: ClientConnection, code: str) -> None:
    """As `expect_error`, for a client that goes on sending: its close may overtake the server's words."""
    heard: list[Any] = []
    try:
        while True:
            message = msgpack.unpackb(await client.recv())
            heard += [message["code"]] if message["type"] == "error" else []
    except ConnectionClosed as closed:
        heard += [closed.rcvd.reason] if closed.rcvd else []
    assert set(heard) <= {code}


def test_one_player_too_many_is_told_and_comes_in_when_a_place_is_free() -> None:
    async def run() -> None:
        async with serving(num_slots=2) as app, Neighbour(app).playing():
            async with player(app, pack(HELLO)) as second:
                with pytest.raises(BotError) as refused:
                    await play(app.play_url, BotPlan())
                assert refused.value.code == "full"
                await second.send(pack({"type": "bye"}))
                await second.wait_closed()
            assert (await play(app.play_url, BotPlan(seconds=0.3))).errors == []

    asyncio.run(run())


def test_an_unknown_scene_is_told() -> None:
    async def run() -> None:
        async with serving() as app:
            with pytest.raises(BotError) as refused:
                await play(app.play_url, BotPlan(scene="atlantis"))
            assert refused.value.code == "unknown_scene"

    asyncio.run(run())


def test_pictures_that_cannot_be_used_are_told_and_a_neighbour_plays_on() -> None:
    picture = encode_still(np.full((64, 64, 3), 90, np.uint8))
    size = b"\x00\x40\x00\x40"
    bad = {
        "nothing": b"",
        "no picture": b"GIF89a" + bytes(100),
        "half a picture": picture[: len(picture) // 2],
        "a huge picture": picture.replace(size, b"\xff\xdc\xff\xdc", 1),
        "many bytes": picture + bytes(MAX_IMAGE_BYTES),
    }

    async def run() -> None:
        async with serving() as app, Neighbour(app).playing():
            for data in bad.values():
                async with player(app) as client:
                    await client.send(pack(HELLO | {"image": data}))
                    await expect_error(client, "bad_image")
            async with player(app) as client:
                await client.send(pack(HELLO | {"image": bytes(MAX_TRANSPORT_BYTES)}))
                await expect_error(client, "too_large")
            assert app.door.counts.errors == {"bad_image": len(bad)}
            async with player(app, pack(HELLO | {"image": picture})) as client:
                await hear(client, "frame")

    asyncio.run(run())


def test_a_player_who_leaves_while_a_picture_is_read_disturbs_nobody() -> None:
    picture = encode_still(np.zeros((2048, 2048, 3), np.uint8))

    async def run() -> None:
        async with serving() as app, Neighbour(app).playing():
            for cut in (len(picture), len(picture) - 2000):
                async with player(app) as client:
                    await client.send(pack(HELLO | {"image": picture[:cut]}))
                    client.transport.abort()
            while len(app.door.lobby) > 1:
                await asyncio.sleep(0.005)

    asyncio.run(run())


def test_more_poses_than_may_wait_are_dropped_whole() -> None:
    async def run() -> None:
        pose = b"".join(value.to_bytes(4, "little") for value in [0x3F800000, 0, 0, 0, 0] * 3 + [0x3F800000])
        async with serving() as app, player(app, pack(HELLO | {"control": "poses"})) as client:
            for seq in range(1, 6):  # 1280
                await client.send(pack({"type": "poses", "seq": seq, "poses": pose * 256}))
            await expect_error(client, "pose_queue_full")

    asyncio.run(run())


@pytest.mark.parametrize("reads", [True, False], ids=["reads and never acknowledges", "stops reading"])
def test_a_client_that_takes_nothing_in_is_cut_and_a_neighbour_plays_on(reads: bool) -> None:
    async def run() -> None:
        async with serving(limits=Limits(late_s=30.0, stall_s=0.5)) as app, Neighbour(app).playing() as neighbour:
            async with player(app, pack(HELLO)) as client:
                if reads:
                    await expect_error(client, "slow_client")
                else:
                    client.transport.pause_reading()
                    async with neighbour._came:
                        await neighbour._came.wait_for(lambda: app.door.counts.errors["slow_client"] == 1)
                    client.transport.abort()
            assert app.door.counts.errors == {"slow_client": 1}

    asyncio.run(run())


def test_a_server_that_goes_down_says_so() -> None:
    async def run() -> None:
        async with serving() as app:
            task = asyncio.create_task(play(app.play_url, BotPlan(seconds=600)))
            async with player(app, pack(HELLO)) as other:
                await hear(other, "frame")
        with pytest.raises(BotError) as ended:
            await task
        assert ended.value.code == "shutting_down"

    asyncio.run(run())


@pytest.mark.parametrize("code", sorted(EXPELLED | {"transport"}))
def test_who_is_expelled_leaves_no_seat_behind(code: str) -> None:
    """A seat is kept for a player whose line broke, not for one who misbehaved: eight of those would fill a server."""
    wrong = {
        "bad_message": [b"\xc1"],
        "too_large": [bytes(MAX_MESSAGE_BYTES + 1)],
        "too_fast": [pack({"type": "ping", "t_ms": 1})] * 2 * int(MESSAGES_BURST),
        "out_of_order": [pack(HELLO)],
        "transport": [bytes(MAX_TRANSPORT_BYTES + 1)],
    }

    async def run() -> None:
        async with serving(num_slots=1, grace_s=600.0) as app:
            for _ in range(2):
                async with player(app, pack(HELLO)) as client:
                    with suppress(ConnectionClosed):
                        for message in wrong[code]:
                            await client.send(message)
                    await expect_code(client, "too_large" if code == "transport" else code)
                while len(app.door.lobby):
                    await asyncio.sleep(0.005)

    asyncio.run(run())


def test_a_broken_line_keeps_its_seat() -> None:
    async def run() -> None:
        async with serving(num_slots=1, grace_s=600.0) as app:
            async with player(app, pack(HELLO)) as client:
                await hear(client, "frame")
                client.transport.abort()
            with pytest.raises(BotError) as refused:
                await play(app.play_url, BotPlan())
            assert refused.value.code == "full"

    asyncio.run(run())
