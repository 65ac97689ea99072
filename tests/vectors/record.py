"""A small recording of a world, the same on every run but for the arithmetic: `make recording` writes that of the
built-in world into `meadow.mwrec` beside this file. It has to be made again whenever that world's weights change."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from gameserver.protocol import VERSION
from gameserver.serve import world_loader
from sessions.control import Control
from sessions.recording import encode
from sessions.records import Mark, Record, chunk_of, header_of
from sessions.tick import Game
from world.chunk import World, usual_start

CHUNKS = 10
REST = (0.0, 0.0, 0.0, 0.0)
# When so many chunks are out: (milliseconds, axes held from then on, degrees looked). The one at 8 is a tap.
STEERING = {
    0: [(0.0, (1.0, 0.0, 0.5, 0.0), (0.0, 0.0))],
    3: [(700.0, (0.0, -1.0, 0.0, 0.25), (0.0, 0.0))],
    4: [(1000.0, REST, (3.5, -1.25))],
    6: [(1500.0, (0.5, 0.0, -1.0, 0.0), (0.0, 0.0))],
    8: [(2000.0, (0.0, 1.0, 0.0, 0.0), (0.0, 0.0)), (2100.0, REST, (0.0, 0.0))],
}
SNOW_AT = 5


def record(world: World) -> bytes:
    """Somebody walks, turns, looks and asks for snow, beside somebody who stands. The world needs two slots."""
    game, now_s = Game(world), 0.0
    scene = world.scenes[0]
    start, other = (usual_start(world, seed) for seed in (7, 8))
    game.join("walker", start, "axes", now_s)
    game.join("other", other, "axes", now_s)
    identity = world.identify(lambda stage, share: None)
    header = header_of(world, identity, start, "axes", scene.id, None, run="vector", session="walker", protocol=VERSION)
    records: list[Record] = [header, Mark(kind="join")]
    made, seq, steering = 0, 0, dict(STEERING)
    while made < CHUNKS:
        for t_ms, axes, look in steering.pop(made, []):
            seq += 1
            game.steer("walker", Control(seq, t_ms, axes, look))
        now_s += 1000.0  # everybody is behind, so everybody's rows run
        for chunk in game.tick(now_s, partial(float, now_s)).finished:
            if chunk.session_id == "walker":
                records.append(chunk_of(chunk))
                made += 1
                if made == SNOW_AT:
                    game.set_prompt("walker", world.encode_prompt("snow"))
    for name in ("walker", "other"):
        game.leave(name)
    records.append(Mark(kind="end", text="the player left"))
    return b"".join(encode(each) for each in records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="meadow", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, help="(default: WORLD.mwrec beside this program)")
    args = parser.parse_args()
    out = args.out or Path(__file__).with_name(f"{args.world}.mwrec")
    data = record(world_loader(args.world, 2)(lambda stage, share: None))
    out.write_bytes(data)
    print(f"{out}: {len(data)} bytes")


if __name__ == "__main__":
    main()
