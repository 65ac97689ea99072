"""A world without a model: test pictures that say what they are, and a strict check of whoever calls it. numpy only.

Top half of a picture: 12 bytes as 6 rows x 16 columns of cells, 1 white and 0 black, highest bit first, left to right
and downwards. Cell (r, c) has its centre at x = (c + 0.5) W / 16, y = (r + 0.5) H / 12 and holds bit 7 - c % 8 of byte
2 r + floor(c / 8), so a browser reads it from a canvas of any size by sampling 96 pixels.

    byte   0     1-3           4      5-7           8-9                  10                     11
           0xA5  frame index   slot   chunk index   seed (low 16 bits)   prompt (CRC-32 & 255)  sum of 0-10, mod 256

Numbers are big-endian. Bottom half: a panorama, 90 degrees wide, of stripes 15 degrees apart under a horizon that sinks
when the camera looks up. Its hue is its bearing (U = 128 + 40 cos b, V = 128 + 40 sin b), so the heading can be read
from the middle column, and it moves right when the camera turns left.
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from world.chunk import (
    DIGEST_BYTES,
    TEMPORAL_STRIDE,
    DrawStart,
    Geometry,
    Identity,
    Picture,
    Prompt,
    Report,
    Row,
    Scene,
    SlotState,
    Start,
    Stored,
)
from world.motion import pitch_deg, yaw_deg

CELL_ROWS, CELL_COLUMNS = 6, 16
MAGIC = 0xA5
FIELD_OF_VIEW_DEG = 90.0
STRIPE_DEG = 15.0
CHROMA = 40.0
BLACK, WHITE = 16, 235
DEFAULT_GEOMETRY = Geometry(width=224, height=128, fps=16, chunk_frames=1)


class Misuse(AssertionError):
    """A caller broke the contract of a world; the message says which rule."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a test picture says of itself."""

    frame_index: int
    slot: int
    chunk_index: int
    seed: int  # low 16 bits
    prompt: int  # prompt_mark of the prompt in force
    yaw_deg: float  # heading, to a few degrees after compression


@dataclass(frozen=True, slots=True)
class _Image:
    """What `prepare_image` made of a start picture."""

    width: int
    height: int
    digest: bytes  # of its pixels


@dataclass(slots=True)
class _Stream:
    """One open slot: where its caller must go on."""

    seed: int
    prompt: Prompt
    history: bytes  # digest of everything that came so far, in place of latents
    chunk_index: int = 0
    step_index: int = 0
    poses: NDArray[np.float32] | None = None  # of the chunk under way, or of the last one


def prompt_mark(text: str) -> int:
    """The byte that stands for a prompt in a picture."""
    return zlib.crc32(text.encode("utf-8", "replace")) & 0xFF


