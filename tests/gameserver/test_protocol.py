"""What the wire promises: golden bytes, a code for whatever is wrong, order, flood limits, an honest document."""

from __future__ import annotations

import json
import re
import runpy
import typing
from pathlib import Path
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gameserver import protocol
from gameserver.protocol import CLOSE_CODES, ERRORS, ClientMessage, ProtocolError, ServerMessage, decode_client, encode
from gameserver.wire import PoseBatch, ServerProtocol, State, TokenBucket, read_poses

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
DOCUMENT = ROOT / "PROTOCOL.md"
HELLO = {"type": "hello", "version": 1}


def pack(message: dict[str, Any]) -> bytes:
    return bytes(msgpack.packb(message))


def vectors(name: str) -> list[Any]:
    def with_bytes(entry: dict[str, Any]) -> Any:
        return bytes.fromhex(entry["$hex"]) if "$hex" in entry else entry

    return list(json.loads((VECTORS / name).read_text(encoding="utf-8"), object_hook=with_bytes))


def named(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", vectors(name), ids=lambda vector: vector["name"])


def playing(control: str = "axes") -> ServerProtocol:
    server = ServerProtocol()
    server.receive(pack(HELLO | {"control": control}), 0.0)
    server.welcomed()
    return server


# Golden bytes


def test_the_vectors_are_what_their_generator_writes() -> None:
    files = runpy.run_path(str(VECTORS / "generate.py"))["files"]()
    assert files.keys() == {path.name for path in VECTORS.glob("*.json")}
    for name, content in files.items():
        assert (VECTORS / name).read_text(encoding="utf-8") == content, f"{name}: run tests/vectors/generate.py"


@named("client.json")
def test_a_client_message_decodes_to_what_it_says(vector: dict[str, Any]) -> None:
    message = decode_client(bytes.fromhex(vector["hex"]))
    assert msgspec.to_builtins(message, builtin_types=(bytes,)) == {
        key: tuple(value) if isinstance(value, list) else value for key, value in vector["message"].items()
    }


@named("server.json")
def test_a_server_message_encodes_to_the_golden_bytes(vector: dict[str, Any]) -> None:
    message = msgspec.convert(vector["message"], ServerMessage)
    assert encode(message).hex() == vector["hex"]


@pytest.mark.parametrize(("union", "name"), [(ClientMessage, "client.json"), (ServerMessage, "server.json")])
def test_every_message_has_a_vector(union: Any, name: str) -> None:
    assert {vector["message"]["type"] for vector in vectors(name)} == set(tags(union))


# Whatever is wrong


@named("bad.json")
def test_bad_input_gets_its_code(vector: dict[str, Any]) -> None:
    server = ServerProtocol()
    for data in vector["before"]:
        server.receive(bytes.fromhex(data), 0.0)
        server.welcomed()
    before = server.state
    with pytest.raises(ProtocolError) as caught:
        server.receive(bytes.fromhex(vector["hex"]) * vector.get("times", 1), 0.0)
    assert (caught.value.code, caught.value.fatal) == (vector["code"], ERRORS[vector["code"]][0])
    assert server.state is (State.CLOSED if caught.value.fatal else before)


def test_a_text_message_is_bad() -> None:
    with pytest.raises(ProtocolError, match="binary") as caught:
        ServerProtocol().receive("hello", 0.0)
    assert caught.value.code == "bad_message"


def any_value() -> st.SearchStrategy[Any]:
    scalars = (
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats()
        | st.text(max_size=8)
        | st.binary(max_size=130)
        | st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=4))
    )
    return st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner), max_leaves=8
    )


@st.composite
def nearly_messages(draw: st.DrawFn) -> bytes:
    """A good message with fields replaced, added and removed, then perhaps cut, extended or with a byte changed."""
    message = dict(draw(st.sampled_from(vectors("client.json")))["message"])
    for key in draw(st.lists(st.sampled_from([*message, "extra"]), max_size=2)):
        if draw(st.booleans()):
            message[key] = draw(any_value())
        else:
            message.pop(key, None)
    data = bytearray(pack(message))
    if draw(st.booleans()):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data) + draw(st.binary(max_size=2))


