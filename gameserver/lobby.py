"""Who has a seat, by session and by token. Seats outlive connections, so that a player can come back."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Protocol

from gameserver.audience import Audience
from gameserver.notes import Frames, Loaded, Refused, Saved
from gameserver.protocol import ProtocolError
from sessions.trajectory import ControlKind


class Occupant(Protocol):
    """What a seat knows of the connection in it. Nothing here may block."""

    def deliver(self, frames: Frames) -> None: ...

    def refuse(self, refused: Refused) -> None: ...

    def saved(self, note: Saved) -> None: ...

    def loaded(self, note: Loaded) -> None: ...

    def end_soon(self, error: ProtocolError) -> None: ...


@dataclass(slots=True, eq=False)
class Seat:
    session_id: str
    token: str
    control: ControlKind
    scene_id: str
    prompt: str
    seed: int
    joined: asyncio.Future[None]  # the game took the session in
    occupant: Occupant | None
    expiry: asyncio.TimerHandle | None = None  # runs while nobody occupies it
    lockstep: bool = False
    own_prompt: str = ""  # of the place it started from, which an empty prompt brings back
    audience: Audience = field(default_factory=Audience)
    first_chunk: int = 0  # the one it began with
    chunk: int = 0  # the next one, as far as is known here
    control_seq: int = 0  # the last one that is in a chunk


class Lobby:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.reserved = 0  # for players whose sessions were lost and who may come back
        self._seats: dict[str, Seat] = {}
        self._tokens: dict[str, Seat] = {}

    def __len__(self) -> int:
        return len(self._seats)

    def __getitem__(self, session_id: str) -> Seat | None:
        return self._seats.get(session_id)

    @property
    def seats(self) -> list[Seat]:
        return list(self._seats.values())

    def by_token(self, token: str | None) -> Seat | None:
        """The seat a token continues, perhaps before the game has taken it in."""
        return self._tokens.get(token) if token else None

    def by_code(self, code: str) -> Seat | None:
        """The seat that is shared by this code."""
        wanted = code.encode()
        return next(
            (seat for seat in self._seats.values() if secrets.compare_digest(seat.audience.code.encode(), wanted)), None
        )

    def add(self, seat: Seat, over: int = 0, returns: bool = False) -> None:
        """ProtocolError `full` if there is no seat left. `over`: how many there may be over the capacity, while none is
        reserved, as some of those who have seats stand still. Nothing is reserved from somebody who `returns`."""
        reserved = 0 if returns else self.reserved
        if len(self) + reserved >= self.capacity + (0 if reserved else over):
            raise ProtocolError("full", f"all {self.capacity} places are taken")
        self._seats[seat.session_id] = self._tokens[seat.token] = seat

    def remove(self, seat: Seat) -> bool:
        """False if it was gone already."""
        self._tokens.pop(seat.token, None)
        return self._seats.pop(seat.session_id, None) is not None
