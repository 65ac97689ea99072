"""Where the camera of a session goes: steering or recorded poses -> the poses of each chunk.

Latent frame i takes the pose of video frame 4i, the last one it decodes to. Both kinds of trajectory offer `take`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sessions.control import Control, ControlTrack, Hands, Segment, Steer
from world.chunk import TEMPORAL_STRIDE, Geometry
from world.motion import axes_planes, identity_pose, step_pose

ControlKind = Literal["axes", "poses"]

MOVE_UNITS_S = 0.8  # speed of a full axis: at 16 fps the 0.05 units a frame of the training keyboard
TURN_DEG_S = 32.0  # likewise 2 degrees a frame, for yaw and pitch
MAX_QUEUED_POSES = 1024
RIGID_TOLERANCE = 1e-2  # recorded poses are not perfectly orthonormal
MAX_DISTANCE_UNITS = 1e6  # from the origin of recorded poses


class PoseQueueFull(Exception):
    """More poses than the queue holds; the whole message was dropped."""


@dataclass(frozen=True, slots=True, eq=False)
class ChunkPath:
    """The camera of one chunk."""

    poses: NDArray[np.float32]  # [n, 4, 4], one a video frame
    row_poses: NDArray[np.float32]  # [f + 1, 4, 4], what `Row.poses` wants, the first one at the origin
    keys: NDArray[np.float32]  # [f, 4] w, a, s, d
    steer: Steer  # what it came from; no segments where nothing moves, or where poses do

    @property
    def control_seq(self) -> int:
        """The last control folded in, 0 if none."""
        return self.steer.control_seq


Numbers = tuple[float, ...]  # 16 of a pose, row by row


@dataclass(frozen=True, slots=True)
class Heading:
    """All that a trajectory is between two chunks, of either kind."""

    pose: Numbers | None  # where the camera is; None before the first pose that was sent
    control_seq: int
    hands: Hands | None = None  # where it is steered
    queue: tuple[tuple[int, Numbers], ...] = ()  # (seq, pose) that wait, where poses are sent
    last_seq: int = 0


class AxesTrajectory:
    """Poses integrated from what a player holds."""

    queued = 0

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._pose = identity_pose()
        self._control_seq = 0
        self.track = ControlTrack()

    @property
    def ready(self) -> bool:
        return True

    def steer(self, control: Control) -> None:
        self.track.put(control)

    def restart(self) -> None:
        """The player's page is gone or another one: let go of everything, stay where we are."""
        self.track.restart()
        self._control_seq = 0

    @property
    def heading(self) -> Heading:
        return Heading(_numbers(self._pose), self._control_seq, self.track.hands)

    def resume(self, heading: Heading, same_clock: bool) -> None:
        """Go on from there. ValueError if that is a heading of sent poses."""
        if heading.hands is None or heading.pose is None:
            raise ValueError("poses were sent there, nobody steered")
        self._pose = _matrix(heading.pose)
        self._control_seq = heading.control_seq if same_clock else 0
        self.track.hold(heading.hands, same_clock)

    def retrace(self, chunk_index: int, steer: Steer, poses: NDArray[np.float32]) -> None:
        """Move as a chunk did that was made before, whose poses [n, 4, 4] are known in float32."""
        if not np.array_equal(self._follow(chunk_index, steer).poses, poses):  # the game's feel was another
            self._pose = poses[-1].astype(np.float64)
        self._control_seq = steer.control_seq

    def take(self, chunk_index: int) -> ChunkPath:
        """The path of the next chunk; consumes the controls so far.

        The very first frame stands still at the identity. Where it is a whole chunk, controls wait for the next one.
        """
        steer = Steer((), (0.0, 0.0), self._control_seq)
        if moving := self._moving(chunk_index):
            steer = self.track.take(moving / self._geometry.fps)
            self._control_seq = steer.control_seq
        return self._follow(chunk_index, steer)

    def _moving(self, chunk_index: int) -> int:
        """Frames of a chunk in which the camera may move."""
        return self._geometry.video_frames(chunk_index) - (1 if chunk_index == 0 else 0)

    def _follow(self, chunk_index: int, steer: Steer) -> ChunkPath:
        moving, fps, before = self._moving(chunk_index), self._geometry.fps, self._pose
        first_frames = self._geometry.video_frames(chunk_index) - moving
        poses = [before] * first_frames
        planes = [np.zeros(4, np.float32)] * first_frames
        if moving:
            for axes in frame_axes(steer.segments, moving, fps):
                self._pose = step_pose(
                    self._pose,
                    axes[0] * MOVE_UNITS_S / fps,
                    axes[1] * MOVE_UNITS_S / fps,
                    axes[2] * TURN_DEG_S / fps + steer.look_deg[0] / moving,
                    axes[3] * TURN_DEG_S / fps + steer.look_deg[1] / moving,
                )
                poses.append(self._pose)
                planes.append(axes_planes(axes))
        return _path(before if chunk_index else None, np.stack(poses), np.stack(planes), steer)


