"""One port: the page, what it wants to know, and the game. Opens before the world is loaded, so the page can wait."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response

from gameserver.audience import MAX_WATCHING
from gameserver.connection import Connection
from gameserver.door import Door, Settings
from gameserver.engine import LoadWorld
from gameserver.site import Site
from gameserver.websocket import PlaySocket

CONNECTIONS_PER_SEAT, CONNECTIONS_SPARE = 4, 32  # sockets beside spectators: resuming, refused, not yet greeted
STOP_S = 4.0  # for the forward under way
CLOSE_S = 1.0  # for a client to close its side


class ServeError(Exception):
    """The server cannot start; the message is a sentence for a person."""


class App:
    """A running server."""

    def __init__(self, door: Door, server: Server) -> None:
        self.door = door
        self.server = server
        self.stopped = False  # the engine's thread has ended

    @property
    def port(self) -> int:
        return int(next(iter(self.server.sockets)).getsockname()[1])

    @property
    def url(self) -> str:
        host = self.door.settings.host
        host = "localhost" if host in ("", "0.0.0.0", "::", "127.0.0.1", "::1") else host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    @property
    def play_url(self) -> str:
        host = self.door.settings.host
        return f"ws://{f'[{host}]' if ':' in host else host}:{self.port}/play"


@asynccontextmanager
async def running(settings: Settings, load: LoadWorld) -> AsyncIterator[App]:
    """Serves until it is left; then every player is told, and everything is closed within seconds."""
    door = Door(settings, load)
    site = Site(door)

    def process_request(connection: ServerConnection, request: Request) -> Response | None:
        answer = site.answer(request)
        limit = (CONNECTIONS_PER_SEAT + MAX_WATCHING) * settings.capacity + CONNECTIONS_SPARE
        if answer is None and len(server.connections) >= limit:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        return answer

    async def play(connection: ServerConnection) -> None:
        assert isinstance(connection, PlaySocket)
        await Connection(connection, door).run()

    try:
        server = await serve(
            play, settings.host, settings.port,
            process_request=process_request, create_connection=PlaySocket, compression=None, server_header="manyworlds",
            open_timeout=10, close_timeout=CLOSE_S, ping_interval=None,  # the protocol's acks say more than pings
            logger=logging.getLogger("gameserver.websockets"),
        )  # fmt: skip
    except (OSError, OverflowError) as fault:
        raise ServeError(_why_not(settings, fault)) from None
    door.engine.start()
    app = App(door, server)
    try:
        yield app
    finally:
        door.shut()
        server.close()
        await server.wait_closed()
        app.stopped = await asyncio.get_running_loop().run_in_executor(None, door.close, STOP_S)


def _why_not(settings: Settings, fault: Exception) -> str:
    if isinstance(fault, socket.gaierror):
        return f"the host {settings.host!r} is not known"
    if isinstance(fault, OverflowError):
        return f"port {settings.port} is not one of 0 to 65535"
    reason = (fault.strerror or str(fault)) if isinstance(fault, OSError) else str(fault)
    if "in use" in str(fault):
        return f"port {settings.port} on {settings.host} is in use: choose another with --port"
    return f"cannot listen on {settings.host} port {settings.port}: {reason.lower()}"
