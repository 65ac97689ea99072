"""A player's saves over the wire: kept within limits, gone back to and forked off to the frame, and of no use when
damaged; and a session whose server was killed goes on where its last recorded chunk ended."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import Player, RunningServer, get, open_socket, playing, read_frames
from websockets.exceptions import ConnectionClosed

from gameserver import cli, serve
from gameserver.app import App
from gameserver.backpressure import Limits
from gameserver.bot import BotError, connect
from gameserver.door import Settings
from gameserver.journal import Journal, Keep
from gameserver.ledger import Ledger, Ticket, hash_token
from gameserver.mailbox import Return
from gameserver.realtime import RealTime
from gameserver.saves import SaveRefused, Saves, Shelf
from sessions.moment import Moment, Save
from sessions.recording import Recording, read
from sessions.trajectory import new_trajectory
from sessions.verify import Finding, verify
from tests.world.tiny_world import random_world, tiny_config
from world.chunk import Identity, Report, Scene, SlotState, Stored, World
from world.model import DiffusionWorld
from world.pattern import PatternWorld
from world.snapshot import maker

RELAXED = Limits(late_s=60.0, stall_s=60.0)  # a busy machine must not look like a slow link
EVER = 1e9


@pytest.fixture
def kept(tmp_path: Path) -> dict[str, Any]:
    """Where a server records and saves."""
    (tmp_path / "saves").mkdir()
    (tmp_path / "recordings").mkdir()
    shelf = Shelf(tmp_path / "saves", every_s=EVER, recover_s=EVER)
    return {"record": Keep(tmp_path / "recordings"), "saves": shelf, "limits": RELAXED}


def recordings(kept: dict[str, Any]) -> list[Recording]:
    return [read(path.read_bytes()) for path in kept["record"].directory.glob("*.mwrec")]


def verified(recording: Recording, world: World | None = None) -> Finding:
    world = world or PatternWorld(num_slots=1)
    identity = world.identify(lambda stage, share: None)
    (finding,) = verify(world, identity, [recording], [len(recording.chunks)])
    return finding


async def save(player: Player) -> str:
    await player.say("save")
    return str((await player.hear_until("saved"))["save"])


def pose(frame: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(frame["pose"], "<f4").reshape(4, 4)


def test_going_back_is_to_the_frame_and_the_recording_tells_all_of_it(
    running_server: RunningServer, kept: dict[str, Any]
) -> None:
    async def scene() -> None:
        async with running_server(**kept) as app, playing(app, seed=5, prompt="fog") as player:
            await player.steer(1.0, 0.0, 0.5, 0.0)
            await player.hear_frames(6)
            await player.say("save")
            saved = await player.hear_until("saved")
            chunk = saved["chunk"]
            await player.say("prompt", text="snow")
            await player.hear_until("prompted")
            await player.steer(-1.0, 0.0, -1.0, 0.0)
            await player.hear_frames(12)
            await player.say("load", save=saved["save"])
            loaded = await player.hear_until("loaded")
            assert (loaded["save"], loaded["chunk"], loaded["prompt"]) == (saved["save"], chunk, "fog")
            made = len(player.frames)
            await player.hear_frames(8)
            again = player.frames[made:]
            assert again[0]["chunk"] == chunk and again[0]["frame"] == 4 * chunk - 3
            assert [frame["frame"] for frame in again] == list(range(again[0]["frame"], again[0]["frame"] + 8))
            last = [frame for frame in player.frames[:made] if frame["chunk"] == chunk - 1][-1]
            first = next(frame for frame in player.frames[:made] if frame["chunk"] == chunk)
            moved = np.linalg.norm(pose(again[0])[:3, 3] - pose(last)[:3, 3])
            assert 0.01 < moved < 0.1, "it goes on with what was held"
            if first["control_seq"] == 1:  # the second control may have been quick
                assert np.array_equal(pose(first), pose(again[0]))
            assert read_frames(player.frames)[-1].prompt == read_frames(player.frames)[0].prompt
            await player.say("bye")
        (recording,) = recordings(kept)
        kinds = [mark.kind for mark in recording.marks]
        assert kinds == ["join", "save", "prompt", "rewind", "end"] and recording.ended
        finding = verified(recording)
        assert (finding.outcome, finding.checked) == ("equal", len(recording.chunks))

    asyncio.run(scene())


def test_a_fork_plays_beside_its_parent_and_each_recording_verifies_alone(
    running_server: RunningServer, kept: dict[str, Any]
) -> None:
    async def scene() -> None:
        async with running_server(**kept) as app, playing(app, seed=5, prompt="fog") as player:
            await player.steer(1.0, 0.0, 0.5, 0.0)
            await player.hear_frames(6)
            name = await save(player)
            async with playing(app, save=name) as fork:
                told = fork.welcome
                assert (told["resumed"], told["seed"], told["prompt"]) == (False, 5, "fog")
                assert told["session"] != player.welcome["session"] and told["token"] != player.welcome["token"]
                await asyncio.gather(player.hear_frames(8), fork.hear_frames(8))
                assert fork.frames[0]["chunk"] == told["chunk"] and fork.frames[0]["key"]
                both = {frame["frame"]: pose(frame) for frame in player.frames}
                for frame in fork.frames:  # nobody touched a key since
                    assert frame["frame"] not in both or np.array_equal(both[frame["frame"]], pose(frame))
                mine = await save(fork)
                await fork.say("load", save=name)
                await fork.hear_until("loaded", save=name)
                await fork.hear_frames(4)
                await fork.say("load", save=mine)
                await fork.hear_until("loaded", save=mine)
                await player.say("load", save=mine)
                assert (await player.hear_until("error"))["code"] == "unknown_save", "another session's"
                await fork.say("bye")
            await player.say("bye")
        parent, child = sorted(recordings(kept), key=lambda r: "fork" in [mark.kind for mark in r.marks])
        assert [mark.kind for mark in child.marks] == ["join", "save", "fork", "save", "rewind", "rewind", "end"]
        for recording in (parent, child):
            assert verified(recording).outcome == "equal"
        assert child.chunks[:2] == parent.chunks[:2]

    asyncio.run(scene())


AGENT: dict[str, Any] = {"codecs": ["raw"], "lockstep": True}
DEEDS = [(0.0, 0.0, 1.0, 0.0), (1.0, 0.0, 0.0, 0.5), (0.0, -1.0, -0.5, 0.0), (1.0, 0.0, 0.0, 0.0)]


async def step(player: Player, *axes: float) -> list[tuple[object, ...]]:
    """The frames of one chunk of an agent, without the half of the picture that shows the slot."""
    await player.steer(*axes)
    frames = await player.hear_frames(player.welcome["chunk_frames"])
    shown = player.welcome["width"] * 3 * 64  # bytes
    return [(frame["frame"], frame["chunk"], frame["pose"], frame["data"][shown:]) for frame in frames]


def test_an_agent_goes_back_and_forks_and_steers_the_same_frames(
    running_server: RunningServer, kept: dict[str, Any]
) -> None:
    async def scene() -> None:
        async with running_server(**kept) as app, playing(app, seed=5, prompt="fog", **AGENT) as agent:
            await agent.hear_frames(agent.welcome["first_chunk_frames"])
            await step(agent, 1.0, 0.0, 0.5, 0.0)
            name = await save(agent)
            first = [await step(agent, *deed) for deed in DEEDS]
            await agent.say("load", save=name)
            loaded = await agent.hear_until("loaded")
            assert (loaded["save"], loaded["chunk"]) == (name, 2), "told before anything is steered"
            assert [await step(agent, *deed) for deed in DEEDS] == first
            async with playing(app, save=name, **AGENT) as fork:
                assert fork.welcome["chunk"] == 2
                assert [await step(fork, *deed) for deed in DEEDS] == first
                await fork.say("bye")
            async with playing(app, save=name, codecs=["raw"]) as human:
                await human.hear_frames(8)  # which nobody steers
                await human.say("bye")
            await step(agent, *DEEDS[0])
            await agent.say("bye")
        for recording in recordings(kept):
            assert verified(recording).outcome == "equal"

    asyncio.run(scene())


def test_a_save_outlives_its_session_and_server(running_server: RunningServer, kept: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running_server(**kept) as app, playing(app, seed=5) as player:
            await player.hear_frames(6)
            name = await save(player)
            await player.say("bye")
        shutil.rmtree(kept["record"].directory)  # a fork brings its own past along
        kept["record"].directory.mkdir()
        async with running_server(**kept) as app, playing(app, save=name) as fork:
            await fork.hear_frames(4)
            await fork.say("bye")
        (recording,) = recordings(kept)
        assert verified(recording).outcome == "equal" and recording.chunks[0].chunk == 0

    asyncio.run(scene())


def test_saves_are_limited_and_say_so(running_server: RunningServer, kept: dict[str, Any]) -> None:
    async def refused(shelf: Shelf | None, code: str, before: int = 0) -> None:
        async with running_server(**{**kept, "saves": shelf}) as app, playing(app) as player:
            for _ in range(before):
                await save(player)
            await player.say("save")
            error = await player.hear_until("error")
            assert (error["code"], error["fatal"]) == (code, False)
            await player.hear_frames(8)  # and nothing else happens
            if shelf is not None:
                text = (await get(app, "/metrics"))[2].decode()
                assert f"saves_total {before}" in text

    shelf = kept["saves"]
    asyncio.run(refused(None, "no_saves"))
    asyncio.run(refused(replace(shelf, session_saves=2), "too_many_saves", before=2))
    asyncio.run(refused(replace(shelf, max_saves=3), "too_many_saves", before=1))  # two are there from before
    asyncio.run(refused(replace(shelf, max_bytes=100), "saves_full"))
    assert len(list(shelf.directory.glob("*.safetensors"))) == 3


def test_a_disk_that_takes_no_save_is_told(
    running_server: RunningServer, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        async with running_server(**kept) as app, playing(app) as player:
            await player.hear_frames(4)
            shutil.rmtree(kept["saves"].directory)
            await player.say("save")
            assert (await player.hear_until("error"))["code"] == "save_failed"
            await player.hear_frames(8)

    asyncio.run(scene())


def test_a_session_has_one_save_of_any_size_and_more_up_to_half_of_all_there_is(tmp_path: Path) -> None:
    with saves_in(tmp_path, max_bytes=1000, state_bytes=900) as saves:
        saves.check_room("a")
        saves._sizes["a-1"] = 300
        with pytest.raises(SaveRefused, match="no room"):
            saves.check_room("a", 201)
        saves.check_room("a", 200)
        saves.check_room("b", 700)
    with saves_in(tmp_path, max_bytes=1000, state_bytes=1001) as saves, pytest.raises(SaveRefused, match="no room"):
        saves.check_room("a")  # before anything is copied


def test_what_save_gb_has_no_room_for_is_a_sentence(tmp_path: Path) -> None:
    class Large(PatternWorld):
        state_bytes = 8_300_000_000

    def told(save_gb: float) -> str | None:
        options = ["serve", "--save-dir", str(tmp_path), "--save-gb", str(save_gb)]
        shelf = serve.shelf(cli.parser().parse_args(options))
        assert shelf is not None
        return serve.too_small(shelf, Large())

    assert told(4) == (
        "--save-gb 4 is too small for a save of this world, which takes 8.3 GB: nobody can save, go back or fork."
    )
    assert told(8.3) == (
        "--save-gb 8.3 is too small for automatic saves of 8.3 GB: after a crash sessions are made again from their "
        "start."
    )
    assert told(16.6) is None


UNKNOWN = "00000000-" + 32 * "0"


def test_a_damaged_or_strange_save_is_refused(running_server: RunningServer, kept: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running_server(**kept) as app, playing(app) as player:
            await player.hear_frames(5)
            name = await save(player)
            path = kept["saves"].directory / f"{name}.safetensors"
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
            for asked, code in ((name, "bad_save"), (UNKNOWN, "unknown_save")):
                await player.say("load", save=asked)
                error = await player.hear_until("error")
                assert (error["code"], error["fatal"]) == (code, False)
                async with open_socket(app) as other:
                    await other.say("hello", version=1, save=asked)
                    error = await other.hear()
                    assert (error["code"], error["fatal"]) == (code, True)
            await player.hear_frames(8)
            assert len(app.door.lobby) == 1, "no seat stays taken"

    asyncio.run(scene())


@pytest.mark.parametrize("field", ["../../etc/passwd", "x", "0" * 41, UNKNOWN + "\n", None, 5])
def test_an_id_is_no_path(running_server: RunningServer, kept: dict[str, Any], field: object) -> None:
    async def scene() -> None:
        async with running_server(**kept) as app, playing(app) as player:
            await player.say("load", save=field)
            assert (await player.hear_until("error"))["code"] == "bad_message"

    asyncio.run(scene())


# Moments of sessions under way.


@contextmanager
def saves_in(directory: Path, state_bytes: int = 100, **shelf: Any) -> Iterator[Saves]:
    saves = Saves(Shelf(directory, **{"every_s": 10.0, **shelf}), lambda notes: None)
    saves.open({}, state_bytes)
    yield saves
    assert saves.close(10.0)


def moment(chunk_index: int) -> Save:
    """Of 100 bytes."""
    where = Moment(chunk_index, "axes", new_trajectory("axes", PatternWorld().geometry).heading, "", None, b"", ())
    return Save(where, SlotState({"x": Stored("U8", (100,), np.zeros(100, np.uint8))}, {}))


def until_idle(saves: Saves) -> None:
    saves._pool.submit(lambda: None).result(10.0)


def test_one_moment_is_on_its_way_and_the_longest_waiting_session_is_next(tmp_path: Path) -> None:
    with saves_in(tmp_path, max_bytes=10**6) as saves:
        until_idle(saves)
        gate = threading.Event()
        saves._pool.submit(gate.wait, 10.0)
        assert saves.next_moment({"a": 0}, 0.0) is saves.next_moment({"b": 0, "a": 1}, 1.0) is None
        assert saves.next_moment({"a": 3, "b": 2}, 10.0) == "a"
        saves.keep("a", moment(3), 10.0)
        assert saves.next_moment({"a": 9, "b": 9}, 30.0) is None, "nothing else is copied meanwhile"
        gate.set()
        until_idle(saves)
        assert saves.next_moment({"a": 9, "b": 9}, 30.0) == "b" and saves.next_moment({"a": 9}, 30.0) == "a"
        assert (saves.counts.moments, saves.counts.moments_skipped) == (1, 0)


def test_moments_take_half_of_the_room_and_what_saves_leave_of_it(tmp_path: Path) -> None:
    room = 4000  # a file has a header
    with saves_in(tmp_path, max_bytes=2 * room, state_bytes=room - 1000) as saves:
        saves.next_moment({"a": 0, "b": 0}, 0.0)
        assert saves.next_moment({"a": 1}, 10.0) == "a"
        saves.keep("a", moment(1), 10.0)
        until_idle(saves)
        assert (tmp_path / "live" / "a.safetensors").stat().st_size == saves._moments["a"] < 1000
        saves._moments["a"] = 1001
        assert saves.next_moment({"b": 1}, 10.0) is None and saves.counts.moments_skipped == 1
        assert saves.next_moment({"b": 1}, 19.0) is None and saves.counts.moments_skipped == 1, "not due again"
        until_idle(saves)
        assert saves.next_moment({"a": 2}, 20.0) == "a", "in place of its own there is room"
        saves._sizes["c-1"] = 2 * room - 2000
        assert saves.next_moment({"a": 2}, 20.0) is None and saves.counts.moments_skipped == 2
    with saves_in(tmp_path, max_bytes=2 * room, state_bytes=room - 1000) as saves:  # it knows what is there
        assert set(saves._moments) == {"a"} and saves._moments["a"] < 1000


def test_a_full_disk_is_asked_before_a_moment_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=99))
    with saves_in(tmp_path) as saves:
        until_idle(saves)
        assert saves.next_moment({"a": 0}, 0.0) is saves.next_moment({"a": 1}, 10.0) is None
        assert saves.counts.moments_skipped == 1
        until_idle(saves)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=100))
        assert saves.next_moment({"a": 2}, 20.0) is None, "it was full when it was last asked"
        until_idle(saves)
        assert saves.next_moment({"a": 3}, 30.0) == "a"


def test_a_session_too_large_for_moments_is_never_copied_and_comes_back_all_the_same(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any
) -> None:
    kept["saves"] = replace(kept["saves"], every_s=0.0)

    class Large(PatternWorld):
        state_bytes = 10**12

        def export(self, slot: int) -> SlotState:
            raise AssertionError("a copy that has no place")

    async def scene() -> None:
        async with running_server(Large(), **kept) as app, playing(app, seed=9) as player:
            await player.hear_frames(20)
            assert app.door.saves is not None and app.door.saves.counts.moments_skipped > 0
            there, token, seen = after_the_crash(), player.welcome["token"], player.frames[-1]["chunk"]
        async with running_server(Large(), **there) as app, playing(app, token=token) as back:
            assert back.welcome["resumed"] and back.welcome["chunk"] > seen
            await back.hear_frames(4)

    asyncio.run(scene())


def test_what_dead_servers_left_goes_when_it_is_old(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    names = ("lost.json", "lost.safetensors", "lost.tmp", "nobody.safetensors", "nobody.tmp", "new.safetensors")
    for name in (*names, "new.tmp"):
        (live / name).touch()
        if not name.startswith("new"):
            os.utime(live / name, (0, 0))
    with saves_in(tmp_path) as saves:
        until_idle(saves)
        left = {path.name for path in live.iterdir()}
        assert left == {"lost.json", "lost.safetensors", "new.safetensors", "new.tmp"}
        assert set(saves._moments) == {"lost", "new"}
        for session_id in ("lost", "new"):
            saves.end(session_id)
        until_idle(saves)
        assert not list(live.iterdir()) and not saves._moments


def test_of_a_session_without_a_recording_no_moment_is_kept(tmp_path: Path) -> None:
    with saves_in(tmp_path) as saves:
        assert saves.next_moment({"a": 0, "b": 0}, 0.0) is None
        saves.forget("a")
        assert saves.next_moment({"a": 1}, 10.0) is None and saves.counts.moments_skipped == 0
        assert saves.next_moment({"b": 1}, 10.0) == "b"
        saves.forget("b")
        saves.keep("b", moment(1), 10.0)  # chosen before
        until_idle(saves)
        assert not list((tmp_path / "live").iterdir()) and not saves._moments
        for session_id in ("a", "b"):
            saves.end(session_id)
        assert not saves._forgotten, "nor is it remembered for ever"


# A server that was killed: in these tests its directories are copied while it plays, which is what a kill leaves.


@pytest.fixture
def after_the_crash(kept: dict[str, Any], tmp_path: Path) -> Iterator[Any]:
    """Call it while a server plays: where the next one finds what this one would leave if it were killed now."""

    def copy(**shelf: Any) -> dict[str, Any]:
        there = tmp_path / f"after-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(kept["record"].directory, there / "recordings")
        shutil.copytree(kept["saves"].directory, there / "saves")
        saves = replace(kept["saves"], directory=there / "saves", **shelf)
        copied = {**kept, "record": Keep(there / "recordings"), "saves": saves}
        inside = (there / "recordings").resolve()
        rewrite_tickets(copied, lambda ticket: {"recording": str(inside / Path(ticket.recording).name)})
        return copied

    yield copy


def rewrite_tickets(there: dict[str, Any], change: Callable[[Ticket], dict[str, Any]]) -> None:
    ledger = Ledger(there["saves"].directory / "live")
    for ticket in ledger.tickets():
        ledger.write(msgspec.structs.replace(ticket, **change(ticket)))


async def lost_session(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any
) -> tuple[dict[str, Any], str]:
    """Where a killed server left a session of nine frames, and the token of its player."""
    async with running_server(**kept) as app, playing(app, seed=9) as player:
        await player.hear_frames(9)
        return after_the_crash(), player.welcome["token"]


async def settle(app: App) -> None:
    """Until every moment that was kept, and whatever else was to be done with saves, is on the disk."""
    assert app.door.saves is not None
    await asyncio.wrap_future(app.door.saves._pool.submit(lambda: None))


@pytest.mark.parametrize("every_s", [EVER, 0.0])
def test_after_a_crash_a_token_leads_to_the_last_finished_chunk(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any, every_s: float
) -> None:
    kept["saves"] = replace(kept["saves"], every_s=every_s)

    async def scene() -> None:
        async with running_server(**kept) as app, playing(app, seed=9, prompt="fog") as player:
            seq = await player.steer(1.0, 0.0, 0.5, 0.0)
            while player.frames[-1:] == [] or player.frames[-1]["control_seq"] < seq:
                await player.hear_frames(4)
            await player.hear_frames(12)
            await settle(app)
            there = after_the_crash()
            token, seen = player.welcome["token"], player.frames[-1]
        async with running_server(**there) as app:
            assert app.door.lobby.reserved == 1
            async with playing(app, token=token) as back:
                told = back.welcome
                assert told["resumed"] and told["session"] == player.welcome["session"] and told["prompt"] == "fog"
                assert told["chunk"] > seen["chunk"] and told["control_seq"] == seq
                await back.hear_frames(4)
                assert back.frames[0]["chunk"] == told["chunk"] and back.frames[0]["control_seq"] == 0
                assert np.abs(pose(back.frames[0]) - pose(seen)).max() < 0.5
                assert app.door.lobby.reserved == 0 and len(app.door.lobby) == 1
                await back.steer(0.0, 0.0, 1.0, 0.0)
                await back.hear_frames(8)
                await back.say("bye")
        (recording,) = recordings(there)
        assert [m.kind for m in recording.marks] == ["join", "recovered", "reconnect", "end"] and recording.ended
        assert [chunk.chunk for chunk in recording.chunks] == list(range(len(recording.chunks)))
        assert verified(recording).outcome == "equal"
        assert not list((there["saves"].directory / "live").iterdir()), "nothing of it stays"
        assert app.door.saves is not None and not app.door.saves._forgotten | app.door.saves._kept.keys()

    asyncio.run(scene())


@pytest.mark.parametrize("every_s", [EVER, 0.0])
def test_after_a_crash_an_agent_steers_on_as_if_there_had_been_none(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any, every_s: float
) -> None:
    kept["saves"] = replace(kept["saves"], every_s=every_s)

    async def scene() -> None:
        async with running_server(**kept) as app, playing(app, seed=9, **AGENT) as agent:
            await agent.hear_frames(agent.welcome["first_chunk_frames"])
            for deed in DEEDS:
                await step(agent, *deed)
            await settle(app)
            there = after_the_crash()
            expected = [await step(agent, *deed) for deed in DEEDS]
        async with running_server(**there) as app, playing(app, token=agent.welcome["token"], **AGENT) as back:
            assert back.welcome["resumed"] and back.welcome["chunk"] == 1 + len(DEEDS)
            assert [await step(back, *deed) for deed in DEEDS] == expected
            await back.say("bye")
        (recording,) = recordings(there)
        assert verified(recording).outcome == "equal"

    asyncio.run(scene())


def test_a_bad_moment_costs_nothing_but_time(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any
) -> None:
    kept["saves"] = replace(kept["saves"], every_s=0.0)

    async def scene() -> None:
        async with running_server(**kept) as app, playing(app, seed=9) as player:
            await player.hear_frames(20)
            await settle(app)
            there = after_the_crash()
            token = player.welcome["token"]
        (moment,) = (there["saves"].directory / "live").glob("*.safetensors")
        moment.write_bytes(moment.read_bytes()[:-1])
        async with running_server(**there) as app, playing(app, token=token) as back:
            assert back.welcome["resumed"] and back.welcome["chunk"] >= 5
            await back.hear_frames(4)
            await back.say("bye")
        (recording,) = recordings(there)
        assert verified(recording).outcome == "equal"

    asyncio.run(scene())


def test_a_torn_tail_is_cut_and_a_session_that_went_back_is_found_where_it_was(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any
) -> None:
    async def scene() -> None:
        async with running_server(**kept) as app, playing(app, seed=9) as player:
            await player.hear_frames(9)
            name = await save(player)
            await player.hear_frames(9)
            await player.say("load", save=name)
            await player.hear_until("loaded")
            await player.hear_frames(4)
            there = after_the_crash()
            token, seen = player.welcome["token"], player.frames[-1]["chunk"]
        (path,) = there["record"].directory.glob("*.mwrec")
        with path.open("ab") as file:
            file.write(b"\x05\x00\x00")
        async with running_server(**there) as app, playing(app, token=token) as back:
            assert back.welcome["resumed"] and seen < back.welcome["chunk"] <= seen + 2
            await back.hear_frames(4)
            await back.say("load", save=name)
            await back.hear_until("loaded")
            await back.hear_frames(4)
            await back.say("bye")
        (recording,) = recordings(there)
        assert recording.ended and verified(recording).outcome == "equal"

    asyncio.run(scene())


def test_who_does_not_come_back_in_time_is_over(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any
) -> None:
    async def scene() -> None:
        async with running_server(**kept) as app, playing(app, seed=9) as player:
            await player.hear_frames(9)
            there = after_the_crash(recover_s=0.0)
            token = player.welcome["token"]
        async with running_server(**there) as app:
            while app.door.recovery.counts.expired == 0:  # type: ignore[union-attr]
                await asyncio.sleep(0.005)
            assert app.door.lobby.reserved == 0
            async with playing(app, token=token) as player:
                assert not player.welcome["resumed"]
        lost = next(r for r in recordings(there) if r.header and r.header.seed == 9)
        assert lost.ended and "nobody came back" in lost.marks[-1].text and verified(lost).outcome == "equal"

    asyncio.run(scene())


def test_a_session_that_does_not_come_out_the_same_is_a_new_one(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any
) -> None:
    class Other(PatternWorld):
        """Says it is the same world, and is not."""

        def _advance(self, row: Any) -> Any:
            picture = super()._advance(row)
            return picture if picture is None or row.chunk_index != 2 else replace(picture, digest=bytes(16))

    async def scene() -> None:
        async with running_server(**kept) as app, playing(app, seed=9) as player:
            await player.hear_frames(20)
            there = after_the_crash()
            token = player.welcome["token"]
        async with running_server(Other(), **there) as app, playing(app, token=token) as player:
            assert not player.welcome["resumed"] and len(app.door.lobby) == 1
            await player.hear_frames(8)
            assert app.door.recovery.counts.failed == 1  # type: ignore[union-attr]
        lost = next(r for r in recordings(there) if r.header and r.header.seed == 9)
        assert lost.ended and "chunk 2" in lost.marks[-1].text

    asyncio.run(scene())


def test_a_living_servers_sessions_are_not_lost_ones(running_server: RunningServer, kept: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running_server(**kept) as app, playing(app, seed=9) as player:
            await player.hear_frames(9)
            async with running_server(**kept) as second, playing(second, token=player.welcome["token"]) as other:
                assert not other.welcome["resumed"]
            await player.hear_frames(9)
            await player.say("bye")
        mine = next(r for r in recordings(kept) if r.header and r.header.seed == 9)
        assert mine.ended and mine.marks[-1].text == "the player left" and verified(mine).outcome == "equal"

    asyncio.run(scene())


class Relabelled(PatternWorld):
    """The same pictures, from what says it has other weights, or computes otherwise."""

    def __init__(self, **identity: Any) -> None:
        super().__init__(num_slots=4)
        self._identity = identity

    def identify(self, report: Report) -> Identity:
        return replace(super().identify(report), **self._identity)


def on_disk(*directories: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for each in directories for path in sorted(each.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("other", ["recordings", "weights", "config", "arithmetic", "earlier version"])
def test_a_server_leaves_alone_what_is_not_its_own_of_the_living_and_the_killed(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any, tmp_path: Path, other: str
) -> None:
    kept["saves"] = replace(kept["saves"], every_s=0.0)
    strange = {"weights": {"weights": "x"}, "config": {"config": "x"}, "arithmetic": {"arithmetic": {"threads": "9"}}}
    (tmp_path / "elsewhere").mkdir()

    def beside(there: dict[str, Any]) -> AbstractAsyncContextManager[App]:
        """Another server on the same saves, which waits for nobody."""
        shared = {**there, "saves": replace(there["saves"], recover_s=0.0)}
        if other == "recordings":
            shared["record"] = Keep(tmp_path / "elsewhere")
        return running_server(Relabelled(**strange.get(other, {})), **shared)

    async def scene() -> None:
        async with running_server(**kept) as app, playing(app, seed=9) as player:
            await player.hear_frames(9)
            async with beside(kept) as second:
                assert second.door.recovery.counts.found == 0  # type: ignore[union-attr]
            await player.hear_frames(9)
            await settle(app)
            there = after_the_crash()
            token = player.welcome["token"]
        if other == "earlier version":
            rewrite_tickets(there, lambda ticket: {"recording": Path(ticket.recording).name, "of": {}})
        before = on_disk(there["saves"].directory, there["record"].directory)
        assert len(before) == 3, "a ticket, a moment and a recording"
        async with beside(there) as second:
            assert second.door.recovery.counts.found == second.door.lobby.reserved == 0  # type: ignore[union-attr]
            async with playing(second, token=token) as stranger:
                assert not stranger.welcome["resumed"]
                await stranger.say("bye")
        after = on_disk(there["saves"].directory, there["record"].directory)
        assert {path: after.get(path) for path in before} == before
        if other != "earlier version":
            async with running_server(**there) as app, playing(app, token=token) as back:
                assert back.welcome["resumed"]

    asyncio.run(scene())


def test_a_recording_that_another_world_made_is_refused_and_gets_no_end(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any
) -> None:
    async def scene() -> None:
        there, token = await lost_session(running_server, kept, after_the_crash)
        other = Relabelled(arithmetic={"threads": "9"})
        rewrite_tickets(there, lambda _: {"of": maker(other.name, other.identify(lambda stage, share: None))})
        before = on_disk(there["saves"].directory, there["record"].directory)
        async with running_server(other, **there) as app, playing(app, token=token) as stranger:
            assert not stranger.welcome["resumed"] and app.door.recovery.counts.failed == 1  # type: ignore[union-attr]
            (path,) = [path for path in before if path.suffix == ".mwrec"]
            Journal.again(path).close()  # it is free for whoever can use it
        after = on_disk(there["saves"].directory, there["record"].directory)
        assert {path: after.get(path) for path in before} == before

    asyncio.run(scene())


def test_of_a_missing_recording_the_ticket_goes_if_it_was_here_or_is_too_old(
    running_server: RunningServer, kept: dict[str, Any], tmp_path: Path
) -> None:
    live = Ledger(kept["saves"].directory / "live")

    def ticket(session: str, directory: Path) -> None:
        world = PatternWorld(num_slots=1)
        of = maker(world.name, world.identify(lambda stage, share: None))
        live.write(
            Ticket(
                session=session, token_hash=session, recording=str(directory / f"x-{session}.mwrec"), control="axes",
                scene="", own_prompt="", seed=0, of=of,
            )
        )  # fmt: skip

    async def scene() -> None:
        ticket("here", kept["record"].directory)
        for session in ("elsewhere", "old"):
            ticket(session, tmp_path / "unplugged")
        os.utime(live.directory / "old.json", (0, 0))
        async with running_server(**kept) as app:
            await settle(app)
            assert [each.session for each in live.tickets()] == ["elsewhere", "old"]
            async with playing(app) as player:
                await settle(app)
                assert {each.session for each in live.tickets()} == {"elsewhere", player.welcome["session"]}

    asyncio.run(scene())


async def came_back(app: App, token: str, code: str, **hello: Any) -> bool:
    """Whether a token is let in to its session; else the answer is `code`. Then it hangs up."""
    async with open_socket(app) as player:
        await player.say("hello", version=1, token=token, **hello)
        answer = await player.hear()
        if answer["type"] == "welcome":
            assert answer["resumed"]
            return True
        assert (answer["code"], answer["fatal"]) == (code, True)
        return False


SMALLER: dict[str, tuple[dict[str, Any], str]] = {
    "fewer seats": ({"players": 1}, "full"),
    "a seat without a slot": ({"players": 1, "park_bytes": 10**9}, "full"),
    "no more time": ({"players": 4, "pledge": "enforced"}, "not_real_time"),
}


@pytest.mark.parametrize("smaller", SMALLER)
def test_lost_sessions_that_have_no_room_wait_for_it(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any, monkeypatch: pytest.MonkeyPatch,
    smaller: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("gameserver.engine.measure", lambda *_: RealTime(0.25, (0.2, 0.4), 1))
    settings, code = SMALLER[smaller]

    async def scene() -> None:
        async with running_server(**kept) as app, AsyncExitStack() as stack:
            players = [await stack.enter_async_context(playing(app, seed=seed)) for seed in range(3)]
            for player in players:
                await player.hear_frames(9)
            there = after_the_crash()
            tokens = [player.welcome["token"] for player in players]
        async with running_server(**settings, **there) as app:
            assert app.door.lobby.reserved == 3
            for i, token in enumerate(tokens):
                async with playing(app, token=token) as back:
                    assert back.welcome["resumed"], "however often there was no room before"
                    await back.hear_frames(1)
                    for other in tokens[i + 1 :] * 2:
                        assert not await came_back(app, other, code)
                    assert app.door.lobby.reserved == 2 - i
                    await back.hear_frames(4)
                    await back.say("bye")
                    with pytest.raises(ConnectionClosed):
                        while True:
                            await back.hear()
                while len(app.door.engine.mailbox) or len(app.door.lobby):  # until its place is free
                    await asyncio.sleep(0)
            back_again = app.door.recovery.counts  # type: ignore[union-attr]
            assert (back_again.recovered, back_again.failed) == (3, 0)
        assert [verified(recording).outcome for recording in recordings(there)] == ["equal"] * 3

    asyncio.run(scene())


def test_more_sessions_than_slots_come_back_where_some_stand_still(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any
) -> None:
    async def scene() -> None:
        parks = {"players": 1, "park_bytes": 10**9}
        async with running_server(**parks, **kept) as app, AsyncExitStack() as stack:
            tokens = []
            for seed in range(2):
                while len(tokens) == seed:  # the first one has to stand still for a while
                    agent = await stack.enter_async_context(open_socket(app))
                    await agent.say("hello", version=1, seed=seed, **AGENT)
                    answer = await agent.hear()
                    if answer["type"] == "welcome":
                        tokens.append(answer["token"])
                await agent.hear_frames(1)
            there = after_the_crash()
        async with running_server(**parks, **there) as app:
            assert app.door.lobby.reserved == 2 > app.door.lobby.capacity
            for token in tokens:  # the one before is gone, or about to be
                while not await came_back(app, token, "full", **AGENT):
                    pass
            assert app.door.lobby.reserved == 0 and len(app.door.lobby) == 2
            async with playing(app, token=tokens[0], **AGENT) as back:
                assert back.welcome["resumed"]
                await step(back, *DEEDS[0])

    asyncio.run(scene())


def test_who_comes_back_among_too_many_at_once_is_not_given_another_session(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        there, token = await lost_session(running_server, kept, after_the_crash)
        async with running_server(**there) as app:
            put = app.door.mailbox.put
            with monkeypatch.context() as patch:
                patch.setattr(app.door.mailbox, "put", lambda letter: not isinstance(letter, Return) and put(letter))
                assert not await came_back(app, token, "full")
            assert app.door.lobby.reserved == 1 and not len(app.door.lobby)
            assert await came_back(app, token, "")

    asyncio.run(scene())


def test_who_finds_no_room_until_the_time_is_over_is_over(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any
) -> None:
    async def scene() -> None:
        there, token = await lost_session(running_server, kept, after_the_crash)
        async with running_server(**there) as app:
            door, recovery = app.door, app.door.recovery
            assert recovery is not None
            lost = recovery.claim(token)
            assert lost is not None
            door._expire_lost(recovery)  # while it is being brought back
            door._wait_again(lost, recovery)
            while recovery.counts.expired == 0:
                await asyncio.sleep(0)
            assert door.lobby.reserved == 0 and recovery.claim(token) is None
        (recording,) = recordings(there)
        assert recording.ended and "nobody came back" in recording.marks[-1].text

    asyncio.run(scene())


def test_no_token_is_on_the_disk(running_server: RunningServer, kept: dict[str, Any]) -> None:
    async def scene() -> None:
        async with running_server(**kept) as app, playing(app) as player:
            await player.hear_frames(2)
            token = player.welcome["token"]
            (ticket,) = Ledger(kept["saves"].directory / "live").tickets()
            assert ticket.token_hash == hash_token(token)
            for path in [*kept["saves"].directory.rglob("*"), *kept["record"].directory.rglob("*")]:
                assert not path.is_file() or token.encode() not in path.read_bytes()

    asyncio.run(scene())


def test_without_a_place_nothing_is_kept() -> None:
    assert Settings().saves is None


def test_a_lost_sessions_recording_is_not_removed_to_make_room(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any
) -> None:
    async def scene() -> None:
        there, token = await lost_session(running_server, kept, after_the_crash)
        there["record"] = replace(there["record"], max_bytes=1)
        async with running_server(**there) as app:
            async with playing(app, seed=1) as other:
                await other.hear_frames(1)
            async with playing(app, seed=2) as other:
                await other.hear_frames(1)
            async with playing(app, token=token) as back:
                assert back.welcome["resumed"]

    asyncio.run(scene())


def model() -> DiffusionWorld:
    """Weights that are small and random, with as many tokens as it takes to be the same in any company."""
    cfg = tiny_config(width=96, height=64)
    world = random_world(cfg, num_slots=3)
    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    world._scenes = (Scene("noise", "Noise", "a place", image, np.array([80, 80, 48, 32], np.float32)),)
    return world


def test_a_model_goes_back_forks_and_comes_back_from_a_crash_to_the_bit(
    running_server: RunningServer, kept: dict[str, Any], after_the_crash: Any
) -> None:
    kept["saves"] = replace(kept["saves"], every_s=0.0)

    async def scene() -> None:
        async with running_server(model(), **kept) as app, playing(app, seed=3) as player:
            await player.steer(1.0, 0.0, 1.0, 0.0)
            await player.hear_frames(24)  # views and ring are full
            name = await save(player)
            await player.hear_frames(12)
            await player.say("load", save=name)
            await player.hear_until("loaded")
            await player.hear_frames(8)
            async with playing(app, save=name) as fork:
                await asyncio.gather(player.hear_frames(8), fork.hear_frames(12))
                await settle(app)
                there = after_the_crash()
                tokens = [each.welcome["token"] for each in (player, fork)]
        async with running_server(model(), **there) as app:
            for token in tokens:
                async with playing(app, token=token) as back:
                    assert back.welcome["resumed"]
                    await back.hear_frames(8)
                    await back.say("bye")
        found = recordings(there)
        assert len(found) == 2
        for recording in found:
            finding = verified(recording, model())
            assert (finding.outcome, finding.checked) == ("equal", len(recording.chunks)), finding

    asyncio.run(scene())


@pytest.mark.parametrize("lockstep", [True, False])
def test_the_client_library_saves_and_goes_back(
    running_server: RunningServer, kept: dict[str, Any], lockstep: bool
) -> None:
    async def play() -> None:
        async with (
            running_server(**kept) as app,
            connect(app.play_url, seed=7, lockstep=lockstep, codecs=("raw",)) as bot,
        ):
            await bot.chunk()
            await bot.step(forward=1.0)
            save = await bot.save()
            with pytest.raises(BotError) as refused:
                await bot.load(save[:-1] + ("1" if save[-1] == "0" else "0"))
            assert refused.value.code == "unknown_save" and not bot.errors
            seen = []
            for _ in range(2):
                came_to = await bot.load(save)
                chunks = [await bot.step(forward=0.5, turn=-1.0) for _ in range(3)]
                assert chunks[0].index >= came_to and [c.index for c in chunks] == sorted({c.index for c in chunks})
                seen.append([(c.index, c.frames.tobytes(), c.pose.tobytes()) for c in chunks])
            if lockstep:  # in real time it is the clock that says which chunk a control is for
                assert seen[0] == seen[1] and [index for index, _, _ in seen[0]] == [came_to + i for i in range(3)]

    asyncio.run(play())
