"""What a rehearsal on the meta device finds is what service allocates."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from tests.world.kernels import needs_triton
from tests.world.tiny_world import Life, random_world, tiny_config
from world.chunk import PRECISIONS, Precision, usual_start
from world.model import exercise
from world.nn import rows
from world.nn.attention import ring_door
from world.nn.rows import fp8_rings
from world.rehearsal import META, Peak, Work, cast, num_bytes, rehearsed, rehearsed_work, taken_for

CPU, GPU = torch.device("cpu"), torch.device("cuda")
CONFIGS = {
    "warp": tiny_config(width=64, height=64),
    "first_frame": tiny_config(conditioning="first_frame", chunk_frames=2, window_frames=5, width=64, height=64),
}
ONE_HEAD = "one head"  # of as many numbers as a GPU's attention over FP8 takes
pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def work_of(name: str, dtype: torch.dtype, precision: Precision = "native", device: torch.device = CPU) -> Work:
    cfg = CONFIGS["warp" if name == ONE_HEAD else name]
    if name == ONE_HEAD:
        cfg = replace(cfg, dit=replace(cfg.dit, dim=64, num_heads=1))
    return rehearsed_work(cfg, dtype, device, precision)


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
    ("dtype", "precision"), [(torch.float32, "native"), (torch.bfloat16, "native"), (torch.bfloat16, "fp8-kv")], ids=str
)
@pytest.mark.parametrize("name", CONFIGS)
def test_service_allocates_what_was_rehearsed(name, dtype, precision):
    """Real tensors counted the same way: no more a row, but for pictures, which leave a device; and not much less."""
    cfg = CONFIGS[name]
    world = random_world(cfg, dtype, num_slots=3, precision=precision)
    for slot in (1, 2, 3):
        life = Life(slot, cfg.geometry.chunk_frames, 1)
        world.open(slot, life.start(world))
    work = work_of(name, dtype, precision)
    predicted = max(work.begin, work.forward, work.decode)
    for num_rows in (1, 2, 3):
        with Peak(CPU) as peak:
            exercise(world, num_rows)
        pictures = num_rows * cfg.geometry.video_frames(1) * 64 * 64 * 3 // 2
        assert 0.75 * num_rows * predicted < peak.most_bytes <= num_rows * predicted + pictures


@pytest.mark.parametrize("name", CONFIGS)
def test_what_begins_and_what_decodes_a_chunk_count_apart(name):
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

    for method in ("_begin", "_denoise", "_decode"):
        setattr(world, method, counted(method))
    exercise(world, 1, chunks=(1,), steps=(0, world.num_steps - 1))
    work = work_of(name, torch.float32)
    assert {"_begin": work.begin, "_denoise": work.forward, "_decode": work.decode} == pytest.approx(parts, rel=0.02)


def test_cameras_of_all_blocks_are_never_there_at_once():
    """A chunk begins with less than what its camera leaves in the slab."""
    cfg = CONFIGS["warp"]
    deep = replace(cfg, dit=replace(cfg.dit, num_layers=20))
    assert rehearsed_work(deep, torch.float32, CPU).begin == work_of("warp", torch.float32).begin


@needs_triton
def test_for_a_gpu_our_kernels_outputs_count_and_nothing_between():
    from triton.runtime import KernelInterface

    launched, counted = KernelInterface.__getitem__, dict[torch.device, int]()
    for device in (CPU, GPU):
        x, gamma, norm = (torch.empty(*shape, device=META) for shape in ((1, 4, 8, 8, 6), (6,), (64,)))
        with torch.inference_mode(), taken_for(device):
            assert rows.fused(x) == (device == GPU)
            with Peak() as peak:
                made = rows.unit_norm(x, gamma, silu=True)
                made = rows.add_norm(x.view(1, -1, 64), norm, norm, 1e-6, torch.bfloat16, x.view(1, -1, 64))
            counted[device] = peak.most_bytes
    output = num_bytes([x])
    assert counted[GPU] == output + output + output // 2 < counted[CPU], "the first's, then a sum and its norm in half"
    assert [t.shape for t in made] == [(1, 24, 64)] * 2
    assert KernelInterface.__getitem__ is launched, "they can be launched again"


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="its attention is that of the GPU which is there")
@pytest.mark.parametrize("heads, pieces", [(40, 28 * 4), (12, 60 * 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_attention_on_a_hopper_gpu_counts_what_its_split_jobs_leave(heads, pieces, dtype):
    """37 or 49 tiles of queries a head, for 132 multiprocessors."""
    length = 4680 if heads == 40 else 6240
    q = torch.empty(2, length, heads, 128, dtype=torch.bfloat16, device=META)
    k, v = torch.empty(2, 9000, heads, 128, dtype=dtype, device=META)
    if dtype.itemsize == 1:
        k, v = fp8_rings(9000, heads, 128, dtype, META)
    begins, valid = torch.empty(2, dtype=torch.int64, device=META), torch.empty(2, dtype=torch.int32, device=META)
    with torch.inference_mode(), taken_for(GPU), Peak() as peak:
        made = ring_door(GPU, torch.bfloat16)(q, k, v, begins, 28080, valid)
    assert peak.most_bytes == num_bytes([made]) + 2 * pieces * 128 * (128 + 2) * 4


@needs_triton
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_gpu_works_in_less(precision):
    name = ONE_HEAD if precision == "fp8-kv" else "warp"
    on_cpu, on_gpu = (work_of(name, torch.bfloat16, precision, device) for device in (CPU, GPU))
    assert on_gpu.forward < on_cpu.forward and on_gpu.decode < on_cpu.decode and on_gpu.picture <= on_cpu.picture
    assert on_gpu.start == on_cpu.start


@pytest.mark.parametrize("device", [META, CPU], ids=str)
def test_operations_count_as_a_device_runs_them(device):
    """Not as Python would put them together, which resizes in float32."""
    x = torch.zeros(1, 8, 4, 4, dtype=torch.bfloat16, device=device)
    with torch.inference_mode(), Peak(device) as peak:
        made = torch.nn.functional.interpolate(x, scale_factor=2.0)
    assert peak.most_bytes == num_bytes([made]) == 4 * num_bytes([x])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_picture_takes_what_was_rehearsed(name):
    cfg = CONFIGS[name]
    world = random_world(cfg, num_slots=1)
    work = work_of(name, torch.float32)
    with Peak(CPU) as peak:
        image = world.prepare_image(np.zeros((64, 64, 3), np.uint8))
    assert num_bytes([image]) == work.start
    assert 0.75 * work.picture < peak.most_bytes <= work.picture


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
