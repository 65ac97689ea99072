"""One player's stream: its slot, where it is in its world, and which states may follow each other."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from enum import StrEnum

from sessions.control import Control
from sessions.lockstep import Lockstep
from sessions.moment import Moment, Past
from sessions.pacing import Pacing
from sessions.trajectory import (
    AxesTrajectory,
    ChunkPath,
    ControlKind,
    Heading,
    PoseTrajectory,
    Trajectory,
    new_trajectory,
)
from world.chunk import Geometry, Prompt, Row

NO_SLOT = 0  # a world's padding row is nobody's


class State(StrEnum):
    WAITING = "waiting"  # between two chunks
    DENOISING = "denoising"
    COMMITTING = "committing"  # frames are out, the chunk's clean keys are not yet in the slab
    DETACHED = "detached"  # between two chunks, and nobody is connected
    ENDED = "ended"


LEGAL: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.DENOISING, State.DETACHED, State.ENDED}),
    State.DENOISING: frozenset({State.COMMITTING, State.WAITING, State.DETACHED, State.ENDED}),  # or it goes back
    State.COMMITTING: frozenset({State.WAITING, State.DETACHED, State.ENDED}),
    State.DETACHED: frozenset({State.WAITING, State.ENDED}),
    State.ENDED: frozenset(),
}


class IllegalState(RuntimeError):
    """A session was asked for something its state does not allow."""


class Session:
    def __init__(
        self, session_id: str, slot: int, geometry: Geometry, num_steps: int, control: ControlKind, now_s: float,
        prompt_text: str = "", lockstep: bool = False,
    ) -> None:  # fmt: skip
        self.id = session_id
        self.slot = slot
        self.control = control
        self.state = State.WAITING
        self.attached = True
        self.chunk_index = 0
        self.step_index = 0
        self.started_s = now_s  # of the chunk under way
        self.begin_forward = 0  # number of the forward that ran the first step of the chunk under way
        self.ready_s = now_s  # since when this chunk could start
        self.pacing = Pacing(geometry, now_s)
        self.lockstep = Lockstep(geometry, control) if lockstep else None
        self.trajectory: Trajectory = new_trajectory(control, geometry)
        if self.lockstep is not None:
            self.trajectory = self.lockstep.trajectory
        self.path: ChunkPath | None = None  # of the chunk under way
        self.of_before = False  # whether a connection before this one steered it
        self.prompt: Prompt | None = None  # that takes effect with the chunk under way
        self.prompt_text = prompt_text  # in force
        self.digest = b""  # of the last chunk's latents
        self.saves: tuple[str, ...] = ()  # ids of the moments it can go back to
        self.past: deque[Past] = deque()  # to be made again before anything new, the chunk under way included
        self.prompts_replaced = 0  # set and replaced before any chunk began: only the last one counts
        self._next_prompt: Prompt | None = None
        self._num_steps = num_steps

    @property
    def in_chunk(self) -> bool:
        return self.state in (State.DENOISING, State.COMMITTING)

    @property
    def parked(self) -> bool:
        """It has no slot: it stands still, or waits for one."""
        return self.slot == NO_SLOT

    @property
    def can_start(self) -> bool:
        return not self.parked and self.wants_to_start

    @property
    def wants_to_start(self) -> bool:
        """In a slot, if it has none."""
        if self.state is not State.WAITING:
            return False
        if self.past:
            return True
        return self.trajectory.ready if self.lockstep is None else self.lockstep.may_begin(self.chunk_index)

    @property
    def poses_queued(self) -> int:
        return self.trajectory.queued

    def move(self, state: State) -> None:
        if state not in LEGAL[self.state]:
            raise IllegalState(f"session {self.id!r} cannot go from {self.state} to {state}")
        self.state = state

    def steer(self, control: Control) -> None:
        """ValueError if the control is out of order or this session is moved by poses."""
        if not isinstance(self.trajectory, AxesTrajectory):
            raise ValueError(f"session {self.id!r} is controlled by poses, not by axes")
        self.trajectory.steer(control)

    def poses(self) -> PoseTrajectory:
        """The queue of explicit poses. ValueError if this session is steered."""
        if not isinstance(self.trajectory, PoseTrajectory):
            raise ValueError(f"session {self.id!r} is controlled by axes, not by poses")
        return self.trajectory

    def set_prompt(self, prompt: Prompt) -> None:
        """Takes effect with the next chunk that starts; in lockstep with the next steering that comes."""
        if self.lockstep is not None:
            self.prompts_replaced += self.lockstep.ask(prompt)
            return
        self.prompts_replaced += self._next_prompt is not None
        self._next_prompt = prompt

    def notice(self, now_s: float) -> None:
        """In lockstep the client says when a chunk may start: now, if that was not so before. Waiting is not late."""
        if self.lockstep is not None and not self.lockstep.asked and self.wants_to_start:
            self.lockstep.asked = True
            self.ready_s = now_s
            self.pacing.ask(self.chunk_index, now_s)

    def begin(self, now_s: float, ready_s: float, forward: int) -> None:
        """Start the next chunk: this is the last moment at which a control counts for it."""
        self.move(State.DENOISING)
        self.of_before = False
        if self.past:
            self.path, self.prompt = self.past[0].path, self.past[0].prompt
        else:
            self.path = self.trajectory.take(self.chunk_index)
            self.prompt, self._next_prompt = self._next_prompt, None
            if self.lockstep is not None:
                self.prompt, self.lockstep.asked = self.lockstep.prompt(), False
        self.prompt_text = self.prompt_text if self.prompt is None else self.prompt.text
        self.started_s, self.begin_forward = now_s, forward
        self.ready_s = ready_s if self.chunk_index else now_s  # a first chunk may have waited for its poses, not for us

    def row(self) -> Row:
        """What the next forward does for this session."""
        if self.path is None or not self.in_chunk:
            raise IllegalState(f"session {self.id!r} has no chunk under way")
        return Row(self.slot, self.chunk_index, self.step_index, self.path.row_poses, self.path.keys, self.prompt)

    def settle(self, slot: int, now_s: float) -> None:
        """It was parked, and goes on in this slot: its clock begins anew, as nothing plays at the client."""
        self.slot = slot
        if self.lockstep is None:
            self.pacing.restart(self.chunk_index, now_s)
            self.ready_s = now_s

    def advance(self, now_s: float) -> None:
        """The row has run."""
        self.step_index += 1
        if self.step_index == self._num_steps:
            self.move(State.COMMITTING)
        elif self.step_index > self._num_steps:
            self._rest(self.chunk_index + 1, now_s)
            if self.past:
                self.past.popleft()
                self.pacing.restart(self.chunk_index, now_s)

    def _rest(self, chunk_index: int, now_s: float) -> None:
        """No chunk is under way, this one is next."""
        state = State.WAITING if self.attached else State.DETACHED
        if self.state is not state:
            self.move(state)
        self.chunk_index, self.step_index, self.path, self.prompt = chunk_index, 0, None, None
        self.ready_s = now_s

    def moment(self, save_id: str | None = None) -> Moment:
        """Where it is; by a name it knows that it can go back there. IllegalState in the middle of a chunk."""
        if self.in_chunk or self.past or self.state is State.ENDED:
            raise IllegalState(f"session {self.id!r} is {self.state}, not between two chunks")
        if save_id is not None:
            self.saves = (*self.saves, save_id)
        next_prompt = self._next_prompt if self.lockstep is None else self.lockstep.next_prompt
        return Moment(
            self.chunk_index, self.control, self.trajectory.heading, self.prompt_text,
            None if next_prompt is None else next_prompt.text, self.digest, self.saves,
        )  # fmt: skip

    def resume(self, moment: Moment, next_prompt: Prompt | None, now_s: float, same_clock: bool) -> None:
        """Go on from there; a chunk under way is given up. ValueError, and nothing changes, if it is of another kind
        of control."""
        self.trajectory.resume(moment.heading, same_clock)
        self.prompt_text, self.digest = moment.prompt, moment.digest
        self._rest(moment.chunk_index, now_s)
        self._await(next_prompt)
        self.pacing.restart(moment.chunk_index, now_s)

    def retrace(
        self, past: Iterable[Past], heading: Heading, next_prompt: Prompt | None, saves: tuple[str, ...]
    ) -> None:
        """Make chunks again that were made before, and go on from there with nothing held."""
        self.trajectory.resume(heading, same_clock=False)
        self.trajectory.restart()
        self.past, self.saves = deque(past), saves
        self._await(next_prompt)

    def _await(self, next_prompt: Prompt | None) -> None:
        """With nothing else asked for than this prompt."""
        if self.lockstep is None:
            self._next_prompt = next_prompt
        else:
            self.lockstep.resume(self.chunk_index, next_prompt)

    def left(self, chunk_index: int) -> None:
        """All frames of a chunk are on their way to the client: in lockstep it may go on. What it went back from does
        not count."""
        made = self.chunk_index + (self.state is State.COMMITTING)
        if self.lockstep is not None and chunk_index < made:
            self.lockstep.left(chunk_index)

    def detach(self) -> None:
        """Nobody is connected: a chunk under way is finished, no other begins."""
        self.attached = False
        self.trajectory.restart()
        if self.state is State.WAITING:
            self.move(State.DETACHED)

    def attach(self, now_s: float) -> None:
        """A player is connected (again), with a new clock and nothing held."""
        if self.state is State.ENDED:
            raise IllegalState(f"session {self.id!r} has ended")
        self.attached = True
        self.of_before = self.in_chunk
        self.trajectory.restart()
        self.pacing.restart(self.chunk_index, now_s)
        if self.lockstep is not None:  # what was to be sent is lost with the connection
            self.lockstep.left(self.chunk_index - 1)
            self.lockstep.asked = False
        if self.state is State.DETACHED:
            self.move(State.WAITING)
            self.ready_s = now_s
