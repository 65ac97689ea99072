"""Kills a server again and again while bots play on it, and holds what they saw against what it remembers.

    python -m tests.kill_server --times 100

A real `gameserver serve` with test pictures plays with several bots that steer all the time; one of them also saves and
goes back, one changes its prompt. At a random instant the process gets SIGKILL, and another begins with the same
directories. In the end

- every session came back every time, under its token;
- every frame that was seen is of a recorded chunk, with that chunk's camera and control;
- every control up to that of the last chunk is in the recording once: each brings a look, looks add up, and their sum
  must be that of what was sent;
- `gameserver replay --verify` makes every recording again, before and after every kill, to the bit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from sessions.recording import read
from sessions.records import Chunk, Mark

READY_S = 60.0
ANSWER_S = 60.0
CONTROL_S = 0.02
MOST_MESSAGES = 400  # that the bots get between two kills
MOST_EXTRA_S = 0.05


@dataclass
class Line:
    """One connection of a bot, as it saw it."""

    looks: list[float] = field(default_factory=list)  # degrees, of each control sent
    frames: list[tuple[int, int, bytes]] = field(default_factory=list)  # chunk, control_seq, pose


@dataclass
class Bot:
    number: int
    chance: random.Random
    session: str = ""
    token: str | None = None
    lines: list[Line] = field(default_factory=list)
    saves: list[str] = field(default_factory=list)
    lost: int = 0  # times that it did not come back to its session
    left: bool = False

    @property
    def goes_back(self) -> bool:
        return self.number == 0

    async def live(self, url: str, house: House) -> None:
        """Play, and come back whenever the server is gone, until the house says good-bye."""
        while not self.left:
            try:
                async with connect(url, compression=None, max_size=None, open_timeout=ANSWER_S) as socket:
                    await self.play(socket, house)
            except (OSError, ConnectionClosed, InvalidHandshake, InvalidMessage, EOFError, TimeoutError):
                await asyncio.sleep(0.02)

    async def play(self, socket: ClientConnection, house: House) -> None:
        hello = {"type": "hello", "version": 1, "name": f"bot {self.number}", "seed": self.number, "codecs": ["jpeg"]}
        await socket.send(msgpack.packb(hello | ({"token": self.token} if self.token else {})))
        welcome = msgpack.unpackb(await asyncio.wait_for(socket.recv(), ANSWER_S))
        if welcome["type"] != "welcome":
            return  # not ready yet
        if self.token is not None and not welcome["resumed"]:
            self.lost += 1
        self.session, self.token = welcome["session"], welcome["token"]
        self.lines.append(Line())
        house.heard()
        steering = asyncio.create_task(self.steer(socket))
        try:
            while not house.closing or len(self.lines[-1].frames) < 20:
                self.hear(msgpack.unpackb(await socket.recv()), house)
                if self.lines[-1].frames:
                    await socket.send(msgpack.packb({"type": "ack", "packet": self.packet}))
            await socket.send(msgpack.packb({"type": "bye"}))
            self.left = True
        finally:
            steering.cancel()
            await asyncio.gather(steering, return_exceptions=True)

    def hear(self, message: dict[str, Any], house: House) -> None:
        house.heard()
        if message["type"] == "frame":
            self.packet = message["packet"]
            self.lines[-1].frames.append((message["chunk"], message["control_seq"], message["pose"]))
        elif message["type"] == "saved":
            self.saves.append(message["save"])

    async def steer(self, socket: ClientConnection) -> None:
        line, chance = self.lines[-1], self.chance
        while True:
            axes = [chance.choice((-1.0, 0.0, 0.5, 1.0)) for _ in range(4)]
            line.looks.append(float(chance.randrange(1, 9)))
            seq = len(line.looks)
            control = {"type": "control", "seq": seq, "t_ms": 20.0 * seq, "axes": axes, "look": [line.looks[-1], 0.0]}
            await socket.send(msgpack.packb(control))
            if self.goes_back and chance.random() < 0.05:
                await socket.send(msgpack.packb({"type": "save"}))
            if self.goes_back and self.saves and chance.random() < 0.05:
                await socket.send(msgpack.packb({"type": "load", "save": chance.choice(self.saves)}))
            if self.number == 1 and chance.random() < 0.05:
                await socket.send(msgpack.packb({"type": "prompt", "text": f"place {seq}"}))
            await asyncio.sleep(CONTROL_S * chance.random() * 2)


class House:
    """The server's process, one after another, and what the bots heard of it."""

    def __init__(self, directory: Path, port: int, bots: int) -> None:
        self.recordings = directory / "recordings"
        self.closing = False
        self.messages = 0
        self._heard = asyncio.Event()
        self._command = [
            "-m", "gameserver", "serve", "--world", "pattern", "--port", str(port), "--players", str(bots),
            "--record-dir", str(self.recordings), "--save-dir", str(directory / "saves"), "--save-every", "0.3",
        ]  # fmt: skip

    def heard(self) -> None:
        self.messages += 1
        self._heard.set()

    async def open(self) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        server = await asyncio.create_subprocess_exec(sys.executable, *self._command, stdout=pipe)
        assert server.stdout is not None
        told = await asyncio.wait_for(server.stdout.readline(), READY_S)
        assert told.startswith(b"Open "), f"the server did not come up: {told!r}"
        return server

    async def until(self, messages: int) -> None:
        goal = self.messages + messages
        async with asyncio.timeout(ANSWER_S):
            while self.messages < goal:
                self._heard.clear()
                await self._heard.wait()


