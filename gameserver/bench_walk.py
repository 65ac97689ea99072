"""Players that walk as fast as a world goes, for a benchmark: everybody is always behind the deadline, so that each
tick runs all the rows there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gameserver.diary import Diary
from gameserver.mailbox import Join
from gameserver.notes import Frames
from sessions.control import Control
from sessions.tick import Game
from world.chunk import World, usual_start

BEHIND_S = 1000.0  # the game's clock jumps by this each tick, so that nobody waits for a deadline


@dataclass(frozen=True, slots=True)
class Walk:
    ticks_s: tuple[float, ...]
    rows: int
    frames: int
    seconds: float


def start(world: World, player: int) -> Join:
    """What a player of this number begins from, as the letter that a server gets."""
    scene = world.scenes[player % len(world.scenes)]
    return Join(f"player-{player}", usual_start(world, player, scene), "axes", scene.id)


def walk(
    world: World, joins: Sequence[Join], num_chunks: int, warmup_chunks: int, clock: Callable[[], float],
    diary: Diary | None = None,
) -> Walk:  # fmt: skip
    """Everybody walks and turns; counts the ticks from everybody's last warm-up chunk to anybody's last chunk. A diary
    is kept as the engine keeps it, within the ticks' time."""
    game = Game(world)
    kept = diary or Diary(lambda notes: None, None, None)
    ids = [join.session_id for join in joins]
    now_s, ticks_s, rows, frames = 0.0, list[float](), 0, 0
    done = dict.fromkeys(ids, 0)

    def tick() -> tuple[float, int, int]:
        """(seconds, rows, frames)"""
        nonlocal now_s
        now_s += BEHIND_S
        began_s = clock()
        result = game.tick(now_s, lambda: now_s)
        for chunk in result.finished:
            kept.chunk(chunk)
        kept.tell([Frames(chunk.session_id, chunk, 0) for chunk in result.finished], clock())
        elapsed_s = clock() - began_s
        for chunk in result.finished:
            done[chunk.session_id] += 1
        return elapsed_s, len(result.rows), sum(len(chunk.picture.frames) for chunk in result.finished)

    for number, join in enumerate(joins):
        game.join(join.session_id, join.start, join.control, now_s)
        kept.begin(join)
        for _ in range(number % (world.num_steps + 1)):  # so that rows stand at different steps, as in play
            tick()
    turn_seq, measuring = 0, False
    while max(done.values()) < warmup_chunks + num_chunks + len(joins):
        measuring = measuring or min(done.values()) >= warmup_chunks
        turn_seq += 1
        for number, session_id in enumerate(ids):
            turn = 1.0 if (turn_seq // 40 + number) % 2 else -1.0
            game.steer(session_id, Control(turn_seq, turn_seq * 20.0, (1.0, 0.0, turn, 0.0)))
        elapsed_s, tick_rows, tick_frames = tick()
        if measuring:
            ticks_s.append(elapsed_s)
            rows += tick_rows
            frames += tick_frames
    for session_id in ids:
        game.leave(session_id)
        kept.mark(session_id, "end", "the player left")
    kept.tell([], clock())
    return Walk(tuple(ticks_s), rows, frames, sum(ticks_s))
