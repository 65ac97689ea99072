"""The steering of a client in lockstep: every control and prompt in the order in which it was sent, none taken in by
another, because what a chunk is made of must not depend on when it came."""

from __future__ import annotations

from collections.abc import Callable

from gameserver.door import Door
from gameserver.lobby import Seat
from gameserver.mailbox import Extend, Left, Step
from gameserver.protocol import Control, ProtocolError, SetPrompt
from gameserver.wire import Event, PoseBatch
from sessions import control
from world.chunk import Prompt


class Turns:
    """One connection's. Belongs to the event loop."""

    def __init__(
        self, door: Door, seat: Seat, reply_error: Callable[[ProtocolError], None], clock: Callable[[], float]
    ) -> None:
        self.since_s = clock()  # when the client steered last, or got what it had steered
        self._clock = clock
        self._door = door
        self._seat = seat
        self._reply_error = reply_error
        self._prompt: Prompt | None = None  # goes with the next steering

    async def take(self, event: Event) -> bool:
        """Whether it was steering. Nothing after it is read until its prompt is encoded: so the order stays."""
        match event:
            case SetPrompt():
                try:
                    self._prompt = await self._door.preparation.prompt(event.text or self._seat.own_prompt)
                except ProtocolError as error:
                    self._reply_error(error)
            case Control():
                steer = control.Control(event.seq, event.t_ms, event.axes, event.look)
                self._put(Step(self._seat.session_id, steer, self._prompt), "control_queue_full")
            case PoseBatch():
                self._put(Extend(self._seat.session_id, event.seq, event.poses, self._prompt), "pose_queue_full")
            case _:
                return False
        self.since_s = self._clock()
        return True

    def forget(self) -> None:
        """The session goes back: a prompt that waits for steering was for a world that is no more."""
        self._prompt = None

    def left(self, chunk_index: int) -> None:
        """The frames of a chunk are on their way."""
        self.since_s = self._clock()
        self._door.mailbox.put(Left(self._seat.session_id, chunk_index))

    def _put(self, letter: Step | Extend, code: str) -> None:
        if self._door.mailbox.put(letter):
            self._prompt = None
        else:
            self._reply_error(ProtocolError(code, "too much steering is on its way"))
