"""Control channels are what the checkpoint was trained on: the published tensors, exact bits in any batch, and a live
path that agrees with the published one wherever a stream can know what it needs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from world import camera

GOLDEN = Path(__file__).parent.parent / "golden" / "camera" / "cases.safetensors"


@pytest.fixture(scope="module")
def golden() -> tuple[dict[str, torch.Tensor], dict]:
    with safe_open(GOLDEN, "pt") as file:
        return load_file(GOLDEN), json.loads(file.metadata()["meta"])


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def walk(num: int, seed: int = 0) -> np.ndarray:
    """A smooth random path of camera poses [num, 4, 4]."""
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (num, 1, 1))
    for i in range(1, num):
        step = np.eye(4)
        step[:3, :3] = rotation(rng.normal(size=3), rng.uniform(-0.1, 0.1))
        step[:3, 3] = rng.normal(size=3) * 0.1
        poses[i] = poses[i - 1] @ step
    return poses.astype(np.float32)


def test_golden_case_from_its_inputs(golden):
    tensors, meta = golden
    inputs = {key: tensor for key, tensor in tensors.items() if key.endswith(".poses")}
    out = camera.camera_case(inputs, meta)
    assert out.keys() == tensors.keys() - inputs.keys()
    for key, got in out.items():
        bound = 2e-5 if "relative" in key or "plucker" in key else 1e-5
        assert got.shape == tensors[key].shape and got.dtype == torch.float32
        assert (got - tensors[key]).norm() <= bound * tensors[key].norm(), key


@pytest.mark.parametrize(
    "video_frames, chunk_frames, expected", [(81, 3, 21), (81, 4, 20), (80, 3, 18), (9, 3, 3), (8, 3, 0)]
)
def test_latent_frames_are_whole_chunks(video_frames, chunk_frames, expected):
    assert camera.latent_frames(video_frames, chunk_frames) == expected


def test_interpolation_between_recorded_poses():
    axis = np.array([1.0, -2.0, 0.5])
    ends = np.tile(np.eye(4), (2, 1, 1))
    ends[1, :3, :3], ends[1, :3, 3] = rotation(axis, 2.8), [4.0, 0.0, -8.0]
    mixed = camera.interpolate(ends.astype(np.float32), 5)
    for i, pose in enumerate(mixed):
        np.testing.assert_allclose(pose[:3, :3], rotation(axis, 2.8 * i / 4), atol=1e-6)
        np.testing.assert_allclose(pose[:3, 3], [i, 0, -2 * i], atol=1e-6)
    np.testing.assert_array_equal(camera.interpolate(ends[:1].astype(np.float32), 3), ends[[0, 0, 0]])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), num=st.integers(2, 90), picked=st.integers(1, 30))
def test_interpolation_keeps_poses_rigid_and_the_ends_in_place(seed, num, picked):
    poses = walk(num, seed)
    mixed = camera.interpolate(poses, picked).astype(np.float64)
    np.testing.assert_allclose(mixed[:, :3, :3] @ mixed[:, :3, :3].mT, np.tile(np.eye(3), (picked, 1, 1)), atol=1e-6)
    np.testing.assert_allclose(mixed[0], poses[0], atol=1e-6)
    if picked > 1:
        np.testing.assert_allclose(mixed[-1], poses[-1], atol=1e-6)


def test_interpolation_agrees_with_scipy():
    transform = pytest.importorskip("scipy.spatial.transform")
    for seed, angle in ((0, 3.1), (1, 1e-3), (2, 1e-6)):
        rng = np.random.default_rng(seed)
        poses = np.tile(np.eye(4, dtype=np.float32), (7, 1, 1))
        for pose in poses:
            pose[:3, :3] = rotation(rng.normal(size=3), rng.uniform(-angle, angle))
        at = np.linspace(0, 6, 17)
        expected = transform.Slerp(np.arange(7), transform.Rotation.from_matrix(poses[:, :3, :3]))(at).as_matrix()
        np.testing.assert_allclose(camera.interpolate(poses, 17)[:, :3, :3], expected, atol=3e-7)


def test_relative_of_a_camera_that_never_moves_is_the_identity():
    still = np.repeat(walk(3)[-1:], 5, axis=0)
    np.testing.assert_array_equal(camera.relative(still), np.tile(np.eye(4, dtype=np.float32), (5, 1, 1)))
    np.testing.assert_array_equal(camera.relative_live(still, 0.2), np.tile(np.eye(4, dtype=np.float32), (4, 1, 1)))


def test_a_stream_sees_the_published_values_when_the_scale_is_the_clip_maximum():
    poses = walk(13)
    exact = np.linalg.inv(poses[:-1].astype(np.float64)) @ poses[1:]
    scale = float(np.linalg.norm(exact[:, :3, 3], axis=1).max())
    before_first = np.concatenate([poses[:1], poses])  # the pose before chunk 0 is its first one
    chunks = [camera.relative_live(before_first[i : i + 4], scale) for i in range(0, 12, 3)]
    np.testing.assert_allclose(np.concatenate(chunks), camera.relative(poses)[:12], rtol=1e-6, atol=1e-7)


def test_a_small_step_far_from_the_origin_keeps_its_bits():
    poses = walk(2)
    poses[0, :3, 3] = 4096.0
    poses[1, :3, 3] = 4096.0 + np.array([0.0, 0.0, 0.25], np.float32)
    poses[:, :3, :3] = np.eye(3)
    np.testing.assert_array_equal(camera.relative_live(poses, 0.5)[0, :3, 3], np.float32([0, 0, 0.5]))


def test_ray_of_one_pixel():
    """Pixel centres, the fold and the plane order, worked out by hand for one pixel."""
    poses = torch.from_numpy(walk(3))[None]
    fx, fy, cx, cy = 40.0, 50.0, 23.0, 17.0
    channels = camera.rays(poses, torch.tensor([[fx, fy, cx, cy]]), height=32, width=48)
    assert channels.shape == (1, 384, 3, 4, 6)
    frame, line, column = 2, 13, 30
    ray = np.array([(column + 0.5 - cx) / fx, (line + 0.5 - cy) / fy, 1.0])
    turn = poses[0, frame, :3, :3].double().numpy()
    expected = [*poses[0, frame, :3, 3].tolist(), *(turn @ ray / np.linalg.norm(ray))]
    for plane, value in enumerate(expected):
        channel = (plane * 8 + line % 8) * 8 + column % 8
        assert channels[0, channel, frame, line // 8, column // 8].item() == pytest.approx(value, abs=1e-6)


def test_act_channels_are_directions_then_keys():
    poses, intrinsics = torch.from_numpy(walk(3))[None], torch.tensor([[40.0, 40.0, 24.0, 16.0]])
    keys = torch.tensor([[[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]])
    channels = camera.act(poses, keys, intrinsics, 32, 48)
    assert channels.shape == (1, 448, 3, 4, 6)
    assert torch.equal(channels[:, :192], camera.rays(poses, intrinsics, 32, 48)[:, 192:])
    planes = channels[:, 192:].reshape(1, 4, 64, 3, 4, 6)
    assert torch.equal(planes, keys.mT[:, :, None, :, None, None].expand_as(planes).float())


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(2, 5),
    frames=st.integers(1, 4),
    tiles=st.tuples(st.integers(1, 4), st.integers(1, 5)),
)
def test_a_row_has_the_same_bits_alone_and_in_company(seed, rows, frames, tiles):
    rng = np.random.default_rng(seed)
    height, width = 16 * tiles[0], 16 * tiles[1]
    live = torch.from_numpy(np.stack([camera.relative_live(walk(frames + 1, seed + i), 0.2) for i in range(rows)]))
    intrinsics = torch.from_numpy(rng.uniform(20, 90, (rows, 4)).astype(np.float32))
    keys = torch.from_numpy(rng.integers(0, 2, (rows, frames, 4)).astype(np.float32))
    together = camera.rays(live, intrinsics, height, width), camera.act(live, keys, intrinsics, height, width)
    for i in range(rows):
        one = slice(i, i + 1)
        assert torch.equal(together[0][one], camera.rays(live[one], intrinsics[one], height, width))
        assert torch.equal(together[1][one], camera.act(live[one], keys[one], intrinsics[one], height, width))


def test_intrinsics_follow_the_size_of_the_picture():
    np.testing.assert_allclose(
        camera.scale_intrinsics([500, 480, 416, 240], (832, 480), (416, 160)), [250, 160, 208, 80]
    )
