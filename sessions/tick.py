"""The game: who plays, and one tick of everybody's world. No clock is read here; times are arguments."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sessions.control import Control
from sessions.moment import Past, Save
from sessions.parking import Parking
from sessions.planner import Planner
from sessions.roster import Roster
from sessions.session import Session, State
from sessions.trajectory import ChunkPath, ControlKind, Heading
from world.chunk import Picture, Prompt, Start, World

FORWARDS_KEPT = 256


@dataclass(frozen=True, slots=True)
class RowMark:
    """Which part of whose world a row was."""

    slot: int
    chunk_index: int
    step_index: int


@dataclass(frozen=True, slots=True, eq=False)
class Finished:
    """A chunk whose frames are out."""

    session_id: str
    picture: Picture
    chunk_index: int
    first_frame: int  # index in the stream of the picture's first frame
    path: ChunkPath
    of_before: bool  # steered by another connection than the one there is
    prompt: Prompt | None  # that took effect with this chunk
    begin_forward: int  # number of the forward of its first step; the others followed one by one
    company: int  # rows in the forward of its last step, its own included
    started_s: float
    finished_s: float
    deadline_s: float
    late_s: float  # by how much this chunk shifted the player's clock

    @property
    def control_seq(self) -> int:
        """The last control folded in, by the count of the connection that there is; 0 if none."""
        return 0 if self.of_before else self.path.control_seq

    @property
    def poses(self) -> NDArray[np.float32]:
        """[n, 4, 4], one a video frame."""
        return self.path.poses


@dataclass(frozen=True, slots=True, eq=False)
class TickResult:
    finished: tuple[Finished, ...]
    rows: tuple[RowMark, ...]
    retraced: tuple[str, ...] = ()  # sessions that have come to where they were
    astray: tuple[tuple[str, int], ...] = ()  # a session, and a chunk that did not become what it had been


@dataclass(slots=True)
class Counters:
    """Since the game began."""

    forwards: int = 0
    rows: int = 0
    forwards_of: Counter[int] = field(default_factory=Counter)  # rows in a forward -> how many forwards
    mixed: int = 0  # forwards whose rows were at different chunks and at different steps
    chunks: int = 0
    frames: int = 0
    late_chunks: int = 0
    late_s: float = 0.0
    recent: deque[tuple[RowMark, ...]] = field(default_factory=lambda: deque(maxlen=FORWARDS_KEPT))

    def count(self, rows: tuple[RowMark, ...]) -> None:
        self.forwards += 1
        self.rows += len(rows)
        self.forwards_of[len(rows)] += 1
        chunks, steps = {row.chunk_index for row in rows}, {row.step_index for row in rows}
        self.mixed += len(chunks) > 1 and len(steps) > 1
        self.recent.append(rows)


class Game:
    """Every method belongs to one thread. Ids that do not play raise UnknownSession."""

    def __init__(self, world: World, park_bytes: int = 0, most: int | None = None, max_rows: int | None = None) -> None:
        """`park_bytes`: of the host's memory, for sessions that stand still while others want their slots. `most`: who
        play at once, fewer than there are slots. `max_rows`: at most so many a forward, if that is fewer than the world
        takes."""
        self._world = world
        self._planner = Planner(world.max_rows if max_rows is None else min(max_rows, world.max_rows))
        self.roster = Roster(world.num_slots if most is None else min(most, world.num_slots))
        self.parking = Parking(world, self.roster, park_bytes)
        self.counters = Counters()

    def join(
        self, session_id: str, start: Start, control: ControlKind, now_s: float, lockstep: bool = False
    ) -> Session:
        """Begin a stream in a free slot, or in that of a session that stands still. Full, or DuplicateSession."""
        slot = self.parking.slot_for(session_id, now_s)
        self._world.open(slot, start)
        return self._admit(session_id, slot, control, start.prompt.text, now_s, lockstep)

    def save(self, session_id: str, save_id: str | None = None) -> Save:
        """A copy of all that a session is; by a name it knows that it can go back to it. IllegalState in the middle of
        a chunk."""
        session = self.roster[session_id]
        moment = session.moment(save_id)
        return Save(moment, self.parking.state(session_id) if session.parked else self._world.export(session.slot))

    def rewind(
        self, session_id: str, save: Save, next_prompt: Prompt | None, now_s: float, same_clock: bool = True
    ) -> None:
        """Go on from a save of this kind of control; `next_prompt` is that of its moment. With another clock the
        controls count anew. ValueError, and nothing changes, if the save does not fit."""
        session = self.roster[session_id]
        if save.moment.control != session.control:
            raise ValueError(f"the save is of a session that is moved by {save.moment.control}")
        if session.parked and not self.parking.bring_back(session, now_s):
            raise ValueError("every slot is taken by somebody who plays: try again")
        self._world.restore(session.slot, save.state)
        session.resume(save.moment, next_prompt, now_s, same_clock)

    def fork(
        self, session_id: str, save: Save, next_prompt: Prompt | None, now_s: float, same_clock: bool = True,
        lockstep: bool = False,
    ) -> Session:  # fmt: skip
        """Go on from a save as another session, in a free slot, in lockstep or not, whichever the save's was. Full,
        DuplicateSession, or ValueError as `rewind`."""
        slot = self.parking.slot_for(session_id, now_s)
        self._world.restore(slot, save.state)
        session = self._admit(session_id, slot, save.moment.control, save.moment.prompt, now_s, lockstep)
        session.resume(save.moment, next_prompt, now_s, same_clock)
        session.saves = save.moment.saves
        return session

    def retrace(
        self, session_id: str, past: Iterable[Past], heading: Heading, next_prompt: Prompt | None,
        saves: tuple[str, ...],
    ) -> None:  # fmt: skip
        """Before a session does anything else it makes these chunks again, whenever there is room for its rows."""
        self.roster[session_id].retrace(past, heading, next_prompt, saves)

    def _admit(
        self, session_id: str, slot: int, control: ControlKind, prompt_text: str, now_s: float, lockstep: bool
    ) -> Session:
        world = self._world
        session = Session(session_id, slot, world.geometry, world.num_steps, control, now_s, prompt_text, lockstep)
        self.roster.add(session)
        return session

    def leave(self, session_id: str) -> None:
        """End a stream, also in the middle of a chunk, and give its slot back."""
        session = self.roster.remove(session_id)
        session.move(State.ENDED)
        if session.parked:
            self.parking.forget(session_id)
        else:
            self._world.close(session.slot)

    def steer(self, session_id: str, control: Control) -> None:
        """ValueError if the control is out of order, or the session is moved by poses. ControlQueueFull in lockstep."""
        self.roster[session_id].steer(control)

    def extend(self, session_id: str, seq: int, poses: NDArray[np.float32]) -> None:
        """Queue poses [n, 4, 4]. ValueError for bad ones or a steered session, PoseQueueFull if too many wait."""
        self.roster[session_id].poses().extend(seq, poses)

    def set_prompt(self, session_id: str, prompt: Prompt) -> None:
        """Takes effect with the first step of the next chunk; in lockstep, of the one that is steered next."""
        self.roster[session_id].set_prompt(prompt)

    def detach(self, session_id: str) -> None:
        """The connection is lost: finish the chunk under way, start no other, keep the slot."""
        self.roster[session_id].detach()

    def attach(self, session_id: str, now_s: float) -> None:
        """A connection continues the session, perhaps in place of another one: its clock and controls begin anew."""
        self.roster[session_id].attach(now_s)

    def report_slack(self, session_id: str, slack_s: float, chunk_index: int | None = None) -> None:
        """How early the first frame of a chunk came (default: the last finished one's)."""
        self.roster[session_id].pacing.report(slack_s, chunk_index)

    def left(self, session_id: str, chunk_index: int) -> None:
        """All frames of a chunk are on their way to the client: a session in lockstep may go on."""
        self.roster[session_id].left(chunk_index)

    def due_s(self, now_s: float) -> float | None:
        """When the next tick has work, not before now; None while nobody needs anything."""
        due = (self._planner.due_s(self.roster, now_s), self.parking.due_s(now_s))
        return min((at_s for at_s in due if at_s is not None), default=None)

    def tick(self, now_s: float, clock: Callable[[], float]) -> TickResult:
        """Plan, run one forward, hand out what is finished. `clock` is read once, after the forward.

        If the world raises, no session has moved on and the same rows are due again.
        """
        for session in self.roster:
            session.notice(now_s)
        self.parking.bring_back_all(now_s)
        sessions = self._planner.plan(self.roster, now_s)
        if not sessions:
            return TickResult((), ())
        for session in sessions:
            if not session.in_chunk:
                session.begin(now_s, self._planner.start_s(session), self.counters.forwards)
        rows = [session.row() for session in sessions]
        pictures = self._world.step(rows)
        finished_s = clock()
        by_slot = {session.slot: session for session in sessions}
        finished: list[Finished] = []
        astray: list[tuple[str, int]] = []
        for picture in pictures:
            session = by_slot[picture.slot]
            session.digest = picture.digest
            if not session.past:
                finished.append(self._finish(session, picture, finished_s, len(rows)))
            elif session.past[0].digest != picture.digest:
                astray.append((session.id, session.chunk_index))
        retracing = [session for session in sessions if session.past]
        for session in sessions:
            session.advance(finished_s)
        retraced = tuple(session.id for session in retracing if not session.past)
        marks = tuple(RowMark(row.slot, row.chunk_index, row.step_index) for row in rows)
        self.counters.count(marks)
        return TickResult(tuple(finished), marks, retraced, tuple(astray))

    def _finish(self, session: Session, picture: Picture, finished_s: float, company: int) -> Finished:
        path, index = session.path, session.chunk_index
        if path is None or picture.chunk_index != index:
            raise RuntimeError(
                f"the world finished chunk {picture.chunk_index} of slot {session.slot} at chunk {index}"
            )
        deadline_s = session.pacing.deadline_s
        late_s = session.pacing.finished(index, finished_s)
        if session.lockstep is None:  # which waits for room behind the others
            self._planner.service.observe(finished_s - session.ready_s)
        self.counters.chunks += 1
        self.counters.frames += len(picture.frames)
        self.counters.late_chunks += late_s > 0
        self.counters.late_s += late_s
        first = self._world.geometry.first_video_frame(index)
        return Finished(
            session.id, picture, index, first, path, session.of_before, session.prompt, session.begin_forward, company,
            session.started_s, finished_s, deadline_s, late_s,
        )  # fmt: skip
