"""Writes the golden vectors beside it: `python tests/vectors/generate.py`. README.md says what they are.

It uses `msgpack` and not what the server uses, so that a mistake has to be made twice to stay.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import msgpack

Message = dict[str, Any]

POSE = struct.pack("<16f", 1, 0, 0, 0.5, 0, 1, 0, -0.25, 0, 0, 1, 2, 0, 0, 0, 1)
TURNED = struct.pack("<16f", 0, 0, 1, 0, 0, 1, 0, 0, -1, 0, 0, 0, 0, 0, 0, 1)  # a quarter turn to the right
# A PNG file of one green pixel: what a hello may bring.
PIXEL = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for kind, data in {
        b"IHDR": struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0),
        b"IDAT": bytes.fromhex("7801010400fbff0020a04001e40101"),
        b"IEND": b"",
    }.items()
)
SAVE_ID = "5a1e0c3d-00112233445566778899aabbccddeeff"

HELLO: Message = {"type": "hello", "version": 1}
HELLO_POSES: Message = {"type": "hello", "version": 1, "control": "poses"}
CONTROL: Message = {"type": "control", "seq": 1, "t_ms": 0, "axes": [1, 0, 0, 0]}

# As a JavaScript encoder writes them: a whole number is an integer even where the field is a float.
CLIENT: dict[str, Message] = {
    "hello, shortest": HELLO,
    "hello, every field": {
        "type": "hello",
        "version": 1,
        "name": "Ada Łovelace",
        "codecs": ["jpeg", "h264"],
        "control": "poses",
        "scene": "valley",
        "prompt": "a meadow under snow ❄",
        "seed": 2**53 - 1,
        "token": "b2f1c0ffee",
        "intrinsics": [140.5, 140.5, 112, 64],
        "scale": 0.2,
        "image": PIXEL,
        "save": SAVE_ID,
    },
    "hello, an agent's": {"type": "hello", "version": 1, "codecs": ["raw"], "seed": 7, "lockstep": True},
    "hello, to watch": {"type": "hello", "version": 1, "codecs": ["h264", "jpeg"], "watch": "Zk3-x_90aB1c"},
    "control, first": CONTROL,
    "control, with look": {
        "type": "control",
        "seq": 4294967295,
        "t_ms": 1234.5,
        "axes": [-1, 0.5, 0.25, -0.125],
        "look": [-3.75, 360],
    },
    "poses, one": {"type": "poses", "seq": 1, "poses": POSE},
    "poses, two": {"type": "poses", "seq": 2, "poses": POSE + TURNED},
    "prompt": {"type": "prompt", "text": "make it snow"},
    "prompt, empty": {"type": "prompt", "text": ""},
    "ack": {"type": "ack", "packet": 0},
    "ack, every field": {"type": "ack", "packet": 70000, "hidden": True, "slack_ms": -12.5},
    "keyframe": {"type": "keyframe"},
    "ping": {"type": "ping", "t_ms": 98765.25},
    "share": {"type": "share"},
    "share, no more": {"type": "share", "on": False},
    "bye": {"type": "bye"},
    "save": {"type": "save"},
    "load": {"type": "load", "save": SAVE_ID},
}

WELCOME: Message = {
    "type": "welcome",
    "version": 1,
    "session": "s-17",
    "token": "b2f1c0ffee",
    "resumed": False,
    "world": "meadow",
    "scene": "valley",
    "prompt": "a meadow",
    "seed": 2**53 - 1,
    "width": 224,
    "height": 128,
    "fps": 16,
    "chunk_frames": 4,
    "first_chunk_frames": 1,
    "codec": "h264",
    "control": "axes",
    "players": 1,
    "capacity": 8,
}

# As the server writes them: floats are float64 even where they are whole.
SERVER: dict[str, Message] = {
    "welcome": WELCOME,
    "welcome, to watch": WELCOME | {"token": "", "scene": "", "seed": 7, "codec": "jpeg", "watching": True},
    "welcome, resumed": WELCOME | {"resumed": True, "seed": 7, "chunk": 311, "control_seq": 58},
    "frame, key": {
        "type": "frame",
        "packet": 0,
        "frame": 0,
        "chunk": 0,
        "key": True,
        "control_seq": 0,
        "pose": POSE,
        "data": bytes.fromhex("0000000167640000000168000000016588"),
    },
    "frame, long": {
        "type": "frame",
        "packet": 69999,
        "frame": 70001,
        "chunk": 17501,
        "key": False,
        "control_seq": 4294967295,
        "pose": TURNED,
        "data": bytes(range(256)) + b"\x00",
    },
    "prompted": {"type": "prompted", "text": "make it snow ❄", "chunk": 12},
    "saved": {"type": "saved", "save": SAVE_ID, "chunk": 12},
    "loaded": {"type": "loaded", "save": SAVE_ID, "chunk": 12, "prompt": "a meadow"},
    "stats": {
        "type": "stats",
        "players": 2,
        "capacity": 8,
        "fps": 15.75,
        "chunk_ms": 61.5,
        "rows": 2.0,
        "speed": 1.0,
        "kbps": 512.25,
        "bitrate_kbps": 600,
        "skipped": 3,
        "poses_queued": 0,
    },
    "pong": {"type": "pong", "t_ms": 98765.25},
    "shared": {"type": "shared", "code": "Zk3-x_90aB1c"},
    "shared no more": {"type": "shared", "code": ""},
    "error, fatal": {"type": "error", "code": "full", "message": "all 8 places are taken", "fatal": True},
    "error, not fatal": {"type": "error", "code": "bad_pose", "message": "a rotation is mirrored", "fatal": False},
}


def pack(message: object) -> bytes:
    return bytes(msgpack.packb(message))


def bad(name: str, code: str, data: bytes, before: tuple[Message, ...] = (HELLO,), times: int = 1) -> Message:
    vector: Message = {"name": name, "code": code, "before": [pack(message).hex() for message in before]}
    vector["hex"] = data.hex()
    return vector | ({"times": times} if times != 1 else {})


def bad_vectors() -> list[Message]:
    nan, inf = math.nan, math.inf
    mirrored = struct.pack("<16f", -1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1)
    scaled = struct.pack("<16f", 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1)
    not_affine = struct.pack("<16f", 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 1)
    far = struct.pack("<16f", 1, 0, 0, 2e6, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1)
    undefined = struct.pack("<16f", 1, 0, 0, nan, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1)
    posed = (HELLO_POSES,)
    return [
        bad("nothing", "bad_message", b"", ()),
        bad("not MessagePack", "bad_message", b"\xc1", ()),
        bad("a truncated hello", "bad_message", pack(HELLO)[:-1], ()),
        bad("bytes after the map", "bad_message", pack(CONTROL) + b"\x00"),
        bad("not a map", "bad_message", pack([1, 2]), ()),
        bad("an empty map", "bad_message", pack({}), ()),
        bad("a map that promises 4 billion entries", "bad_message", bytes.fromhex("dfffffffff"), ()),
        bad("no type", "bad_message", pack({"version": 1}), ()),
        bad("an unknown type", "bad_message", pack({"type": "teleport"})),
        bad("a type that is not text", "bad_message", pack({"type": 1})),
        bad("a key that is not text", "bad_message", pack({"type": "bye", 1: 2})),
        bad("a server's message", "bad_message", pack({"type": "pong", "t_ms": 1.0})),
        bad("an unknown field", "bad_message", pack(CONTROL | {"jump": True})),
        bad("a field too few", "bad_message", pack({"type": "control", "seq": 1, "t_ms": 0.0})),
        bad("text for a number", "bad_message", pack(CONTROL | {"seq": "1"})),
        bad("a boolean for a number", "bad_message", pack(CONTROL | {"seq": True})),
        bad("a float for an integer", "bad_message", pack(CONTROL | {"seq": 1.0})),
        bad("nil for axes", "bad_message", pack(CONTROL | {"axes": None})),
        bad("three axes", "bad_message", pack(CONTROL | {"axes": [1, 0, 0]})),
        bad("an axis beyond 1", "bad_message", pack(CONTROL | {"axes": [1.001, 0, 0, 0]})),
        bad("an axis that is not a number", "bad_message", pack(CONTROL | {"axes": [nan, 0, 0, 0]})),
        bad("an infinite look", "bad_message", pack(CONTROL | {"look": [inf, 0]})),
        bad("an infinite clock", "bad_message", pack(CONTROL | {"t_ms": inf})),
        bad("seq 0", "bad_message", pack(CONTROL | {"seq": 0})),
        bad("seq 2**32", "bad_message", pack(CONTROL | {"seq": 2**32})),
        bad("text for poses", "bad_message", pack({"type": "poses", "seq": 1, "poses": "a" * 64}), posed),
        bad("text that is not UTF-8", "bad_message", b"\x82\xa4type\xa6prompt\xa4text\xa2\xff\xfe"),
        bad("a prompt of 501 characters", "bad_message", pack({"type": "prompt", "text": "a" * 501})),
        bad("a name with a line break", "bad_message", pack(HELLO | {"name": "a\nb"}), ()),
        bad("an unknown codec", "bad_message", pack(HELLO | {"codecs": ["theora"]}), ()),
        bad("no codec", "bad_message", pack(HELLO | {"codecs": []}), ()),
        bad("a focal length that is not a number", "bad_message", pack(HELLO | {"intrinsics": [nan, 1, 1, 1]}), ()),
        bad("a number for lockstep", "bad_message", pack(HELLO | {"lockstep": 1}), ()),
        bad("a scale of 0", "bad_message", pack(HELLO | {"scale": 0}), ()),
        bad("a seed of 2**53", "bad_message", pack(HELLO | {"seed": 2**53}), ()),
        bad("arrays 60000 deep", "bad_message", b"\x91", (), 60000),
        bad("maps 20000 deep", "bad_message", b"\x81\xa1x", (), 20000),
        bad("65537 bytes after the hello", "too_large", b"\x91", (HELLO,), 65537),
        bad("262145 bytes", "too_large", b"\x91", (), 262145),
        bad("text for an image", "bad_message", pack(HELLO | {"image": "a" * 64}), ()),
        bad("a save that is a path", "bad_message", pack({"type": "load", "save": "../" * 13 + "ab"})),
        bad("a save in capitals", "bad_message", pack({"type": "load", "save": SAVE_ID.upper()})),
        bad("a save before the welcome", "out_of_order", pack({"type": "save"}), ()),
        bad("version 2", "unsupported_version", pack(HELLO | {"version": 2}), ()),
        bad("version 2 with fields of its own", "unsupported_version", pack(HELLO | {"version": 2, "mood": []}), ()),
        bad("no hello", "out_of_order", pack(CONTROL), ()),
        bad("a second hello", "out_of_order", pack(HELLO)),
        bad("seq again", "out_of_order", pack(CONTROL), (HELLO, CONTROL)),
        bad("seq back", "out_of_order", pack(CONTROL), (HELLO, CONTROL | {"seq": 5})),
        bad("the clock back", "out_of_order", pack(CONTROL | {"seq": 2}), (HELLO, CONTROL | {"t_ms": 0.5})),
        bad("poses while steering by axes", "out_of_order", pack(CLIENT["poses, one"])),
        bad("axes while steering by poses", "out_of_order", pack(CONTROL), posed),
        *(
            bad(name, "bad_pose", pack({"type": "poses", "seq": 1, "poses": data}), posed)
            for name, data in {
                "no pose": b"",
                "63 bytes of poses": POSE[:-1],
                "257 poses": POSE * 257,
                "a position that is not a number": undefined,
                "a mirrored pose": mirrored,
                "a scaled pose": POSE + scaled,
                "a last row that is not 0, 0, 0, 1": not_affine,
                "a position beyond 1e6": far,
            }.items()
        ),
    ]


def good_vectors(messages: dict[str, Message]) -> list[Message]:
    return [{"name": name, "message": message, "hex": pack(message).hex()} for name, message in messages.items()]


def files() -> dict[str, str]:
    """File name -> content."""

    def text(vectors: list[Message]) -> str:
        lines = (
            json.dumps(vector, ensure_ascii=False, default=lambda data: {"$hex": data.hex()}) for vector in vectors
        )
        return "[\n" + ",\n".join(lines) + "\n]\n"

    return {
        "client.json": text(good_vectors(CLIENT)),
        "server.json": text(good_vectors(SERVER)),
        "bad.json": text(bad_vectors()),
    }


if __name__ == "__main__":
    for name, content in files().items():
        Path(__file__).with_name(name).write_text(content, encoding="utf-8")