@given(st.binary(max_size=200) | nearly_messages() | any_value().map(pack))
def test_decoding_ends_in_a_message_or_a_protocol_error(data: bytes) -> None:
    try:
        message = decode_client(data)
    except ProtocolError as error:
        assert error.code in ERRORS and error.message
    else:
        for value in numbers(message):
            assert np.isfinite(value)


def numbers(message: ClientMessage) -> list[float]:
    fields = (getattr(message, name) for name in message.__struct_fields__)
    flat = (value for field in fields for value in (field if isinstance(field, tuple) else (field,)))
    return [value for value in flat if isinstance(value, int | float)]


# Order, floods, poses


def test_a_session_from_hello_to_bye() -> None:
    server = ServerProtocol()
    states = [server.state]
    server.receive(pack(HELLO), 0.0)
    states.append(server.state)
    server.receive(pack({"type": "ping", "t_ms": 1}), 0.1)
    server.welcomed()
    for message in ({"type": "prompt", "text": "rain"}, {"type": "ack", "packet": 0}, {"type": "keyframe"}):
        server.receive(pack(message), 0.2)
    states.append(server.state)
    server.receive(pack({"type": "bye"}), 0.3)
    assert [*states, server.state] == [state for state in State if state is not State.WATCHING]
    with pytest.raises(ProtocolError, match="closed"):
        server.receive(pack({"type": "ping", "t_ms": 2}), 0.4)


@pytest.mark.parametrize(
    "said",
    [
        {"type": "control", "seq": 1, "t_ms": 0, "axes": [1, 0, 0, 0]},
        {"type": "poses", "seq": 1, "poses": np.eye(4, dtype="<f4").tobytes()},
        {"type": "prompt", "text": "x"},
        {"type": "share"},
    ],
)
def test_a_spectator_may_take_in_and_leave_but_not_steer(said: dict[str, Any]) -> None:
    server = ServerProtocol()
    server.receive(pack(HELLO | {"watch": "Zk3-x_90aB1c"}), 0.0)
    server.welcomed()
    for message in ({"type": "ack", "packet": 0}, {"type": "keyframe"}, {"type": "ping", "t_ms": 1}):
        server.receive(pack(message), 0.1)
        assert server.state is State.WATCHING
    with pytest.raises(ProtocolError) as caught:
        server.receive(pack(said), 0.2)
    assert caught.value.code == "out_of_order" and server.state is State.CLOSED


def test_a_welcome_does_not_reopen_what_a_client_left() -> None:
    server = ServerProtocol()
    server.receive(pack(HELLO), 0.0)
    server.receive(pack({"type": "bye"}), 0.0)
    server.welcomed()
    assert server.state is State.CLOSED


def test_nothing_but_ping_and_bye_before_the_welcome() -> None:
    for vector in vectors("client.json"):
        server = ServerProtocol()
        server.receive(pack(HELLO), 0.0)
        if vector["message"]["type"] in ("ping", "bye"):
            server.receive(bytes.fromhex(vector["hex"]), 0.0)
        else:
            with pytest.raises(ProtocolError) as caught:
                server.receive(bytes.fromhex(vector["hex"]), 0.0)
            assert caught.value.code == "out_of_order"


def test_a_flood_is_cut_and_a_quick_client_is_not() -> None:
    ping = pack({"type": "ping", "t_ms": 0})
    quick = playing()
    for index in range(5 * 150):
        quick.receive(ping, index / 150)
    flood = playing()
    with pytest.raises(ProtocolError) as caught:
        for _ in range(int(protocol.MESSAGES_BURST)):
            flood.receive(ping, 0.0)
    assert caught.value.code == "too_fast"


@given(st.lists(st.floats(0.0, 0.05), max_size=60), st.floats(1.0, 50.0), st.floats(1.0, 10.0))
def test_a_bucket_passes_at_most_its_burst_and_rate(gaps_s: list[float], rate_per_s: float, burst: float) -> None:
    bucket = TokenBucket(rate_per_s, burst)
    now_s = 0.0
    passed = 0
    for gap_s in gaps_s:
        now_s += gap_s
        passed += bucket.take(now_s)
        assert passed <= burst + rate_per_s * now_s + 1e-6


