"""Every state of the page, driven by a server that is the test: what is shown, said, sent and painted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import av
import numpy as np
import pytest

from gameserver import protocol
from gameserver.encoder import encode_still
from gameserver.upload import read_image

Look = Callable[[Any], tuple[Any, Any, Any]]


def play(stage: Any, encoded: list[Any], query: str = "?play=1", last: int = 12) -> Any:
    """Plays frames 0 to `last` and waits for the last one's picture."""
    stage.open(query)
    stage.until(lambda: stage.lines and stage.lines[-1].received)
    line = stage.lines[-1]
    line.frames(encoded, 0, last)
    stage.wait(f"m.state === 'playing' && m.painted.frame === {last}")
    return line


def text(stage: Any, selector: str) -> str:
    return str(stage.page.locator(selector).inner_text())


def in_view(stage: Any) -> list[str]:
    """Buttons and fields that are shown but reach out of the page sideways, or are too small to touch."""
    return list(
        stage.page.evaluate("""() => [...document.querySelectorAll('button, input[type=text], a, label.switch')]
          .filter((e) => e.checkVisibility({ visibilityProperty: true })).filter((e) => {
            const box = e.getBoundingClientRect();
            const small = box.height < 44 && !e.closest('#panel') && e.id !== 'pill'; // the pill has a wider target
            return box.left < 0 || box.right > innerWidth || small;
          }).map((e) => e.id || e.textContent)""")
    )


def test_a_visitor_plays_within_two_clicks_with_what_was_chosen(stage: Any, h264: list[Any]) -> None:
    it = stage()
    page = it.open()
    page.wait_for_selector("#scenes label")
    assert text(it, "#house-text") == "2 of 8 in"
    page.fill("#prompt", "  deep snow ")
    page.fill("#seed", "77")
    page.click("#scenes label:nth-child(2)")
    page.click("#play")
    it.until(lambda: it.lines and it.lines[0].received)
    hello = it.lines[0].of(protocol.Hello)[0]
    assert (hello.scene, hello.prompt, hello.seed, hello.token) == ("east", "deep snow", 77, None)
    assert hello.codecs == ("h264", "jpeg")
    it.lines[0].frames(h264, 0, 4)
    it.wait("m.state === 'playing'")
    assert page.locator("#start").is_hidden() and page.locator("#card").is_hidden()


def backdrop(it: Any) -> list[int]:
    """The colour in the middle of what lies behind the start screen."""
    pen = "document.getElementById('backdrop').getContext('2d')"
    return list(it.page.evaluate(f"[...{pen}.getImageData(112, 64, 1, 1).data]"))[:3]


def photo(width: int, height: int) -> dict[str, Any]:
    """A file of one colour, (40, 160, 90), to be opened by the page."""
    image = np.broadcast_to(np.array([40, 160, 90], np.uint8), (height, width, 3))
    return {"name": "holiday.jpg", "mimeType": "image/jpeg", "buffer": encode_still(image)}


def open_drawing(it: Any, query: str = "") -> Any:
    """The start screen of a world that draws places."""
    it.world["draws"] = True
    page = it.open(query)
    page.wait_for_selector("#own")
    return page


def press_play(it: Any) -> protocol.Hello:
    it.page.click("#play")
    it.until(lambda: it.lines and it.lines[-1].received)
    return it.lines[-1].of(protocol.Hello)[0]


def test_the_words_of_a_scene_can_be_edited_and_are_sent_only_then(stage: Any) -> None:
    it = stage()
    page = open_drawing(it)
    assert page.input_value("#prompt") == "A meadow."
    page.click("[data-tile=east]")
    assert page.input_value("#prompt") == "The shore." and "Other words" in text(it, "#hint")
    page.fill("#prompt", "The shore in fog.")
    assert "place of their own" in text(it, "#hint")
    page.click("[data-tile=north]")
    assert page.input_value("#prompt") == "The shore in fog.", "what somebody typed is not overwritten"
    page.fill("#prompt", "A meadow.")
    hello = press_play(it)
    assert (hello.scene, hello.prompt, hello.seed, hello.image) == ("north", None, None, None)


