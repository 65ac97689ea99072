"""The client's arithmetic, run where it will run: golden vectors, pacing, controls, codec string, settings, texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gameserver.protocol import ERRORS, MAX_IMAGE_BYTES, MAX_TRANSPORT_BYTES, decode_client

VECTORS = Path(__file__).parents[1] / "vectors"

JAVASCRIPT = """
const hex = (bytes) => [...bytes].map((b) => b.toString(16).padStart(2, '0')).join('');
const unhex = (text) => Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
const outward = (value) => value instanceof Uint8Array ? { $hex: hex(value) }
  : Array.isArray(value) ? value.map(outward)
  : value && typeof value === 'object'
    ? Object.fromEntries(Object.entries(value).map(([k, v]) => [k, outward(v)])) : value;
const inward = (value) => Array.isArray(value) ? value.map(inward)
  : value && typeof value === 'object' ? ('$hex' in value ? unhex(value.$hex)
    : Object.fromEntries(Object.entries(value).map(([k, v]) => [k, inward(v)]))) : value;
"""


CALL = """async ([modules, body, input]) => {
  const scope = {};
  for (const name of modules) Object.assign(scope, await import(`./${name}.js`));
  const AsyncFunction = (async () => {}).constructor;
  return new AsyncFunction(...Object.keys(scope), 'input', body)(...Object.values(scope), input);
}"""


@pytest.fixture(scope="module")
def run(browser: Any, site: int) -> Iterator[Callable[..., Any]]:
    """Runs a JavaScript body with `input` and what the named modules export; what it returns comes back."""
    context = browser.new_context()
    page = context.new_page()
    page.route("**/", lambda route: route.fulfill(body="<!doctype html>", content_type="text/html"))
    page.goto(f"http://localhost:{site}/")
    yield lambda modules, body, given=None: page.evaluate(CALL, [modules.split(), JAVASCRIPT + body, given])
    context.close()


def vectors(name: str) -> list[dict[str, Any]]:
    return json.loads((VECTORS / f"{name}.json").read_text())


def test_client_vectors_are_encoded_to_the_byte(run: Callable[..., Any]) -> None:
    cases = vectors("client")
    encoded = run("msgpack", "return input.map(({ message }) => hex(encode(inward(message))));", cases)
    assert encoded == [case["hex"] for case in cases]


@pytest.mark.parametrize("name", ["client", "server"])
def test_vectors_are_decoded(run: Callable[..., Any], name: str) -> None:
    cases = vectors(name)
    assert len(cases) > 5
    decoded = run("msgpack", "return input.map(({ hex }) => outward(decode(unhex(hex))));", cases)
    assert decoded == [case["message"] for case in cases]


def test_what_is_cut_off_or_goes_on_is_refused(run: Callable[..., Any]) -> None:
    """Every proper prefix of every server message, a message with a byte too many, and a bomb of nesting."""
    broken = [case["hex"][:end] for case in vectors("server") for end in range(0, min(len(case["hex"]), 400), 2)]
    broken += [vectors("server")[0]["hex"] + "00", "91" * 100 + "00", "c1", "dfffffffff", "c6ffffffff00"]
    broken += ["81c0c0", "a2fffe"]
    accepted = run(
        "msgpack",
        "return input.filter((bytes) => { try { decode(unhex(bytes)); return true; } catch { return false; } });",
        broken,
    )
    assert accepted == []


numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False)
json_like = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(min_size=1, max_size=40), inner, max_size=20),
    max_leaves=30,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(json_like, max_size=20))
def test_both_languages_mean_the_same(run: Callable[..., Any], values: list[Any]) -> None:
    values = [value for value in values if "__proto__" not in repr(value)]
    raw = run("msgpack", "return hex(encode(decode(unhex(input))));", msgpack.packb(values).hex())
    assert msgpack.unpackb(bytes.fromhex(raw)) == values


def test_every_message_the_page_builds_is_one_the_server_takes(run: Callable[..., Any]) -> None:
    built = run(
        "protocol",
        """
        const loud = { seq: 1, t_ms: 0.5, axes: [3, -3, 0, 0.25], look: [1000, -1000] };
        return [hello({ codecs: ['h264', 'jpeg'] }),
          hello({ codecs: ['jpeg'], scene: 'a', prompt: 'snow', seed: 2 ** 53 - 1, token: 't' }), control(loud),
          hello({ codecs: ['jpeg'], scene: '', image: new Uint8Array(MAX_IMAGE_BYTES).fill(7) }),
          control({ seq: 2 ** 32 - 1, t_ms: 7, axes: [0, 0, 0, 0] }), prompt(''), prompt('é'.repeat(500)),
          ack({ packet: 0, hidden: false, slack_ms: null }), ack({ packet: 2 ** 40, hidden: true, slack_ms: -1e9 }),
          keyframe(), ping(0), bye(), save(), load('5a1e0c3d-00112233445566778899aabbccddeeff'), share()].map(hex);
        """,
    )
    messages = [decode_client(bytes.fromhex(message), MAX_TRANSPORT_BYTES) for message in built]
    with_image = messages.pop(3)
    assert (with_image.scene, with_image.image) == (None, b"\7" * MAX_IMAGE_BYTES)
    assert len({type(message) for message in messages}) == 10
    assert messages[2].axes == (1.0, -1.0, 0.0, 0.25) and messages[2].look == (360.0, -360.0)
    assert messages[7].slack_ms == -60_000.0


def test_codec_string_comes_from_the_sequence_parameters(run: Callable[..., Any], h264: list[Any]) -> None:
    units = [h264[0].data.hex(), h264[1].data.hex(), ""]
    found = run("h264", "return input.map((bytes) => codecString(unhex(bytes)));", units)
    sps = h264[0].data.index(b"\x00\x00\x01\x67") + 4
    assert found == [f"avc1.{h264[0].data[sps : sps + 3].hex()}", None, None]


PACE = """
  const pacer = new Pacer({ fps: 16, marginMs: input.marginMs ?? 30 });
  return input.frames.map(([frame, chunk, atMs, speed]) => {
    if (speed) pacer.setSpeed(speed);
    return { ...pacer.arrive({ frame, chunk }, atMs), marginMs: pacer.marginMs };
  });
