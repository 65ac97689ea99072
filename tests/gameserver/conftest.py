"""A real server in this process, and a client that speaks the wire by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import av
import msgpack
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from gameserver.app import App, running
from gameserver.backpressure import Limits
from gameserver.door import Settings
from gameserver.engine import Pledge
from gameserver.journal import Keep
from gameserver.saves import Shelf
from world.chunk import Report, Row, World
from world.pattern import PatternWorld, Reading, read_pattern

HEAR_S = 20.0  # far more than anything here needs

RunningServer = Callable[..., AbstractAsyncContextManager[App]]


@pytest.fixture
def running_server() -> RunningServer:
    """`async with running_server(world=..., players=4) as app:` serves on a free port until it is left."""
    return serve_pattern


@asynccontextmanager
async def serve_pattern(
    world: World | None = None,
    *,
    players: int = 4,
    on_step: Callable[[Sequence[Row]], None] | None = None,
    load: Callable[[Report], World] | None = None,
    wait_ready: bool = True,
    grace_s: float = 30.0,
    stats_s: float = 0.2,
    hello_s: float = 10.0,
    patience_s: float = 60.0,
    limits: Limits | None = None,
    record: Keep | None = None,
    saves: Shelf | None = None,
    park_bytes: int = 0,
    pledge: Pledge = "none",
) -> AsyncIterator[App]:
    served = world or PatternWorld(num_slots=players, on_step=on_step)
    settings = Settings(
        "127.0.0.1", 0, players, grace_s=grace_s, hello_s=hello_s, stats_s=stats_s, limits=limits or Limits(),
        record=record, patience_s=patience_s, saves=saves, park_bytes=park_bytes,
        pledge=pledge,
    )  # fmt: skip
    async with running(settings, load or (lambda report: served)) as app:
        if wait_ready:
            await asyncio.wait_for(app.door.settled.wait(), 20)
        yield app


@dataclass
class Player:
    """Plays by hand: acks every frame, keeps what comes."""

    socket: ClientConnection
    welcome: dict[str, Any] = field(default_factory=dict)
    frames: list[dict[str, Any]] = field(default_factory=list)
    others: list[dict[str, Any]] = field(default_factory=list)
    acks: bool = True
    seq: int = 0

    async def say(self, kind: str, **fields: Any) -> None:
        await self.socket.send(msgpack.packb({"type": kind, **fields}))

    async def hear(self) -> dict[str, Any]:
        async with asyncio.timeout(HEAR_S):
            message: dict[str, Any] = msgpack.unpackb(await self.socket.recv())
        if message["type"] == "frame":
            self.frames.append(message)
            if self.acks:
                with contextlib.suppress(ConnectionClosed):  # what is left to read says why
                    await self.say("ack", packet=message["packet"])
        else:
            self.others.append(message)
        return message

    async def hear_until(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The next message of a type whose fields have these values."""
        async with asyncio.timeout(HEAR_S):
            while True:
                message = await self.hear()
                if message["type"] == kind and all(message[name] == value for name, value in fields.items()):
                    return message

    async def hear_frames(self, count: int) -> list[dict[str, Any]]:
        wanted = len(self.frames) + count
        async with asyncio.timeout(HEAR_S):  # stats go on coming where frames do not
            while len(self.frames) < wanted:
                await self.hear()
        return self.frames[-count:]

    async def steer(self, *axes: float) -> int:
        self.seq += 1
        await self.say("control", seq=self.seq, t_ms=self.seq * 16.0, axes=list(axes))
        return self.seq


@asynccontextmanager
async def open_socket(app: App) -> AsyncIterator[Player]:
    """Connected, but nothing said."""
    async with connect(app.play_url, compression=None, max_size=None, close_timeout=1) as socket:
        yield Player(socket)


@asynccontextmanager
async def playing(app: App, **hello: Any) -> AsyncIterator[Player]:
    """In, and welcomed."""
    async with open_socket(app) as player:
        await player.say("hello", **{"version": 1, **hello})
        player.welcome = await player.hear()
        assert player.welcome["type"] == "welcome", player.welcome
        yield player


def decode_frames(frames: list[dict[str, Any]]) -> list[NDArray[np.uint8]]:
    """H.264 packets from a keyframe on -> I420 pictures."""
    reader = av.CodecContext.create("h264", "r")
    reader.thread_count = 1
    pictures = [picture for frame in frames for picture in reader.decode(av.Packet(frame["data"]))]
    return [picture.to_ndarray() for picture in pictures]


def read_frames(frames: list[dict[str, Any]]) -> list[Reading]:
    """What the test pictures say."""
    pictures = decode_frames(frames)
    assert len(pictures) == len(frames)
    return [read_pattern(picture) for picture in pictures]


async def get(app: App, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One plain HTTP request, by hand: (status, headers, body)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    asked = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *asked, "", ""]).encode())
    raw = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    await writer.wait_closed()
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    return int(status.split()[1]), {name.lower(): value for name, value in (f.split(": ", 1) for f in fields)}, body
