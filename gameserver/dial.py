"""How a client gets to a server: address, connection, first words. Every failure is a BotError, one sentence."""

from __future__ import annotations

import asyncio
import contextlib
import json
import urllib.parse
import urllib.request
from typing import Any

import msgpack
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

from gameserver.bot_error import BotError
from gameserver.protocol import ERRORS, VERSION, Hello, Welcome, encode

ANSWER_S = 15.0  # for the connection, and again for the welcome
MAX_PACKET_BYTES = 16 * 1024 * 1024


def play_url(url: str) -> str:
    """`ws://H:P` -> `ws://H:P/play`; a path that is given stays. BotError if it is no such address."""
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("ws", "wss") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        good = False
    if not good:
        raise BotError(f"{url} is not an address such as ws://127.0.0.1:8000")
    return urllib.parse.urlunsplit(parts._replace(path="/play")) if parts.path in ("", "/") else url


def stream_size(url: str) -> tuple[int, int]:
    """The width and height of a server's pictures, from its `/world.json`."""
    parts = urllib.parse.urlsplit(play_url(url))
    address = f"{parts.scheme.replace('ws', 'http')}://{parts.netloc}/world.json"
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(address, timeout=10) as answer:
            world = json.load(answer)
        return int(world["width"]), int(world["height"])
    except OSError as error:
        raise BotError(f"cannot read {address}: {getattr(error, 'reason', error)}") from None
    except (ValueError, KeyError, TypeError):
        raise BotError(f"{url} is not a Manyworlds server: its /world.json does not give a picture's size") from None


def read(data: str | bytes) -> dict[str, Any]:
    """A server's message, known by its `type`."""
    try:
        message = msgpack.unpackb(data) if isinstance(data, bytes) else None
    except (ValueError, msgpack.UnpackException):
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise BotError("this is not a Manyworlds server: it sent something that is not a message")
    return message


def refused(message: dict[str, Any], fatal: set[str]) -> str:
    """The code of an error message. BotError if it ends the session, or is one of `fatal`."""
    code, text = str(message.get("code")), str(message.get("message"))
    if message.get("fatal", True) or code in fatal:
        raise BotError(f"the server refused ({code}): {text}", code)
    return code


async def dial(url: str) -> ClientConnection:
    try:
        return await connect(
            play_url(url), compression=None, proxy=None, max_size=MAX_PACKET_BYTES, open_timeout=ANSWER_S,
            close_timeout=2, ping_interval=None,  # an agent may think for longer than a keep-alive waits
        )  # fmt: skip
    except InvalidStatus as error:
        status = error.response.status_code
        raise BotError(f"{url} is not a Manyworlds server: it answered HTTP {status}, not a WebSocket") from None
    except (InvalidURI, InvalidHandshake, InvalidMessage, EOFError) as error:
        raise BotError(f"{url} is not a Manyworlds server: {error}") from None
    except TimeoutError:
        raise BotError(f"{url} did not answer within {ANSWER_S:.0f} seconds") from None
    except OSError as error:
        gone = isinstance(error, ConnectionRefusedError) or "Multiple exceptions" in str(error)  # one an address
        why = "nothing answers there" if gone else error.strerror or str(error)
        raise BotError(f"cannot connect to {url}: {why}") from None


async def welcome(socket: ClientConnection, hello: Hello) -> Welcome:
    try:
        async with asyncio.timeout(ANSWER_S):
            with contextlib.suppress(ConnectionClosed):  # what the server said before it closed is still to be read
                await socket.send(encode(hello))
            while (message := read(await socket.recv()))["type"] != "welcome":
                if message["type"] == "error":
                    refused(message, fatal=set())
    except TimeoutError:
        raise BotError(f"the server did not welcome this player within {ANSWER_S:.0f} seconds") from None
    try:
        known = {name: message[name] for name in Welcome.__struct_fields__ if name in message}
        return msgspec.convert({"type": "welcome", **known}, Welcome)
    except msgspec.ValidationError as error:
        raise BotError(f"the server's welcome is not one of version {VERSION}: {error}") from None


def ended(closed: ConnectionClosed) -> BotError:
    """The close reason is the error code, for when the message that says more was lost."""
    reason = closed.rcvd.reason if closed.rcvd else ""
    if reason in ERRORS:
        return BotError(f"the server closed the connection ({reason}): {ERRORS[reason][1]}", reason)
    return BotError(f"the connection was lost{': ' + reason if reason else ''}")
