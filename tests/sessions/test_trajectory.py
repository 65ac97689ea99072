"""Paths are the published recurrence in real time, latent frames take the right pose, and queues are bounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sessions.control import Control, Segment
from sessions.trajectory import (
    MAX_QUEUED_POSES,
    AxesTrajectory,
    ChunkPath,
    PoseQueueFull,
    PoseTrajectory,
    check_poses,
    frame_axes,
)
from world.chunk import Geometry
from world.motion import key_axes, keyboard_poses, yaw_deg


def geometry(f: int) -> Geometry:
    return Geometry(64, 48, 16, f)


def steered(f: int, keys: str, chunks: int) -> list[ChunkPath]:
    trajectory = AxesTrajectory(geometry(f))
    trajectory.steer(Control(1, 0.0, key_axes(keys)))
    return [trajectory.take(i) for i in range(chunks)]


@pytest.mark.parametrize("f", [1, 3, 4])
@pytest.mark.parametrize("keys", ["w", "wd", "sjl", "ail", "wi"])
def test_held_keys_walk_the_published_poses(f: int, keys: str) -> None:
    paths = steered(f, keys, 5)
    poses = np.concatenate([path.poses for path in paths])
    assert len(poses) == 20 * f - 3
    expected = keyboard_poses(f"{keys}-{len(poses) - 1}")
    assert np.allclose(poses, expected, atol=1e-5)
    latents = expected[::4]
    for i, path in enumerate(paths):
        assert path.poses.dtype == path.row_poses.dtype == path.keys.dtype == np.float32
        assert path.row_poses.shape == (f + 1, 4, 4) and path.keys.shape == (f, 4)
        before = latents[max(0, i * f - 1)]
        wanted = np.concatenate([before[None], latents[i * f : (i + 1) * f]])
        assert np.allclose(np.linalg.inv(path.row_poses[0]) @ path.row_poses, np.linalg.inv(before) @ wanted, atol=1e-5)
        assert np.allclose(path.row_poses[:, :3, :3], wanted[:, :3, :3], atol=1e-6)


def test_keys_follow_the_axes() -> None:
    first, second = steered(1, "wa", 2)
    assert first.keys.tolist() == [[0, 0, 0, 0]]  # the first frame does not move
    assert second.keys.tolist() == [[1, 1, 0, 0]]
    trajectory = AxesTrajectory(geometry(1))
    trajectory.take(0)
    trajectory.steer(Control(1, 0.0, key_axes("d")))
    trajectory.steer(Control(2, 20.0, key_axes("")))
    assert trajectory.take(1).keys.tolist() == [[0, 0, 0, 1]]  # a tap shows as well


def test_controls_wait_while_the_first_chunk_is_one_still_frame() -> None:
    trajectory = AxesTrajectory(geometry(1))
    trajectory.steer(Control(1, 0.0, key_axes("l"), (8.0, 0.0)))
    trajectory.steer(Control(2, 50.0, key_axes("")))
    still = trajectory.take(0)
    assert np.array_equal(still.poses, np.eye(4)[None]) and still.control_seq == 0
    moved = trajectory.take(1)
    assert moved.control_seq == 2
    assert yaw_deg(moved.poses[-1]) == pytest.approx(8.0 + 32 * 0.05, abs=1e-4)


turns = st.lists(st.tuples(st.floats(-40, 40), st.sampled_from([-1.0, 0.0, 1.0]), st.integers(0, 3)), max_size=25)


@settings(max_examples=50, deadline=None)
@given(turns, st.sampled_from([1, 3]))
def test_the_angle_turned_is_the_angle_asked(schedule: list[tuple[float, float, int]], f: int) -> None:
    """(look, turn axis held, chunks played with it): looks and held turns both arrive in full."""
    trajectory = AxesTrajectory(geometry(f))
    trajectory.take(0)
    chunk, asked, turned, last = 1, 0.0, 0.0, 0.0
    for seq, (look, turn, chunks) in enumerate([*schedule, (0.0, 0.0, 1)], 1):
        trajectory.steer(Control(seq, seq * 1000.0, (0.0, 0.0, turn if chunks else 0.0, 0.0), (look, 0.0)))
        asked += look
        for _ in range(chunks):
            asked += turn * 32.0 * 4 * f / 16
            for pose in trajectory.take(chunk).poses:
                now = yaw_deg(pose)
                turned += (now - last + 180.0) % 360.0 - 180.0
                last = now
            chunk += 1
    turned_wrapped = (turned - asked + 180.0) % 360.0 - 180.0  # a look over 180 degrees a frame wraps
    assert turned_wrapped == pytest.approx(0.0, abs=1e-2)


def test_segments_are_averaged_over_each_frame() -> None:
    segments = (Segment(0.03125, (1.0, 0.0, 0.0, 0.0)), Segment(0.21875, (0.0, 0.0, -1.0, 0.0)))
    axes = frame_axes(segments, 4, 16)
    assert axes.tolist() == [[0.5, 0, -0.5, 0], [0, 0, -1, 0], [0, 0, -1, 0], [0, 0, -1, 0]]


def test_a_long_walk_keeps_its_step() -> None:
    trajectory = AxesTrajectory(geometry(1))
    trajectory._pose[:3, 3] = [3e6, 0, -7e6]
    trajectory.steer(Control(1, 0.0, key_axes("w")))
    trajectory.take(0)
    step = trajectory.take(1).row_poses
    assert np.array_equal(step[0, :3, 3], np.zeros(3))
    assert step[1, 2, 3] == pytest.approx(0.2, abs=1e-6)


def recorded(n: int) -> np.ndarray:
    poses = np.tile(np.eye(4, dtype=np.float32), (n, 1, 1))
    poses[:, 0, 3] = np.arange(5, n + 5)
    return poses


@pytest.mark.parametrize("f", [1, 3])
def test_recorded_poses_play_one_a_video_frame_and_the_last_is_held(f: int) -> None:
    trajectory = PoseTrajectory(geometry(f))
    assert not trajectory.ready
    poses = recorded(4 * f + 1)
    trajectory.extend(3, poses[:2])
    trajectory.extend(4, poses[2:])
    assert trajectory.ready and trajectory.queued == len(poses)
    paths = [trajectory.take(i) for i in range(3)]
    played = np.concatenate([path.poses for path in paths])
    assert np.array_equal(played[: len(poses)], poses)
    assert np.array_equal(played[len(poses) :], np.tile(poses[-1], (len(played) - len(poses), 1, 1)))
    assert [path.control_seq for path in paths] == ([3, 4, 4] if f == 1 else [4, 4, 4])
    assert np.array_equal(paths[0].row_poses[0], paths[0].row_poses[1])
    assert np.allclose(np.diff(paths[1].row_poses[:, 0, 3])[0], 4)
    assert trajectory.queued == 0 and trajectory.ready


def test_the_pose_queue_is_bounded_and_ordered() -> None:
    trajectory = PoseTrajectory(geometry(1))
    trajectory.extend(1, recorded(MAX_QUEUED_POSES - 1))
    with pytest.raises(PoseQueueFull):
        trajectory.extend(2, recorded(2))
    assert (trajectory.queued, trajectory.dropped) == (MAX_QUEUED_POSES - 1, 1)
    with pytest.raises(ValueError, match="came after"):
        trajectory.extend(1, recorded(1))
    trajectory.extend(2, recorded(1))
    trajectory.restart()
    assert trajectory.queued == 0
    trajectory.extend(1, recorded(1))


def bent(change: dict[tuple[int, ...], float]) -> np.ndarray:
    poses = recorded(2)
    for index, value in change.items():
        poses[index] = value
    return poses


@pytest.mark.parametrize(
    "poses",
    [
        np.zeros((0, 4, 4), np.float32),
        np.zeros((2, 4), np.float32),
        bent({(1, 0, 0): np.nan}),
        bent({(1, 2, 3): np.inf}),
        bent({(1, 0, 0): 1.1}),
        bent({(1, 0, 0): -1.0}),  # a mirror
        bent({(1, 0, 0): 3e38}),
        bent({(1, 3, 3): 0.0}),
        bent({(1, 2, 3): 1e9}),
    ],
)
def test_what_is_no_pose_is_refused_whole(poses: np.ndarray) -> None:
    trajectory = PoseTrajectory(geometry(1))
    with pytest.raises(ValueError):
        trajectory.extend(1, poses)
    assert trajectory.queued == 0
    check_poses(recorded(2))
