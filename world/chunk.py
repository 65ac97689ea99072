"""The vocabulary every package shares: what a chunk, a row, a scene and a world are. numpy only, imports nobody.

Shapes use f = latent frames in a chunk, H x W = picture size, n = number of video frames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

TEMPORAL_STRIDE = 4  # video frames a latent frame decodes to (the first one: 1), Wan 2.1 VAE
SPATIAL_STRIDE = 8  # pixels a latent cell covers, Wan 2.1 VAE
PATCH = 2  # latent cells a token covers in each direction
DIGEST_BYTES = 16  # BLAKE2b

# Where several ranks have a model's weights. replicated: all of them on each. sharded: 1/P on each, a block's gathered
# for its forward and given back after it. gathered: sharded until they are first used, and kept whole from then on.
WeightLayout = Literal["replicated", "sharded", "gathered"]
WEIGHT_LAYOUTS: tuple[WeightLayout, ...] = ("replicated", "sharded", "gathered")

# In what the large linears of a model's blocks are kept and multiplied. native: in what its device serves all in.
# fp8: in 8 bits, the rest in bfloat16. fp8-kv: and in 8 bits too the keys and values that streams keep.
Precision = Literal["native", "fp8", "fp8-kv"]
PRECISIONS: tuple[Precision, ...] = ("native", "fp8", "fp8-kv")

Report = Callable[[str, float], None]  # (what is being done, share done in 0..1)


def spelled(dtype: str, precision: Precision) -> str:
    """A dtype and a precision as an arithmetic names them, such as bfloat16+fp8."""
    return dtype if precision == "native" else f"{dtype}+{precision}"


def precision_in(dtype: str) -> Precision:
    """That was spelled."""
    mark = dtype.partition("+")[2]
    return next((precision for precision in PRECISIONS if precision == mark), "native")


class WorldError(Exception):
    """A world cannot be loaded or used; the message is one sentence for a person, naming file and key."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Every size of a stream follows from these five numbers."""

    width: int  # pixels, a multiple of 16
    height: int  # pixels, a multiple of 16
    fps: int
    chunk_frames: int  # f
    latent_channels: int = 16

    def __post_init__(self) -> None:
        unit = SPATIAL_STRIDE * PATCH
        if self.width <= 0 or self.height <= 0 or self.width % unit or self.height % unit:
            raise ValueError(f"a picture of {self.width}x{self.height} does not divide into {unit}-pixel tokens")
        if self.fps <= 0 or self.chunk_frames <= 0:
            raise ValueError("fps and chunk_frames must be positive")

    @property
    def latent_width(self) -> int:
        return self.width // SPATIAL_STRIDE

    @property
    def latent_height(self) -> int:
        return self.height // SPATIAL_STRIDE

    @property
    def frame_tokens(self) -> int:
        """Tokens in one latent frame."""
        return (self.latent_width // PATCH) * (self.latent_height // PATCH)

    @property
    def chunk_tokens(self) -> int:
        return self.chunk_frames * self.frame_tokens

    def video_frames(self, chunk_index: int) -> int:
        """Video frames a chunk decodes to: 4f - 3 for the first (the VAE is causal), 4f after."""
        return TEMPORAL_STRIDE * self.chunk_frames - (TEMPORAL_STRIDE - 1 if chunk_index == 0 else 0)

    def first_video_frame(self, chunk_index: int) -> int:
        """Index in the stream of a chunk's first video frame."""
        return 0 if chunk_index == 0 else TEMPORAL_STRIDE * self.chunk_frames * chunk_index - (TEMPORAL_STRIDE - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A place a player can start from."""

    id: str
    title: str
    prompt: str
    image: NDArray[np.uint8]  # [H, W, 3] RGB
    intrinsics: NDArray[np.float32]  # [4] fx, fy, cx, cy in pixels of this picture
    scale: float = 0.2  # pose units that count as 1 for the model; a constant of the scene (model: max over a clip)

    def intrinsics_in(self, geometry: Geometry) -> NDArray[np.float32]:
        """[4], given for the scene's picture, in pixels of a stream."""
        height, width = self.image.shape[:2]
        across, down = geometry.width / width, geometry.height / height
        fx, fy, cx, cy = (float(value) for value in self.intrinsics)
        return np.array((fx * across, fy * down, cx * across, cy * down), np.float32)


DrawStart = Callable[[str, int], Scene]  # (prompt, seed) -> the place they ask for; "" leaves the words to the seed


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt and what the world's text encoder made of it (opaque outside the world)."""

    text: str
    encoded: Any


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """Everything a slot begins from. `image` is what the world made of the scene's picture (opaque outside it)."""

    seed: int  # 0 <= seed < 2**53, so that every client can hold it
    prompt: Prompt
    image: Any
    intrinsics: NDArray[np.float32]  # [4] in pixels of the geometry
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One player's part of one forward: step `step_index` of chunk `chunk_index`, in the player's own world.

    `step_index` counts the denoise steps from 0; `num_steps` is the commit. Camera and prompt are read at step 0.
    """

    slot: int
    chunk_index: int
    step_index: int
    poses: NDArray[np.float32]  # [f + 1, 4, 4] camera-to-world, OpenCV axes; [0] is the pose before the chunk
    keys: NDArray[np.float32]  # [f, 4] w, a, s, d as 0/1 (read by `act` checkpoints)
    prompt: Prompt | None = None  # a new prompt that takes effect with this chunk


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """The video frames of one finished chunk, as they leave the world: I420, BT.601 limited range."""

    slot: int
    chunk_index: int
    frames: NDArray[np.uint8]  # [n, H * 3 // 2, W]
    digest: bytes  # DIGEST_BYTES that stand for every bit of the latents; the slot and the company leave no trace in it
    means: NDArray[np.float32]  # [latent_channels] of the latents: what can be compared where bits must differ


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A tensor at rest, outside of any library."""

    dtype: str  # as safetensors names it: F32, BF16, U8 ...
    shape: tuple[int, ...]
    data: NDArray[np.uint8]  # [n] its bytes, little-endian, in C order


@dataclass(frozen=True, slots=True, eq=False)
class SlotState:
    """All that a stream is between two of its chunks: whoever has it goes on with the same bits, in any slot."""

    tensors: Mapping[str, Stored]
    facts: Mapping[str, Any]  # JSON

    @property
    def num_bytes(self) -> int:
        """Of the tensors."""
        return sum(stored.data.size for stored in self.tensors.values())


@dataclass(frozen=True, slots=True)
class Identity:
    """What the bits of a stream depend on beside its start and its rows: equal identities make equal bits."""

    weights: str  # digest of every weight, as it is served
    rounded: str  # of every weight in bfloat16: the same model in another dtype has the same one
    config: str  # sizes, window and schedule, as JSON
    arithmetic: Mapping[str, str]  # versions, instruction set, dtype, threads; empty: every machine computes the same


class World(Protocol):
    """What the game needs of a world. Slots count from 1: slot 0 is the padding row.

    `prepare_image`, `encode_prompt`, `draw_start` and `digest` may run on any thread, beside `step`; everything else
    belongs to one thread.
    """

    @property
    def name(self) -> str: ...
    @property
    def geometry(self) -> Geometry: ...
    @property
    def num_slots(self) -> int: ...
    @property
    def num_steps(self) -> int: ...
    @property
    def max_rows(self) -> int: ...
    @property
    def state_bytes(self) -> int:
        """Of the tensors of a state that `export` copies, but for the picture its stream began from."""

    @property
    def scenes(self) -> Sequence[Scene]: ...
    @property
    def draw_start(self) -> DrawStart | None:
        """A pure function of prompt and seed; None where the world can start from given pictures only."""

    def identify(self, report: Report) -> Identity:
        """Reads every weight the first time it is asked."""

    def prewarm(self, report: Report) -> None:
        """Run every shape that service uses, so that no player pays for the first."""

    def check(self) -> None:
        """WorldError, a sentence, if it cannot go on because a part of it is gone. Cheap: asked between ticks."""

    def encode_prompt(self, text: str) -> Prompt: ...

    def prepare_image(self, image: NDArray[np.uint8]) -> Any:
        """[h, w, 3] RGB of any size -> the conditioning of a stream that starts there."""

    def digest(self, prepared: Any) -> bytes:
        """DIGEST_BYTES that stand for what `prepare_image` made, or for the `encoded` of a prompt."""

    def open(self, slot: int, start: Start) -> None:
        """Clean a slot and begin a stream in it."""

    def close(self, slot: int) -> None:
        """Give a slot back; what it held is overwritten with NaN."""

    def export(self, slot: int) -> SlotState:
        """A copy of what an open slot holds. Between two chunks, when the last one's commit has run."""

    def restore(self, slot: int, state: SlotState) -> None:
        """Go on in a slot, open or not, where a state was exported. ValueError, and nothing changes, for a state that
        does not fit this world."""

    def step(self, rows: Sequence[Row]) -> Sequence[Picture]:
        """One forward over rows of different slots. A row whose last denoise step this was yields its Picture."""


def usual_start(world: World, seed: int = 0, scene: Scene | None = None) -> Start:
    """From a scene as it is, of none given the first."""
    scene = scene or world.scenes[0]
    prompt, image = world.encode_prompt(scene.prompt), world.prepare_image(scene.image)
    return Start(seed, prompt, image, scene.intrinsics_in(world.geometry), scene.scale)
