"""The engine: one thread that owns the world and the game, and the loop that drives them by the clock."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from gameserver.diary import Diary
from gameserver.mailbox import (
    Extend,
    Fork,
    Join,
    Keep,
    Leave,
    Left,
    Letter,
    Mailbox,
    Presence,
    PromptChange,
    Return,
    Rewind,
    Slack,
    Steer,
    Step,
)
from gameserver.notes import Ended, Frames, Joined, Loaded, Note, Refused
from gameserver.realtime import RealTime, measure
from gameserver.recorder import Recorder
from gameserver.saves import SaveRefused, Saves
from sessions.lockstep import ControlQueueFull
from sessions.parking import Parking
from sessions.roster import Full, UnknownSession
from sessions.tick import Counters, Finished, Game, TickResult
from sessions.trajectory import PoseQueueFull
from world.chunk import Prompt, Report, World, WorldError

log = logging.getLogger(__name__)

HEARTBEAT_S = 0.5  # the longest wait for a letter
STUCK_S = 30.0  # a loop that took longer is reported as unhealthy

LoadWorld = Callable[[Report], World]
Pledge = Literal["none", "advised", "enforced"]  # of real time: not measured, measured, or kept by refusing players
Deliver = Callable[[Sequence[Note]], None]  # called on the engine's thread; must not block


class Phase(StrEnum):
    LOADING = "loading"
    PREWARMING = "prewarming"
    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Progress:
    stage: str
    share: float  # 0..1


class Stopped(Exception):
    """Loading was told to stop."""


class Engine:
    """`start` it, put letters into its `mailbox`, get notes delivered. Other threads only read the public fields."""

    def __init__(
        self,
        load: LoadWorld,
        deliver: Deliver,
        mailbox: Mailbox,
        clock: Callable[[], float] = time.monotonic,
        recorder: Recorder | None = None,  # what is told goes through it; it delivers to the same place
        saves: Saves | None = None,
        park_bytes: int = 0,  # of the host's memory, for sessions that stand still while others want their slots
        pledge: Pledge = "none",
    ) -> None:
        self.mailbox = mailbox
        self.phase = Phase.LOADING
        self.progress = Progress("starting", 0.0)
        self.world: World | None = None  # set once it is loaded
        self.counters: Counters | None = None  # set once the game begins
        self.parking: Parking | None = None  # likewise
        self.real_time: RealTime | None = None  # likewise, if it was to be measured
        self.failure: str | None = None  # a sentence
        self.loops = 0
        self.ticks = 0
        self._load = load
        self._deliver = deliver
        self._diary = Diary(deliver, recorder, saves)
        self._recorder, self._saves, self._park_bytes = recorder, saves, park_bytes
        self._pledge = pledge
        self._to_save: dict[str, Keep] = {}  # by session, for when no chunk of it is under way
        self._returning: dict[str, Return] = {}  # by session, until they are where they were
        self._clock = clock
        self._beat_s = clock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Ask it to stop after the forward under way; whether it did in time."""
        self._stopping.set()
        self.mailbox.wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def now_s(self) -> float:
        return self._clock()

    def unhealthy(self, now_s: float) -> str | None:
        """Why the engine does no good, None while all is well. Loading takes as long as it takes."""
        if self.phase is Phase.FAILED:
            return self.failure
        if self.phase is Phase.STOPPED:
            return "the engine has stopped"
        if self.phase is Phase.READY and now_s - self._beat_s > STUCK_S:
            return f"the loop has been stuck for {now_s - self._beat_s:.0f} s"
        return None

    def _run(self) -> None:
        try:
            self._play(self._prepare())
            self.phase = Phase.STOPPED
        except Stopped:
            self.phase = Phase.STOPPED
        except Exception as fault:
            self.failure = str(fault) if isinstance(fault, WorldError) else f"{type(fault).__name__}: {fault}"
            self.phase = Phase.FAILED
            if not isinstance(fault, WorldError):  # whose sentence says it all
                log.error("the engine failed", exc_info=True)
            self._diary.tell([Ended()], self._clock())

    def _prepare(self) -> Game:
        self.world = self._load(self._report)
        self._diary.open(self.world, self._report)
        self.phase = Phase.PREWARMING
        self._report("warming up", 0.0)
        self.world.prewarm(self._report)
        game = Game(self.world, self._park_bytes, self._most())
        self.counters, self.parking = game.counters, game.parking
        self._beat_s = self._clock()
        self.phase = Phase.READY
        self._deliver([])  # somebody may wait for this
        return game

    def _most(self) -> int | None:
        """Who may play at once, if there is another limit than slots. WorldError where that is nobody."""
        if self._pledge == "none":
            return None
        assert self.world is not None
        self.real_time = measure(self.world, self._clock, self._report)
        if self._pledge != "enforced":
            return None
        if self.real_time.players == 0:
            raise WorldError(f"this machine is too slow for --realtime-only. {self.real_time.sentence}")
        return self.real_time.players

    def _play(self, game: Game) -> None:
        why = "the server failed"
        try:
            while not self._stopping.is_set():
                self._loop(game)
            why = "the server went down"
        finally:
            for session in game.roster:
                if session.id not in self._returning:  # which is as lost as before, and may be found again
                    self._diary.end(session.id, why)
            self._diary.tell([], self._clock())

    def _report(self, stage: str, share: float) -> None:
        self.progress = Progress(stage, share)
        if self._stopping.is_set():
            raise Stopped

    def _loop(self, game: Game) -> None:
        """Letters in, one tick, notes out; waits for a letter while nothing is due."""
        assert self.world is not None
        self.world.check()
        now_s = self._clock()
        due_s = game.due_s(now_s)
        wait_s = HEARTBEAT_S if due_s is None else min(HEARTBEAT_S, due_s - now_s)
        notes = [note for letter in self.mailbox.take(wait_s) if (note := self._apply(game, letter)) is not None]
        now_s = self._clock()
        due_s = game.due_s(now_s)
        if due_s is not None and due_s <= now_s:
            notes += self._told_of(game, game.tick(now_s, self._clock))
            self.ticks += 1
        notes += self._save(game, now_s)
        self._diary.tell(notes, self._clock())
        self.loops += 1
        self._beat_s = self._clock()

    def _told_of(self, game: Game, result: TickResult) -> list[Note]:
        for chunk in result.finished:
            self._diary.chunk(chunk)
        notes: list[Note] = [_frames(game, chunk) for chunk in result.finished]
        for session_id, chunk_index in result.astray:
            game.leave(session_id)
            self._diary.back(self._returning.pop(session_id))
            self._diary.end(session_id, f"it could not be brought back: chunk {chunk_index} came out another")
            notes.append(Refused(session_id, "bad_save", f"chunk {chunk_index} came out another"))
        return notes + [
            self._came_back(game, session_id) for session_id in result.retraced if session_id in game.roster
        ]

    def _came_back(self, game: Game, session_id: str) -> Note:
        """It stands still until its player is seen to be there."""
        game.detach(session_id)
        self._diary.back(self._returning.pop(session_id))
        return Joined(session_id)

    def _save(self, game: Game, now_s: float) -> list[Note]:
        """What players asked to save, and now and then a moment of each session that is recorded."""
        notes: list[Note] = []
        if self._saves is None:
            return notes
        between_chunks = [session for session in game.roster if not (session.in_chunk or session.past)]
        for session in between_chunks:
            letter = self._to_save.pop(session.id, None)
            if letter is None:
                continue
            try:
                self._saves.check_room(session.id)
                self._diary.save(letter, game.save(session.id, letter.save_id))
            except SaveRefused as refused:
                notes.append(Refused(session.id, refused.code, refused.message))
        if self._recorder is not None:
            at = {session.id: session.chunk_index for session in between_chunks}
            if (session_id := self._saves.next_moment(at, now_s)) is not None:
                self._saves.keep(session_id, game.save(session_id), now_s)
        return notes

    def _apply(self, game: Game, letter: Letter) -> Note | None:
        """Tell the game; what it refuses goes back to the sender and disturbs nobody else."""
        session_id = letter.session_id
        try:
            match letter:
                case Join(start=start, control=control, lockstep=lockstep):
                    game.join(session_id, start, control, self._clock(), lockstep)
                    self._diary.begin(letter)
                    return Joined(session_id)
                case Fork(kept=kept, next_prompt=prompt, lockstep=lockstep):
                    game.fork(session_id, kept.save, prompt, self._clock(), same_clock=False, lockstep=lockstep)
                    self._diary.fork(letter)
                    return Joined(session_id)
                case Return():
                    return self._bring_back(game, letter)
                case Keep():
                    self._to_save[session_id] = letter
                case Rewind(save_id=save_id, save=save, next_prompt=prompt):
                    if save_id not in game.roster[session_id].saves:
                        return Refused(session_id, "unknown_save", "that is not a save of this session")
                    game.rewind(session_id, save, prompt, self._clock(), same_clock=False)
                    self._diary.mark(session_id, "rewind", save_id)
                    return Loaded(session_id, save_id, save.moment.chunk_index, save.moment.prompt)
                case Steer(control=control):
                    game.steer(session_id, control)
                case Step(control=control, prompt=prompt):
                    self._ask(game, session_id, prompt)
                    game.steer(session_id, control)
                case Extend(seq=seq, poses=poses, prompt=prompt):
                    self._ask(game, session_id, prompt)
                    game.extend(session_id, seq, poses)
                case PromptChange(prompt=prompt):
                    self._ask(game, session_id, prompt)
                case Left(chunk_index=chunk_index):
                    game.left(session_id, chunk_index)
                case Slack(chunk_index=chunk_index, slack_s=slack_s):
                    game.report_slack(session_id, slack_s, chunk_index)
                case Presence(attached=True):
                    game.attach(session_id, self._clock())
                    self._diary.mark(session_id, "reconnect")
                case Presence():
                    game.detach(session_id)
                    self._diary.mark(session_id, "detach")
                case Leave():
                    game.leave(session_id)
                    self._to_save.pop(session_id, None)
                    if session_id in self._returning:
                        self._diary.back(self._returning.pop(session_id))
                    self._diary.end(session_id, "the player left")
                case _:
                    raise TypeError(f"no such letter: {letter}")
        except UnknownSession:  # it left while this was on its way
            return None
        except Full as fault:
            return self._refuse(session_id, str(fault))
        except ControlQueueFull as fault:
            return Refused(session_id, "control_queue_full", str(fault))
        except PoseQueueFull as fault:
            return Refused(session_id, "pose_queue_full", str(fault))
        except ValueError as fault:
            code = {Extend: "bad_pose", Fork: "bad_save", Rewind: "bad_save", Return: "bad_save"}
            return Refused(session_id, code.get(type(letter), "out_of_order"), str(fault))
        return None

    def _refuse(self, session_id: str, why: str) -> Refused:
        """For want of a slot, or of time."""
        assert self.world is not None
        real_time = self.real_time if self._pledge == "enforced" else None
        if real_time is None or real_time.players >= self.world.num_slots:
            return Refused(session_id, "full", why)
        only = f"{real_time.players} player{'s' * (real_time.players != 1)}"
        return Refused(session_id, "not_real_time", f"this server holds {only} in real time: one more would slow all")

    def _ask(self, game: Game, session_id: str, prompt: Prompt | None) -> None:
        if prompt is not None:
            game.set_prompt(session_id, prompt)
            self._diary.mark(session_id, "prompt", prompt.text)

    def _bring_back(self, game: Game, letter: Return) -> Note | None:
        """Its last chunks are made again, beside what everybody plays."""
        session_id, now_s = letter.session_id, self._clock()
        try:
            if letter.since is not None:
                game.fork(session_id, letter.since, None, now_s, lockstep=letter.lockstep)
            else:
                assert letter.start is not None
                game.join(session_id, letter.start, letter.story.header.control, now_s, letter.lockstep)
        except ValueError:  # Full is for now: its journal stays open, for another try
            letter.journal.close()
            raise
        tail = letter.tail
        game.retrace(session_id, tail.past, tail.heading, tail.next_prompt, letter.story.saves)
        self._returning[session_id] = letter
        return None if tail.past else self._came_back(game, session_id)


def _frames(game: Game, chunk: Finished) -> Frames:
    session = game.roster[chunk.session_id]
    return Frames(session.id, chunk, session.poses_queued, session.lockstep is not None)
