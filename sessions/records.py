"""What a recording says: what a stream began from, what every chunk was made of, and digests of what came out.

A recording holds all that the bits depend on, so whoever has it, and the world's weights, can make them again.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from sessions.tick import Finished
from sessions.trajectory import ControlKind, check_poses
from world.chunk import DIGEST_BYTES, TEMPORAL_STRIDE, Geometry, Identity, Start, World

FORMAT = 1
POSE_BYTES = 64
INPUTS = ("control", "poses", "keys", "prompt")  # of a chunk, each with a digest of its own
INPUT_DIGEST_BYTES = 8

Index = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Digest = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
InputDigest = Annotated[bytes, Meta(min_length=INPUT_DIGEST_BYTES, max_length=INPUT_DIGEST_BYTES)]
Number = Annotated[float, Meta(ge=-1e15, le=1e15)]  # a range refuses NaN and infinities
Positive = Annotated[float, Meta(gt=0, le=1e15)]
MarkKind = Literal["join", "detach", "reconnect", "prompt", "save", "rewind", "fork", "recovered", "end"]
Held = tuple[Positive, tuple[Number, Number, Number, Number]]  # seconds, and the axes forward, right, turn, pitch


class Record(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True, omit_defaults=True
):
    pass


class StartPicture(msgspec.Struct, frozen=True, array_like=True):
    """A picture that no scene of the world has."""

    width: Annotated[int, Meta(ge=1, le=8192)]
    height: Annotated[int, Meta(ge=1, le=8192)]
    packed: bytes  # RGB rows, deflated (zlib)

    def unpack(self) -> NDArray[np.uint8]:
        """[h, w, 3]; ValueError if that is not what is in it."""
        size = self.height * self.width * 3
        try:
            pixels = zlib.decompressobj().decompress(self.packed, size + 1)
        except zlib.error as fault:
            raise ValueError(f"the start picture cannot be unpacked: {fault}") from None
        if len(pixels) != size:
            raise ValueError("the start picture has not the pixels that its size says")
        return np.frombuffer(pixels, np.uint8).reshape(self.height, self.width, 3).copy()  # one may write to it


class Header(Record, frozen=True, tag="header"):
    """The first record: everything a stream begins from, and what its bits depend on."""

    format: int  # FORMAT; nothing else is read of another one
    protocol: int  # version of the protocol that was spoken
    run: str  # of the server: recordings of one run count the same forwards
    session: str
    world: str
    weights: str  # as world.chunk.Identity says, and so the next three
    rounded: str
    config: str
    arithmetic: dict[str, str]
    width: Count  # of the stream's pictures, pixels
    height: Count
    fps: Count
    chunk_frames: Count  # latent frames in a chunk, f
    control: ControlKind
    scene: str  # id of the start scene
    picture_digest: Digest  # of the start picture's size and pixels
    prompt: str
    seed: Index
    intrinsics: Annotated[bytes, Meta(min_length=16, max_length=16)]  # float32 fx, fy, cx, cy
    scale: Positive
    prompt_digest: Digest  # of what the world made of the prompt
    image_digest: Digest  # of what the world made of the start picture
    picture: StartPicture | None = None  # absent: the scene's

    def __post_init__(self) -> None:
        if self.format == FORMAT:
            Geometry(self.width, self.height, self.fps, self.chunk_frames)
        camera = floats(self.intrinsics)
        if not np.isfinite(camera).all() or camera[:2].min() <= 0:
            raise ValueError("the intrinsics are not those of a camera")

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.width, self.height, self.fps, self.chunk_frames)


class Chunk(Record, frozen=True, tag="chunk"):
    """One chunk: its inputs as the world got them, and the digest of the latents that came of them."""

    chunk: Index
    segments: tuple[Held, ...]  # what was held, as applied; none where nothing moves or poses were sent
    look: tuple[Number, Number]  # degrees turned right and pitched up
    control_seq: Index
    poses: bytes  # float32 [n, 4, 4], one a video frame
    rows: bytes  # float32 [f + 1, 4, 4], as the world got them
    keys: bytes  # float32 [f, 4]
    inputs: tuple[InputDigest, InputDigest, InputDigest, InputDigest]  # of INPUTS
    digest: Digest  # of the latents
    means: bytes  # float32, of each latent channel
    forward: Index  # number of the forward of its first step, in the server's run
    company: Count  # rows in the forward of its last step
    prompt: str | None = None  # that took effect with this chunk

    def __post_init__(self) -> None:
        f, left = divmod(len(self.keys), 16)
        frames = len(self.poses) // POSE_BYTES
        if left or f == 0 or len(self.rows) != (f + 1) * POSE_BYTES or len(self.means) % 4:
            raise ValueError("the poses and keys of a chunk do not fit together")
        if len(self.poses) % POSE_BYTES or frames != TEMPORAL_STRIDE * f - (3 if self.chunk == 0 else 0):
            raise ValueError("a chunk has not a pose for every video frame")
        if not all(bool(np.isfinite(floats(part)).all()) for part in (self.poses, self.rows, self.keys)):
            raise ValueError("a pose is not finite")
        check_poses(self.row_poses)
        if not np.isin(self.key_planes, (0, 1)).all():
            raise ValueError("a key is neither held nor free")

    @property
    def row_poses(self) -> NDArray[np.float32]:
        return floats(self.rows).reshape(-1, 4, 4)

    @property
    def key_planes(self) -> NDArray[np.float32]:
        return floats(self.keys).reshape(-1, 4)

    @property
    def altered(self) -> tuple[str, ...]:
        """The inputs that are not what their digests were taken of."""
        now = input_digests(self.segments, self.look, self.control_seq, self.poses, self.rows, self.keys, self.prompt)
        return tuple(name for name, a, b in zip(INPUTS, self.inputs, now, strict=True) if a != b)


class Mark(Record, frozen=True, tag="mark"):
    """What happened between the chunks around it. `text`: the prompt asked for, the id of the save made or gone back
    to, the session that forked off, or why it ended."""

    kind: MarkKind
    text: str = ""


def floats(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4")


def picture_digest(image: NDArray[np.uint8]) -> bytes:
    """Of a start picture [h, w, 3], its size included."""
    return _blake2b(str(image.shape).encode() + image.tobytes(), DIGEST_BYTES)


def header_of(
    world: World, identity: Identity, start: Start, control: ControlKind, scene_id: str,
    picture: NDArray[np.uint8] | None, *, run: str, session: str, protocol: int,
) -> Header:  # fmt: skip
    """`picture` [h, w, 3]: what the stream started from, where that is not the scene's own. Takes milliseconds."""
    geometry = world.geometry
    image = scene_picture(world, scene_id) if picture is None else picture
    own = None if picture is None else StartPicture(image.shape[1], image.shape[0], zlib.compress(image.tobytes(), 1))
    return Header(
        format=FORMAT, protocol=protocol, run=run, session=session,
        world=world.name, weights=identity.weights, rounded=identity.rounded,
        config=identity.config, arithmetic=dict(identity.arithmetic),
        width=geometry.width, height=geometry.height, fps=geometry.fps, chunk_frames=geometry.chunk_frames,
        control=control, scene=scene_id, picture=own, picture_digest=picture_digest(image), prompt=start.prompt.text,
        seed=start.seed, intrinsics=_bytes(start.intrinsics), scale=start.scale,
        prompt_digest=world.digest(start.prompt.encoded), image_digest=world.digest(start.image),
    )  # fmt: skip


