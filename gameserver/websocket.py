"""The WebSocket below our protocol: floods of frames are cut, and refusals by the library itself get our error code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import Server, ServerConnection
from websockets.frames import CloseCode
from websockets.protocol import OPEN, Event
from websockets.server import ServerProtocol as WebSocketProtocol

from gameserver.protocol import MAX_TRANSPORT_BYTES, ProtocolError, encode
from gameserver.wire import TokenBucket

FRAMES_PER_S, FRAMES_BURST = 400.0, 800.0  # of any kind: control frames and fragments escape a limit on messages
SLICE_BYTES = 4096  # parsed at once, so that a flood is noticed before it costs the others time

CODES = {
    CloseCode.MESSAGE_TOO_BIG: "too_large",
    CloseCode.INVALID_DATA: "bad_message",
    CloseCode.PROTOCOL_ERROR: "bad_message",
}


class PlayWebSocketProtocol(WebSocketProtocol):
    """Says which of our errors it was before it closes."""

    refused: str | None = None  # the code

    def fail(self, code: CloseCode | int, reason: str = "") -> None:
        name = CODES.get(CloseCode(code))
        if name is not None and self.state is OPEN:
            self.refused = name
            error = ProtocolError(name, reason or CloseCode(code).name.lower().replace("_", " "))
            self.send_binary(encode(error.to_message()))
            code, reason = error.close_code, error.code
        super().fail(code, reason)


class PlaySocket(ServerConnection):
    """`on_flood` is called once when a client sends too many frames; nothing it sends is read from then on."""

    def __init__(self, protocol: WebSocketProtocol, server: Server, **options: Any) -> None:
        protocol = PlayWebSocketProtocol(max_size=MAX_TRANSPORT_BYTES, logger=protocol.logger)
        super().__init__(protocol, server, **options)
        self.on_flood: Callable[[], None] = lambda: self.transport.abort()
        self.flooded = False
        self._bucket = TokenBucket(FRAMES_PER_S, FRAMES_BURST)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), SLICE_BYTES):
            if self.flooded:
                return
            super().data_received(data[start : start + SLICE_BYTES])

    def process_event(self, event: Event) -> None:
        playing = self.request is not None
        super().process_event(event)
        if playing and not self.flooded and not self._bucket.take(self.loop.time()):
            self.flooded = True
            self.on_flood()

    @property
    def refused(self) -> str | None:
        """The code that the library's own refusal was told as."""
        assert isinstance(self.protocol, PlayWebSocketProtocol)
        return self.protocol.refused

    @property
    def unsent_bytes(self) -> int:
        """What waits in this process; the kernel holds more."""
        return self.transport.get_write_buffer_size()
