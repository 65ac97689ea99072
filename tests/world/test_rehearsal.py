"""What a rehearsal on the meta device finds is what service allocates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.world.tiny_world import Life, random_world, tiny_config
from world.model import exercise, usual_start
from world.nn.fp8 import to_fp8
from world.rehearsal import META, Peak, cast, num_bytes, picture_bytes, rehearsed, row_bytes

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CONFIGS = {
    "warp": tiny_config(width=64, height=64),
    "first_frame": tiny_config(conditioning="first_frame", chunk_frames=2, window_frames=5, width=64, height=64),
}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("inference", [True, False])
def test_a_storage_counts_from_its_making_to_its_last_reference(inference):
    before = torch.empty(1000, device=META)
    with torch.inference_mode(inference), Peak() as peak:
        a = torch.empty(100, device=META)  # 400 bytes
        view = before[:10].view(2, 5)
        b = a + 1  # and 400
        del a
        assert (peak.live_bytes, peak.most_bytes) == (400, 800)
        b += 1
        c = b[:50].bfloat16()  # and 100
        assert (peak.live_bytes, peak.most_bytes) == (500, 800)
        part = b[:1]
        del b
        assert peak.live_bytes == 500, "a view keeps all of it"
        del part, c, view
        assert (peak.live_bytes, peak.most_bytes) == (0, 800)


def test_what_leaves_the_device_is_there_and_attention_makes_its_output_only():
    with torch.inference_mode(), Peak() as peak:
        q, k = torch.empty(1, 2, 64, 8, device=META), torch.empty(1, 2, 256, 8, device=META)
        made = peak.live_bytes
        seen = torch.nn.functional.scaled_dot_product_attention(q, k, k)
        assert seen.shape == q.shape and peak.most_bytes == made + num_bytes([q])
        assert not seen.to(torch.bfloat16).cpu().float().numpy().any()


@pytest.mark.parametrize(
    ("dtype", "precision"), [(torch.float32, "native"), (torch.bfloat16, "native"), (torch.bfloat16, "fp8")], ids=str
)
@pytest.mark.parametrize("name", CONFIGS)
def test_service_allocates_what_was_rehearsed(name, dtype, precision):
    """Real tensors counted the same way: no more a row, but for pictures, which leave a device; and not much less."""
    cfg = CONFIGS[name]
    world = random_world(cfg, dtype, num_slots=3)
    if precision == "fp8":
        to_fp8(world.denoiser.dit, CPU)
    for slot in (1, 2, 3):
        life = Life(slot, cfg.geometry.chunk_frames, 1)
        world.open(slot, life.start(world))
    predicted = row_bytes(cfg, dtype, CPU, precision)
    for rows in (1, 2, 3):
        with Peak(CPU) as peak:
            exercise(world, rows)
        pictures = rows * cfg.geometry.video_frames(1) * 64 * 64 * 3 // 2
        assert 0.75 * rows * predicted < peak.most_bytes <= rows * predicted + pictures


@pytest.mark.parametrize("name", CONFIGS)
def test_a_gpu_keeps_the_memory_of_graphs_beside_what_begins_a_chunk(name):
    """The longest of the captured work and the most of the rest, each in memory of its own."""
    cfg, parts = CONFIGS[name], dict[str, int]()
    world = rehearsed(cfg, torch.float32, 1)
    world.open(1, usual_start(world))

    def counted(method):
        part = getattr(world, method)

        def count(*args):
            with Peak() as peak:
                made = part(*args)
            parts[method] = peak.most_bytes
            return made

        return count

    for method in ("_begin", "_decode"):
        setattr(world, method, counted(method))
    exercise(world, 1, chunks=(1,), steps=(0, world.num_steps - 1))
    both = parts["_begin"] + parts["_decode"]  # which takes more than a forward at this size
    assert row_bytes(cfg, torch.float32, CPU) == max(parts.values())
    assert 0.9 * both < row_bytes(cfg, torch.float32, GPU) < 1.1 * both


@pytest.mark.parametrize("name", CONFIGS)
def test_a_picture_takes_what_was_rehearsed(name):
    cfg = CONFIGS[name]
    world = random_world(cfg, num_slots=1)
    most, kept = picture_bytes(cfg, torch.float32)
    with Peak(CPU) as peak:
        image = world.prepare_image(np.zeros((64, 64, 3), np.uint8))
    assert num_bytes([image]) == kept
    assert 0.75 * most < peak.most_bytes <= most


def test_a_rehearsal_takes_no_memory():
    world = rehearsed(CONFIGS["warp"], torch.bfloat16, 2)
    every = [*world.slab.tensors(), *world.denoiser.dit.parameters(), *world.vae.parameters()]
    assert all(t.is_meta for t in every)


def test_a_storage_that_tensors_share_counts_once():
    a = torch.empty(100, device=META)
    assert num_bytes([a, a[:50], torch.empty(10, dtype=torch.uint8)]) == 410
    layer = torch.nn.Linear(3, 5, device=META)
    cast(layer, lambda key: torch.bfloat16 if key == "weight" else torch.float32)
    assert num_bytes(dict(layer.named_parameters())) == 2 * 15 + 4 * 5
