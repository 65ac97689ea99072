"""The bot against a small server of another make: it steers, decodes, measures, saves, and fails in one sentence."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import av
import msgpack
import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from gameserver import bot_command
from gameserver.bot import BotError
from gameserver.bot_plan import BotPlan
from gameserver.due_clock import DueClock
from gameserver.playback import PacketDecoder
from gameserver.player import BotReport, OnFrame, play
from gameserver.protocol import MAX_QUEUED_POSES, decode_client
from gameserver.recorded_camera import read_intrinsics, read_poses, scale_intrinsics
from gameserver.tally import Tally
from gameserver.view import Packet

WIDTH, HEIGHT, FPS, CHUNK = 64, 48, 100, 4
WELCOME = {
    "type": "welcome",
    "version": 1,
    "session": "s1",
    "token": "t",
    "resumed": False,
    "world": "fake",
    "scene": "here",
    "prompt": "",
    "seed": 7,
    "width": WIDTH,
    "height": HEIGHT,
    "fps": FPS,
    "chunk_frames": CHUNK,
    "first_chunk_frames": 1,
    "codec": "h264",
    "control": "axes",
    "players": 1,
    "capacity": 8,
}
IDENTITY = np.eye(4, dtype="<f4")


class FakeServer:
    """Sends the next chunk when the one before was acknowledged; pictures brighten unless `still`."""

    def __init__(self, codec: str = "h264", still: bool = False) -> None:
        self.codec = codec
        self.still = still
        self.received: list[dict[str, Any]] = []
        self.poses: list[tuple[int, bytes]] = []
        self.most_queued = 0
        self.spoil: Callable[[dict[str, Any]], None] = lambda frame: None
        self.url = ""

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.received if message["type"] == kind]

    async def __call__(self, connection: ServerConnection) -> None:
        encoder = av.CodecContext.create("libx264" if self.codec == "h264" else "mjpeg", "w")
        encoder.width, encoder.height = WIDTH, HEIGHT
        encoder.pix_fmt = "yuv420p" if self.codec == "h264" else "yuvj420p"
        encoder.framerate, encoder.gop_size = FPS, 10**6
        encoder.options = {"tune": "zerolatency", "sc_threshold": "0"} if self.codec == "h264" else {}
        seq, packet, pose = 0, 0, IDENTITY.tobytes()
        async for data in connection:
            message = msgpack.unpackb(data)
            decode_client(data)  # nothing that a real server would refuse
            self.received.append(message)
            match message["type"]:
                case "hello":
                    asked = message.get("control", "axes")
                    await self.send(connection, WELCOME | {"codec": self.codec, "control": asked})
                case "ping":
                    await self.send(connection, {"type": "pong", "t_ms": message["t_ms"]})
                case "prompt":
                    await self.send(connection, {"type": "prompted", "text": message["text"], "chunk": packet // CHUNK})
                case "bye":
                    return
                case "control":
                    seq = message["seq"]
                case "poses":
                    stream = message["poses"]
                    self.poses += [(message["seq"], stream[i : i + 64]) for i in range(0, len(stream), 64)]
                    self.most_queued = max(self.most_queued, len(self.poses))
            due = packet == 0 if message["type"] in ("control", "poses") else message.get("packet") == packet - 1
            for _ in range((CHUNK if packet else 1) if due else 0):
                if self.poses:
                    seq, pose = self.poses.pop(0)
                picture = np.full((HEIGHT * 3 // 2, WIDTH), 40 if self.still else 40 + packet * 7 % 180, np.uint8)
                raw = av.VideoFrame.from_ndarray(picture, format="yuv420p").reformat(format=encoder.pix_fmt)
                raw.pts = packet
                (encoded,) = encoder.encode(raw)
                frame = {
                    "type": "frame",
                    "packet": packet,
                    "frame": packet,
                    "chunk": (packet + CHUNK - 1) // CHUNK,
                    "key": encoded.is_keyframe,
                    "control_seq": seq,
                    "pose": pose,
                    "data": bytes(encoded),
                }
                self.spoil(frame)
                await self.send(connection, frame)
                packet += 1

    async def send(self, connection: ServerConnection, message: dict[str, Any]) -> None:
        await connection.send(msgpack.packb(message))

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/world.json":
            return connection.respond(HTTPStatus.OK, json.dumps({"width": WIDTH, "height": HEIGHT}))
        return None if request.path == "/play" else connection.respond(HTTPStatus.NOT_FOUND, "")


@asynccontextmanager
async def serving(server: Any) -> AsyncIterator[str]:
    async with serve(server, "127.0.0.1", 0, process_request=getattr(server, "answer", None), compression=None) as door:
        yield f"ws://127.0.0.1:{next(iter(door.sockets)).getsockname()[1]}"


def session(server: Any, plan: BotPlan, on_frame: OnFrame | None = None) -> BotReport:
    async def both() -> BotReport:
        async with serving(server) as url:
            return await play(url, plan, on_frame)

    return asyncio.run(both())


def command(server: Any, *arguments: str) -> int:
    """The bot command in a thread, against a server in this one."""
    parser = argparse.ArgumentParser()
    bot_command.add_arguments(parser)

    async def both() -> int:
        async with serving(server) as url:
            return await asyncio.to_thread(bot_command.run, parser.parse_args([url, *arguments]))

    return asyncio.run(both())


def walk(num_poses: int) -> np.ndarray:
    poses = np.tile(IDENTITY, (num_poses, 1, 1))
    poses[:, 2, 3] = np.arange(num_poses) * 0.05
    return poses


# Playing


@pytest.mark.parametrize("codec", ["h264", "jpeg"])
def test_it_steers_decodes_acknowledges_and_leaves(codec: str) -> None:
    server = FakeServer(codec)
    seen: list[int] = []
    report = session(server, BotPlan(seconds=0.4), lambda packet, picture: seen.append(picture.width))
    assert report.frames > CHUNK and report.decode_errors == 0 and report.errors == []
    assert seen == [WIDTH] * report.frames
    assert report.chunks == 1 + -(-(report.frames - 1) // CHUNK) and report.chunk_seconds == CHUNK / FPS
    assert report.distinct_frames_share == 1.0 and report.fps > 0 and report.rtt_ms is not None
    assert report.control_to_frame_ms["p50"] is not None
    assert [message["packet"] for message in server.of("ack")] == list(range(report.frames))
    assert sum("slack_ms" in message for message in server.of("ack")) == report.chunks - 2
    assert server.of("control")[0]["axes"] == [1.0, 0.0, 0.0, 0.0]
    assert server.received[-1]["type"] == "bye"


def test_a_script_is_played_once_and_released() -> None:
    server = FakeServer()
    session(server, BotPlan(script=(("w", 2), ("al", 3))))
    assert [message["axes"] for message in server.of("control")] == [[1, 0, 0, 0], [0, -1, 1, 0], [0, 0, 0, 0]]


def test_a_script_repeats_for_as_long_as_asked() -> None:
    server = FakeServer()
    session(server, BotPlan(script=(("w", 2), ("", 2)), seconds=0.6))
    held = [message["axes"][0] for message in server.of("control")]
    assert len(held) > 2 and held == [1, 0] * (len(held) // 2) + [1] * (len(held) % 2)


def test_every_pose_is_shown_once_within_the_queue_limit() -> None:
    server = FakeServer()
    poses = walk(1201)
    poses[-9:] = poses[-1]  # the last pose alone does not say that it was the last
    shown: list[bytes] = []
    report = session(server, BotPlan(poses=poses, scale=0.5), lambda packet, picture: shown.append(packet.pose))
    assert b"".join(shown) == poses.tobytes() and report.frames == len(poses)
    assert 256 < server.most_queued <= MAX_QUEUED_POSES
    assert server.of("hello")[0]["control"] == "poses" and server.of("control") == []


def test_a_still_world_has_no_distinct_frames() -> None:
    report = session(FakeServer(still=True), BotPlan(seconds=0.2))
    assert report.distinct_frames_share < 0.5


def test_it_changes_the_prompt() -> None:
    server = FakeServer()
    report = session(server, BotPlan(seconds=0.3, prompt="sun", prompts=((0.1, "snow"),)))
    assert server.of("hello")[0]["prompt"] == "sun" and server.of("prompt") == [{"type": "prompt", "text": "snow"}]
    assert len(report.prompted) == 1


def test_a_lost_packet_is_counted_and_a_keyframe_asked_for() -> None:
    server = FakeServer()

    def lose(frame: dict[str, Any]) -> None:
        if frame["packet"] >= 3:
            frame["packet"] += 1

    server.spoil = lose
    report = session(server, BotPlan(seconds=0.2))
    assert report.decode_errors == report.frames - 3 > 0 and len(server.of("keyframe")) == report.decode_errors


def test_a_damaged_packet_is_counted() -> None:
    server = FakeServer()
    server.spoil = lambda frame: frame.update(data=b"\x00\x00\x00\x01garbage") if frame["packet"] == 2 else None
    assert session(server, BotPlan(seconds=0.2)).decode_errors >= 1


@pytest.mark.parametrize("codec", ["h264", "jpeg"])
def test_what_it_saves_is_what_it_saw(codec: str, tmp_path: Path) -> None:
    seen: list[np.ndarray] = []
    path = tmp_path / "out.mp4"
    server = FakeServer(codec)
    session(server, BotPlan(poses=walk(33), save=path), lambda packet, picture: seen.append(_rgb(picture)))
    with av.open(str(path)) as file:
        saved = [_rgb(frame) for frame in file.decode(video=0)]
        assert file.streams.video[0].average_rate == FPS
    assert len(saved) == len(seen) == 33
    largest = max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in zip(saved, seen, strict=True))
    assert largest == 0 if codec == "h264" else largest <= 4


def _rgb(picture: av.VideoFrame) -> np.ndarray:
    return picture.to_ndarray(format="rgb24")


# Numbers


def packet(index: int, chunk: int, control_seq: int = 0) -> Packet:
    return Packet(index, index, chunk, index == 0, control_seq, b"", b"12345")


def test_fps_counts_from_the_second_chunk_to_the_first_frame_of_the_last() -> None:
    tally = Tally()
    arrivals = [(0, 0.0), (1, 1.0), (1, 1.01), (2, 1.5), (2, 1.51), (3, 2.0), (3, 2.01)]
    for index, (chunk, now_s) in enumerate(arrivals):
        tally.received(packet(index, chunk), now_s)
    assert tally.fps == pytest.approx(4 / 1.0) and tally.chunks == 4 and tally.bytes == 35


def test_a_control_is_answered_by_the_first_frame_that_folded_it_in() -> None:
    tally = Tally()
    for seq, now_s in ((1, 0.0), (2, 0.1), (3, 0.2)):
        tally.steered(seq, now_s)
    tally.received(packet(0, 0, control_seq=0), 0.25)
    tally.received(packet(1, 1, control_seq=2), 0.5)
    tally.received(packet(2, 1, control_seq=2), 0.6)
    assert tally.control_to_frame_ms == {"p50": 400.0, "p95": 500.0}


def test_slack_is_how_early_a_chunk_came_and_a_late_one_moves_the_clock() -> None:
    clock = DueClock(fps=10)
    assert [clock.slack_s(0, 0, 0.0), clock.slack_s(1, 1, 1.0), clock.slack_s(1, 2, 1.0)] == [None, None, None]
    assert clock.slack_s(2, 5, 1.3) == pytest.approx(1.03 + 0.4 - 1.3)
    assert clock.slack_s(3, 9, 2.0) == pytest.approx(1.83 - 2.0)  # late: its frames are shown from 2.03 on
    assert clock.slack_s(4, 13, 2.0) == pytest.approx(2.43 - 2.0)


def test_a_picture_that_was_patched_up_counts_as_an_error() -> None:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.framerate = 64, 64, "yuv420p", FPS
    encoder.thread_count, encoder.options = 1, {"tune": "zerolatency", "sc_threshold": "0"}
    decoder = PacketDecoder("h264")
    noise = np.random.default_rng(1)
    decoded: list[bool] = []
    for index in range(4):
        picture = av.VideoFrame.from_ndarray(noise.integers(0, 255, (96, 64), np.uint8), format="yuv420p")
        picture.pts = index
        (encoded,) = encoder.encode(picture)
        data = bytes(encoded)
        if index == 2:
            data = data[: len(data) // 2] + bytes(len(data) // 2)
        decoded.append(decoder.decode(Packet(index, index, 0, encoded.is_keyframe, 0, b"", data)) is not None)
    assert decoded == [True, True, False, False] and decoder.errors == 2  # the fourth builds on the third


def test_a_decoder_waits_for_a_key_frame() -> None:
    decoder = PacketDecoder("h264")
    assert decoder.decode(packet(1, 0)) is None and decoder.wants_key and decoder.errors == 1


# Failing in one sentence


async def refuse(connection: ServerConnection) -> None:
    await connection.recv()
    await connection.send(msgpack.packb({"type": "error", "code": "full", "message": "all 8 taken", "fatal": True}))


async def hang_up(connection: ServerConnection) -> None:
    await connection.recv()
    await connection.close(1013, "not_ready")


async def speak_json(connection: ServerConnection) -> None:
    await connection.send('{"hello": "world"}')


async def welcome_nobody(connection: ServerConnection) -> None:
    await connection.send(msgpack.packb({"type": "welcome", "fps": "fast"}))


async def send_half_a_frame(connection: ServerConnection) -> None:
    await connection.send(msgpack.packb(WELCOME))
    await connection.send(msgpack.packb({"type": "frame", "packet": 1}))
    await connection.wait_closed()


async def fall_over(connection: ServerConnection) -> None:
    await connection.send(msgpack.packb(WELCOME))
    await connection.close()


@pytest.mark.parametrize(
    ("server", "sentence", "code"),
    [
        (refuse, "full.*all 8 taken", "full"),
        (hang_up, "not_ready.*warming up", "not_ready"),
        (speak_json, "not a Manyworlds server", None),
        (welcome_nobody, "welcome is not one of version 1", None),
        (send_half_a_frame, "frame of the server is not one of version 1", None),
        (fall_over, "closed the connection|was lost", None),
    ],
)
def test_a_server_that_misbehaves_is_named(server: Any, sentence: str, code: str | None) -> None:
    with pytest.raises(BotError, match=sentence) as caught:
        session(server, BotPlan(seconds=5))
    assert caught.value.code == code and "\n" not in str(caught.value)


def test_nobody_there_is_a_sentence() -> None:
    with socket.socket() as taken:  # bound and not listening: refused
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(BotError, match=r"cannot connect to ws://127.*: nothing answers there"):
            asyncio.run(play(f"ws://127.0.0.1:{taken.getsockname()[1]}", BotPlan()))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "ws://", "ws://host:port", "127.0.0.1:8000", ""])
def test_an_address_that_is_none_is_a_sentence(url: str) -> None:
    with pytest.raises(BotError, match="is not an address"):
        asyncio.run(play(url, BotPlan()))


def test_another_website_is_named() -> None:
    async def both() -> None:
        async with serving(FakeServer()) as url:
            await play(url + "/elsewhere", BotPlan())

    with pytest.raises(BotError, match="not a Manyworlds server: it answered HTTP 404"):
        asyncio.run(both())


# The command


def test_the_last_line_is_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(FakeServer(), "--seconds", "0.3", "--script", "w-8,wl-8,none-4") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    promised = "frames seconds fps chunks chunk_seconds bytes decode_errors control_to_frame_ms distinct_frames_share"
    assert set(promised.split()) <= report.keys() and set(report["control_to_frame_ms"]) == {"p50", "p95"}


def test_json_prints_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(FakeServer(), "--seconds", "0.1", "--json") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_recorded_cameras_come_from_files(tmp_path: Path) -> None:
    server = FakeServer()
    np.save(tmp_path / "poses.npy", walk(21))
    np.save(tmp_path / "intrinsics.npy", np.array([[400.0, 420.0, 416.0, 240.0]] * 21))
    files = ("--poses", str(tmp_path / "poses.npy"), "--intrinsics", str(tmp_path / "intrinsics.npy"), "--scale", "0.3")
    assert command(server, *files, "--save", str(tmp_path / "out.mp4")) == 0
    hello = server.of("hello")[0]
    assert hello["intrinsics"] == pytest.approx([400 * 64 / 832, 420 * 48 / 480, 32, 24]) and hello["scale"] == 0.3
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_a_picture_to_start_from_comes_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = FakeServer()
    (tmp_path / "start.png").write_bytes(b"whatever the server makes of it")
    assert command(server, "--seconds", "0.1", "--image", str(tmp_path / "start.png")) == 0
    assert server.of("hello")[0]["image"] == b"whatever the server makes of it"
    assert command(server, "--image", str(tmp_path / "missing.png")) == 1
    assert "missing.png: No such file" in capsys.readouterr().err


def test_a_refusal_is_a_sentence_and_a_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(refuse, "--seconds", "1") == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and "full" in captured.err


@pytest.mark.parametrize("arguments", [("--seconds", "nan"), ("--script", "x-1"), ("--prompt-at", "soon", "snow")])
def test_arguments_are_checked_before_anything_is_done(arguments: tuple[str, ...]) -> None:
    parser = argparse.ArgumentParser()
    bot_command.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["ws://127.0.0.1:1", *arguments])


@pytest.mark.parametrize(
    "array", [np.zeros((3, 3, 4)), np.zeros((0, 4, 4)), np.array("poses"), np.zeros((2, 4, 4), complex)]
)
def test_a_file_without_poses_is_named(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "poses.npy", array)
    with pytest.raises(BotError, match=r"poses\.npy"):
        read_poses(tmp_path / "poses.npy")


@pytest.mark.parametrize("content", [b"", b"not numpy", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_array_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "poses.npy").write_bytes(content)
    with pytest.raises(BotError, match=r"poses\.npy"):
        read_poses(tmp_path / "poses.npy")
    with pytest.raises(BotError, match=r"missing\.npy"):
        read_poses(tmp_path / "missing.npy")


@pytest.mark.parametrize("array", [[4, 5, 2, 3], [[4, 5, 2, 3], [9, 9, 9, 9]], [[4, 0, 2], [0, 5, 3], [0, 0, 1]]])
def test_intrinsics_come_in_three_shapes(array: list[Any], tmp_path: Path) -> None:
    np.save(tmp_path / "k.npy", np.array(array, np.float32))
    assert read_intrinsics(tmp_path / "k.npy") == (4, 5, 2, 3)
    assert scale_intrinsics((4, 5, 2, 3), (4, 6), (8, 3)) == (8, 2.5, 4, 1.5)