async def play(directory: Path, port: int, times: int, num_bots: int, seed: int, tell: bool) -> list[Bot]:
    chance = random.Random(seed)
    house = House(directory, port, num_bots)
    bots = [Bot(number, random.Random(f"{seed} {number}")) for number in range(num_bots)]
    server = await house.open()
    lives = [asyncio.create_task(bot.live(f"ws://127.0.0.1:{port}/play", house)) for bot in bots]
    try:
        while not all(bot.token for bot in bots):  # before its welcome nobody has a session to lose
            await house.until(1)
        for kill in range(1, times + 1):
            await house.until(chance.randrange(MOST_MESSAGES) if chance.random() < 0.8 else chance.randrange(10))
            await asyncio.sleep(MOST_EXTRA_S * chance.random())
            server.send_signal(signal.SIGKILL)
            await server.wait()
            if tell:
                print(f"kill {kill}, after {house.messages} messages", file=sys.stderr, flush=True)
            server = await house.open()
        house.closing = True
        await asyncio.wait_for(asyncio.gather(*lives), ANSWER_S)
    finally:
        for life in lives:
            life.cancel()
        with contextlib.suppress(ProcessLookupError):
            server.terminate()
        await server.wait()
    return bots


Epoch = list[Chunk | Mark]


def epochs(records: tuple[Any, ...]) -> Iterator[Epoch]:
    """What was recorded of each connection."""
    epoch: Epoch = []
    for record in records[1:]:
        if isinstance(record, Mark) and record.kind == "reconnect":
            yield epoch
            epoch = []
        epoch.append(record)
    yield epoch


def holds(epoch: Epoch, line: Line) -> bool:
    """Whether every frame of a connection is of a chunk in it, in this order."""
    poses = iter([(c.chunk, c.control_seq, c.poses) for c in epoch if isinstance(c, Chunk)])
    at: tuple[int, int, bytes] | None = None
    for chunk, control_seq, pose in line.frames:
        while at is None or at[:2] != (chunk, control_seq) or pose not in [
            at[2][i : i + 64] for i in range(0, len(at[2]), 64)
        ]:  # fmt: skip
            at = next(poses, None)
            if at is None:
                return False
    return True


def faults_of(bot: Bot, recordings: Path) -> Iterator[str]:
    """What is wrong between a bot and its recording."""
    (path,) = recordings.glob(f"*-{bot.session}.mwrec")
    recording = read(path.read_bytes())
    if bot.lost or not recording.ended or recording.verdict.state != "whole":
        yield f"bot {bot.number}: lost {bot.lost} times, its recording is {recording.verdict}, ended {recording.ended}"
    told = epochs(recording.records)
    for i, line in enumerate(bot.lines):
        if not line.frames:
            continue
        epoch = next((epoch for epoch in told if holds(epoch, line)), None)
        if epoch is None:
            yield f"bot {bot.number}, connection {i}: {len(line.frames)} frames are in no part of its recording"
            return
        if bot.goes_back:  # its looks come and go
            continue
        looked = 0.0
        for chunk in (record for record in epoch if isinstance(record, Chunk)):
            looked += chunk.look[0]
            if looked != sum(line.looks[: chunk.control_seq]):
                yield f"bot {bot.number}, connection {i}, chunk {chunk.chunk}: a control is missing or there twice"
                return


async def verify(recordings: Path) -> list[str]:
    files = sorted(map(str, recordings.glob("*.mwrec")))
    pipe = asyncio.subprocess.PIPE
    replay = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "gameserver", "replay", "--verify", "--json", *files, stdout=pipe
    )
    out, _ = await replay.communicate()
    told = json.loads(out)
    wrong = [f"{each['file']}: {each['outcome']}, {each['reason']}" for each in told["recordings"] if each["reason"]]
    return wrong if wrong or replay.returncode == 0 else [f"replay --verify ended with {replay.returncode}"]


async def run(
    directory: Path, port: int, times: int, num_bots: int = 6, seed: int = 1, tell: bool = False
) -> list[str]:
    """What went wrong; nothing if all is well."""
    bots = await play(directory, port, times, num_bots, seed, tell)
    recordings = directory / "recordings"
    faults = [fault for bot in bots for fault in faults_of(bot, recordings)]
    if len({bot.session for bot in bots}) != num_bots or len(list(recordings.glob("*.mwrec"))) != num_bots:
        faults.append("there are more or fewer sessions than bots")
    faults += await verify(recordings)
    if tell:
        records = [record for path in recordings.glob("*.mwrec") for record in read(path.read_bytes()).records]
        kinds = [record.kind for record in records if isinstance(record, Mark)]
        print(
            f"{times} kills, {num_bots} bots: {sum(len(bot.lines) for bot in bots)} connections, "
            f"{sum(len(line.frames) for bot in bots for line in bot.lines)} frames seen, "
            f"{sum(len(line.looks) for bot in bots for line in bot.lines)} controls sent, "
            f"{sum(isinstance(record, Chunk) for record in records)} chunks recorded, "
            f"{kinds.count('recovered')} recoveries, {kinds.count('save')} saves, {kinds.count('rewind')} rewinds; "
            f"faults: {len(faults)}"
        )
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--bots", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=8765)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        faults = asyncio.run(run(Path(directory), args.port, args.times, args.bots, args.seed, tell=True))
    print("\n".join(faults) or "every session came back, every control is there once, every recording verifies")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
