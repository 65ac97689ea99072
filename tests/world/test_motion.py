"""The camera recurrence is the published one, and scripts are read or refused clearly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from world import motion

GOLDEN = Path(__file__).parent.parent / "golden" / "camera" / "cases.safetensors"


def golden_actions() -> list[tuple[str, np.ndarray]]:
    with safe_open(str(GOLDEN), "np") as file:
        actions = json.loads(file.metadata()["meta"])["actions"]
        return [(script, file.get_tensor(f"action{i}.c2w")) for i, script in enumerate(actions)]


@pytest.mark.parametrize("script, expected", golden_actions())
def test_scripts_walk_the_published_poses(script: str, expected: np.ndarray) -> None:
    poses = motion.keyboard_poses(script)
    assert poses.shape == expected.shape and poses.dtype == np.float32
    assert np.linalg.norm(poses - expected) / np.linalg.norm(expected) < 1e-6


def test_a_diagonal_is_not_slowed() -> None:
    moved = motion.keyboard_poses("wd-1")[1, :3, 3]
    assert np.allclose(moved, [0.05, 0.0, 0.05])


def test_turning_right_looks_toward_plus_x_and_up_toward_minus_y() -> None:
    assert motion.yaw_deg(motion.keyboard_poses("l-10")[-1]) == pytest.approx(20, abs=1e-4)
    assert motion.pitch_deg(motion.keyboard_poses("i-10")[-1]) == pytest.approx(20, abs=1e-4)
    assert motion.keyboard_poses("i-10")[-1, 1, 2] < 0


def test_pitch_stops_at_84_and_walking_stays_level() -> None:
    poses = motion.keyboard_poses("wi-60")
    assert motion.pitch_deg(poses[-1]) == pytest.approx(84, abs=1e-2)
    assert np.allclose(poses[:, 1, 3], 0)
    assert poses[-1, 2, 3] == pytest.approx(3.0, abs=1e-4)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_limit_itself_is_reached_and_a_pose_beyond_it_comes_back(sign: float) -> None:
    pose = motion.identity_pose()
    for _ in range(17):
        pose = motion.step_pose(pose, pitch_up_deg=sign * 5)
    assert motion.pitch_deg(pose) == pytest.approx(sign * 85)
    assert motion.pitch_deg(motion.step_pose(pose, pitch_up_deg=sign * 0.01)) == pytest.approx(sign * 85)
    a = np.radians(sign * 88)
    beyond = np.eye(4)
    beyond[1:3, 1:3] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    assert motion.pitch_deg(motion.step_pose(beyond, pitch_up_deg=-sign)) == pytest.approx(sign * 87)


step = st.tuples(*[st.floats(-3, 3)] * 2, *[st.floats(-90, 90)] * 2)


@given(st.lists(step, max_size=40))
def test_poses_stay_rigid_level_and_inside_the_limit(steps: list[tuple[float, float, float, float]]) -> None:
    pose = motion.identity_pose()
    turned = 0.0
    for forward, right, turn, pitch in steps:
        pose = motion.step_pose(pose, forward, right, turn, pitch)
        turned += turn
        assert abs(motion.pitch_deg(pose)) <= 85.001
    assert np.allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-9)
    assert pose[1, 0] == pytest.approx(0, abs=1e-9) and pose[1, 3] == 0  # no roll, no climbing
    assert np.cos(np.radians(motion.yaw_deg(pose) - turned)) == pytest.approx(1, abs=1e-6)


def test_scripts_and_planes() -> None:
    assert motion.parse_script("w-8,wl-8, none-4") == (("w", 8), ("wl", 8), ("", 4))
    planes = motion.keyboard_planes("w-1,asd-1,none-1")
    assert planes.tolist() == [[1, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    assert motion.axes_planes(motion.key_axes("wa")).tolist() == [1, 1, 0, 0]
    assert motion.axes_planes(motion.key_axes("sdl")).tolist() == [0, 0, 1, 1]


BAD = ["", "w", "w-", "-4", "w-0", "w--1", "w-1.5", "x-4", "ww-4", "w-4,,s-2", "w-²", "w-9999999"]


@pytest.mark.parametrize("text", BAD)
def test_bad_scripts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="script"):
        motion.parse_script(text)


@given(st.text(alphabet="wasdijklnoe-,0123456789 x", max_size=20))
def test_any_text_is_a_script_or_a_value_error(text: str) -> None:
    try:
        script = motion.parse_script(text)
    except ValueError:
        return
    assert motion.parse_script(",".join(f"{keys or 'none'}-{frames}" for keys, frames in script)) == script