def test_a_bucket_fills_again() -> None:
    bucket = TokenBucket(rate_per_s=2.0, burst=1.0)
    assert [bucket.take(now_s) for now_s in (0.0, 0.4, 0.5, 9.0, 9.0)] == [True, False, True, True, False]


def test_poses_arrive_as_they_were_sent() -> None:
    turned = np.array([[0, 0, 1, 3], [0, 1, 0, 4], [-1, 0, 0, 5], [0, 0, 0, 1]], np.float32)
    sent = np.stack([np.eye(4, dtype=np.float32), turned])
    batch = playing("poses").receive(pack({"type": "poses", "seq": 7, "poses": sent.tobytes()}), 0.0)
    assert isinstance(batch, PoseBatch) and batch.seq == 7
    assert batch.poses.dtype == np.float32 and np.array_equal(batch.poses, sent)


def test_a_refused_pose_leaves_the_session_playing() -> None:
    server = playing("poses")
    with pytest.raises(ProtocolError) as caught:
        server.receive(pack({"type": "poses", "seq": 1, "poses": bytes(64)}), 0.0)
    assert caught.value.code == "bad_pose" and not caught.value.fatal
    good = np.eye(4, dtype=np.float32).tobytes()
    assert isinstance(server.receive(pack({"type": "poses", "seq": 2, "poses": good}), 0.0), PoseBatch)


@given(
    st.binary(max_size=64 * 3)
    | st.lists(st.floats(width=32), min_size=16, max_size=16).map(lambda v: np.array(v, "<f4").tobytes())
)
def test_only_finite_rigid_poses_pass(data: bytes) -> None:
    try:
        poses = read_poses(data)
    except ProtocolError as error:
        assert error.code == "bad_pose"
    else:
        rotations = poses[:, :3, :3].astype(np.float64)
        np.testing.assert_allclose(
            rotations @ rotations.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rotations.shape), atol=2e-3
        )
        assert (np.linalg.det(rotations) > 0).all() and np.isfinite(poses).all()


# The document


def tags(union: Any) -> dict[str, Any]:
    return {kind.__struct_config__.tag: kind for kind in typing.get_args(union)}


def sections() -> dict[str, str]:
    """Heading -> text below it."""
    parts = re.split(r"^#{2,3} (.+)$", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def table(text: str) -> dict[str, list[str]]:
    """First cell, without its backquotes -> the other cells."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_document_has_every_message_and_field() -> None:
    for tag, kind in (tags(ClientMessage) | tags(ServerMessage)).items():
        assert list(table(sections()[f"`{tag}`"])) == list(kind.__struct_fields__), tag


def test_the_document_has_every_error() -> None:
    documented = table(sections()["Errors"])
    assert list(documented) == list(ERRORS)
    for code, (fatal, _) in ERRORS.items():
        closes = str(CLOSE_CODES.get(code, 1008)) if fatal else "-"
        assert documented[code][0] == closes, code


def test_the_document_states_the_limits() -> None:
    limits = table(sections()["Limits"])
    for name in (name for name in vars(protocol) if name.startswith("MAX_")):
        assert limits[name][0].replace(" ", "") == str(getattr(protocol, name)), name
    assert limits["MESSAGES_PER_S"][0] == f"{protocol.MESSAGES_PER_S:.0f}"
    assert limits["MESSAGES_BURST"][0] == f"{protocol.MESSAGES_BURST:.0f}"


def test_the_example_in_the_document_is_a_session() -> None:
    """Its bytes are decoded by the server's own code, and the words beside them are what the bytes say."""
    example = re.findall(r"^(C|S) (\{.*\})\n((?:  [0-9a-f ]+\n)+)", sections()["A short session"], flags=re.MULTILINE)
    assert [side for side, _, _ in example].count("C") >= 4 and len(example) >= 7
    server = ServerProtocol()
    for side, said, digits in example:
        data = bytes.fromhex(digits)
        message = json.loads(said, object_hook=lambda entry: bytes.fromhex(entry["$hex"]) if "$hex" in entry else entry)
        assert msgpack.unpackb(data) == message, said
        if side == "C":
            server.receive(data, 0.0)
        else:
            msgspec.msgpack.decode(data, type=ServerMessage)
            if message["type"] == "welcome":
                server.welcomed()
    assert server.state is State.CLOSED