class PatternWorld:
    """The `World` protocol over test pictures. `on_step` runs as a forward starts: a delay, a fault, a record."""

    name = "pattern"
    draw_start: DrawStart | None = None

    def __init__(
        self,
        geometry: Geometry = DEFAULT_GEOMETRY,
        num_slots: int = 8,
        num_steps: int = 4,
        max_rows: int = 8,
        on_step: Callable[[Sequence[Row]], None] | None = None,
    ) -> None:
        if geometry.width < 64 or geometry.height < 48:
            raise ValueError("a test picture needs at least 64x48 pixels")
        if not (1 <= num_slots <= 255 and num_steps >= 1 and max_rows >= 1):
            raise ValueError("a pattern world needs 1..255 slots, a step and a row")
        self.geometry = geometry
        self.num_slots = num_slots
        self.num_steps = num_steps
        self.max_rows = max_rows
        self.scenes = tuple(_scene(geometry, name, yaw) for name, yaw in (("north", 0.0), ("east", 90.0)))
        self._on_step = on_step
        self._streams: dict[int, _Stream] = {}

    @property
    def state_bytes(self) -> int:
        return DIGEST_BYTES + (self.geometry.chunk_frames + 1) * 4 * 4 * 4

    def identify(self, report: Report) -> Identity:
        return Identity("none", "none", f"{self.geometry}, {self.num_steps} steps", {})

    def check(self) -> None:
        """Nothing of it can be gone."""

    def prewarm(self, report: Report) -> None:
        report("warming up", 1.0)

    def encode_prompt(self, text: str) -> Prompt:
        return Prompt(text, ("pattern", text))

    def prepare_image(self, image: NDArray[np.uint8]) -> _Image:
        _require(image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8, "an image is uint8 [h, w, 3]")
        return _Image(image.shape[1], image.shape[0], _digest(image.tobytes()))

    def digest(self, prepared: _Image | tuple[str, str]) -> bytes:
        return _digest(repr(prepared).encode())

    def open(self, slot: int, start: Start) -> None:
        _require(1 <= slot <= self.num_slots, f"slot {slot} is not one of 1..{self.num_slots}")
        _require(slot not in self._streams, f"slot {slot} is open already")
        _require(0 <= start.seed < 2**53, f"seed {start.seed} is outside 0..2**53")
        _require(isinstance(start.image, _Image), "the start image did not come from prepare_image")
        _require(np.shape(start.intrinsics) == (4,) and bool(np.all(np.isfinite(start.intrinsics))), "bad intrinsics")
        _require(math.isfinite(start.scale) and start.scale > 0, f"scale {start.scale} is not positive")
        _require_prompt(start.prompt)
        camera = np.array(start.intrinsics, "<f4").tobytes() + np.array(start.scale, "<f8").tobytes()
        history = _digest(f"{start.seed} {start.image} {start.prompt.text}".encode() + camera)
        self._streams[slot] = _Stream(start.seed, start.prompt, history)

    def close(self, slot: int) -> None:
        _require(slot in self._streams, f"slot {slot} is closed, but is not open")
        del self._streams[slot]

    def export(self, slot: int) -> SlotState:
        _require(slot in self._streams, f"slot {slot} is exported, but is not open")
        stream = self._streams[slot]
        _require(stream.step_index == 0, f"slot {slot} is exported in the middle of a chunk")
        poses = np.zeros((0, 4, 4), np.float32) if stream.poses is None else stream.poses
        tensors = {
            "history": Stored("U8", (DIGEST_BYTES,), np.frombuffer(stream.history, np.uint8)),
            "poses": Stored("F32", poses.shape, np.frombuffer(poses.astype("<f4").tobytes(), np.uint8)),
        }
        facts = {"seed": stream.seed, "prompt": stream.prompt.text, "chunk_index": stream.chunk_index}
        return SlotState(tensors, facts)

    def restore(self, slot: int, state: SlotState) -> None:
        _require(1 <= slot <= self.num_slots, f"slot {slot} is not one of 1..{self.num_slots}")
        try:
            history, poses = state.tensors["history"].data.tobytes(), state.tensors["poses"]
            path = np.frombuffer(poses.data.tobytes(), "<f4").reshape(poses.shape)
            seed, chunk_index = int(state.facts["seed"]), int(state.facts["chunk_index"])
            prompt = self.encode_prompt(str(state.facts["prompt"]))
        except (KeyError, TypeError) as fault:
            raise ValueError(f"the state of a slot cannot be read: {fault}") from None
        if len(history) != DIGEST_BYTES or path.shape[:1] not in ((0,), (self.geometry.chunk_frames + 1,)):
            raise ValueError("this is not the state of a slot of this world")
        self._streams[slot] = _Stream(seed, prompt, history, chunk_index, 0, path.copy() if len(path) else None)

    def step(self, rows: Sequence[Row]) -> Sequence[Picture]:
        """One forward; `Misuse` if the rows break a rule, and then nothing has moved."""
        _require(1 <= len(rows) <= self.max_rows, f"a forward of {len(rows)} rows, of 1..{self.max_rows}")
        _require(len({row.slot for row in rows}) == len(rows), "a forward has two rows of one slot")
        for row in rows:
            self._check(row)
        if self._on_step is not None:
            self._on_step(rows)
        return [picture for row in rows if (picture := self._advance(row)) is not None]

    def _check(self, row: Row) -> None:
        _require(row.slot in self._streams, f"slot {row.slot} has a row, but is not open")
        stream = self._streams[row.slot]
        where, due = (row.chunk_index, row.step_index), (stream.chunk_index, stream.step_index)
        _require(where == due, f"slot {row.slot} is at (chunk, step) {due}, but its row is for {where}")
        f = self.geometry.chunk_frames
        _require(row.poses.shape == (f + 1, 4, 4), f"poses are {row.poses.shape}, not {(f + 1, 4, 4)}")
        _require(row.poses.dtype == np.float32, f"poses are {row.poses.dtype}, not float32")
        _require(bool(np.all(np.isfinite(row.poses))), "a pose is not finite")
        turns = row.poses[:, :3, :3]
        rigid = np.allclose(turns @ turns.transpose(0, 2, 1), np.eye(3), atol=2e-2)
        _require(rigid and bool(np.all(row.poses[:, 3] == [0, 0, 0, 1])), "a pose is not a rigid matrix")
        _require(row.keys.shape == (f, 4), f"keys are {row.keys.shape}, not {(f, 4)}")
        _require(bool(np.all((row.keys == 0) | (row.keys == 1))), "keys are 0 or 1")
        if row.prompt is not None:
            _require_prompt(row.prompt)
        if stream.poses is None:
            _require(np.array_equal(row.poses[0], row.poses[1]), "poses[0] and [1] of a first chunk differ")
        elif row.step_index > 0:
            _require(np.array_equal(row.poses, stream.poses), "the poses changed in the middle of a chunk")
        else:  # only relative motion counts, so the position may have another origin
            joined = np.allclose(row.poses[0, :3, :3], stream.poses[-1, :3, :3], atol=1e-4)
            _require(joined, "poses[0] does not look where the chunk before ended")

    def _advance(self, row: Row) -> Picture | None:
        stream = self._streams[row.slot]
        if row.step_index == 0:
            stream.poses = row.poses.copy()
            stream.prompt = row.prompt or stream.prompt
            said = "" if row.prompt is None else row.prompt.text
            stream.history = _digest(stream.history + row.poses.tobytes() + row.keys.tobytes() + said.encode())
        stream.step_index += 1
        if row.step_index == self.num_steps - 1:
            return self._draw(row, stream)
        if row.step_index == self.num_steps:
            stream.chunk_index, stream.step_index = row.chunk_index + 1, 0
        return None

    def _draw(self, row: Row, stream: _Stream) -> Picture:
        first, mark = self.geometry.first_video_frame(row.chunk_index), prompt_mark(stream.prompt.text)
        frames = [
            draw_pattern(self.geometry, Reading(first + i, row.slot, row.chunk_index, stream.seed, mark, yaw), pitch)
            for i, (yaw, pitch) in enumerate(frame_views(row.poses, row.chunk_index))
        ]
        means = np.zeros(self.geometry.latent_channels, np.float32)
        return Picture(row.slot, row.chunk_index, np.stack(frames), stream.history, means)


