"""The page against the real server with test pictures: what a player does, and what becomes of the picture."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gameserver.app import App, running
from gameserver.door import Settings
from gameserver.encoder import encode_still
from gameserver.saves import Shelf
from world.chunk import Report
from world.pattern import PatternWorld, Reading, prompt_mark

Look = Callable[[Any], tuple[dict[str, Any], Reading, NDArray[np.uint8]]]


class House:
    """A server in a thread. `kill` cuts every line without a word."""

    def __init__(
        self, port: int = 0, capacity: int = 8, gate: threading.Event | None = None, saves: Shelf | None = None
    ) -> None:
        self._settings = Settings(port=port, capacity=capacity, grace_s=2.0, saves=saves)  # pages leave soon
        self._gate = gate
        self._open = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        assert self._open.wait(20)

    def _load(self, report: Report) -> PatternWorld:
        if self._gate is not None:
            report("drawing stripes", 0.25)
            assert self._gate.wait(30)
        return PatternWorld()

    async def _serve(self) -> None:
        self._loop, self._closing, self._killed = asyncio.get_running_loop(), asyncio.Event(), False
        async with running(self._settings, self._load) as app:
            if self._gate is None:
                await app.door.settled.wait()
            self.app: App = app
            self.url = app.url
            self.port = app.port
            self._open.set()
            await self._closing.wait()
            if self._killed:
                for connection in list(app.server.connections):
                    connection.transport.abort()

    def kill(self) -> None:
        self._killed = True
        self.close()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join(20)


@pytest.fixture
def build() -> Iterator[Callable[..., House]]:
    houses: list[House] = []

    def start(**options: Any) -> House:
        houses.append(House(**options))
        return houses[-1]

    yield start
    for house in houses:
        house.close()


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


def wait(page: Any, condition: str) -> None:
    page.wait_for_function(f"() => {{ const m = window.manyworlds; return m && ({condition}); }}")


def play(page: Any, house: House, query: str = "?play=1") -> None:
    page.goto(house.url + query)
    wait(page, "m.state === 'playing' && m.painted.frame >= 4")


def column_of(picture: NDArray[np.uint8], bearing_deg: float) -> int:
    """The column of the panorama whose hue says that it looks that way."""
    red, green, blue = picture[80:112].mean(axis=0).T  # [224] each
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    bearing = np.degrees(np.arctan2(0.713 * (red - luma), 0.564 * (blue - luma)))
    return int(np.argmin(np.abs((bearing - bearing_deg + 180) % 360 - 180)))


def test_the_canvas_shows_what_was_generated(new_page: Callable[..., Any], look: Look, house: House) -> None:
    page = new_page(448, 256)
    play(page, house, "?play=1&scene=east&seed=77&prompt=snow")
    first, reading, _ = look(page)
    assert reading.frame_index == first["painted"]["frame"] and reading.chunk_index == first["painted"]["chunk"]
    assert (reading.seed, reading.prompt) == (77, prompt_mark("snow"))
    assert (first["session"]["seed"], first["session"]["scene"]) == (77, "east")
    wait(page, f"m.painted.frame >= {first['painted']['frame'] + 16}")
    second, reading, _ = look(page)
    assert reading.frame_index == second["painted"]["frame"]


def test_turning_left_moves_the_picture_right(new_page: Callable[..., Any], look: Look, house: House) -> None:
    page = new_page()
    play(page, house)
    _, before, still = look(page)
    page.keyboard.down("KeyJ")
    wait(page, "m.painted.control_seq > 0")
    start = page.evaluate("window.manyworlds.painted.frame")
    wait(page, f"m.painted.frame >= {start + 10}")
    page.keyboard.up("KeyJ")
    wait(page, "m.painted.control_seq > 1")
    seen, after, moved = look(page)
    turned = (after.yaw_deg - before.yaw_deg + 180) % 360 - 180
    assert -90 < turned < -12, "left is negative"
    assert column_of(still, before.yaw_deg) == pytest.approx(112, abs=12)
    assert column_of(moved, before.yaw_deg) > 112 + 20, "what was in the middle is right of it now"
    assert seen["stats"]["control_to_picture_ms"] > 0


def test_the_numbers_are_live(new_page: Callable[..., Any], house: House) -> None:
    page = new_page()
    play(page, house)
    page.keyboard.press("F3")
    page.keyboard.down("KeyW")
    wait(
        page, "m.stats.fps > 8 && m.stats.kbps > 1 && m.stats.chunk_ms > 0 && m.stats.rtt_ms >= 0 && m.stats.rows >= 1"
    )
    wait(page, "m.stats.control_to_picture_ms > 0 && m.stats.speed > 0")
    page.wait_for_function(
        "() => [...document.querySelectorAll('#meters b')].every((b) => /[0-9]/.test(b.textContent))"
    )
    assert int(page.locator("#pill-fps").inner_text()) > 0


def test_jpeg_plays_too(new_page: Callable[..., Any], look: Look, house: House) -> None:
    page = new_page()
    play(page, house, "?play=1&codec=jpeg")
    seen, reading, _ = look(page)
    assert reading.frame_index == seen["painted"]["frame"] and seen["session"]["codec"] == "jpeg"
    assert "JPEG" in page.evaluate("window.manyworlds.decoder")


def test_a_prompt_takes_hold_in_the_picture(new_page: Callable[..., Any], look: Look, house: House) -> None:
    page = new_page()
    play(page, house)
    page.keyboard.press("Enter")
    page.keyboard.type("make it snow")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.getElementById('live').textContent === 'The world heard: make it snow'")
    start = page.evaluate("window.manyworlds.painted.frame")
    wait(page, f"m.painted.frame > {start + 12}")
    assert look(page)[1].prompt == prompt_mark("make it snow")


def test_a_killed_server_is_waited_for_and_played_again(
    new_page: Callable[..., Any], look: Look, build: Callable[..., House]
) -> None:
    page = new_page()
    first = build()
    play(page, first, "?play=1&seed=5")
    frame = page.evaluate("window.manyworlds.painted.frame")
    first.kill()
    wait(page, "m.state === 'reconnecting'")
    assert page.locator("#card-title").inner_text() == "The line broke"
    assert look(page)[1].frame_index >= frame, "the last picture stays"
    second = build(port=first.port)
    wait(page, "m.state === 'playing'")
    seen, reading, _ = look(page)
    assert reading.frame_index == seen["painted"]["frame"] and reading.seed == 5, "the same seed grows the same world"
    assert "not kept" in page.locator("#toast").inner_text()
    second.close()
    wait(page, "m.state === 'going_down'")


def test_a_picture_of_ones_own_is_played(new_page: Callable[..., Any], look: Look, house: House) -> None:
    page = new_page()
    page.goto(house.url)
    page.wait_for_selector("#own")
    image = np.random.default_rng(0).integers(0, 255, (1080, 1920, 3), np.uint8)  # noise: the worst there is to send
    page.set_input_files("#own-file", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": encode_still(image)})
    page.wait_for_selector("[data-tile=':own']")
    page.fill("#seed", "12")
    page.click("#play")
    wait(page, "m.state === 'playing' && m.painted.frame >= 4")
    seen, reading, _ = look(page)
    assert (seen["session"]["scene"], seen["session"]["prompt"], reading.seed) == ("", "", 12)


def test_another_tab_takes_the_session_over(new_page: Callable[..., Any], look: Look, house: House) -> None:
    page = new_page()
    play(page, house)
    kept = page.evaluate("sessionStorage.getItem('manyworlds.session')")
    frame = page.evaluate("window.manyworlds.painted.frame")
    other = new_page()
    other.add_init_script(f"sessionStorage.setItem('manyworlds.session', {json.dumps(kept)})")
    other.goto(house.url)
    other.click("#continue")
    wait(other, "m.state === 'playing'")
    wait(page, "m.state === 'replaced'")
    seen, reading, _ = look(other)
    assert seen["session"]["resumed"] and reading.frame_index >= frame, "the world goes on where it was"


def test_a_link_lets_others_watch_and_not_steer(new_page: Callable[..., Any], look: Look, house: House) -> None:
    page, other = new_page(permissions=["clipboard-read", "clipboard-write"]), new_page(448, 256)
    play(page, house, "?play=1&seed=31")
    page.keyboard.press("Escape")
    page.click("#watch-link")
    page.wait_for_function("() => document.getElementById('live').textContent === 'Watch link copied'")
    link = page.evaluate("navigator.clipboard.readText()")
    assert "watch=" in link and "seed" not in link
    page.click("#resume")
    other.goto(link)
    wait(other, "m.state === 'playing' && m.painted.frame >= 4")
    assert other.locator("#watching").is_visible() and not page.locator("#watching").is_visible()
    assert not other.locator("#caps").is_visible()
    other.keyboard.down("KeyJ")
    other.keyboard.press("Enter")
    page.keyboard.down("KeyL")
    wait(other, "m.painted.control_seq > 0")
    start = other.evaluate("window.manyworlds.painted.frame")
    wait(other, f"m.painted.frame >= {start + 10}")
    seen, reading, _ = look(other)
    assert reading.frame_index == seen["painted"]["frame"] and reading.seed == 31 and seen["session"]["watching"]
    assert 12 < reading.yaw_deg % 360 < 180, "it turns as the player does, to the right"
    page.keyboard.up("KeyL")
    page.evaluate("() => document.getElementById('leave').click()")  # the mouse is held by the game
    wait(other, "m.state === 'error'")
    assert other.locator("#card-title").inner_text() == "There is nothing to watch"
    other.click("#card-primary")
    wait(other, "m.state === 'start'")


def test_the_menu_saves_a_moment_and_leads_back_to_it(
    new_page: Callable[..., Any], look: Look, build: Callable[..., House], tmp_path: Path
) -> None:
    page = new_page()
    play(page, build(saves=Shelf(tmp_path)))
    page.keyboard.press("Escape")
    assert page.locator("#load").is_disabled(), "there is nothing to go back to yet"
    page.click("#save")
    page.wait_for_function("() => document.getElementById('live').textContent.startsWith('Saved')")
    seen, saved, _ = look(page)
    page.keyboard.down("KeyL")
    wait(page, f"m.painted.frame >= {seen['painted']['frame'] + 40} && m.painted.control_seq > 0")
    page.keyboard.up("KeyL")
    seen, turned, _ = look(page)
    assert 20 < turned.yaw_deg % 360 < 340
    frame = seen["painted"]["frame"]
    page.keyboard.press("Escape")
    page.evaluate("() => document.getElementById('load').click()")  # the mouse is held by the game
    wait(page, f"m.painted.frame < {frame} - 20")
    _, back, _ = look(page)
    assert back.yaw_deg % 360 == pytest.approx(saved.yaw_deg % 360, abs=1.0), "it looks the way it did"
    went_on = page.evaluate("window.manyworlds.painted.frame")
    wait(page, f"m.painted.frame >= {went_on + 20} && m.state === 'playing'")


def test_a_full_house_lets_in_who_waits(new_page: Callable[..., Any], build: Callable[..., House]) -> None:
    small = build(capacity=1)
    inside, outside = new_page(), new_page()
    play(inside, small)
    outside.goto(small.url + "?play=1")
    wait(outside, "m.state === 'full'")
    inside.keyboard.press("Escape")
    inside.click("#leave")
    wait(outside, "m.state === 'playing'")


def test_who_comes_early_sees_the_world_warm_up(new_page: Callable[..., Any], build: Callable[..., House]) -> None:
    gate = threading.Event()
    house = build(gate=gate)
    page = new_page()
    try:
        page.goto(house.url + "?play=1")
        wait(page, "m.state === 'warming'")
        page.wait_for_function("() => document.getElementById('card-text').textContent === 'drawing stripes, 25 %'")
    finally:
        gate.set()
    wait(page, "m.state === 'playing'")


def test_a_scene_that_is_not_there_leads_back_to_the_start(new_page: Callable[..., Any], house: House) -> None:
    page = new_page()
    page.goto(house.url + "?play=1&scene=atlantis")
    wait(page, "m.state === 'error'")
    assert page.locator("#card-title").inner_text() == "That place is not on this map"
    page.click("#card-primary")
    wait(page, "m.state === 'start'")
    page.wait_for_selector("#scenes label")
    page.click("#play")
    wait(page, "m.state === 'playing'")
