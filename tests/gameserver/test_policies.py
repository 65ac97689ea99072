"""Protects what bots do: policies are functions of their arguments, and steer as their names say."""

from __future__ import annotations

import math
from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gameserver.policies import Hold, Policy, orbit, per_chunk, random_walk, recorded, scripted, walk
from world.motion import KEY_STEP_DEG as DEG
from world.motion import KEY_STEP_UNITS as UNITS
from world.motion import keyboard_poses, step_pose


def holds(policy: Policy, count: int) -> list[Hold]:
    return list(islice(policy, count))


def path(policy: Policy, frames: int) -> np.ndarray:
    """[frames + 1, 4, 4]"""
    poses = [np.eye(4)]
    for hold in policy:
        for _ in range(min(hold.frames, frames + 1 - len(poses))):
            forward, right, turn, pitch = hold.axes
            poses.append(step_pose(poses[-1], forward * UNITS, right * UNITS, turn * DEG, pitch * DEG))
        if len(poses) > frames:
            return np.stack(poses)
    raise AssertionError("it ended")


@given(st.integers(0, 2**53 - 1))
def test_a_random_walk_is_a_function_of_its_seed(seed: int) -> None:
    moves = holds(random_walk(seed), 20)
    assert moves == holds(random_walk(seed), 20) != holds(random_walk(seed + 1), 20)
    assert all(-1 <= axis <= 1 for hold in moves for axis in hold.axes) and all(hold.frames >= 2 for hold in moves)


def test_policies_do_not_share_what_they_remember() -> None:
    first, second = random_walk(5), random_walk(5)
    begun = holds(first, 3)
    assert holds(second, 5) == [*begun, *holds(first, 2)]
    assert holds(walk(), 7) == holds(walk(), 7)


def test_a_script_is_played_once_or_again_and_again() -> None:
    rest, ahead, left = (0.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (1.0, 0.0, -1.0, 0.0)
    assert holds(scripted("w-8,wj-3"), 9)[:2] == [Hold(ahead, 8), Hold(left, 3)]
    assert holds(scripted("w-8,wj-3"), 9)[2].axes == rest
    assert [hold.frames for hold in holds(scripted("w-8,wj-3", repeat=True), 5)] == [8, 3, 8, 3, 8]
    with pytest.raises(ValueError, match="in a script"):
        scripted("w8")


@pytest.mark.parametrize("radius", [0.5, 1.4, 3.0])
def test_an_orbit_stays_at_its_distance_and_looks_at_the_middle(radius: float) -> None:
    poses = path(orbit(radius), 400)
    middle = np.array([0.0, 0.0, radius])
    to_middle = middle - poses[:, :3, 3]
    distances = np.linalg.norm(to_middle, axis=1)
    assert np.abs(distances - radius).max() < 0.1 * radius
    assert (np.einsum("ni,ni->n", poses[:, :3, 2], to_middle) / distances).min() > math.cos(math.radians(6))
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    assert steps.sum() > 2 * math.pi * radius, "and goes all the way round"


@given(st.lists(st.tuples(st.floats(-1, 1), st.integers(1, 9)), min_size=1, max_size=12), st.integers(1, 9))
def test_by_chunks_the_same_is_held_in_all(pieces: list[tuple[float, int]], chunk_frames: int) -> None:
    policy = [Hold((axis, 0.0, -axis, 0.0), frames) for axis, frames in pieces]
    chunks = list(islice(per_chunk(iter(policy), chunk_frames), -(-sum(f for _, f in pieces) // chunk_frames)))
    assert sum(axes[0] for axes in chunks) * chunk_frames == pytest.approx(sum(a * f for a, f in pieces), abs=1e-9)
    assert all(axes[2] == -axes[0] and -1 <= axes[0] <= 1 for axes in chunks)


def test_holds_of_whole_chunks_stay_what_they_are() -> None:
    assert list(islice(per_chunk(scripted("w-8,l-4"), 4), 4)) == [
        (1.0, 0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize("frames", range(12))
def test_recorded_poses_fill_whole_chunks(frames: int) -> None:
    poses = keyboard_poses(f"wl-{frames}") if frames else keyboard_poses("w-1")[:1]
    pieces = list(recorded(poses, chunk_frames=4, first_frames=1))
    assert [len(piece) for piece in pieces] == [1] + [4] * (len(pieces) - 1)
    played = np.concatenate(pieces)
    assert np.array_equal(played[: len(poses)], poses) and len(played) - len(poses) < 4
    assert all(np.array_equal(a, b) for a, b in pairwise(played[len(poses) - 1 :]))