def test_somewhere_new_has_a_seed_that_can_be_seen_shared_and_changed(stage: Any) -> None:
    it = stage()
    it.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = open_drawing(it)
    assert page.input_value("#seed") == "" and page.is_checked("[value=north]")
    page.click("[data-tile=':new']")
    first, before = page.input_value("#seed"), backdrop(it)
    assert first.isdecimal() and page.input_value("#prompt") == ""
    page.click("[data-tile=east]")
    assert page.input_value("#seed") == "", "a scene needs none"
    page.click("[data-tile=':new']")
    assert page.input_value("#seed") == first
    page.fill("#seed", "77")
    assert backdrop(it) != before, "another seed is another place"
    page.click("#share")
    it.see("document.getElementById('hint').textContent === 'Link copied.'")
    assert page.evaluate("navigator.clipboard.readText()") == f"{it.origin}/?seed=77"
    page.fill("#seed", "")
    page.click("#dice")
    seed = int(page.input_value("#seed"))
    hello = press_play(it)
    assert (hello.scene, hello.prompt, hello.seed) == (None, None, seed)


def test_a_link_to_a_seed_leads_somewhere_new(stage: Any) -> None:
    it = stage()
    page = open_drawing(it, "?seed=77&prompt=dunes")
    assert page.is_checked("[value=':new']")
    hello = press_play(it)
    assert (hello.scene, hello.prompt, hello.seed) == (None, "dunes", 77)
    other = stage()
    other.open("?seed=77").wait_for_selector("#own")
    assert other.page.locator("[data-tile=':new']").count() == 0, "this world does not draw"
    assert press_play(other).scene == "north"


@pytest.mark.parametrize("size, sent", [((1600, 900), (224, 126)), ((2000, 256), (224, 128)), ((100, 200), (100, 57))])
def test_a_picture_of_ones_own_is_fitted_here_and_sent(
    stage: Any, h264: list[Any], size: tuple[int, int], sent: tuple[int, int]
) -> None:
    it = stage()
    page = open_drawing(it)
    page.set_input_files("#own-file", photo(*size))
    page.wait_for_selector("[data-tile=':own']")
    assert page.is_checked("[value=':own']") and "holiday.jpg" in page.get_attribute("[data-tile=':own']", "title")
    assert np.abs(np.subtract(backdrop(it), (40, 160, 90))).max() < 12
    page.fill("#prompt", "a green sea")
    hello = press_play(it)
    assert (hello.scene, hello.prompt) == (None, "a green sea")
    (frame,) = av.CodecContext.create("mjpeg", "r").decode(av.Packet(hello.image))
    assert abs(frame.width - sent[0]) <= 1 and abs(frame.height - sent[1]) <= 2
    image = read_image(hello.image, 224, 128)
    assert np.abs(image.reshape(-1, 3).mean(axis=0) - (40, 160, 90)).max() < 6
    it.lines[0].frames(h264, 0, 4)
    it.wait("m.state === 'playing'")
    it.page.keyboard.press("Escape")
    page.click("#leave")
    page.click("#card-primary")
    it.until(lambda: len(it.lines) == 2 and it.lines[1].received)
    assert it.lines[1].of(protocol.Hello)[0].image == hello.image, "there again"


def test_a_picture_can_be_dropped_and_another_one_opened(stage: Any) -> None:
    it = stage()
    page = open_drawing(it)
    drag = """([kind, bytes]) => {
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([new Uint8Array(bytes)], 'dropped.jpg', { type: 'image/jpeg' }));
      const event = new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true });
      document.body.dispatchEvent(event);
      return event.defaultPrevented;
    }"""
    file = list(photo(64, 64)["buffer"])
    assert page.evaluate(drag, ["dragover", file])
    assert page.evaluate("document.body.hasAttribute('data-drop')")
    assert page.evaluate(drag, ["drop", file]), "the browser must not leave the page for it"
    page.wait_for_selector("[data-tile=':own'][title='dropped.jpg']")
    assert not page.evaluate("document.body.hasAttribute('data-drop')")
    page.set_input_files("#own-file", photo(32, 32))
    page.wait_for_selector("[data-tile=':own'][title='holiday.jpg']")
    assert page.locator("[data-tile=':own']").count() == 1
    page.click("[data-tile=east]")
    assert press_play(it).image is None


