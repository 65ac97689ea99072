"""The one seam between the sockets' thread and the engine's: frozen letters in a bounded box.

Each session has a quota a kind of letter, so no session can fill the box for another. Over it, by kind: steering takes
in the newest one waiting (axes replace, looks add up); prompts, presence, slack, what has left, saving and going back
replace it; poses, joins and the controls of sessions in lockstep are refused. A letter that takes another in goes to
the end. Everything beside plain acceptance is counted.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gameserver.journal import Journal
from gameserver.saves import Kept, Place
from sessions.control import Control
from sessions.moment import Save
from sessions.recovery import Story, Tail
from sessions.trajectory import ControlKind
from world.chunk import Prompt, Start


@dataclass(frozen=True, slots=True)
class Letter:
    session_id: str


@dataclass(frozen=True, slots=True, eq=False)
class Join(Letter):
    start: Start
    control: ControlKind
    scene_id: str = ""
    picture: NDArray[np.uint8] | None = None  # [h, w, 3] that the start was made of, where no scene has it
    lockstep: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Fork(Letter):
    """Begin where a save left off."""

    kept: Kept
    next_prompt: Prompt | None  # of its moment
    lockstep: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Return(Letter):
    """Bring a session back that was lost, from a moment of it or, without one, from its start."""

    start: Start | None
    since: Save | None
    story: Story
    tail: Tail  # of the story, since then
    journal: Journal  # its recording, to go on with
    lockstep: bool = False


@dataclass(frozen=True, slots=True)
class Keep(Letter):
    """Save the session as soon as no chunk is under way."""

    save_id: str
    place: Place


@dataclass(frozen=True, slots=True, eq=False)
class Rewind(Letter):
    """Go back to a save."""

    save_id: str
    save: Save
    next_prompt: Prompt | None  # of its moment


@dataclass(frozen=True, slots=True)
class Steer(Letter):
    control: Control


@dataclass(frozen=True, slots=True, eq=False)
class Step(Letter):
    """The control of one chunk of a session in lockstep."""

    control: Control
    prompt: Prompt | None = None  # that takes hold with it


@dataclass(frozen=True, slots=True, eq=False)
class Extend(Letter):
    """Poses for the next video frames."""

    seq: int
    poses: NDArray[np.float32]  # [n, 4, 4]
    prompt: Prompt | None = None  # in lockstep: that takes hold with the first of them


@dataclass(frozen=True, slots=True, eq=False)
class PromptChange(Letter):
    prompt: Prompt


@dataclass(frozen=True, slots=True)
class Slack(Letter):
    """How early the first frame of a chunk came."""

    chunk_index: int
    slack_s: float


@dataclass(frozen=True, slots=True)
class Left(Letter):
    """In lockstep: all frames up to those of this chunk are on their way."""

    chunk_index: int


@dataclass(frozen=True, slots=True)
class Presence(Letter):
    """Whether somebody is there to see the session."""

    attached: bool


@dataclass(frozen=True, slots=True)
class Leave(Letter):
    pass


QUOTA: dict[type[Letter], int] = {
    Join: 1, Fork: 1, Return: 1, Steer: 64, Step: 16, Extend: 16, PromptChange: 1, Slack: 1, Left: 1, Presence: 1,
    Leave: 1, Keep: 1, Rewind: 1,
}  # fmt: skip
JOINS = (Join, Fork, Return)  # what begins a session


class Mailbox:
    """Any thread may `put`; one thread takes."""

    def __init__(self, max_joins: int) -> None:
        self.coalesced: Counter[str] = Counter()  # by kind of letter
        self.refused: Counter[str] = Counter()
        self._max_joins = max_joins  # that wait
        self._changed = threading.Condition()
        self._letters: list[Letter | None] = []  # None: taken in by a later one
        self._waiting: Counter[tuple[str, type[Letter]]] = Counter()
        self._newest: dict[tuple[str, type[Letter]], int] = {}  # index in `_letters`
        self._joins = 0
        self._woken = False

    def __len__(self) -> int:
        return len(self._letters)

    def put(self, letter: Letter) -> bool:
        """False if the letter was refused."""
        kind = type(letter)
        key = letter.session_id, kind
        with self._changed:
            if kind in JOINS and self._joins >= self._max_joins:
                self.refused[kind.__name__] += 1
                return False
            if self._waiting[key] < QUOTA[kind]:
                self._waiting[key] += 1
                self._joins += kind in JOINS
            elif kind in (*JOINS, Step, Extend):
                self.refused[kind.__name__] += 1
                return False
            else:
                newest = self._newest[key]
                letter, self._letters[newest] = _coalesce(self._letters[newest], letter), None
                self.coalesced[kind.__name__] += 1
                if kind is Presence:
                    self._drop_steering(letter.session_id, since=newest)
                if len(self._letters) > 2 * self._waiting.total():
                    self._compact()
            self._newest[key] = len(self._letters)
            self._letters.append(letter)
            self._changed.notify()
            return True

    def take(self, timeout_s: float) -> list[Letter]:
        """Everything that waits, in order; waits itself until there is something, a `wake`, or the timeout."""
        with self._changed:
            if not self._letters and not self._woken and timeout_s > 0:
                self._changed.wait(timeout_s)
            letters = [letter for letter in self._letters if letter is not None]
            self._letters.clear()
            self._waiting.clear()
            self._newest.clear()
            self._joins = 0
            self._woken = False
            return letters

    def _drop_steering(self, session_id: str, since: int) -> None:
        """Who came and went while a forward ran: the next connection counts anew, and would answer for these."""
        for i in range(since, len(self._letters)):
            letter = self._letters[i]
            if isinstance(letter, Steer | Step | Extend) and letter.session_id == session_id:
                self._letters[i] = None
                self._waiting[session_id, type(letter)] -= 1
                self.coalesced[type(letter).__name__] += 1

    def _compact(self) -> None:
        self._letters = [letter for letter in self._letters if letter is not None]
        self._newest = {(letter.session_id, type(letter)): i for i, letter in enumerate(self._letters) if letter}

    def wake(self) -> None:
        """Let `take` return, now or the next time."""
        with self._changed:
            self._woken = True
            self._changed.notify()


def _coalesce(waiting: Letter | None, letter: Letter) -> Letter:
    if isinstance(waiting, Steer) and isinstance(letter, Steer):
        (turn, pitch), (turn_more, pitch_more) = waiting.control.look_deg, letter.control.look_deg
        return Steer(letter.session_id, replace(letter.control, look_deg=(turn + turn_more, pitch + pitch_more)))
    return letter
