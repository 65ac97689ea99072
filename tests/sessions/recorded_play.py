"""Recordings made without a server: a simulated game that writes down what the server's recorder would."""

from __future__ import annotations

import numpy as np
from session_simulation import Simulation

from sessions.recording import encode
from sessions.records import Mark, Record, chunk_of, header_of


def play(seconds: float = 2.0, run: str = "run", num_slots: int = 4, chunk_frames: int = 1) -> dict[str, list[Record]]:
    """Three players that come at different times, steer, look, tap, send poses, change prompts and leave."""
    game = Simulation(num_slots=num_slots, num_steps=3, chunk_frames=chunk_frames, cost_s=lambda rows: 0.013)
    records: dict[str, list[Record]] = {}

    def join(name: str, seed: int, control: str = "axes") -> None:
        start = game.start(seed)
        game.game.join(name, start, control, game.now_s)  # type: ignore[arg-type]
        identity = game.world.identify(lambda stage, share: None)
        header = header_of(
            game.world,
            identity,
            start,
            control,
            "north",
            None,
            run=run,
            session=name,
            protocol=1,  # type: ignore[arg-type]
        )
        records[name] = [header, Mark(kind="join")]

    join("a", 1)
    game.steer("a", 1.0, 0.0, 0.25)
    game.run(seconds / 4)
    join("b", 2, "poses")
    walk = np.tile(np.eye(4, dtype=np.float32), (9, 1, 1))
    walk[:, 2, 3] = np.arange(9) / 10
    game.game.extend("b", 3, walk)
    game.run(seconds / 4)
    join("c", 3)
    game.steer("c", 0.0, 1.0, look=(3.5, -1.25))
    game.game.set_prompt("a", game.world.encode_prompt("snow"))
    game.now_s += 0.01
    game.steer("c")
    game.run(seconds / 4)
    game.game.leave("a")
    game.run(seconds / 4)
    for chunk in game.finished:
        records[chunk.session_id].append(chunk_of(chunk))
    for name in records:
        records[name].append(Mark(kind="end", text="the player left"))
    return records


def written(records: list[Record]) -> bytes:
    return b"".join(encode(record) for record in records)