def chunk_of(finished: Finished) -> Chunk:
    path, picture = finished.path, finished.picture
    steer = path.steer
    segments = tuple((segment.duration_s, segment.axes) for segment in steer.segments)
    poses, rows, keys = _bytes(path.poses), _bytes(path.row_poses), _bytes(path.keys)
    prompt = None if finished.prompt is None else finished.prompt.text
    return Chunk(
        chunk=finished.chunk_index, segments=segments, look=steer.look_deg, control_seq=finished.control_seq,
        poses=poses, rows=rows, keys=keys, prompt=prompt,
        inputs=input_digests(segments, steer.look_deg, finished.control_seq, poses, rows, keys, prompt),
        digest=picture.digest, means=_bytes(picture.means), forward=finished.begin_forward, company=finished.company,
    )  # fmt: skip


def scene_picture(world: World, scene_id: str) -> NDArray[np.uint8]:
    """KeyError if the world has no such scene."""
    return {scene.id: scene.image for scene in world.scenes}[scene_id]


def input_digests(
    segments: tuple[Held, ...], look: tuple[float, float], control_seq: int,
    poses: bytes, rows: bytes, keys: bytes, prompt: str | None,
) -> tuple[bytes, bytes, bytes, bytes]:  # fmt: skip
    """One for each of INPUTS, so that a comparison can say which one is another."""
    numbers = [number for seconds, axes in segments for number in (seconds, *axes)]
    control = np.array([*numbers, *look, control_seq], "<f8").tobytes()
    said = b"" if prompt is None else b"=" + prompt.encode()
    control_digest, poses_digest, keys_digest, prompt_digest = (
        _blake2b(part, INPUT_DIGEST_BYTES) for part in (control, poses + rows, keys, said)
    )
    return control_digest, poses_digest, keys_digest, prompt_digest


def _bytes(numbers: NDArray[np.float32]) -> bytes:
    return np.asarray(numbers, "<f4").tobytes()


def _blake2b(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()
