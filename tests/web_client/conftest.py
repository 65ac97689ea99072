"""The page in a headless Chromium: its files from disk, and the test itself at the other end of the WebSocket."""

from __future__ import annotations

import base64
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from gameserver import protocol
from gameserver.encoder import Encoder, H264Encoder, JpegEncoder, encode_still
from world.pattern import DEFAULT_GEOMETRY, Reading, draw_pattern, prompt_mark, read_pattern

CLIENT = Path(__file__).parents[2] / "web_client"
ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP manyworlds.test 127.0.0.1",  # a name that is no secure context
]  # fmt: skip

LOOK = """() => {
  const canvas = document.getElementById('picture');
  const copy = new OffscreenCanvas(224, 128).getContext('2d');
  copy.drawImage(canvas, 0, 0, 224, 128);
  const { painted, stats, session } = window.manyworlds;
  const pixels = Array.from(copy.getImageData(0, 0, 224, 128).data, (byte) => String.fromCharCode(byte)).join('');
  return { painted, stats, session, pixels: btoa(pixels) };
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no chromium on PATH, and CI must run the browser tests")
        pytest.skip("no chromium on PATH: the browser tests need one")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


class PageFiles(SimpleHTTPRequestHandler):
    """The client's files under the strictest policy they promise to live with."""

    extensions_map: ClassVar = {
        ".js": "text/javascript",
        ".css": "text/css",
        ".svg": "image/svg+xml",
        ".html": "text/html",
    }
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, directory=str(CLIENT))

    def end_headers(self) -> None:
        self.send_header("Content-Security-Policy", "default-src 'self'")
        super().end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def site() -> Iterator[int]:
    """A port of this machine that has the page's files and nothing else."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), PageFiles)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def new_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages of a given size; one that threw an error fails its test."""
    contexts, faults = [], []

    def open_page(width: int = 1280, height: int = 800, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda fault: faults.append(str(fault)))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults, faults


class Line:
    """One WebSocket, seen from the server's side."""

    def __init__(self, route: Any, stage: Stage) -> None:
        self.route = route
        self.received: list[Any] = []
        self.packet = 0
        route.on_message(lambda data: self._receive(data, stage))

    def _receive(self, data: bytes, stage: Stage) -> None:
        # whatever the page sends must be of the protocol
        message = protocol.decode_client(data, protocol.MAX_TRANSPORT_BYTES)
        self.received.append(message)
        if isinstance(message, protocol.Hello):
            stage.on_hello(self, message)
        elif isinstance(message, protocol.Ping):
            self.say(protocol.Pong(t_ms=message.t_ms))

    def say(self, message: Any) -> None:
        self.route.send(msgspec.msgpack.encode(message))

    def of(self, kind: type) -> list[Any]:
        return [message for message in self.received if isinstance(message, kind)]

    def welcome(self, **fields: Any) -> None:
        self.say(
            protocol.Welcome(
                **{
                    "version": 1, "session": "s-17", "token": "t-17", "resumed": False, "world": "pattern",
                    "scene": "north", "prompt": "a meadow", "seed": 4242, "width": 224, "height": 128, "fps": 16,
                    "chunk_frames": 4, "first_chunk_frames": 1, "codec": "h264", "control": "axes", "players": 2,
                    "capacity": 8,
                }
                | fields
            )
        )  # fmt: skip

    def frames(self, encoded: list[Any], first: int, last: int, control_seq: int = 0) -> None:
        """Frames `first` to `last` of a stream whose first chunk has one frame and the others four."""
        for frame in range(first, last + 1):
            self.say(
                protocol.Frame(
                    packet=self.packet, frame=frame, chunk=(frame + 3) // 4, key=encoded[frame].key,
                    control_seq=control_seq, pose=np.eye(4, dtype="<f4").tobytes(), data=encoded[frame].data,
                )
            )  # fmt: skip
            self.packet += 1

    def stats(self, **fields: Any) -> None:
        told = {
            "players": 2, "capacity": 8, "fps": 16.0, "chunk_ms": 143.0, "rows": 1.8, "speed": 1.0, "kbps": 610.0,
            "bitrate_kbps": 1000, "skipped": 0, "poses_queued": 0,
        } | fields  # fmt: skip
        self.say(protocol.Stats(**told))

    def refuse(self, code: str) -> None:
        self.say(protocol.Error(code=code, message=protocol.ERRORS[code][1], fatal=protocol.ERRORS[code][0]))
        if protocol.ERRORS[code][0]:
            self.route.close(code=1000)