def test_a_file_that_is_no_picture_is_said_and_changes_nothing(stage: Any) -> None:
    it = stage()
    page = open_drawing(it)
    page.set_input_files("#own-file", {"name": "a.txt", "mimeType": "image/png", "buffer": b"not a picture"})
    it.see("/cannot open that file/.test(document.getElementById('hint').textContent)")
    assert page.is_checked("[value=north]") and page.locator("[data-tile=':own']").count() == 0
    assert page.get_attribute("#hint", "role") == "status"


def test_after_a_picture_that_the_server_refused_there_is_another_choice(stage: Any) -> None:
    it = stage()
    it.on_hello = lambda line, hello: line.refuse("bad_image")
    open_drawing(it)
    press_play(it)
    it.wait("m.state === 'error'")
    it.page.click("#card-primary")
    it.wait("m.state === 'start'")


@pytest.mark.parametrize("renderer", ["2d", "webgl"])
def test_the_canvas_shows_the_frame_that_was_sent(stage: Any, look: Look, h264: list[Any], renderer: str) -> None:
    it = stage(448, 256)
    line = play(it, h264, f"?play=1&renderer={renderer}", last=8)
    assert it.page.evaluate("window.manyworlds.renderer") == {"2d": "2D canvas", "webgl": "WebGL"}[renderer]
    _, reading, _ = look(it.page)
    assert (reading.frame_index, reading.slot, reading.seed) == (8, 1, 4242)
    line.frames(h264, 9, 16)
    it.wait("m.painted.frame === 16")
    _, turned, _ = look(it.page)
    assert turned.frame_index == 16
    assert turned.yaw_deg == pytest.approx(reading.yaw_deg - 16, abs=4), "colours survive to a few degrees of hue"


def test_every_packet_is_acknowledged_with_the_slack_of_its_chunk(stage: Any, h264: list[Any]) -> None:
    it = stage()
    line = play(it, h264, last=12)
    acks = line.of(protocol.Ack)
    assert [ack.packet for ack in acks] == list(range(13))
    assert [ack.packet for ack in acks if ack.slack_ms is not None] == [5, 9], "the clock runs from chunk 1"
    assert not any(ack.hidden for ack in acks)
    line.frames(h264, 13, 60)
    it.until(lambda: line.of(protocol.Ack)[-1].packet == 60)
    assert it.page.evaluate("window.manyworlds.painted.frame") < 40, "waiting to be due delays no acknowledgement"


def test_a_decoder_that_is_behind_holds_acknowledgements_back(stage: Any, h264: list[Any]) -> None:
    it = stage()
    it.page.add_init_script("VideoDecoder.prototype.decode = () => {}")
    it.open("?play=1")
    it.until(lambda: it.lines and it.lines[0].received)
    line = it.lines[0]
    line.frames(h264, 0, 12)
    it.wait("m.stats.decoding > 8")
    line.frames(h264, 13, 16)
    it.wait("m.stats.received === 17")
    assert line.of(protocol.Ack)[-1].packet == 12


def test_a_gap_waits_for_a_keyframe_and_asks_for_it(stage: Any, look: Look, h264: list[Any]) -> None:
    it = stage()
    line = play(it, h264, last=4)
    line.packet += 1
    line.frames(h264, 6, 7)
    it.until(lambda: line.of(protocol.WantKeyframe))
    it.until(lambda: line.of(protocol.Ack)[-1].packet == 7)
    assert look(it.page)[1].frame_index == 4, "nothing that builds on a lost frame is painted"
    line.frames(h264, 8, 9)
    it.wait("m.painted.frame === 9")