class PoseTrajectory:
    """Poses that the client sends, one a video frame; the last one is held while none is queued."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._queue: deque[tuple[int, NDArray[np.float64]]] = deque()
        self._pose: NDArray[np.float64] | None = None
        self._control_seq = 0
        self._last_seq = 0
        self.dropped = 0  # messages over MAX_QUEUED_POSES

    @property
    def ready(self) -> bool:
        """A stream begins at its first pose, so there must be one."""
        return self._pose is not None or bool(self._queue)

    @property
    def queued(self) -> int:
        return len(self._queue)

    def extend(self, seq: int, poses: NDArray[np.float32]) -> None:
        """Append poses [n, 4, 4]. ValueError: not poses, or `seq` goes back. PoseQueueFull: too many wait."""
        if seq <= self._last_seq:
            raise ValueError(f"poses {seq} came after poses {self._last_seq}")
        check_poses(poses)
        if len(self._queue) + len(poses) > MAX_QUEUED_POSES:
            self.dropped += 1
            raise PoseQueueFull(f"{len(self._queue)} poses wait, {len(poses)} more would pass {MAX_QUEUED_POSES}")
        self._last_seq = seq
        exact = poses.astype(np.float64)
        exact[:, 3] = [0.0, 0.0, 0.0, 1.0]
        self._queue.extend((seq, pose) for pose in exact)

    def restart(self) -> None:
        """The player's page is gone or another one: forget what is queued, stay where we are."""
        self._queue.clear()
        self._control_seq = self._last_seq = 0

    @property
    def heading(self) -> Heading:
        queue = tuple((seq, _numbers(pose)) for seq, pose in self._queue)
        pose = None if self._pose is None else _numbers(self._pose)
        return Heading(pose, self._control_seq, None, queue, self._last_seq)

    def resume(self, heading: Heading, same_clock: bool) -> None:
        """Go on from there. ValueError if somebody steered there."""
        if heading.hands is not None:
            raise ValueError("somebody steered there, no poses were sent")
        self._pose = None if heading.pose is None else _matrix(heading.pose)
        self._queue = deque((seq, _matrix(pose)) for seq, pose in heading.queue)
        self._control_seq, self._last_seq = (heading.control_seq, heading.last_seq) if same_clock else (0, 0)

    def retrace(self, chunk_index: int, steer: Steer, poses: NDArray[np.float32]) -> None:
        """Move as a chunk did that was made before, whose poses [n, 4, 4] are known."""
        self._pose = poses[-1].astype(np.float64)
        self._control_seq = steer.control_seq

    def take(self, chunk_index: int) -> ChunkPath:
        """The path of the next chunk. Needs `ready`."""
        before = self._pose
        poses = []
        for _ in range(self._geometry.video_frames(chunk_index)):
            if self._queue:
                self._control_seq, self._pose = self._queue.popleft()
            poses.append(self._pose)
        planes = np.zeros((len(poses), 4), np.float32)
        return _path(before, np.array(poses), planes, Steer((), (0.0, 0.0), self._control_seq))


Trajectory = AxesTrajectory | PoseTrajectory


def new_trajectory(control: ControlKind, geometry: Geometry) -> Trajectory:
    return AxesTrajectory(geometry) if control == "axes" else PoseTrajectory(geometry)


def check_poses(poses: NDArray[np.float32]) -> None:
    """ValueError unless poses are [n, 4, 4] finite rigid camera-to-world matrices, n > 0."""
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0:
        raise ValueError(f"poses have the shape {poses.shape}, not [n, 4, 4]")
    if not np.all(np.isfinite(poses)):
        raise ValueError("a pose has a number that is not finite")
    turns = poses[:, :3, :3].astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        error = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max()
        rigid = error < RIGID_TOLERANCE and bool(np.all(np.linalg.det(turns) > 0))
    if np.abs(poses[:, :3, 3]).max() > MAX_DISTANCE_UNITS:
        raise ValueError(f"a pose is more than {MAX_DISTANCE_UNITS:.0f} units away")
    if not rigid or np.any(np.abs(poses[:, 3] - [0, 0, 0, 1]) > RIGID_TOLERANCE):
        raise ValueError("a pose is not a rigid camera-to-world matrix")


def frame_axes(segments: tuple[Segment, ...], num_frames: int, fps: int) -> NDArray[np.float64]:
    """Segments -> the mean axes [num_frames, 4] of each video frame."""
    ends_s = np.cumsum([0.0, *(segment.duration_s for segment in segments)])  # [s + 1]
    areas = np.array([[axis * segment.duration_s for axis in segment.axes] for segment in segments])
    sums = np.vstack([np.zeros(4), np.cumsum(areas, axis=0)])  # [s + 1, 4] axis x seconds so far
    edges_s = np.arange(num_frames + 1) / fps
    reached = np.stack([np.interp(edges_s, ends_s, column) for column in sums.T], axis=1)  # [num_frames + 1, 4]
    return np.diff(reached, axis=0) * fps


def _numbers(pose: NDArray[np.float64]) -> Numbers:
    return tuple(map(float, pose.ravel()))


def _matrix(numbers: Numbers) -> NDArray[np.float64]:
    """ValueError unless there are 16."""
    return np.array(numbers, np.float64).reshape(4, 4)


def _path(
    before: NDArray[np.float64] | None, poses: NDArray[np.float64], planes: NDArray[np.float32], steer: Steer
) -> ChunkPath:
    """`before`: the pose of the video frame before the chunk, None for the first. A chunk ends with a latent frame."""
    last = slice((len(poses) - 1) % TEMPORAL_STRIDE, None, TEMPORAL_STRIDE)  # of every latent frame
    latents = poses[last]  # [f, 4, 4]
    rows = np.concatenate([latents[:1] if before is None else before[None], latents])  # [f + 1, 4, 4]
    # Only relative motion counts for a world, and float32 has no room for a long walk: start every row at the origin.
    rows[:, :3, 3] -= rows[0, :3, 3].copy()
    held = [planes[max(0, end - TEMPORAL_STRIDE + 1) : end + 1].max(axis=0) for end in range(last.start, len(poses), 4)]
    return ChunkPath(poses.astype(np.float32), rows.astype(np.float32), np.stack(held), steer)