"""


def arrivals(chunks: int, late_ms: Callable[[int], float] = lambda chunk: 0.0) -> list[list[float]]:
    """[frame, chunk, ms]: chunk 0 has one frame, each other four at once."""
    frames = [[0, 0, 0.0]]
    for chunk in range(1, chunks):
        at = chunk * 250.0 + late_ms(chunk)
        frames += [[4 * chunk - 3 + i, chunk, at] for i in range(4)]
    return frames


def test_a_regular_stream_is_shown_evenly(run: Callable[..., Any]) -> None:
    paced = run("pacing", PACE, {"frames": arrivals(8)})
    due = [frame["dueMs"] for frame in paced]
    assert due[0] == 0 and due[1] == 280.0, "the first picture at once; the clock starts with the second chunk"
    assert [b - a for a, b in pairwise(due[1:])] == [62.5] * (len(due) - 2)
    assert [frame["slackMs"] for frame in paced if frame["slackMs"] is not None] == [30.0] * 6


def test_a_late_chunk_shifts_the_clock_and_nothing_hurries_after_it(run: Callable[..., Any]) -> None:
    frames = arrivals(12, late_ms=lambda chunk: 100.0 if chunk == 5 else 0.0)
    paced = run("pacing", PACE, {"frames": frames})
    due = [frame["dueMs"] for frame in paced]
    late = next(i for i, frame in enumerate(frames) if frame[1] == 5)
    assert paced[late]["slackMs"] == -70.0
    assert due[late] == frames[late][2] + max(30.0, paced[late]["marginMs"])
    assert all(b - a == 62.5 for i, (a, b) in enumerate(pairwise(due[1:]), 2) if i != late)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(0, 400), min_size=30, max_size=30))
def test_pacing_never_goes_back_or_hurries(run: Callable[..., Any], lateness: list[float]) -> None:
    frames = arrivals(30, late_ms=lambda chunk: lateness[chunk])
    frames.sort(key=lambda frame: frame[0])
    for before, after in pairwise(frames):
        after[2] = max(after[2], before[2])
    paced = run("pacing", PACE, {"frames": frames})
    assert all(after["dueMs"] - before["dueMs"] >= 62.5 - 1e-6 for before, after in pairwise(paced))
    assert all(shown["dueMs"] >= frame[2] for shown, frame in zip(paced, frames, strict=True))
    assert all(30 <= shown["marginMs"] <= 400 for shown in paced)


def test_the_margin_grows_to_the_lateness_it_sees(run: Callable[..., Any]) -> None:
    steady = run("pacing", PACE, {"frames": arrivals(20, late_ms=lambda chunk: 90.0 * (chunk % 3 == 0))})
    assert steady[-1]["marginMs"] == pytest.approx(60.0, abs=31) and steady[-1]["marginMs"] > 30
    assert all(frame["slackMs"] >= 0 for frame in steady[-20:] if frame["slackMs"] is not None)


def test_skipped_frames_leave_their_time_empty_and_a_slow_world_is_stretched(run: Callable[..., Any]) -> None:
    skipping = run("pacing", PACE, {"frames": [[0, 0, 0], [1, 1, 250], [3, 1, 250], [4, 1, 250]]})
    assert [frame["dueMs"] for frame in skipping] == [0, 280, 405, 467.5]
    slow = run("pacing", PACE, {"frames": [[0, 0, 0, 0.5], [1, 1, 500], [2, 1, 500], [3, 1, 500]]})
    assert [frame["dueMs"] for frame in slow] == [0, 530, 655, 780]


def test_a_tap_keeps_its_length_and_messages_keep_their_distance(run: Callable[..., Any]) -> None:
    out = run(
        "controls",
        """
        const stream = new ControlStream();
        const on = axesOf(['KeyW']), off = axesOf([]);
        stream.hold(on, 100);
        const first = stream.take(100);
        stream.hold(off, 104); stream.hold(on, 108); stream.turn(2, -1); stream.turn(1, 0);
        const early = stream.take(109);
        const rest = stream.take(117);
        stream.hold(off, 118);
        const forced = stream.take(118, true);
        return { first, early, rest, forced, after: stream.take(500) };
        """,
    )
    assert [(m["seq"], m["t_ms"], m["axes"][0]) for m in out["first"]] == [(1, 100, 1)]
    assert out["early"] == [] and out["after"] == []
    rest = [(m["seq"], m["t_ms"], m["axes"][0], m["look"]) for m in out["rest"]]
    assert rest == [(2, 104, 0, [0, 0]), (3, 108, 1, [3, -1])]
    assert [(m["seq"], m["axes"]) for m in out["forced"]] == [(4, [0, 0, 0, 0])]


def test_a_storm_of_edges_is_bounded_and_ends_in_the_truth(run: Callable[..., Any]) -> None:
    messages = run(
        "controls",
        """
        const stream = new ControlStream();
        stream.take(0);
        for (let i = 0; i < 1000; i++) stream.hold(axesOf(i % 2 ? [] : ['KeyD']), i / 100);
        stream.hold(axesOf(['KeyJ', 'KeyI']), 11);
        return stream.take(20);
        """,
    )
    assert len(messages) <= 8 and messages[-1]["axes"] == [0, 0, -1, 1]
    assert [m["t_ms"] for m in messages] == sorted(m["t_ms"] for m in messages)


def test_keys_sticks_and_opposites(run: Callable[..., Any]) -> None:
    axes = run(
        "controls",
        """return [axesOf(['KeyW', 'ArrowUp']), axesOf(['KeyA', 'KeyD', 'KeyK']),
          axesOf(['KeyL', 'Space'], [0.5, 0, 0.5, 0]), stick(0, -56, 56), stick(3, 3, 56), stick(500, 0, 56)];""",
    )
    assert axes == [[1, 0, 0, 0], [0, 0, 0, -1], [0.5, 0, 1, 0], [0, 1], [0, 0], [1, 0]]


def test_the_address_and_what_is_kept(run: Callable[..., Any]) -> None:
    out = run(
        "settings",
        """
        const kept = (text) => ({ getItem: () => text });
        return {
          full: parseAddress('?scene=shore&seed=42&prompt=snow&play=1&codec=jpeg&quality=smooth'),
          empty: Object.values(parseAddress('')).filter(Boolean),
          seeds: ['0', '9007199254740992', '-1', '1e3', ''].map(parseSeed),
          asked: loadSettings(kept('{"quality": "instant", "sensitivity": "x"}'), { quality: 'smooth' }),
          broken: loadSettings(kept('{'), {}),
          link: linkTo('http://h/x?play=1#a', { scene: 'a b', seed: 0, prompt: 'é&' }),
          watch: parseAddress(new URL(watchLink('http://h/x?play=1&seed=3#a', 'a-_1')).search).watch,
        };
        """,
    )
    assert out["full"]["seed"] == 42 and out["full"]["play"] is True and out["full"]["quality"] == "smooth"
    assert out["empty"] == [] and out["seeds"] == [0, None, None, None, None]
    assert out["asked"]["quality"] == "smooth" and out["asked"]["sensitivity"] == 1
    assert out["broken"]["quality"] == "balanced"
    assert out["watch"] == "a-_1"
    assert out["link"] == "http://h/x?scene=a+b&seed=0&prompt=%C3%A9%26"


sizes = st.fixed_dictionaries({"width": st.integers(1, 9000), "height": st.integers(1, 9000)})


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(sizes, sizes), min_size=20, max_size=20))
def test_a_picture_is_fitted_and_never_made_larger(run: Callable[..., Any], pairs: list[Any]) -> None:
    for (size, limit), part in zip(
        pairs, run("picture", "return input.map(([size, limit]) => fit(size, limit));", pairs), strict=True
    ):
        assert part["x"] >= -1e-6 and part["x"] * 2 + part["width"] == pytest.approx(size["width"])
        assert part["y"] >= -1e-6 and part["y"] * 2 + part["height"] == pytest.approx(size["height"])
        assert part["width"] * limit["height"] == pytest.approx(part["height"] * limit["width"])
        assert 1 <= part["across"] <= limit["width"] and 1 <= part["down"] <= limit["height"]
        assert part["across"] <= size["width"] and part["down"] <= size["height"]


def test_chances_follow_from_the_seed(run: Callable[..., Any]) -> None:
    draw = "return input.map((seed) => { const next = chances(seed); return [next(), next(), next()]; });"
    one, again, other, high = run("sketch", draw, [1, 1, 2, 2**40 + 1])
    assert one == again and len({*one, *other, *high}) == 9 and all(0 <= x < 1 for x in [*one, *other, *high])


def test_every_error_code_has_words_for_the_player_and_the_operator(run: Callable[..., Any]) -> None:
    states, errors = run("texts", "return [STATES, ERRORS];")
    assert set(errors) == set(ERRORS)
    for code, (fatal, _) in ERRORS.items():
        text = errors[code]
        assert ("toast" in text) == (not fatal), code
        if fatal:
            shown = states[text["state"]] if "state" in text else text
            assert shown["title"] and shown["text"], code
            assert code == "not_ready" or shown["operator"], code


def test_waiting_before_a_retry_grows_to_eight_seconds(run: Callable[..., Any]) -> None:
    waits = run("backoff", "return [0, 1, 2, 3, 4, 5, 99].map((attempt) => delayMs(attempt, 0.5));")
    assert waits == [500, 1000, 2000, 4000, 8000, 8000, 8000]


def test_badges_say_what_is_wrong_and_only_then(run: Callable[..., Any]) -> None:
    badges = run(
        "health",
        """
        const well = { speed: 1, skipped: 0, bitrate_kbps: 1000 };
        const told = (...list) => {
          const health = new Health();
          for (const { hidden = false, ...stats } of list) health.add({ ...well, ...stats }, hidden);
          return health.badges.map(({ id, text }) => `${id}: ${text}`);
        };
        return [told({}), told({}, { speed: 0.7 }), told({}, { bitrate_kbps: 600 }), told({}, { skipped: 3 }),
          told({ skipped: 900 }), told({}, { skipped: 9, hidden: true })];
        """,
    )
    assert badges[0] == badges[4] == badges[5] == []
    assert badges[1] == ["busy: The world runs at 70 %"]
    assert badges[2] == ["slow: Slow network: picture at 600 kbit/s"]
    assert badges[3] == ["slow: Slow network: 3 frames skipped"]