def test_a_stream_that_cannot_be_decoded_asks_for_a_keyframe(stage: Any, h264: list[Any]) -> None:
    it = stage()
    line = play(it, h264, last=4)
    garbage = type(h264[0])(data=b"\x00\x00\x00\x01\x67garbage and more of it", key=True)
    line.frames([garbage] * 6, 5, 5)
    it.until(lambda: line.of(protocol.WantKeyframe))
    line.frames(h264, 0, 3)
    it.wait("m.painted.frame === 3")
    assert it.page.evaluate("window.manyworlds.stats.undecodable") >= 1


def test_without_a_secure_context_jpeg_plays_and_the_page_says_why(stage: Any, look: Look, jpeg: list[Any]) -> None:
    it = stage(secure=False)
    page = it.open()
    assert "https" in text(it, "#codec-note")
    page.click("#play")
    it.until(lambda: it.lines and it.lines[0].received)
    assert it.lines[0].of(protocol.Hello)[0].codecs == ("jpeg",)
    it.lines[0].frames(jpeg, 0, 8)
    it.wait("m.painted && m.painted.frame === 8")
    assert look(page)[1].frame_index == 8
    assert "JPEG" in page.evaluate("window.manyworlds.decoder")
    it.lines[0].packet += 3  # a hole: no JPEG needs another
    it.lines[0].frames(jpeg, 20, 20)
    it.wait("m.painted.frame === 20")
    assert not it.lines[0].of(protocol.WantKeyframe)


def test_the_address_can_ask_for_jpeg(stage: Any, jpeg: list[Any]) -> None:
    it = stage()
    play(it, jpeg, "?play=1&codec=jpeg&scene=east&seed=5", last=4)
    hello = it.lines[0].of(protocol.Hello)[0]
    assert (hello.codecs, hello.scene, hello.seed) == (("jpeg",), "east", 5)


def test_keys_become_controls_and_a_blurred_page_lets_go(stage: Any, h264: list[Any]) -> None:
    it = stage()
    line = play(it, h264, last=4)
    page = it.page
    page.keyboard.down("KeyW")
    page.keyboard.down("KeyJ")
    it.until(lambda: line.of(protocol.Control) and line.of(protocol.Control)[-1].axes == (1, 0, -1, 0))
    assert page.locator("#caps kbd.held").all_inner_texts() == ["W", "J"]
    page.evaluate("window.dispatchEvent(new Event('blur'))")
    it.until(lambda: line.of(protocol.Control)[-1].axes == (0, 0, 0, 0))
    controls = line.of(protocol.Control)
    assert [control.seq for control in controls] == list(range(1, len(controls) + 1))
    assert [control.t_ms for control in controls] == sorted(control.t_ms for control in controls)
    line.frames(h264, 5, 8, control_seq=controls[-1].seq)
    it.wait("m.stats.control_to_picture_ms > 0")


def test_dragging_looks_without_pointer_lock(stage: Any, h264: list[Any]) -> None:
    it = stage()
    it.page.add_init_script("Element.prototype.requestPointerLock = () => Promise.reject(new Error('refused'))")
    line = play(it, h264, last=4)
    it.page.mouse.move(600, 400)
    it.page.mouse.down()
    it.page.mouse.move(700, 350, steps=4)
    it.page.mouse.up()
    it.until(lambda: sum(control.look[0] for control in line.of(protocol.Control)) > 13.9)
    assert sum(control.look[1] for control in line.of(protocol.Control)) == pytest.approx(7.0)


def test_a_click_holds_the_mouse_and_a_lost_line_lets_it_go(stage: Any, h264: list[Any]) -> None:
    it = stage()
    line = play(it, h264, last=4)
    it.page.mouse.click(600, 400)
    it.see("document.pointerLockElement !== null")
    it.page.mouse.move(640, 400)
    it.until(lambda: any(control.look[0] > 0 for control in line.of(protocol.Control)))
    it.on_hello = lambda line, hello: None
    line.route.close(code=1011)
    it.wait("m.state === 'reconnecting'")
    it.see("document.pointerLockElement === null")


