"""A game over a pattern world with a clock that moves only while a forward runs or nobody needs anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sessions.control import Control
from sessions.session import Session
from sessions.tick import Finished, Game
from sessions.trajectory import ControlKind
from world.chunk import Geometry, Row, Start
from world.pattern import PatternWorld


class Simulation:
    def __init__(
        self,
        num_slots: int = 4,
        max_rows: int = 4,
        chunk_frames: int = 1,
        num_steps: int = 2,
        cost_s: Callable[[Sequence[Row]], float] = lambda rows: 0.02,
        park_bytes: int = 0,
    ) -> None:
        self.now_s = 100.0
        self.cost_s = cost_s
        self.geometry = Geometry(64, 48, 16, chunk_frames)
        self.world = PatternWorld(self.geometry, num_slots, num_steps, max_rows, on_step=self._spend)
        self.game = Game(self.world, park_bytes)
        self.finished: list[Finished] = []
        self._seq = 0

    def _spend(self, rows: Sequence[Row]) -> None:
        self.now_s += self.cost_s(rows)

    def start(self, seed: int = 1) -> Start:
        scene = self.world.scenes[0]
        image = self.world.prepare_image(scene.image)
        return Start(seed, self.world.encode_prompt("a field"), image, scene.intrinsics, scene.scale)

    def join(self, session_id: str, control: ControlKind = "axes") -> Session:
        return self.game.join(session_id, self.start(), control, self.now_s)

    def steer(self, session_id: str, *axes: float, look: tuple[float, float] = (0.0, 0.0)) -> None:
        """Hold axes from now on; the client's clock is the simulation's."""
        self._seq += 1
        forward, right, turn, pitch = (*axes, 0.0, 0.0, 0.0, 0.0)[:4]
        self.game.steer(session_id, Control(self._seq, self.now_s * 1000, (forward, right, turn, pitch), look))

    def tick(self) -> None:
        self.finished += self.game.tick(self.now_s, lambda: self.now_s).finished

    def run(self, seconds: float) -> None:
        """Play for so long, and finish the forward that is running then."""
        until_s = self.now_s + seconds
        while (due_s := self.game.due_s(self.now_s)) is not None and due_s < until_s:
            self.now_s = max(self.now_s, due_s)
            self.tick()
        self.now_s = max(self.now_s, until_s)

    def chunks(self, session_id: str) -> list[Finished]:
        return [chunk for chunk in self.finished if chunk.session_id == session_id]
