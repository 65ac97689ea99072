"""Clips are sessions on a clock that jumps: as long as asked, along every pose, and nothing is left of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions.clip_game import Clip, Clips
from sessions.roster import DuplicateSession, Full
from sessions.tick import Finished
from world.chunk import Geometry, Start
from world.motion import keyboard_poses
from world.pattern import PatternWorld


def world(num_slots: int = 2, chunk_frames: int = 1) -> PatternWorld:
    return PatternWorld(Geometry(64, 48, 16, chunk_frames), num_slots, num_steps=2, max_rows=2)


def clip(made_in: PatternWorld, script: str, num_frames: int, seed: int = 1) -> Clip:
    scene = made_in.scenes[0]
    image = made_in.prepare_image(scene.image)
    start = Start(seed, made_in.encode_prompt(""), image, scene.intrinsics, scene.scale)
    return Clip(start, keyboard_poses(script), num_frames)


def finish(clips: Clips) -> dict[str, list[Finished]]:
    made: dict[str, list[Finished]] = {}
    while len(clips):
        for chunk in clips.tick():
            made.setdefault(chunk.session_id, []).append(chunk)
    return made


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 60)), min_size=1, max_size=3), st.integers(1, 3))
def test_every_clip_is_as_long_as_asked_and_follows_its_poses(lengths: list[tuple[int, int]], f: int) -> None:
    made_in = world(3, f)
    clips = Clips(made_in)
    for n, (script_frames, num_frames) in enumerate(lengths):
        clips.begin(str(n), clip(made_in, f"w-{script_frames}", num_frames))
    made = finish(clips)
    for n, (script_frames, num_frames) in enumerate(lengths):
        frames = sum(len(chunk.picture.frames) for chunk in made[str(n)])
        assert num_frames <= frames < num_frames + made_in.geometry.video_frames(1)
        poses = keyboard_poses(f"w-{script_frames}")
        wanted = poses[np.minimum(np.arange(frames), script_frames)]
        assert np.array_equal(np.concatenate([chunk.poses for chunk in made[str(n)]]), wanted)


def test_a_clip_longer_than_any_queue_is_fed_on_its_way() -> None:
    made_in = world(1)
    clips = Clips(made_in)
    clips.begin("long", clip(made_in, "wl-700,none-1300", 2001))
    chunks = finish(clips)["long"]
    assert np.array_equal(np.concatenate([chunk.poses for chunk in chunks])[:2001], keyboard_poses("wl-700,none-1300"))


def test_a_slot_is_free_as_soon_as_its_clip_is_done_or_dropped() -> None:
    made_in = world(1)
    clips = Clips(made_in)
    for round in range(3):
        assert clips.has_room
        clips.begin("a", clip(made_in, "w-4", 5))
        assert not clips.has_room and "a" in clips
        with pytest.raises(DuplicateSession):
            clips.begin("a", clip(made_in, "w-4", 5))
        with pytest.raises(Full):
            clips.begin("b", clip(made_in, "w-4", 5))
        if round == 1:
            clips.drop("a")
        else:
            assert len(finish(clips)["a"]) == 2


def test_what_cannot_be_a_clip_is_a_sentence() -> None:
    made_in = world()
    with pytest.raises(ValueError, match="at least one frame"):
        clip(made_in, "w-4", 0)
    start = clip(made_in, "w-4", 5).start
    with pytest.raises(ValueError, match="rigid"):
        Clip(start, np.zeros((3, 4, 4), np.float32), 5)