def test_a_hidden_page_lets_go_and_says_so(stage: Any, h264: list[Any]) -> None:
    it = stage()
    line = play(it, h264, last=4)
    it.page.keyboard.down("KeyD")
    it.until(lambda: line.of(protocol.Control) and line.of(protocol.Control)[-1].axes == (0, 1, 0, 0))
    hide = """(hidden) => {
      Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });
      document.dispatchEvent(new Event('visibilitychange'));
    }"""
    it.page.evaluate(hide, True)
    it.until(lambda: line.of(protocol.Control)[-1].axes == (0, 0, 0, 0))
    line.frames(h264, 5, 8)
    it.until(lambda: line.of(protocol.Ack)[-1].packet == 8)
    assert line.of(protocol.Ack)[-1].hidden and it.page.evaluate("window.manyworlds.painted.frame") == 4
    it.page.evaluate(hide, False)
    line.frames(h264, 9, 16)
    it.wait("m.painted.frame === 16")
    assert not line.of(protocol.Ack)[-1].hidden


def test_the_left_thumb_walks_and_the_right_one_looks(stage: Any, h264: list[Any]) -> None:
    it = stage(390, 844, has_touch=True, is_mobile=True)
    line = play(it, h264, last=4)
    touch = it.page.context.new_cdp_session(it.page)
    left, right = {"x": 100, "y": 600, "id": 1}, {"x": 300, "y": 600, "id": 2}
    touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [left, right]})
    moved = [left | {"y": 500}, right | {"x": 340}]
    touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": moved})
    it.until(lambda: line.of(protocol.Control) and line.of(protocol.Control)[-1].axes[0] == 1.0)
    it.until(lambda: sum(control.look[0] for control in line.of(protocol.Control)) > 0)
    assert it.page.locator("#touch").is_visible()
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    it.until(lambda: line.of(protocol.Control)[-1].axes == (0, 0, 0, 0))


def test_enter_says_a_prompt_and_its_effect_is_announced(stage: Any, h264: list[Any]) -> None:
    it = stage()
    line = play(it, h264, last=4)
    it.page.keyboard.press("Enter")
    it.page.keyboard.type("make it snow, wasd")
    it.page.keyboard.press("Enter")
    it.until(lambda: line.of(protocol.SetPrompt))
    assert line.of(protocol.SetPrompt)[0].text == "make it snow, wasd"
    assert all(control.axes == (0, 0, 0, 0) for control in line.of(protocol.Control)), "letters typed do not walk"
    line.say(protocol.Prompted(text="make it snow, wasd", chunk=2))
    it.see("document.getElementById('live').textContent === 'The world heard: make it snow, wasd'")
    line.refuse("bad_prompt")
    it.see("document.getElementById('toast').textContent.includes('did not understand')")
    assert it.page.evaluate("window.manyworlds.state") == "playing", "an error that is not fatal stops nothing"


def test_a_link_from_the_menu_keeps_the_words_the_world_grew_from(stage: Any, h264: list[Any]) -> None:
    it = stage()
    it.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    line = play(it, h264, last=4)
    line.say(protocol.Prompted(text="fog", chunk=2))
    it.see("document.getElementById('toast').textContent.includes('fog')")
    it.page.keyboard.press("Escape")
    it.page.click("#copy-link")
    it.see("document.getElementById('toast').textContent === 'Link copied'")
    assert it.page.evaluate("navigator.clipboard.readText()") == f"{it.origin}/?scene=north&seed=4242&prompt=a+meadow"
    kept = it.page.evaluate("JSON.parse(sessionStorage.getItem('manyworlds.session'))")
    assert kept == {"token": "t-17", "scene": "north", "prompt": "a meadow", "seed": 4242}


