"""Record a crowd and make it again: `python -m tests.long_run --world meadow --chunks 1000`.

Bots join, leave, steer and change prompts at different times, at the pace of the clock and in lockstep, until so many
chunks are recorded. Then each recording is verified alone, and all together, in fresh processes. Exit status 0 only if
every digest of every chunk is equal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gameserver.bot import Bot, BotError, connect
from gameserver.policies import Policy, orbit, per_chunk, random_walk, scripted, walk
from sessions.recording import read
from world.motion import keyboard_poses

WORDS = ("", "snow", "a field at night", "an autumn forest", "fog over the sea", "desert", "spring flowers")
KINDS = ("real time", "lockstep", "poses", "poses in lockstep")
STAY_CHUNKS = 8, 40  # of one session, the last not included
AWAY_S = 0.0, 1.5
END_S = 60.0


@dataclass
class Crowd:
    """What the bots share: how much is still to be played, and what was done."""

    url: str
    wanted: int
    chunks: int = 0
    done: Counter[str] = field(default_factory=Counter)

    @property
    def over(self) -> bool:
        return self.chunks >= self.wanted

    async def bot(self, number: int, seed: int) -> None:
        """Session after session; each is another kind, and what it does is drawn from the seed."""
        chance = np.random.default_rng((seed, number))
        await asyncio.sleep(chance.uniform(*AWAY_S))
        kind, token = "", None  # of a session to come back to
        while not self.over:
            if token is None:
                kind = KINDS[int(chance.integers(len(KINDS)))]
            self.done[kind if token is None else "came back"] += 1
            try:
                token = await self.session(chance, kind, int(chance.integers(*STAY_CHUNKS)), token)
            except BotError as error:
                if error.code != "slow_client":
                    raise
                token = None  # a machine that is this busy is no difference
                self.done["cut off"] += 1
            await asyncio.sleep(chance.uniform(*AWAY_S))

    async def session(self, chance: np.random.Generator, kind: str, stay: int, token: str | None) -> str | None:
        """Its token if it hung up instead of saying goodbye."""
        lockstep, by_poses = "lockstep" in kind, "poses" in kind
        hello = {"seed": int(chance.integers(2**32)), "prompt": str(chance.choice(WORDS)), "token": token}
        codecs = (str(chance.choice(("h264", "jpeg", "raw"))),)
        control = "poses" if by_poses else "axes"
        async with connect(self.url, control=control, lockstep=lockstep, codecs=codecs, **hello) as bot:
            steer = (follow if by_poses else hold)(bot, chance)
            for turn in range(stay):
                if lockstep or turn == 0 or chance.random() < 0.7:
                    await anext(steer)
                    self.done["steered"] += 1
                await bot.chunk()
                self.chunks += 1
                if chance.random() < 0.1:
                    await bot.prompt(str(chance.choice(WORDS)))
                    self.done["prompts"] += 1
                if self.over:
                    return None
            bot.stays = bool(chance.random() < 0.3)
            self.done["hung up" if bot.stays else "left"] += 1
            return bot.welcome.token if bot.stays else None


async def hold(bot: Bot, chance: np.random.Generator) -> AsyncIterator[int]:
    """Steers once each time it is asked to go on."""
    policies: tuple[Policy, ...] = (
        random_walk(int(chance.integers(2**32))), walk(), orbit(), scripted("w-8,wl-8,none-4,wj-8", repeat=True),
    )  # fmt: skip
    for axes in per_chunk(policies[int(chance.integers(len(policies)))], bot.welcome.chunk_frames):
        looked = tuple(chance.uniform(-9, 9, 2)) if chance.random() < 0.2 else (0.0, 0.0)
        yield await bot.steer(*axes, look=looked)


async def follow(bot: Bot, chance: np.random.Generator) -> AsyncIterator[int]:
    """Sends the poses of a chunk each time it is asked to go on."""
    keys = [f"{chance.choice(['w', 'wl', 'wj', 'd', 'i', 'none'])}-{int(chance.integers(3, 20))}" for _ in range(60)]
    poses, begin = keyboard_poses(",".join(keys)), 0
    end = bot.welcome.chunk_frames if bot.welcome.resumed else bot.welcome.first_chunk_frames
    while True:
        yield await bot.follow(poses[begin:end] if end <= len(poses) else poses[-1:].repeat(end - begin, axis=0))
        begin, end = end, end + bot.welcome.chunk_frames


@contextmanager
def serving(world: str, players: int, directory: Path) -> Iterator[str]:
    """A server process that records, and keeps its saves beside; its address."""
    places = ["--record-dir", str(directory), "--save-dir", str(directory / "saves")]
    options = ["--world", world, "--players", str(players), "--port", "0", *places]
    command = [sys.executable, "-m", "gameserver", "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stderr is not None
        try:
            said = re.search(r"http(://\S+)/", server.stdout.readline())
            if said is None:
                raise SystemExit(f"the server did not start: {server.stderr.read()}")
            yield f"ws{said[1]}"
        finally:
            server.terminate()
            server.wait(END_S)


def verify(files: Sequence[Path], world: str, *options: str) -> list[str]:
    """Differences, in sentences, that a fresh process finds."""
    command = [sys.executable, "-m", "gameserver", "replay", *map(str, files), "--verify", "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        told = json.loads(done.stdout)["recordings"]
    except (ValueError, KeyError):
        return [f"the replay failed: {done.stderr.strip()[-500:]}"]
    found = [
        f"{Path(each['file']).name}: {each['outcome']}, chunk {each['chunk']}: {each['reason']}"
        for each, path in zip(told, files, strict=True)
        if (each["outcome"], each["checked"]) != ("equal", len(read(path.read_bytes()).chunks))
    ]
    return found or ([] if done.returncode == 0 else [f"the replay's exit status is {done.returncode}"])


async def play(url: str, bots: int, chunks: int, seed: int) -> Crowd:
    crowd = Crowd(url, chunks)
    async with asyncio.TaskGroup() as group:
        for number in range(bots):
            group.create_task(crowd.bot(number, seed))
    return crowd


def run(world: str, bots: int, chunks: int, seed: int, directory: Path) -> int:
    with serving(world, 2 * bots, directory) as url:  # who is cut off leaves a seat taken for a while
        crowd = asyncio.run(play(url, bots, chunks, seed))
    files = sorted(directory.glob("*.mwrec"))
    recordings = [read(path.read_bytes()) for path in files]
    recorded = [chunk for recording in recordings for chunk in recording.chunks]
    company = Counter(chunk.company for chunk in recorded)
    prompts = sum(chunk.prompt is not None for chunk in recorded)
    deeds = ", ".join(f"{deed} {count}" for deed, count in sorted(crowd.done.items()))
    print(f"{bots} bots played {crowd.chunks} chunks of {world}: {deeds}")
    print(f"{len(recorded)} chunks are in {len(files)} recordings; {prompts} began with another prompt")
    print("rows in a forward: " + ", ".join(f"{rows} in {count}" for rows, count in sorted(company.items())))
    differences = [f"{len(recorded)} chunks are recorded, of {chunks}"] if len(recorded) < chunks else []
    differences += [f"{path.name} has no end" for path, each in zip(files, recordings, strict=True) if not each.ended]
    alone = [found for path in files for found in verify([path], world)]
    print(f"each alone, in a process of its own: {len(alone)} of {len(files)} differ")
    together = verify(files, world, "--together")
    print(f"all together, in a fresh process: {len(together)} of {len(files)} differ")
    differences += alone + together
    for sentence in differences:
        print(f"  {sentence}")
    print("every digest is equal" if not differences else "NOT equal")
    return 1 if differences else 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.long_run", description=__doc__)
    parser.add_argument("--world", default="pattern", help="(default: %(default)s)")
    parser.add_argument("--bots", type=int, default=6, help="at a time (default: %(default)s)")
    parser.add_argument("--chunks", type=int, default=1000, help="in all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of what the bots do (default: %(default)s)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the recordings in this new directory")
    args = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        if args.keep is None:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="long-run-")))
        else:
            directory = args.keep
            directory.mkdir(parents=True)
        return run(args.world, args.bots, args.chunks, args.seed, directory)


if __name__ == "__main__":
    sys.exit(main())