def frame_views(poses: NDArray[np.float32], chunk_index: int) -> list[tuple[float, float]]:
    """Latent poses [f + 1, 4, 4] -> (yaw, pitch) in degrees of every video frame, turning evenly between them."""
    views: list[tuple[float, float]] = []
    for i in range(len(poses) - 1):
        before, after = poses[i], poses[i + 1]
        turn = (yaw_deg(after) - yaw_deg(before) + 180.0) % 360.0 - 180.0
        rise = pitch_deg(after) - pitch_deg(before)
        shares = [1.0] if chunk_index == 0 and i == 0 else [k / TEMPORAL_STRIDE for k in range(1, TEMPORAL_STRIDE + 1)]
        views += [(yaw_deg(before) + turn * share, pitch_deg(before) + rise * share) for share in shares]
    return views


def draw_pattern(geometry: Geometry, says: Reading, pitch: float = 0.0) -> NDArray[np.uint8]:
    """One test picture, I420 limited range [H * 3 // 2, W]; `pitch` in degrees."""
    width, height = geometry.width, geometry.height
    numbers = _big(says.frame_index, 3) + _big(says.slot, 1) + _big(says.chunk_index, 3) + _big(says.seed, 2)
    code = bytes([MAGIC, *numbers, says.prompt])
    bits = np.unpackbits(np.frombuffer(code + bytes([sum(code) % 256]), np.uint8)).reshape(CELL_ROWS, CELL_COLUMNS)
    cells = np.where(bits, WHITE, BLACK).astype(np.uint8)
    half = height // 2
    luma = np.empty((height, width), np.uint8)
    luma[:half] = cells[np.arange(half)[:, None] * CELL_ROWS // half, np.arange(width) * CELL_COLUMNS // width]
    bearing = says.yaw_deg + ((np.arange(width) + 0.5) / width - 0.5) * FIELD_OF_VIEW_DEG  # [W]
    stripe = np.floor(bearing / STRIPE_DEG) % 2
    depth = (np.arange(height - half) + 0.5) / (height - half) - 0.5  # [H / 2] down from the middle
    sky = depth < pitch / 180.0
    luma[half:] = 96 + 32 * stripe + 32 * sky[:, None]
    angle = np.radians(bearing.reshape(-1, 2).mean(axis=1))  # [W / 2]
    chroma = np.full((2, height // 2, width // 2), 128, np.uint8)
    chroma[0, half // 2 :] = np.rint(128 + CHROMA * np.cos(angle))
    chroma[1, half // 2 :] = np.rint(128 + CHROMA * np.sin(angle))
    return np.concatenate([luma.ravel(), chroma.ravel()]).reshape(height * 3 // 2, width)


def read_pattern(picture: NDArray[np.uint8]) -> Reading:
    """A test picture, I420 [H * 3 // 2, W] or RGB [H, W, 3] of any size, -> what it says; ValueError if unreadable."""
    if picture.ndim == 3:
        rgb = picture.astype(np.float32)
        luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)  # [H, W]
        view = slice(picture.shape[0] * 5 // 8, picture.shape[0] * 7 // 8)
        u, v = 0.564 * (rgb[view, :, 2] - luma[view]), 0.713 * (rgb[view, :, 0] - luma[view])  # [H / 4, W]
    else:
        height, width = picture.shape[0] * 2 // 3, picture.shape[1]
        luma = picture[:height].astype(np.float32)
        planes = picture[height:].reshape(2, height // 2, width // 2).astype(np.float32) - 128
        u, v = planes[:, height * 5 // 16 : height * 7 // 16]  # [H / 8, W / 2]
    code = _read_cells(luma)
    if code[0] != MAGIC or sum(code[:11]) % 256 != code[11]:
        raise ValueError("this is no test picture, or it is too damaged to read")
    middle = slice(u.shape[1] * 7 // 16, u.shape[1] * 9 // 16)
    yaw = math.degrees(math.atan2(v[:, middle].mean(), u[:, middle].mean()))
    number = int.from_bytes
    return Reading(
        number(code[1:4], "big"), code[4], number(code[5:8], "big"), number(code[8:10], "big"), code[10], yaw
    )


def _read_cells(luma: NDArray[np.float32]) -> bytes:
    """The 12 bytes of the top half, each cell by the mean of its middle."""
    cell_h, cell_w = luma.shape[0] / 2 / CELL_ROWS, luma.shape[1] / CELL_COLUMNS
    bits = np.zeros((CELL_ROWS, CELL_COLUMNS), np.uint8)
    for r, c in np.ndindex(bits.shape):
        y0, y1 = int((r + 0.3) * cell_h), math.ceil((r + 0.7) * cell_h)
        x0, x1 = int((c + 0.3) * cell_w), math.ceil((c + 0.7) * cell_w)
        bits[r, c] = luma[y0:y1, x0:x1].mean() > (BLACK + WHITE) / 2
    code: bytes = np.packbits(bits).tobytes()
    return code


def _scene(geometry: Geometry, name: str, yaw: float) -> Scene:
    """A start picture without a code: the panorama's colours looking one way."""
    bearing = np.radians(yaw + (np.arange(geometry.width) / geometry.width - 0.5) * FIELD_OF_VIEW_DEG)
    line = 128 + 100 * np.stack([np.cos(bearing), np.sin(bearing), -np.cos(bearing)], axis=1)  # [W, 3]
    image = np.broadcast_to(line.astype(np.uint8), (geometry.height, geometry.width, 3)).copy()
    focal = geometry.width / 2  # 90 degrees wide
    intrinsics = np.array([focal, focal, geometry.width / 2, geometry.height / 2], np.float32)
    return Scene(name, f"Test pattern, {name}", f"A test pattern looking {name}.", image, intrinsics)


def _big(number: int, size: int) -> bytes:
    return (number & ((1 << 8 * size) - 1)).to_bytes(size, "big")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise Misuse(rule)


def _require_prompt(prompt: Prompt) -> None:
    _require(prompt.encoded == ("pattern", prompt.text), "a prompt did not come from encode_prompt")