class Stage:
    """A page of the client whose server is the test: `world` is /world.json, `on_hello` the welcome."""

    def __init__(self, page: Any, origin: str) -> None:
        self.page, self.origin = page, origin
        self.lines: list[Line] = []
        self.on_hello: Callable[[Line, protocol.Hello], None] = lambda line, hello: line.welcome(codec=hello.codecs[0])
        self.world: dict[str, Any] | None = {
            "name": "pattern", "version": "0", "ready": True, "progress": {"stage": "ready", "share": 1.0},
            "width": 224, "height": 128, "fps": 16, "players": 2, "capacity": 8,
            "scenes": [
                {"id": name, "title": title, "prompt": f"{title}.", "thumbnail": f"/scenes/{name}.jpg"}
                for name, title in (("north", "A meadow"), ("east", "The shore"))
            ],
        }  # fmt: skip
        self.thumbnail = encode_still(np.full((128, 224, 3), (70, 110, 90), np.uint8))
        page.route(
            "**/world.json", lambda route: route.abort() if self.world is None else route.fulfill(json=self.world)
        )
        page.route("**/scenes/*", lambda route: route.fulfill(body=self.thumbnail, content_type="image/jpeg"))
        page.route_web_socket("**/play", lambda route: self.lines.append(Line(route, self)))

    def open(self, query: str = "") -> Any:
        self.page.goto(f"{self.origin}/{query}")
        return self.page

    def wait(self, condition: str, **arguments: Any) -> None:
        """Until a JavaScript expression over the page's snapshot `m` holds."""
        self.page.wait_for_function(f"() => {{ const m = window.manyworlds; return m && ({condition}); }}", **arguments)

    def see(self, condition: str) -> None:
        """Until a JavaScript expression holds (a function: the page's policy forbids evaluating strings)."""
        self.page.wait_for_function(f"() => {condition}")

    def until(self, condition: Callable[[], Any]) -> None:
        """Until something has come over the WebSocket."""
        for _ in range(600):
            if condition():
                return
            self.page.evaluate("() => new Promise(requestAnimationFrame)")
        pytest.fail("it did not come")


@pytest.fixture
def stage(new_page: Callable[..., Any], site: int) -> Callable[..., Stage]:
    def build(width: int = 1280, height: int = 800, secure: bool = True, **options: Any) -> Stage:
        host = "localhost" if secure else "manyworlds.test"
        return Stage(new_page(width, height, **options), f"http://{host}:{site}")

    return build


@pytest.fixture(scope="session")
def look() -> Callable[[Any], tuple[dict[str, Any], Reading, NDArray[np.uint8]]]:
    """What a page says at one moment, and what its canvas shows at the same one: its reading and [128, 224, 3]."""

    def see(page: Any) -> tuple[dict[str, Any], Reading, NDArray[np.uint8]]:
        seen = page.evaluate(LOOK)
        picture = np.frombuffer(base64.b64decode(seen.pop("pixels")), np.uint8).reshape(128, 224, 4)[:, :, :3]
        return seen, read_pattern(picture), picture

    return see


def encode_stream(encoder: Encoder, frames: int) -> list[Any]:
    says = (Reading(n, 1, (n + 3) // 4, 4242, prompt_mark("a meadow"), -2.0 * n) for n in range(frames))
    return [encoder.encode(draw_pattern(DEFAULT_GEOMETRY, reading), key=n in (0, 8)) for n, reading in enumerate(says)]


@pytest.fixture(scope="session")
def h264() -> list[Any]:
    """Test pictures of a camera that turns left by 2 degrees a frame; keyframes are 0 and 8."""
    return encode_stream(H264Encoder(DEFAULT_GEOMETRY), 61)


@pytest.fixture(scope="session")
def jpeg() -> list[Any]:
    return encode_stream(JpegEncoder(DEFAULT_GEOMETRY), 61)