def test_numbers_are_live_and_trouble_has_badges(stage: Any, h264: list[Any]) -> None:
    it = stage()
    line = play(it, h264, last=4)
    line.stats()
    line.frames(h264, 5, 40)
    it.page.keyboard.press("F3")
    it.see("document.getElementById('panel').textContent.match(/Chunk143 ms/)")
    it.see("Number(document.getElementById('pill-fps').textContent) > 5")
    stats = it.page.evaluate("window.manyworlds.stats")
    assert stats["rtt_ms"] >= 0 and stats["kbps"] > 0
    panel = text(it, "#panel")
    assert "H.264" in panel and "s-17" in panel and "4242" in panel and "2 of 8" in panel
    assert it.page.locator(".badge").count() == 0
    line.stats(speed=0.7, bitrate_kbps=400, skipped=6)
    it.page.wait_for_selector("[data-badge=busy]")
    assert text(it, "[data-badge=busy]") == "The world runs at 70 %"
    assert "400 kbit/s" in text(it, "[data-badge=slow]") and "6 frames" in text(it, "[data-badge=slow]")


def test_a_broken_line_dims_the_picture_counts_down_and_resumes(stage: Any, look: Look, h264: list[Any]) -> None:
    it = stage()
    line = play(it, h264, last=4)
    it.page.keyboard.down("KeyW")
    it.until(lambda: line.of(protocol.Control))
    line.route.close(code=1011)
    it.wait("m.state === 'reconnecting'")
    it.see("/Trying/.test(document.getElementById('card-countdown').textContent)")
    assert it.page.locator("#picture").is_visible() and look(it.page)[1].frame_index == 4, "the last picture stays"
    it.until(lambda: len(it.lines) == 2 and it.lines[1].received)
    hello = it.lines[1].of(protocol.Hello)[0]
    assert (hello.token, hello.seed) == ("t-17", 4242)
    it.lines[1].frames(h264, 0, 4)
    it.wait("m.state === 'playing'")
    it.until(lambda: it.lines[1].of(protocol.Control))
    assert it.lines[1].of(protocol.Control)[-1].axes == (0, 0, 0, 0), "nothing is held that nobody holds"


def test_a_full_house_keeps_asking_and_lets_in(stage: Any, h264: list[Any]) -> None:
    it = stage()
    it.world["players"] = 8
    it.on_hello = lambda line, hello: line.refuse("full")
    it.open("?play=1")
    it.wait("m.state === 'full'")
    assert text(it, "#card-title") == "Every place is taken"
    it.see("/8 of 8/.test(document.getElementById('card-countdown').textContent)")
    it.on_hello = lambda line, hello: line.welcome()
    it.world["players"] = 7
    it.until(lambda: len(it.lines) == 2 and it.lines[1].received)
    it.lines[1].frames(h264, 0, 4)
    it.wait("m.state === 'playing'")


def test_warming_up_shows_progress_and_goes_in_by_itself(stage: Any, h264: list[Any]) -> None:
    it = stage()
    it.world |= {"ready": False, "progress": {"stage": "reading the weights", "share": 0.42}}
    page = it.open()
    it.see("/reading the weights/.test(document.getElementById('house-text').textContent)")
    page.click("#play")
    it.wait("m.state === 'warming'")
    it.see("document.getElementById('card-text').textContent === 'reading the weights, 42 %'")
    assert not it.lines, "nobody knocks before the world is ready"
    it.world["ready"] = True
    it.until(lambda: it.lines and it.lines[0].received)
    it.lines[0].frames(h264, 0, 4)
    it.wait("m.state === 'playing'")


@pytest.mark.parametrize("code", [code for code, (fatal, _) in protocol.ERRORS.items() if fatal])
def test_every_fatal_error_has_its_page(stage: Any, code: str) -> None:
    it = stage(390, 844)
    it.on_hello = lambda line, hello: line.refuse(code)
    it.open("?play=1")
    expected = {"full": "full", "not_real_time": "full", "not_ready": "warming"}
    expected |= {"replaced": "replaced", "shutting_down": "going_down"}
    it.wait(f"m.state === '{expected.get(code, 'error')}'")
    assert len(text(it, "#card-title")) > 8 and len(text(it, "#card-text")) > 20
    assert it.page.evaluate("document.activeElement.closest('#card') !== null"), "the keyboard is where the question is"
    assert text(it, "#card-title") in it.page.locator("#live").text_content()
    assert in_view(it) == []
    if code != "not_ready":
        it.page.click("#card summary")
        assert len(text(it, "#card-operator")) > 20


def test_replaced_stays_until_the_player_decides(stage: Any, h264: list[Any]) -> None:
    it = stage()
    line = play(it, h264, last=4)
    line.refuse("replaced")
    it.wait("m.state === 'replaced'")
    it.page.click("#card-primary")
    it.until(lambda: len(it.lines) == 2 and it.lines[1].received)
    assert it.lines[1].of(protocol.Hello)[0].token == "t-17"


def test_nobody_answers_and_then_somebody_does(stage: Any, h264: list[Any]) -> None:
    it = stage()
    it.world = None
    it.on_hello = lambda line, hello: line.route.close(code=1011)
    it.open("?play=1")
    it.wait("m.state === 'reconnecting'")
    assert text(it, "#card-title") == "Nobody answers"
    it.on_hello = lambda line, hello: (line.welcome(), line.frames(h264, 0, 4))
    it.page.click("#card-primary")
    it.wait("m.state === 'playing'")


def test_the_pause_menu_changes_the_picture_leaves_and_starts_anew(stage: Any, h264: list[Any]) -> None:
    it = stage()
    line = play(it, h264, last=4)
    it.page.keyboard.press("Escape")
    assert it.page.locator("#menu").is_visible()
    it.page.keyboard.press("KeyW")
    it.page.click("#scaling label:nth-of-type(3)")
    assert it.page.locator("#picture.pixels").count() == 1
    it.page.click("#leave")
    it.wait("m.state === 'ended'")
    it.until(lambda: line.of(protocol.Bye))
    assert all(control.axes == (0, 0, 0, 0) for control in line.of(protocol.Control))
    it.page.click("#card-primary")
    it.until(lambda: len(it.lines) == 2 and it.lines[1].received)
    hello = it.lines[1].of(protocol.Hello)[0]
    assert (hello.seed, hello.token) == (4242, None), "the same seed grows the same place"


@pytest.mark.parametrize("size", [(1280, 800), (390, 844), (844, 390)])
def test_everything_is_within_reach(stage: Any, h264: list[Any], size: tuple[int, int]) -> None:
    it = stage(*size, has_touch=size[0] < 1000)
    open_drawing(it)
    assert in_view(it) == []
    it.page.keyboard.press("Tab")
    order = []
    for _ in range(7):
        order.append(it.page.evaluate("document.activeElement.id || document.activeElement.name"))
        it.page.keyboard.press("Tab")
    assert order == ["scene", "own-file", "prompt", "seed", "dice", "share", "play"]
    it.page.set_input_files("#own-file", photo(64, 64))
    it.page.wait_for_selector("[data-tile=':own']")
    boxes = [tile.bounding_box() for tile in it.page.locator(".tile").all()]
    assert all(min(box["width"], box["height"]) >= 44 for box in boxes)
    assert it.page.locator("[data-tile=':own']").bounding_box()["x"] < size[0] - 44, "what is chosen is in view"
    play = it.page.locator("#play").bounding_box()
    assert play["y"] + play["height"] <= size[1], "Play is never below the fold"
    it.page.click("#play")
    it.until(lambda: it.lines and it.lines[0].received)
    it.lines[0].frames(h264, 0, 4)
    it.wait("m.state === 'playing'")
    it.page.click("#pill")
    assert it.page.locator("#panel").is_visible() and in_view(it) == []
    it.page.keyboard.press("Escape")
    assert in_view(it) == []


def test_motion_is_left_out_for_those_who_ask(stage: Any) -> None:
    it = stage()
    it.on_hello = lambda line, hello: None
    it.open("?play=1")
    it.wait("m.state === 'connecting'")
    assert it.page.evaluate("document.getAnimations().length") == 0
